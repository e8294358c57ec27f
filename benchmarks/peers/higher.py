"""higher (Grefenstette et al. 2019): unrolling through a patched module and optimizer."""

from __future__ import annotations

from functools import partial

import torch

from estimators import Tree

from .base import AsModule, Case, Library, Variant, Work, gradient, imported


def _unroll(case: Case, *, optimizer: type[torch.optim.Optimizer]) -> Work:
    higher = imported("higher")
    net = AsModule(case.params)
    opt = optimizer(net.parameters(), lr=case.lr)  # type: ignore[call-arg]

    def work() -> Tree:
        _, hparams = case.leaves()
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for loss in case.losses:
                diffopt.step(fnet(loss, hparams))
            return gradient(fnet(case.outer, hparams), hparams)

    return work


LIBRARY = Library(
    name="higher",
    module="higher",
    distribution="higher",
    install="pip install higher",
    variants={
        ("unroll", "innerloop_ctx, SGD"): Variant(partial(_unroll, optimizer=torch.optim.SGD)),
        ("unroll-adam", "innerloop_ctx, Adam"): Variant(
            partial(_unroll, optimizer=torch.optim.Adam), "0.2.1 adds eps before the bias correction: not torch's Adam"
        ),
    },
)
