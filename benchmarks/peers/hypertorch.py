"""hypertorch (Grazzi et al. 2020): everything through the fixed-point map of one gradient step.

It has no package on PyPI. The module is called ``hypergrad``, as another project's on PyPI is; only this one has
``hypergrad.hypergradients``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from estimators import Tree
from estimators.products import BoundLoss

from .base import Case, Library, Variant, Work, imported


def _map(case: Case, loss: BoundLoss, step_size: float) -> Any:
    """(params, hparams) -> params after a gradient step, both lists."""

    def listed(params: Sequence[Tensor], hparams: Sequence[Tensor], data: object) -> Tensor:
        return loss(case.tree(params), case.tree(hparams, "hparams"))

    return imported("hypergrad").GradientDescent(listed, step_size, data_or_iter=("no data: the loss has its own",))


def _outer(case: Case) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]:
    return lambda params, hparams: case.outer(case.tree(params), case.tree(hparams, "hparams"))


def _implicit(case: Case, *, function: str) -> Work:
    hypergrad = imported("hypergrad")
    step = _map(case, case.losses[-1], case.lr)

    def work() -> Tree:
        params, hparams = (list(a.values()) for a in case.leaves())
        found = getattr(hypergrad, function)(
            params, hparams, K=case.steps, fp_map=step, outer_loss=_outer(case), tol=0.0, set_grad=False
        )
        return case.tree(found, "hparams")

    return work


def _unroll(case: Case) -> Work:
    hypergrad = imported("hypergrad")
    steps = [_map(case, loss, case.lr) for loss in case.losses]

    def work() -> Tree:
        params, hparams = (list(a.values()) for a in case.leaves())
        for step in steps:
            params = step(params, hparams)
        return case.tree(hypergrad.reverse_unroll(params, hparams, _outer(case), set_grad=False), "hparams")

    return work


def _reverse(case: Case) -> Work:
    hypergrad = imported("hypergrad")
    steps = [_map(case, loss, case.lr) for loss in case.losses]

    def work() -> Tree:
        params, hparams = (list(a.values()) for a in case.leaves())
        history = [params]
        for step in steps:
            # as its examples do: the history holds no graph
            made = step(history[-1], hparams, create_graph=False)
            history.append([x.detach().requires_grad_() for x in made])
        return case.tree(hypergrad.reverse(history, hparams, steps, _outer(case), set_grad=False), "hparams")

    return work


LIBRARY = Library(
    name="hypertorch",
    module="hypergrad.hypergradients",
    install="a checkout of github.com/prolearner/hypertorch on PYTHONPATH",
    variants={
        ("cg", "CG"): Variant(partial(_implicit, function="CG"), "tol=0"),
        ("neumann", "neumann"): Variant(partial(_implicit, function="neumann"), "tol=0"),
        ("unroll", "reverse_unroll"): Variant(_unroll),
        ("unroll", "reverse"): Variant(_reverse, "all iterates kept, steps taken again"),
    },
)
