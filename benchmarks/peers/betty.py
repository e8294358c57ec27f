"""Betty (Choe et al. 2023): the implicit gradients that its engine takes between two problems."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from estimators import Tree

from .base import AsModule, Case, Library, Variant, Work, imported


class _Outer(nn.Module):
    """Hyperparameters as the parameters of the upper problem."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case
        self.leaves = nn.ParameterList([nn.Parameter(x.detach()) for x in case.hparams.values()])

    def tree(self) -> Tree:
        return self._case.tree(list(self.leaves), "hparams")


def _implicit(case: Case, **settings: Any) -> Work:
    problems, configs = imported("betty.problems"), imported("betty.configs")
    weights, hparams = AsModule(case.params), _Outer(case)

    class Lower(problems.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch: object) -> Tensor:
            return weights(case.losses[-1], hparams.tree())

    class Upper(problems.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch: object) -> Tensor:
            return weights(case.outer, hparams.tree())

    device = str(weights.p0.device)
    lower = Lower("lower", configs.Config(**settings), module=weights, device=device)
    upper = Upper("upper", configs.Config(), module=hparams, device=device)

    def work() -> Tree:
        for x in hparams.leaves:
            x.grad = None
        upper.backward(
            upper.training_step_exec(None), upper.trainable_parameters(), [[upper, lower, upper]], retain_graph=True
        )
        return case.tree([x.grad for x in hparams.leaves], "hparams")

    return work


def _cg(case: Case) -> Work:
    return _implicit(case, type="cg", cg_iterations=case.steps, cg_alpha=1.0)


def _neumann(case: Case) -> Work:
    return _implicit(case, type="neumann", neumann_iterations=case.steps, neumann_alpha=case.lr)


LIBRARY = Library(
    name="betty",
    module="betty",
    distribution="betty-ml",
    install="pip install betty-ml",
    variants={
        ("cg", "cg"): Variant(_cg, "0.1.1, all that pip gives on Python 3.11, uses the old residual: wrong"),
        ("neumann", "neumann"): Variant(_neumann),
    },
)
