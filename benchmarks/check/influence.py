"""Whether every hyperparameter matters, and whether the derivative by it is that of the run."""

from __future__ import annotations

from math import isqrt
from typing import cast

import torch
from torch import Tensor

from estimators import Problem, State, Tree, Unroll, hypergradient, reverse_over_reverse, run, run_stages, tree
from estimators.adaptation import rule_hparams
from estimators.influence import loss_hparams
from estimators.products import gradients

from ..double import twin
from . import Level
from .case import Case
from .derivatives import random_like
from .purity import problem_hparams
from .watch import CUTS, Noted

AGREE = 1e-2
"""Relative difference of a derivative and a difference quotient, in float64, beyond which they are not the same thing."""

UNSEEN = 0.2
"""Share of the entries with influence of which the last batch may say nothing."""

STEPS = (1e-5, 1e-7)
"""Of difference quotients: a kink (relu) may lie between the points of the longer one."""


def influence(case: Case) -> None:
    """The hypergradient of a run, unrolled: which entries are zero and why, twice the same, and what differences say."""
    if not case.twice or case.unrolled is None:
        _tell(case, [k for k in case.problem.hparams if not _seen(case, k)])  # by first derivatives alone
        return
    problem = case.unrolled
    found, again = _unroll(problem), _unroll(problem)
    if not tree.all_finite(found):
        bad = [k for k, x in found.items() if not tree.all_finite({k: x})]
        case.fail(
            f"the hypergradient is NaN or infinite in {bad}",
            "lower the learning rate; look for sqrt, log or division at 0",
        )
    difference, size = _distance(found, again), float(tree.norm(found))
    if difference > 1e-4 * size:
        case.fail(
            f"two runs under the same seed give hypergradients that differ by {difference / size:.1g} of their length",
            "look for kernels that add in no fixed order: torch.use_deterministic_algorithms(True)",
        )
    elif difference:
        case.add("note", f"two runs differ by rounding ({difference / size:.1g}): some kernel adds in no fixed order")
    else:
        case.add("ok", "two runs under the same seed are bitwise equal")
    idle = [k for k, x in found.items() if not bool(x.ne(0).any())]
    _tell(case, idle)
    for k, x in found.items():
        zeros = int(x.eq(0).sum())
        if k not in idle and zeros:
            part = (
                "the run"
                if problem is case.problem
                else f"the first {problem.stages[0].steps} steps, which were looked at,"
            )
            case.add(
                "note",
                f"{zeros:,} of the {x.numel():,} entries of {k!r} have no influence on {part} (examples that no batch holds? units that "
                "are off?)",
            )
    if not idle:
        case.add("ok", "every hyperparameter has influence")
    _last_batch(case, found)
    _differences(case, problem, [k for k in found if k not in idle])


def _last_batch(case: Case, found: Tree) -> None:
    """What estimators cannot see that look at the last step's batch alone."""
    stage, record, lam = case.problem.stages[-1], case.records[-1], problem_hparams(case)
    if len(case.problem.stages) > 1 or stage.steps < 2 or stage.rule_reads_hparams:
        return
    params = record.end.params
    tangent = random_like({k: params[k] for k in stage.trained(params)})
    loss = stage.objective(max(record.end.step - 1, 0))
    _, mixed = reverse_over_reverse(loss, params, lam, tangent, wrt_hparams=lam)
    for k, x in found.items():
        unseen = x.ne(0) if k not in mixed else x.ne(0) & mixed[k].eq(0)
        if (n := int(unseen.sum())) > UNSEEN * int(x.ne(0).sum()):
            case.add(
                "warning",
                f"the last step's batch says nothing of {n:,} of the {x.numel():,} entries of {k!r} that have influence on the run: "
                "estimators that look at it alone (implicit ones, t1t2, sama) leave them at zero",
                "larger batches, whole ones at best; or Implicit(..., batches=K), the mean over the last K batches; or Unroll",
            )


def _unroll(problem: Problem) -> Tree:
    unrolls = [Unroll(checkpoint=max(isqrt(s.steps), 1)) for s in problem.stages]
    lam = tree.detach(problem.hparams)
    records = run_stages(problem.stages, problem.start, lam, unrolls)

    def outer(params: Tree, hparams: Tree) -> Tensor:
        """Reads all hyperparameters, so that one without influence is zero and no error."""
        return problem.outer(params, hparams) + 0 * torch.stack([x.sum() for x in hparams.values()]).sum()

    return hypergradient(outer, problem.stages, unrolls, records, lam, throw=False).hparams


def _distance(a: Tree, b: Tree) -> float:
    return float(tree.norm(tree.sub(a, b)))


def _seen(case: Case, k: str) -> bool:
    """Whether autograd sees ``k`` in a loss, in the rule, or in the outer loss."""
    lam = problem_hparams(case)
    for stage, record in zip(case.problem.stages, case.records, strict=True):
        if k in rule_hparams(stage, record.end, lam) or k in loss_hparams(stage, record.end.params, lam, 0):
            return True
    return k in gradients(case.problem.outer, case.records[-1].end.params, lam, wrt_hparams=lam)[2]


def _others(x: Tensor) -> list[Tensor]:
    """Other values of a hyperparameter, near and far."""
    return [x + d * (1 + x.abs()) for d in (0.1, -0.1, 3.0, -3.0)]


def _moves(case: Case, k: str) -> bool:
    """Whether another value of ``k`` changes a gradient of training, the rule, or the outer loss."""
    lam = problem_hparams(case)
    others = [lam | {k: x} for x in _others(lam[k])]
    for stage, record in zip(case.problem.stages, case.records, strict=True):
        if k in rule_hparams(stage, record.end, lam):
            return True
        params = record.end.params
        one, *rest = (
            gradients(stage.objective(0), params, h, wrt_params=stage.trained(params))[1] for h in (lam, *others)
        )
        if any(one.keys() != two.keys() or _distance(one, two) > 0 for two in rest):
            return True
    end = case.records[-1].end.params
    return any(bool(case.problem.outer(end, lam) != case.problem.outer(end, h)) for h in others)


def _tell(case: Case, idle: list[str]) -> None:
    """A finding a reason, for hyperparameters without influence."""
    reasons: dict[tuple[Level, str, str], list[str]] = {}
    for k in idle:
        reasons.setdefault(_why(case, k), []).append(k)
    for (level, what, change), names in reasons.items():
        case.add(level, f"no influence of {', '.join(map(repr, names))}: {what}", change)


def _why(case: Case, k: str) -> tuple[Level, str, str]:
    """(level, why ``k`` has no influence, what to change)."""
    if _seen(case, k):
        if _moves(case, k):
            return (
                "warning",
                "the hypergradient is exactly zero at this point, though not at others",
                "start it where nothing is saturated (a relu or clamp that is off, a sigmoid far out)",
            )
        return (
            "error",
            "it adds a term to the loss that does not depend on the parameters",
            "let it multiply something of params, such as hparams['decay'].exp() * params['w'].square().sum(); or remove it",
        )
    read, changes = _read(case, k)
    if not read and not changes:
        return "error", "neither a loss nor the rule reads it", "use it in the loss, or remove it"
    called: set[str] = set().union(case.outer.called, *(w.called for w in case.inner))
    cuts = sorted(called & set(CUTS))
    return (
        "error",
        (
            "it changes the value of the loss, but is cut off the graph"
            if changes
            else "it is read, but cut off the graph"
        )
        + (f" (there are calls of {', '.join(cuts)})" if cuts else ""),
        "use it as a tensor all the way: no .detach(), .data, .item(), float(), torch.tensor(...) nor torch.no_grad() between it (or the "
        "network that it belongs to) and the loss; the output of a weighting network must not be detached",
    )


def _read(case: Case, k: str) -> tuple[bool, bool]:
    """Whether a loss or the rule looks ``k`` up, and whether its value makes a difference to a loss."""
    lam, params = problem_hparams(case), case.records[-1].end.params
    outer = case.problem.outer
    evaluations = [(lambda h, s=s: s.objective(0)(params, h)) for s in case.problem.stages]
    read = changes = False
    for evaluate in (*evaluations, lambda h: outer(params, h)):
        noted = Noted(lam)
        value = evaluate(noted)
        read |= k in noted.read
        changes |= any(bool(value != evaluate(lam | {k: x})) for x in _others(lam[k]))
    for stage in case.problem.stages:
        if stage.rule_reads_hparams:
            noted = Noted(lam)
            stage.bind(noted)
            read |= k in noted.read
    return read, changes


def _differences(case: Case, problem: Problem, names: list[str]) -> None:
    """Along a random direction in each hyperparameter: the derivative against a difference quotient of whole runs, in float64."""

    double, precision = twin(problem)
    if precision != "float64":
        case.add(
            "note",
            "the losses cannot be evaluated in float64 (they cast to another dtype): references will be less exact",
        )
        return
    gradient = _unroll(double)
    wrong = []
    for k in names:
        direction = _direction(double.hparams[k])
        derivative = float((gradient[k] * direction).sum())
        quotients = [_quotient(double, k, direction, step) for step in STEPS]
        scale = max(abs(derivative), *map(abs, quotients))
        if scale and all(abs(derivative - q) > AGREE * scale for q in quotients):
            wrong.append(f"{k!r} ({derivative:.4g} for {quotients[1]:.4g})")
    if wrong:
        cuts = sorted(set().union(*(w.called for w in case.inner)) & set(CUTS))
        case.add(
            "warning",
            f"the derivative that autograd gives is not that of the run, as differences of whole runs show, for {', '.join(wrong)}"
            + (f"; there are calls of {', '.join(cuts)}" if cuts else ""),
            "if a part is detached on purpose (a target, a straight-through estimator), so be it; otherwise let the graph go through; a run "
            "that is chaotic (too high a learning rate) shows the same",
        )
    elif names:
        case.add("ok", "hypergradients agree with differences of whole runs, in float64")


def _direction(like: Tensor) -> Tensor:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(like.shape, generator=source, dtype=torch.float64).to(like)
    return x / torch.linalg.vector_norm(x)


def _quotient(problem: Problem, k: str, direction: Tensor, step: float) -> float:
    values = []
    for sign in (1, -1):
        lam = problem.hparams | {k: problem.hparams[k] + sign * step * direction}
        start: Tree | State = problem.start
        for stage in problem.stages:
            start = run(stage, start, lam, tail=0).end.params
        values.append(float(problem.outer(cast(Tree, start), lam)))
    return (values[0] - values[1]) / (2 * step)
