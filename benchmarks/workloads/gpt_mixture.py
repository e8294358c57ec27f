"""Pre-training of a GPT-2 on several domains, whose weights are learned for a target domain (after DoReMi).

    inner  L(theta, lam) = mean_i D softmax(lam)_{d_i} l_i(theta),   l_i mean next-token loss of example i of domain d_i
    outer  M(theta)      = mean next-token loss on the target

D is the number of domains: at lam = 0, where it starts, L is the plain loss. DoReMi itself (Xie et al. 2023) sets the weights by
the excess loss over a reference model, without a derivative; only its parametrisation is taken.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from estimators import Adam, Problem, Stage, Tree, from_module
from estimators.module import Call
from estimators.stage import Batch

from ..problems.common import of_number, require
from .base import GENERATED, Workload
from .transformer import (
    ATTENTION,
    FIRST,
    NEEDS,
    POOL,
    chosen,
    in_order,
    library,
    sizes,
    start,
    token_losses,
    topical,
    without_weights,
)
from .weigh import softmax

ABOUT = "a GPT-2 pre-trained on several domains, one learned weight a domain"
CITATION = "after Xie et al. 2023 (DoReMi)"
SIZES = sizes(batch=8, length=512)

LR = 3e-4

__all__ = ["ABOUT", "CITATION", "NEEDS", "SIZES", "make"]


def make(
    *,
    size: str = "tiny",
    unroll: int = 10,
    batch: int | None = None,
    length: int | None = None,
    domains: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Workload:
    """Build it.

    Args:
        size: one of `SIZES`.
        unroll: steps before a meta step.
        batch: examples a step, and in the target's batch; the size's own if None.
        length: tokens that an example predicts; the size's own if None.
        domains: how many, each with its own part of the vocabulary; the target is a mixture of the first two.
        seed: of the weights and the data.
        dtype, device: of everything.

    Raises:
        ImportError: `transformers` is missing.
        ValueError: no such size, or a number out of its range.
    """
    s = chosen(SIZES, size, batch, length, positions=1024, unroll=unroll)
    transformers = library()
    vocabulary = s.vocabulary or 50257
    require(2 <= domains <= vocabulary - FIRST, f"domains={domains}: from 2 to {vocabulary - FIRST}")
    config: Any = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_embd=s.hidden,
        n_layer=s.layers,
        n_head=s.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=vocabulary - 1,
        eos_token_id=vocabulary - 1,
        use_cache=False,
        attn_implementation=ATTENTION,
    )
    module = without_weights(lambda: transformers.GPT2LMHeadModel(config), device)

    def losses(model: Call, tokens: Tensor) -> Tensor:
        return token_losses(model(tokens[:, :-1]).logits, tokens[:, 1:])

    def unweighted(model: Call, _: Tree, drawn: Batch) -> Tensor:
        return losses(model, drawn[0]).mean()

    def weighted(model: Call, hparams: Tree, drawn: Batch) -> Tensor:
        share = softmax(hparams["logits"])
        return (domains * share[drawn[1]] * losses(model, drawn[0])).mean()

    loss, shapes = from_module(module, weighted)
    plain = from_module(module, unweighted).loss
    source = of_number(seed, 0)

    def examples(of: Tensor) -> tuple[Tensor, Tensor]:
        tokens = topical(of, domains, vocabulary, s.length + 1, source, share=0.7)
        return tokens.to(device), of.to(device)

    pool = examples(torch.randint(domains, (POOL * s.batch,), generator=source))
    target = examples(torch.randint(2, (s.batch,), generator=source))

    return Workload(
        problem=Problem(
            name="gpt_mixture",
            stages=[Stage(loss, Adam(lr=LR), in_order(pool, s.batch), unroll)],
            outer=lambda params, _: plain(params, {}, target),
            start=start(shapes, seed, dtype, device),
            hparams={"logits": torch.zeros(domains, dtype=dtype, device=device)},
            about=ABOUT,
        ),
        samples=s.batch,
        plain=lambda params, drawn: plain(params, {}, drawn),
        optimizer=lambda leaves: torch.optim.Adam(leaves, lr=LR),
        meta=lambda leaves: torch.optim.Adam(leaves, lr=1e-2),
        data=f"{GENERATED}: random tokens, {domains} domains that prefer different words; the target mixes the first two",
        settings={
            "size": size, "unroll": unroll, "batch": s.batch, "length": s.length, "domains": domains, "seed": seed,
            "optimizer": "adam", "lr": LR, "vocabulary": vocabulary,
        },
    )  # fmt: skip
