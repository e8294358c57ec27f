"""What every contestant is held to: the definition itself by plain autograd, in float64. Nothing of the library, or of a peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from estimators import Tree

from .base import Case

EPS = 1e-8
BETAS = (0.9, 0.999)


def reference(case: Case) -> Tree:
    """The answer to a case.

    Args:
        case: in float64.
    """
    return {
        "cg": _implicit, "neumann": _implicit, "unroll": _unrolled, "unroll-adam": _unrolled, "sama": _sama, "run": _trained,
        "run-adam": _trained,
    }[case.method](case)  # fmt: skip


def _implicit(case: Case) -> Tree:
    """dE/dlam - M^T x, with x from conjugate gradient or the series, in flat vectors."""
    theta, lam = case.leaves()
    first = _flat(_grads(case.losses[-1](theta, lam), theta, create_graph=True))
    c, direct = _outer(case, theta, lam)
    x = (_cg if case.method == "cg" else _series)(lambda v: _flat(_grads(first @ v, theta, retain_graph=True)), c, case)
    return _split(direct - _flat(_grads(first @ x, lam)), lam)


def _cg(matvec: Callable[[Tensor], Tensor], c: Tensor, case: Case) -> Tensor:
    """Hestenes and Stiefel 1952."""
    x, r, p = torch.zeros_like(c), c, c
    for _ in range(case.steps):
        if not r.any():
            break
        hp = matvec(p)
        a = (r @ r) / (p @ hp)
        x, s = x + a * p, r - a * hp
        p, r = s + (s @ s) / (r @ r) * p, s
    return x


def _series(matvec: Callable[[Tensor], Tensor], c: Tensor, case: Case) -> Tensor:
    """lr sum_j (I - lr H)^j c, j = 0 ... steps."""
    total, term = c, c
    for _ in range(case.steps):
        term = term - case.lr * matvec(term)
        total = total + term
    return case.lr * total


def _unrolled(case: Case) -> Tree:
    """One graph of the whole training."""
    theta, lam = case.leaves()
    run = _Training(case)
    for loss in case.losses:
        theta = run.step(theta, _grads(loss(theta, lam), theta, create_graph=True))
    return _split(_flat(_grads(case.outer(theta, lam), lam)), lam)


def _trained(case: Case) -> Tree:
    theta, _ = case.leaves()
    run = _Training(case)
    for loss in case.losses:
        theta = _cut(run.step(theta, _grads(loss(theta, case.hparams), theta)))
    return {k: x.detach() for k, x in theta.items()}


def _sama(case: Case) -> Tree:
    """Choe et al. 2023: dE/dlam + M^T (du/dg)^T c at the end, u the last update as a function of its gradient g."""
    theta, lam = case.leaves()
    run = _Training(case)
    for loss in case.losses[:-1]:
        theta = _cut(run.step(theta, _grads(loss(theta, lam), theta)))
    last = [g.detach().requires_grad_() for g in _grads(case.losses[-1](theta, lam), theta)]
    moved = run.step(theta, last)
    end = _cut(moved)
    c, direct = _outer(case, end, lam)
    v = _flat(list(torch.autograd.grad(_flat(list(moved.values())) @ c, last)))
    first = _flat(_grads(case.losses[-1](end, lam), end, create_graph=True))
    return _split(direct + _flat(_grads(first @ v, lam)), lam)


class _Training:
    """Gradient descent, or Adam as Kingma and Ba 2015 have it, with eps where torch has it. All out of place."""

    def __init__(self, case: Case) -> None:
        self.case, self.t = case, 0
        self.m: list[Any] = [0.0] * len(case.params)
        self.v: list[Any] = [0.0] * len(case.params)

    def step(self, theta: Tree, grads: list[Tensor]) -> Tree:
        lr = self.case.lr
        if self.case.method in ("unroll", "run"):
            return {k: x - lr * g for (k, x), g in zip(theta.items(), grads, strict=True)}
        self.t += 1
        self.m = [BETAS[0] * a + (1 - BETAS[0]) * g for a, g in zip(self.m, grads, strict=True)]
        self.v = [BETAS[1] * b + (1 - BETAS[1]) * g * g for b, g in zip(self.v, grads, strict=True)]
        first, second = 1 - BETAS[0] ** self.t, 1 - BETAS[1] ** self.t
        return {
            k: x - lr * (a / first) / ((b / second).sqrt() + EPS)
            for (k, x), a, b in zip(theta.items(), self.m, self.v, strict=True)
        }


def _outer(case: Case, theta: Tree, lam: Tree) -> tuple[Tensor, Tensor]:
    """(dE/dtheta, dE/dlam), flat."""
    leaves = [*theta.values(), *lam.values()]  # they may share names
    found = torch.autograd.grad(case.outer(theta, lam), leaves, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
    return _flat(grads[: len(theta)]), _flat(grads[len(theta) :])


def _cut(a: Tree) -> Tree:
    return {k: x.detach().requires_grad_() for k, x in a.items()}


def _grads(value: Tensor, by: Tree, **options: Any) -> list[Tensor]:
    found = torch.autograd.grad(value, list(by.values()), allow_unused=True, **options)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(by.values(), found, strict=True)]


def _flat(a: list[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in a])


def _split(a: Tensor, like: Tree) -> Tree:
    parts = a.split([x.numel() for x in like.values()])
    return {k: part.reshape(x.shape) for (k, x), part in zip(like.items(), parts, strict=True)}
