"""From a problem, registered or the user's own, to the case that all are given, and its twin in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from estimators import SGD, Adam, NotApplicableError, Problem, Stage, Tree, run
from estimators.products import BoundLoss

from ..meta_step import WARM_STEPS
from ..own_problem import find
from ..workloads import Workload
from .base import IMPLICIT, Case, Method

RATES = {SGD: 0.1, Adam: 1e-3}
"""Learning rates where the problem's own rule is another."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What decides a case.

    Attributes:
        problem: as `benchmarks.own_problem.find` takes it; of one stage, its hyperparameters in the loss.
        settings: of it.
        method, steps: see `Case`.
        settle: steps of the problem's own training before the point.
        lr: of the inner optimizer and the series; None: the problem's own if its rule is of the kind, else that of `RATES`.
        seed, dtype, device: of the problem.
    """

    problem: str
    settings: dict[str, Any]
    method: Method
    steps: int
    settle: int
    lr: float | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def made(self, dtype: torch.dtype) -> Problem | Workload:
        """The problem."""
        return find(self.problem).make(seed=self.seed, dtype=dtype, device=self.device, **self.settings)


def case_of(task: Task) -> Case:
    """Train to the point, and fix everything there.

    Raises:
        NotApplicableError: the problem is none that the peers can be given.
        Exception: whatever making and training it raise.
    """
    made = task.made(task.dtype)
    problem = made.problem if isinstance(made, Workload) else made
    stage = _only_stage(problem)
    params = problem.start if isinstance(problem.start, dict) else problem.start.params
    hparams = {k: x.detach() for k, x in problem.hparams.items()}
    record = run(replace(stage, steps=task.settle), params, hparams, tail=0)
    kind = Adam if task.method in ("unroll-adam", "sama", "run-adam") else SGD
    own = float(stage.rule.lr) if isinstance(stage.rule, kind) else None
    lr = task.lr or own or RATES[kind]
    workload = _trained_by_adam(made, lr, task.steps) if task.method == "sama" else None
    last = differentiable_twice(stage.objective(task.settle - 1))
    return Case(
        method=task.method, steps=task.steps, lr=lr, hparams=hparams, outer=problem.outer, record=record, workload=workload,
        params=record.end.params if workload is None else params,
        losses=_losses(stage, task),
        stage=Stage(loss=lambda p, h, _: last(p, h), rule=stage.rule, stream=lambda t: t, steps=task.settle),
    )  # fmt: skip


def in_float64(case: Case, task: Task) -> Case:
    """The same point, for the reference."""
    made = task.made(torch.float64)
    problem = made.problem if isinstance(made, Workload) else made

    def double(a: Tree) -> Tree:
        return {k: x.double() for k, x in a.items()}

    return replace(
        case, params=double(case.params), hparams=double(case.hparams), outer=problem.outer,
        losses=_losses(_only_stage(problem), task),
    )  # fmt: skip


def _losses(stage: Stage, task: Task) -> list[BoundLoss]:
    if task.method in IMPLICIT:
        return [differentiable_twice(stage.objective(task.settle - 1))]
    if task.method.startswith("unroll"):
        return [differentiable_twice(stage.objective(t)) for t in range(task.steps)]
    return [stage.objective(t) for t in range(task.steps + WARM_STEPS * (task.method == "sama"))]


def differentiable_twice(loss: BoundLoss) -> BoundLoss:
    """The loss with attention by the math kernel, the only one that has a second derivative: the peers leave that to the user."""

    def under(params: Tree, hparams: Tree) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return loss(params, hparams)

    return under


def _only_stage(problem: Problem) -> Stage:
    if len(problem.stages) != 1:
        raise NotApplicableError(f"{problem.name} has {len(problem.stages)} stages: the peers know one")
    (stage,) = problem.stages
    if stage.rule_reads_hparams or stage.frozen:
        what = "hyperparameters in its rule" if stage.rule_reads_hparams else "frozen leaves"
        raise NotApplicableError(f"{problem.name} has {what}: not every peer can be given that")
    return stage


def _trained_by_adam(made: Problem | Workload, lr: float, steps: int) -> Workload:
    """The workload with Adam as its optimizer; of a problem, one whose plain training is that of its own loss."""
    if not isinstance(made, Workload):
        stage, hparams = _only_stage(made), {k: x.detach() for k, x in made.hparams.items()}
        made = Workload(
            problem=made, samples=1, plain=lambda p, batch: stage.loss(p, hparams, batch), optimizer=torch.optim.Adam,
            meta=lambda leaves: torch.optim.Adam(leaves, lr=1e-3), data="",
        )  # fmt: skip
    stage = replace(made.stage, rule=Adam(lr=lr), steps=steps)
    return replace(
        made,
        problem=replace(made.problem, stages=[stage]),
        optimizer=lambda leaves: torch.optim.Adam(leaves, lr=lr),
    )
