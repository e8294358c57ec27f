"""Independent references: dense float64 linear algebra and plain autograd through a hand-written training loop.

Nothing here calls a rule, a product, a solver or an estimator of the library. Optimizers are written out again
from their papers; derivatives come from `torch.autograd.functional` or from one long autograd graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from estimators import SGD, Adam, AdamW, Groups, Momentum, Problem, Stage, Tree
from estimators.rules import leaf_rule
from estimators.tree import flatten, unflatten

from .rule_references import formula


def reference_step(rule: object, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    """The leaf after update number ``t``; ``memory`` holds moments and is replaced entry by entry, never in place."""
    if isinstance(rule, Momentum):
        g = g + rule.weight_decay * p
        memory["v"] = g if t == 1 else rule.momentum * memory["v"] + (1 - rule.dampening) * g
        return p - rule.lr * (g + rule.momentum * memory["v"] if rule.nesterov else memory["v"])
    if isinstance(rule, Adam):
        b1, b2 = rule.betas
        if not isinstance(rule, AdamW):
            g = g + rule.weight_decay * p
        memory["m"] = b1 * memory.get("m", 0 * g) + (1 - b1) * g
        memory["s"] = b2 * memory.get("s", 0 * g) + (1 - b2) * g**2
        if isinstance(rule, AdamW):
            p = p * (1 - rule.lr * rule.weight_decay)
        memory["top"] = torch.maximum(memory.get("top", memory["s"]), memory["s"]) if rule.amsgrad else memory["s"]
        return p - rule.lr * (memory["m"] / (1 - b1**t)) / ((memory["top"] / (1 - b2**t)).sqrt() + rule.eps)
    if isinstance(rule, SGD):
        return p - rule.lr * (g + rule.weight_decay * p)
    return formula(rule, g, memory, t, p)


def _of(rule: Any, leaf: str) -> object:
    """The rule of a leaf, under groups or without."""
    return leaf_rule(rule, leaf, 0)


def train(stage: Stage, params: Tree, hparams: Tree, cut: int = 0) -> tuple[Tree, list[Tree]]:
    """Differentiable training by one long graph; the first ``cut`` steps are cut off it.

    Returns:
        (end, parameters before every step, then the end).
    """
    rule: Any = stage.rule
    if not isinstance(rule, Groups) and not hasattr(rule, "update"):
        rule = rule(hparams)
    memory: dict[str, dict[str, Tensor]] = {k: {} for k in params}
    trained = [k for k in params if k not in stage.frozen]
    path = [params]
    for t in range(stage.steps):
        lam = {k: x.detach() for k, x in hparams.items()} if t < cut else hparams
        leaves = {k: x if x.requires_grad else x.clone().requires_grad_() for k, x in params.items()}
        grads = torch.autograd.grad(
            stage.loss(leaves, lam, stage.stream(t)), [leaves[k] for k in trained], create_graph=True, allow_unused=True
        )
        params = dict(params)
        for k, g in zip(trained, grads, strict=True):
            if g is not None:
                params[k] = reference_step(_of(rule, k), g, memory[k], t + 1, leaves[k])
        if t < cut:
            params = {k: x.detach() for k, x in params.items()}
            memory = {k: {s: x.detach() for s, x in m.items()} for k, m in memory.items()}
        path.append(params)
    return params, path


def long_graph(problem: Problem, hparams: Tree, cut: int = 0) -> Tree:
    """Hypergradient by backpropagation through all stages at once (of which the first ``cut`` steps are cut off)."""
    lam = {k: x.detach().clone().requires_grad_() for k, x in hparams.items()}
    params = {k: x.detach() for k, x in problem.start.items()}  # type: ignore[union-attr]
    for stage in problem.stages:
        params, _ = train(stage, params, lam, cut)
    value = problem.outer(params, lam)
    found = torch.autograd.grad(value, list(lam.values()), allow_unused=True)
    return {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(lam.items(), found, strict=True)}


def cotangent_on_start(problem: Problem, hparams: Tree) -> tuple[Tree, Tree]:
    """Gradients of a one-stage problem for (start, hparams), by backpropagation through the whole run."""
    lam = {k: x.detach().clone().requires_grad_() for k, x in hparams.items()}
    start = {k: x.detach().clone().requires_grad_() for k, x in problem.start.items()}  # type: ignore[union-attr]
    end, _ = train(problem.stages[0], start, lam)
    inputs = [*start.values(), *lam.values()]
    found = torch.autograd.grad(problem.outer(end, lam), inputs, allow_unused=True)
    parts = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
    return dict(zip(start, parts, strict=False)), dict(zip(lam, parts[len(start) :], strict=True))


@dataclass
class Dense:
    """The last stage at its end, flattened: everything an estimator's definition is written in."""

    h: Tensor  # (n, n) d2L/dtheta2 at the end
    m: Tensor  # (n, l) d2L/dtheta dlam at the end
    m_before: Tensor  # (n, l) the same before the last step, with its batch
    c: Tensor  # (n,) outer gradient
    direct: Tensor  # (l,)
    slope: Tensor  # (n, n) -d(change)/dg of the last step
    like: Tree

    @property
    def adaptation(self) -> Tensor:
        """(n,) the diagonal of ``slope``, for rules that mix no coordinates."""
        assert torch.equal(self.slope, self.slope.diag().diag())
        return self.slope.diag()

    def answer(self, indirect: Tensor) -> Tree:
        return unflatten(self.direct + indirect, self.like)


def dense(problem: Problem, hparams: Tree) -> Dense:
    """Dense quantities of a single-stage problem, by `torch.autograd.functional` on the flattened loss."""
    (stage,) = problem.stages
    with torch.enable_grad():
        _, path = train(stage, {k: x.detach() for k, x in problem.start.items()}, hparams)  # type: ignore[union-attr]
    path = [{k: x.detach() for k, x in p.items()} for p in path]
    last = max(stage.steps - 1, 0)

    def joint(point: Tree, step: int) -> tuple[Tensor, Tensor]:
        n = flatten(point).numel()
        z = torch.cat([flatten(point), flatten(hparams)])
        full = torch.autograd.functional.hessian(
            lambda v: stage.loss(unflatten(v[:n], point), unflatten(v[n:], hparams), stage.stream(step)), z
        )
        return full[:n, :n], full[:n, n:]

    end = path[-1]
    h, m = joint(end, last)
    m_before = joint(path[-2], last)[1] if stage.steps else m
    theta = {k: x.clone().requires_grad_() for k, x in end.items()}
    lam = {k: x.clone().requires_grad_() for k, x in hparams.items()}
    value = problem.outer(theta, lam)
    inputs = [*theta.values(), *lam.values()]
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    parts = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
    c, direct = (torch.cat([x.reshape(-1) for x in p]) for p in (parts[: len(theta)], parts[len(theta) :]))
    return Dense(h, m, m_before, c, direct, _slope(stage, path, hparams), hparams)


def _slope(stage: Stage, path: list[Tree], hparams: Tree) -> Tensor:
    """-d(change)/dg of the last step, replaying the moments from the path's gradients; leaf by leaf."""
    if not stage.steps:
        return torch.ones(0, 0)
    blocks = []
    gradients = []
    for t, point in enumerate(path[:-1]):
        leaves = {k: x.clone().requires_grad_() for k, x in point.items()}
        value = stage.loss(leaves, hparams, stage.stream(t))
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        gradients.append([torch.zeros_like(x) if g is None else g for x, g in zip(point.values(), found, strict=True)])
    for i, k in enumerate(path[0]):
        rule, memory = _of(stage.rule, k), dict[str, Tensor]()
        for t in range(stage.steps - 1):
            reference_step(rule, gradients[t][i], memory, t + 1, path[t][k])

        def last(g: Tensor, k: str = k, rule: object = rule, memory: dict[str, Tensor] = memory) -> Tensor:
            return reference_step(rule, g, dict(memory), stage.steps, path[-2][k])

        n = path[0][k].numel()
        blocks.append(-torch.autograd.functional.jacobian(last, gradients[-1][i], vectorize=True).reshape(n, n))
    return torch.block_diag(*blocks)
