"""What each registered estimator is *defined* to answer, in dense float64 linear algebra."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from estimators import Momentum, Problem, Tree

from .oracle import Dense, cotangent_on_start, dense, long_graph, train

Definition = Callable[[Problem, Tree], Tree]


def _implicit(solve: Callable[[Dense, Problem], Tensor]) -> Definition:
    def definition(problem: Problem, hparams: Tree) -> Tree:
        d = dense(problem, hparams)
        return d.answer(-d.m.T @ solve(d, problem))

    return definition


def _series_step(d: Dense, problem: Problem) -> float:
    """The documented default: SGD's lr; momentum's lr (1 - dampening) / (1 + mu); 1 / lambda_max for Adam."""
    rule = problem.stages[0].rule
    if isinstance(rule, Momentum):
        return float(rule.lr * (1 - rule.dampening) / (1 + rule.momentum))
    return float(rule.lr)  # type: ignore[union-attr, arg-type]


def _neumann(d: Dense, problem: Problem, terms: int = 21) -> Tensor:
    a, eye = _series_step(d, problem), torch.eye(len(d.h), dtype=d.h.dtype)
    p = eye - a * d.h
    return a * sum((torch.linalg.matrix_power(p, j) @ d.c for j in range(terms)), torch.zeros_like(d.c))


def _recurrent(d: Dense, problem: Problem) -> Tensor:
    a, q = _series_step(d, problem), torch.zeros_like(d.c)
    for _ in range(100):
        q = q - a * (d.h @ q) + a * d.c
    return q


def _nystrom(d: Dense, problem: Problem, rank: int = 10, rho: float = 0.1) -> Tensor:
    n = len(d.h)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:rank]
    columns = d.h[:, chosen]
    low = columns @ torch.linalg.pinv(d.h[chosen][:, chosen], hermitian=True) @ columns.T
    return torch.linalg.solve(low + rho * torch.eye(n, dtype=d.h.dtype), d.c)


def _solve(d: Dense, problem: Problem) -> Tensor:
    return torch.linalg.solve(d.h, d.c)


def _t1t2(problem: Problem, hparams: Tree) -> Tree:
    d = dense(problem, hparams)
    return d.answer(-d.m_before.T @ (float(problem.stages[0].rule.lr) * d.c))  # type: ignore[union-attr, arg-type]


def _sama(problem: Problem, hparams: Tree) -> Tree:
    d = dense(problem, hparams)
    return d.answer(-d.m.T @ (d.adaptation * d.c))


def _sama_difference(problem: Problem, hparams: Tree, alpha: float = 1.0) -> Tree:
    """(dL/dlam(theta - e v) - dL/dlam(theta + e v)) / 2e with e = alpha / ||v||, straight from Algorithm 1."""
    d = dense(problem, hparams)
    (stage,) = problem.stages
    end, _ = train(stage, {k: x.detach() for k, x in problem.start.items()}, hparams)  # type: ignore[union-attr]
    v = d.adaptation * d.c
    eps = alpha / float(v.norm())
    flat = torch.cat([x.detach().reshape(-1) for x in end.values()])

    def slope(theta: Tensor) -> Tensor:
        lam = {k: x.clone().requires_grad_() for k, x in hparams.items()}
        parts = torch.split(theta, [x.numel() for x in end.values()])
        params = {k: p.reshape(x.shape) for (k, x), p in zip(end.items(), parts, strict=True)}
        value = stage.loss(params, lam, stage.stream(stage.steps - 1))
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(lam.values()))])

    return d.answer(-(slope(flat + eps * v) - slope(flat - eps * v)) / (2 * eps))


def _composed(problem: Problem, hparams: Tree) -> Tree:
    """-M'H^-1 c1 at the end of the first stage, c1 being the outer gradient pulled back through the whole second one."""
    first, second = problem.stages
    end, _ = train(first, {k: x.detach() for k, x in problem.start.items()}, hparams)  # type: ignore[union-attr]
    end = {k: x.detach() for k, x in end.items()}
    later = Problem("second", [second], problem.outer, end, hparams)
    c, through = cotangent_on_start(later, hparams)
    alone = Problem("first", [first], lambda p, h: _inner_product(p, c), problem.start, hparams)
    d = dense(alone, hparams)
    read = d.h.abs().sum(0) > 0  # a leaf that pre-training does not read is no unknown of its system
    x = torch.zeros_like(d.c)
    x[read] = torch.linalg.solve(d.h[read][:, read], d.c[read])
    answer = d.answer(-d.m.T @ x)
    return {k: answer[k] + through[k] for k in hparams}


def _inner_product(a: Tree, b: Tree) -> Tensor:
    return torch.stack([(x * b[k]).sum() for k, x in a.items()]).sum()


DEFINITIONS: dict[str, Definition] = {
    "unroll": long_graph,
    "unroll-checkpointed": long_graph,
    "forward": long_graph,
    "unroll-truncated": lambda p, h: long_graph(p, h, cut=p.stages[0].steps - 10),
    "dense": _implicit(_solve),
    "cg": _implicit(_solve),
    "neumann": _implicit(_neumann),
    "fixed-point": _implicit(_recurrent),
    "nystrom": _implicit(_nystrom),
    "t1t2": _t1t2,
    "sama-na": lambda p, h: (d := dense(p, h)).answer(-d.m.T @ d.c),
    "sama": _sama_difference,
    "sama-exact": _sama,
    "composed": _composed,
}
"""Every registered estimator: registering one means defining it here."""
