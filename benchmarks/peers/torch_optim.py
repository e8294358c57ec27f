"""PyTorch's own optimizers, for training that nobody differentiates."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from estimators import Tree

from ..measure import memory_of
from ..meta_step import PlainTraining, preloaded, settled
from .base import Case, Library, Variant, Work


def _loop(case: Case, *, optimizer: Any, settings: dict[str, bool]) -> Work:
    def work() -> Tree:
        params = {k: x.clone().requires_grad_() for k, x in case.params.items()}  # the next call starts there too
        opt = optimizer(list(params.values()), lr=case.lr, **settings)
        for loss in case.losses:
            loss(params, case.hparams).backward()
            opt.step()
            opt.zero_grad()
        return {k: x.detach() for k, x in params.items()}

    return work


def _plain(case: Case, settings: dict[str, Any]) -> PlainTraining:
    assert case.workload is not None
    chosen = replace(case.workload, optimizer=lambda leaves: torch.optim.Adam(leaves, lr=case.lr, **settings))
    return PlainTraining(preloaded(chosen), settled(chosen))


def _peak(case: Case, settings: dict[str, bool]) -> int:
    training = _plain(case, settings)
    training()
    return memory_of(training).peak


CHOICES: dict[str, dict[str, bool]] = {
    "for loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}

LIBRARY = Library(
    name="torch.optim",
    module="torch.optim",
    distribution="torch",
    variants={
        (method, f"{optimizer.__name__}, {name}"): Variant(partial(_loop, optimizer=optimizer, settings=settings))
        for method, optimizer in (("run", torch.optim.SGD), ("run-adam", torch.optim.Adam))
        for name, settings in CHOICES.items()
    }
    | {
        ("sama", f"plain training, {name}"): Variant(
            partial(_plain, settings=settings), "nothing differentiated twice", partial(_peak, settings=settings)
        )
        for name, settings in CHOICES.items()
    },
)
