"""TorchOpt (Ren et al. 2023): implicit gradients by `custom_root`, unrolling by its meta optimizers."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from estimators import Tree

from .base import AsModule, Case, Library, Variant, Work, gradient, imported


def _implicit(case: Case, *, solver: str) -> Work:
    torchopt = imported("torchopt")
    solve = {
        "cg": lambda: torchopt.linear_solve.solve_cg(maxiter=case.steps, rtol=0.0, atol=0.0),
        "normal_cg": lambda: torchopt.linear_solve.solve_normal_cg(maxiter=case.steps, rtol=0.0, atol=0.0),
        "ns": lambda: torchopt.linear_solve.solve_inv(ns=True, maxiter=case.steps, alpha=case.lr),
    }[solver]()

    def loss(params: tuple[Tensor, ...], hparams: tuple[Tensor, ...]) -> Tensor:
        return case.losses[-1](case.tree(params), case.tree(hparams, "hparams"))

    @torchopt.diff.implicit.custom_root(torch.func.grad(loss), argnums=1, solve=solve)
    def solution(params: tuple[Tensor, ...], hparams: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return params  # the inner problem is solved already

    def work() -> Tree:
        _, hparams = case.leaves()
        end = solution(tuple(case.params.values()), tuple(hparams.values()))
        return gradient(case.outer(case.tree(end), hparams), hparams)

    return work


def _unroll(case: Case, *, optimizer: str, **settings: bool) -> Work:
    torchopt = imported("torchopt")
    net = AsModule(case.params)
    begin = torchopt.extract_state_dict(net, by="reference")

    def work() -> Tree:
        _, hparams = case.leaves()
        inner = getattr(torchopt, optimizer)(net, lr=case.lr, **settings)
        for loss in case.losses:
            inner.step(net(loss, hparams))
        found = gradient(net(case.outer, hparams), hparams)
        torchopt.recover_state_dict(net, begin)
        return found

    return work


LIBRARY = Library(
    name="torchopt",
    module="torchopt",
    distribution="torchopt",
    install="pip install torchopt",
    variants={
        ("cg", "solve_cg"): Variant(partial(_implicit, solver="cg"), "one product more, of the first guess 0"),
        ("cg", "solve_normal_cg"): Variant(
            partial(_implicit, solver="normal_cg"), "its default solver: the normal equations, two products a step"
        ),
        ("neumann", "solve_inv(ns=True)"): Variant(partial(_implicit, solver="ns")),
        ("unroll", "MetaSGD"): Variant(partial(_unroll, optimizer="MetaSGD")),
        ("unroll-adam", "MetaAdam"): Variant(partial(_unroll, optimizer="MetaAdam")),
        ("unroll-adam", "MetaAdam, accelerated"): Variant(
            partial(_unroll, optimizer="MetaAdam", use_accelerated_op=True), "its own fused kernel"
        ),
    },
)
