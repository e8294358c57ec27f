"""RoBERTa trained on its end task and, beside it, on masked tokens of weighed texts (SAMA, section 4.2).

    inner  L(theta, lam) = mean_i CE(x_i, y_i; theta) + mean_j w(l_j; lam) l_j,   l_j masked-language-model loss of text j
    outer  M(theta)      = mean cross-entropy of the end task on a held-out batch

w is Meta-Weight-Net (1-100-1) on the text's own loss, which it reads *not* detached (``detach=True`` is what released codes
do). Only masked positions are projected onto the vocabulary. Hyperparameters of the paper's Table 5: Adam 2e-5 inside, 1e-5
outside, 10 steps a meta step, 16 examples of 256 tokens; its warm-up and decay of the rate are left out. The paper takes the
outer loss on the end task's training data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from estimators import Adam, Problem, Stage, Tree, from_module
from estimators.module import Call
from estimators.stage import Batch

from ..problems.common import generator, of_number
from .base import GENERATED, Workload
from .transformer import (
    FIRST,
    NEEDS,
    POOL,
    chosen,
    encoder_shape,
    in_order,
    library,
    sizes,
    start,
    token_losses,
    topical,
    without_weights,
)
from .weigh import two_layers, weights

ABOUT = "RoBERTa with masked language modelling beside its task, texts reweighted"
CITATION = "Choe et al. 2023, section 4.2; Dery et al. 2022; Gururangan et al. 2020"
SIZES = sizes(batch=16, length=256)

CLASSES = 4
MASKED = 0.15
"""Share of a text's tokens that are to be guessed."""
LR = 2e-5
BEGIN, END = 0, 2
"""RoBERTa's ids; its mask is the last of the vocabulary."""

__all__ = ["ABOUT", "CITATION", "NEEDS", "SIZES", "make"]


class _TwoTasks(nn.Module):
    def __init__(self, language: nn.Module, hidden: int) -> None:
        super().__init__()
        self.language = language
        self.classifier = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))

    def forward(
        self, task: Tensor, texts: Tensor | None = None, masked: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(b, length) twice, (b, m) masked positions -> (b, classes) and (b, m, vocabulary) logits."""
        body, head = self.language.get_submodule("roberta"), self.language.get_submodule("lm_head")
        if texts is None or masked is None:
            return self.classifier(body(task).last_hidden_state[:, 0]), None
        seen = body(torch.cat([task, texts])).last_hidden_state
        at = masked[..., None].expand(-1, -1, seen.shape[-1])
        return self.classifier(seen[: len(task), 0]), head(seen[len(task) :].gather(1, at))


def make(
    *,
    size: str = "tiny",
    unroll: int = 10,
    batch: int | None = None,
    length: int | None = None,
    detach: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Workload:
    """Build it.

    Args:
        size: one of `SIZES`.
        unroll: steps before a meta step.
        batch: examples of the end task a step, as many texts beside them, and in the held-out batch; the size's own if None.
        length: tokens of each; the size's own if None.
        detach: the weight net reads the loss as a constant.
        seed: of the weights and the data.
        dtype, device: of everything.

    Raises:
        ImportError: `transformers` is missing.
        ValueError: no such size, or a number out of its range.
    """
    s = chosen(SIZES, size, batch, length, unroll=unroll)
    transformers = library()
    vocabulary = s.vocabulary or 50265
    config: Any = transformers.RobertaConfig(
        **encoder_shape(s), vocab_size=vocabulary, max_position_embeddings=514, type_vocab_size=1
    )
    module = without_weights(lambda: _TwoTasks(transformers.RobertaForMaskedLM(config), s.hidden), device)

    def both(model: Call, drawn: Batch) -> tuple[Tensor, Tensor]:
        """(loss of the end task, (b,) losses of the texts)"""
        task, labels, texts, masked, targets = drawn
        logits, guesses = model(task, texts, masked)
        return cross_entropy(logits, labels), token_losses(guesses, targets)

    def unweighted(model: Call, _: Tree, drawn: Batch) -> Tensor:
        end, each = both(model, drawn)
        return end + each.mean()

    def weighted(model: Call, hparams: Tree, drawn: Batch) -> Tensor:
        end, each = both(model, drawn)
        return end + (weights(hparams, each.detach() if detach else each) * each).mean()

    def end_task(model: Call, _: Tree, drawn: Batch) -> Tensor:
        return cross_entropy(model(drawn[0])[0], drawn[1])

    loss, shapes = from_module(module, weighted)
    plain = from_module(module, unweighted).loss
    validate = from_module(module, end_task).loss
    pool, held_out = _generated(s.batch, s.length, vocabulary, seed)
    pool, held_out = tuple(x.to(device) for x in pool), tuple(x.to(device) for x in held_out)

    return Workload(
        problem=Problem(
            name="roberta_auxiliary",
            stages=[Stage(loss, Adam(lr=LR), in_order(pool, s.batch), unroll)],
            outer=lambda params, _: validate(params, {}, held_out),
            start=start(shapes, seed, dtype, device),
            hparams=two_layers("weight", 1, 1, source=generator(seed), dtype=dtype, device=device),
            about=ABOUT,
        ),
        samples=s.batch,
        plain=lambda params, drawn: plain(params, {}, drawn),
        optimizer=lambda leaves: torch.optim.Adam(leaves, lr=LR),
        meta=lambda leaves: torch.optim.Adam(leaves, lr=1e-5),
        data=f"{GENERATED}: random tokens, a part of them from their class's vocabulary; half of the texts have no class",
        settings={
            "size": size, "unroll": unroll, "batch": s.batch, "length": s.length, "detach": detach, "seed": seed,
            "optimizer": "adam", "lr": LR, "classes": CLASSES, "vocabulary": vocabulary,
        },
    )  # fmt: skip


def _generated(batch: int, length: int, vocabulary: int, seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(task, its labels, texts, masked positions, what stood there), and a held-out (task, labels)."""
    source = of_number(seed, 0)
    mask = vocabulary - 1

    def examples(number: int, share: float) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (number,), generator=source)
        tokens = topical(labels, CLASSES, mask, length, source, share=share)
        tokens[:, 0], tokens[:, -1] = BEGIN, END
        return tokens, labels

    task, labels = examples(POOL * batch, 0.3)
    related, unrelated = examples(POOL * batch, 0.3)[0], examples(POOL * batch, 0.0)[0]
    texts = torch.where(torch.rand(len(task), 1, generator=source) < 0.5, related, unrelated)

    m = max(1, round(MASKED * length))
    masked = 1 + torch.rand(len(texts), length - 2, generator=source).argsort(1)[:, :m]  # not the first, nor the last
    targets = texts.gather(1, masked)
    chance = torch.rand(targets.shape, generator=source)
    guess = torch.randint(FIRST, mask, targets.shape, generator=source)
    # of ten: eight are hidden, one is replaced and one stays, as in BERT
    shown = torch.where(chance < 0.8, mask, torch.where(chance < 0.9, guess, targets))
    return (task, labels, texts.scatter(1, masked, shown), masked, targets), examples(batch, 0.3)
