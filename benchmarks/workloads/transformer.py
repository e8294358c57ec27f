"""What the text workloads share: sizes, models from configurations, random weights, tokens, and the order of examples.

Models are built by `transformers` from a configuration, without a network. They hold no weights: a module stays on the
meta device, and `start` draws one copy of the leaves where they are wanted. Dropout is 0, so that a loss draws nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from estimators import Tree

from ..problems.common import require, require_positive

NEEDS = ("transformers",)
INITIAL_STD = 0.02
"""Of every matrix at the start, as in BERT, RoBERTa and GPT-2."""

PAD, CLS, SEP = 0, 101, 102
"""BERT's ids; ordinary tokens start after all of BERT's special ones."""
FIRST = 104

ATTENTION = "hypergradbench"
"""What `_attention` is called among the attention functions of `transformers`."""

POOL = 32
"""Batches of generated examples; then they come again."""


@dataclass(frozen=True)
class Size:
    """A transformer's shape and what one step reads; ``vocabulary`` None is the model's own."""

    layers: int
    hidden: int
    heads: int
    batch: int
    length: int
    vocabulary: int | None = None


def sizes(batch: int, length: int) -> dict[str, Size]:
    """The sizes of all text workloads: ``base`` is BERT-base, RoBERTa-base and GPT-2, ``large`` their next.

    Args:
        batch: examples a step, except at "tiny".
        length: tokens an example, except at "tiny".
    """
    return {
        "tiny": Size(2, 32, 2, 8, 16, vocabulary=512),
        "small": Size(12, 512, 8, batch, length),
        "base": Size(12, 768, 12, batch, length),
        "large": Size(24, 1024, 16, batch, length),
        "xl": Size(24, 1792, 28, batch, length),
    }


def chosen(
    known: dict[str, Size], size: str, batch: int | None, length: int | None, *, positions: int = 512, **positive: int
) -> Size:
    """The size called ``size`` with the caller's own batch and length.

    Args:
        positions: most tokens that the model reads.
        positive: settings that must be 1 at least.

    Raises:
        ValueError: no such size, a number below 1, or a sequence too short to hold anything.
    """
    require(size in known, f"size={size!r}: choose one of {', '.join(known)}")
    s = known[size]
    n = s.batch if batch is None else batch
    long = s.length if length is None else length
    require_positive(batch=n, **positive)
    require(4 <= long <= positions, f"length={long}: from 4 to {positions}, the positions that the model knows")
    return Size(s.layers, s.hidden, s.heads, n, long, s.vocabulary)


def library() -> ModuleType:
    """`transformers`, told not to look for a network.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError as error:
        raise ImportError("this workload builds its model with transformers: pip install -e '.[models]'") from error
    transformers.AttentionInterface.register(ATTENTION, _attention)
    return transformers


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Torch's scaled dot product attention without dropout: (b, heads, length, d) each -> (b, length, heads, d).

    For its own "sdpa", `transformers` looks at the values of the position ids, in every pass of a decoder: a wait for the
    device, a value cut from the graph, and another mask, hence another kernel and other memory, under fake tensors. For a
    name that it has no masks for it makes none.
    """
    causal = attention_mask is None and bool(getattr(module, "is_causal", False))
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, is_causal=causal, scale=settings.get("scaling")
    )
    return out.transpose(1, 2).contiguous(), None


def encoder_shape(s: Size) -> dict[str, Any]:
    """Arguments of ``BertConfig`` and ``RobertaConfig``."""
    return {
        "hidden_size": s.hidden,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "intermediate_size": 4 * s.hidden,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "attn_implementation": ATTENTION,
    }


def without_weights(build: Callable[[], nn.Module], device: torch.device | str) -> nn.Module:
    """The module that ``build`` makes, its parameters on the meta device, its buffers on ``device``.

    Raises:
        NotImplementedError: a buffer whose values are not known here.
    """
    with torch.device("meta"):
        module = build()
    for path, buffer in list(module.named_buffers()):
        where, _, name = path.rpartition(".")
        if name == "position_ids":
            values = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
        elif name == "token_type_ids":
            values = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
        else:
            raise NotImplementedError(
                f"{type(module).__name__} has a buffer {path!r} that is filled nowhere: add it here"
            )
        module.get_submodule(where)._buffers[name] = values
    return module.eval()


def start(shapes: Tree, seed: int, dtype: torch.dtype, device: torch.device | str) -> Tree:
    """Random leaves, drawn on ``device`` one at a time: matrices N(0, `INITIAL_STD`^2), gains 1, biases 0.

    The draws are float32 whatever ``dtype`` is. A GPU's differ from the CPU's.
    """
    source = torch.Generator(device).manual_seed(seed)

    def drawn(name: str, shape: torch.Size) -> Tensor:
        x = torch.empty(shape, device=device)
        if len(shape) > 1:
            x.normal_(0, INITIAL_STD, generator=source)
        else:
            x.fill_(1.0 if name.endswith("weight") else 0.0)  # of a layer norm, or a bias
        return x.to(dtype)

    return {k: drawn(k, x.shape) for k, x in shapes.items()}


def in_order(pool: tuple[Tensor, ...], batch: int) -> Callable[[int], tuple[Tensor, ...]]:
    """A stream that goes through ``pool`` again and again, ``batch`` rows a step.

    Raises:
        ValueError: there are fewer rows than one batch has.
    """
    size = len(pool[0])
    require(batch <= size, f"batch={batch}: there are only {size} examples")

    def stream(step: int) -> tuple[Tensor, ...]:
        first = step * batch % size
        if first + batch <= size:
            return tuple(x[first : first + batch] for x in pool)  # views: a step's data cost nothing
        return tuple(torch.cat([x[first:], x[: first + batch - size]]) for x in pool)

    return stream


def topical(topics: Tensor, number: int, vocabulary: int, length: int, source: torch.Generator, share: float) -> Tensor:
    """Token ids (b, length) that tell of a topic: ``share`` of them are from its own part of the vocabulary.

    Args:
        topics: (b,) from 0 to ``number`` - 1.
        number: of topics; each has an equal part of the vocabulary from `FIRST` on.
    """
    shape = (len(topics), length)
    part = (vocabulary - FIRST) // number
    common = torch.randint(FIRST, vocabulary, shape, generator=source)
    own = FIRST + topics[:, None] * part + torch.randint(part, shape, generator=source)
    return torch.where(torch.rand(shape, generator=source) < share, own, common)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(b, m, vocabulary), (b, m) -> (b,) mean cross-entropy of each example's tokens."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)
