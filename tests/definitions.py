"""What each registered estimator is *defined* to answer, in dense float64 linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from estimators import Momentum, Problem, Tree
from estimators.tree import flatten, unflatten

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
    return d.answer(-d.m.T @ (d.slope.T @ d.c))


def _sama_difference(problem: Problem, hparams: Tree, alpha: float = 1.0) -> Tree:
    """(dL/dlam(theta - e v) - dL/dlam(theta + e v)) / 2e with e = alpha / ||v||, straight from Algorithm 1."""
    d = dense(problem, hparams)
    (stage,) = problem.stages
    end, _ = train(stage, {k: x.detach() for k, x in problem.start.items()}, hparams)  # type: ignore[union-attr]
    v = d.slope.T @ d.c
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


def _direct(problem: Problem, hparams: Tree) -> Tree:
    end = {k: x.detach() for k, x in problem.start.items()}  # type: ignore[union-attr]
    for stage in problem.stages:
        end = {k: x.detach() for k, x in train(stage, end, hparams)[0].items()}
    lam = {k: x.clone().requires_grad_() for k, x in hparams.items()}
    value = problem.outer(end, lam)
    found = (
        torch.autograd.grad(value, list(lam.values()), allow_unused=True) if value.requires_grad else (None,) * len(lam)
    )
    return {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(hparams.items(), found, strict=True)}


class _Linearised:
    """lam -> <c, end(lam)>, c the outer gradient at the end of the run at ``hparams``."""

    def __init__(self, problem: Problem, hparams: Tree) -> None:
        (self.stage,), self.problem, self.hparams = problem.stages, problem, hparams
        end = {k: x.detach().requires_grad_() for k, x in self.end(hparams).items()}
        found = torch.autograd.grad(problem.outer(end, hparams), list(end.values()), allow_unused=True)
        self.c = {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(end.items(), found, strict=True)}
        self.direct = flatten(_direct(problem, hparams))

    def end(self, lam: Tree) -> Tree:
        start = {k: x.detach() for k, x in self.problem.start.items()}  # type: ignore[union-attr]
        return {k: x.detach() for k, x in train(self.stage, start, lam)[0].items()}

    def __call__(self, lam: Tensor) -> Tensor:
        return _inner_product(self.end(unflatten(lam, self.hparams)), self.c)

    def answer(self, indirect: Tensor) -> Tree:
        return unflatten(self.direct + indirect, self.hparams)


def _finite_difference(problem: Problem, hparams: Tree) -> Tree:
    value, lam = _Linearised(problem, hparams), flatten(hparams)
    h = torch.finfo(lam.dtype).eps ** (1 / 3) * lam.abs().clamp(min=1.0)
    ahead, behind = lam + torch.diag(h), lam - torch.diag(h)
    slopes = [(value(a) - value(b)) / (a - b).sum() for a, b in zip(ahead, behind, strict=True)]
    return value.answer(torch.stack(slopes))


def _evolution(problem: Problem, hparams: Tree, pairs: int = 4, sigma: float = 1e-2) -> Tree:
    value, lam = _Linearised(problem, hparams), flatten(hparams)
    draws = torch.stack(_draws(problem, *[len(lam)] * pairs))
    differences = torch.stack([value(lam + sigma * u) - value(lam - sigma * u) for u in draws])
    return value.answer(draws.T @ differences / (2 * sigma * pairs))


def _random(problem: Problem, hparams: Tree) -> Tree:
    value = _Linearised(problem, hparams)
    c = flatten(value.c)
    d, r = _draws(problem, len(value.direct), len(c))
    return value.answer((r @ c) * d)


def _draws(problem: Problem, *sizes: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(1_000_003 + problem.stages[0].steps)
    return [torch.randn(n, generator=source, dtype=torch.float64) for n in sizes]


def _tartan(problem: Problem, hparams: Tree, *, cosine: bool) -> Tree:
    """-lr G c over all leaves, or row by row the cosine of G and c over the leaves that have a part in every row of G;
    G holds a task's gradient a row, before the last step."""
    (stage,) = problem.stages
    _, path = train(stage, {k: x.detach() for k, x in problem.start.items()}, hparams)  # type: ignore[union-attr]
    before = {k: x.detach() for k, x in path[-2].items()}
    loss: Any = stage.loss
    drawn = stage.stream(stage.steps - 1)
    batch = drawn if isinstance(drawn, dict) else dict.fromkeys(loss.tasks, drawn)
    rows = [
        torch.autograd.functional.jacobian(
            lambda v, k=k: loss.tasks[k](unflatten(v, before), batch[k]), flatten(before)
        )
        for k in loss.tasks
    ]
    g, c = torch.stack(rows), dense(problem, hparams).c
    if not cosine:
        return {loss.logits: -float(stage.rule.lr) * (g @ c)}  # type: ignore[union-attr, arg-type]
    parts = torch.split(g.abs(), [x.numel() for x in before.values()], dim=1)
    body = torch.cat([(p.sum(1) > 0).all().expand(p.shape[1]) for p in parts])
    g, c = g[:, body], c[body]
    return {loss.logits: -(g @ c) / (g.norm(dim=1) * c.norm())}


def _adapted_neumann(d: Dense, problem: Problem, terms: int = 6, iterations: int = 10) -> Tensor:
    """a D sum_j (I - a H D)^j c with 1 / a = ||H D v|| after ten power iterations from c."""
    hd = d.h * d.adaptation
    v = torch.linalg.matrix_power(hd, iterations - 1) @ d.c
    a = float(v.norm() / (hd @ v).norm())
    p = torch.eye(len(d.h), dtype=d.h.dtype) - a * hd
    return a * d.adaptation * sum((torch.linalg.matrix_power(p, j) @ d.c for j in range(terms)), torch.zeros_like(d.c))


DEFINITIONS: dict[str, Definition] = {
    "unroll": long_graph,
    "unroll-checkpointed": long_graph,
    "forward": long_graph,
    "unroll-truncated": lambda p, h: long_graph(p, h, cut=p.stages[0].steps - 10),
    "dense": _implicit(_solve),
    "cg": _implicit(_solve),
    "neumann": _implicit(_neumann),
    "adapted-neumann": _implicit(_adapted_neumann),
    "adapted-cg": _implicit(_solve),
    "fixed-point": _implicit(_recurrent),
    "nystrom": _implicit(_nystrom),
    "t1t2": _t1t2,
    "sama-na": lambda p, h: (d := dense(p, h)).answer(-d.m.T @ d.c),
    "sama": _sama_difference,
    "sama-exact": _sama,
    "composed": _composed,
    "greedy": lambda p, h: long_graph(p, h, cut=p.stages[0].steps - 1),
    "finite-difference": _finite_difference,
    "evolution": _evolution,
    "plain": lambda p, h: {k: torch.zeros_like(x) for k, x in h.items()},
    "direct": _direct,
    "random": _random,
    "tartan": lambda p, h: _tartan(p, h, cosine=True),
    "tartan-dot": lambda p, h: _tartan(p, h, cosine=False),
}
"""Every registered estimator: registering one means defining it here."""
