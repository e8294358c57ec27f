"""Whether the problem is the same whenever it is asked: estimators evaluate every step more than once, in any order."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor

from estimators import Stage, Tree, tree
from estimators.stage import run, scalar

from .case import Case
from .watch import ATTENTION, Draws, Watch, same, watched

BATCHES = 3
"""Steps whose batches are asked for again."""


def make(case: Case) -> None:
    """Start and hyperparameters are well formed, and another call gives the same."""
    problem = case.problem
    tree.check(case.start, "start")
    tree.check(problem.hparams, "hparams")
    one, other = next(iter(case.start.values())), next(iter(problem.hparams.values()))
    for kind in ("dtype", "device"):
        if getattr(one, kind) != getattr(other, kind):
            case.fail(
                f"start has the {kind} {getattr(one, kind)}, hparams {getattr(other, kind)}",
                "convert one with .to(...)",
            )
    again = case.make()
    start = again.start if isinstance(again.start, dict) else again.start.params
    for what, a, b in (("start", case.start, start), ("hparams", problem.hparams, again.hparams)):
        if not same(dict(a), dict(b)):
            case.fail(
                f"{case.found.name} gives other values in {what} at every call, so that no two processes would measure the same problem",
                "draw from torch.Generator().manual_seed(seed), or call torch.manual_seed(seed) before a network is built",
            )
    if not tree.all_finite(case.start) or not tree.all_finite(problem.hparams):
        case.fail("start or hparams hold NaN or infinity", "look at how they are made")


def losses(case: Case) -> None:
    """The losses are finite scalars that give the same value for the same step, whatever was asked in between."""
    problem, params, lam = case.problem, case.start, problem_hparams(case)
    outer_before, case.outer, draws = watched(lambda: _outer(case, params, lam))
    _no_draws_outside(case, "the outer loss", draws, case.outer)
    if not math.isfinite(float(outer_before)):
        case.fail(
            f"the outer loss is {float(outer_before)} at the start",
            "look for log, sqrt or division at 0, and at the data",
        )
    for i, stage in enumerate(problem.stages):
        what = case.which(i)
        steps = range(min(stage.steps, BATCHES) or 1)
        first = [_batch(case, i, t) for t in steps]
        for t in reversed(steps):
            if not same(first[t], _batch(case, i, t)):
                case.fail(
                    f"stream({t}) of stage {i} gives another batch when it is asked again: estimators replay steps, so a stream must be a "
                    "function of the step alone",
                    "batches = list(loader) once, then stream=lambda t: batches[t % len(batches)]",
                )
        values, watch, draws = watched(partial(_values, stage, params, lam, steps))
        case.inner.append(watch)
        if draws.torch and stage.seed is None:
            case.fail(
                f"{what} or its stream draws random numbers ({_named(watch)}), and the stage has no seed: every evaluation of a step "
                "would be another function",
                "Stage(..., seed=0)",
            )
        if draws.others:
            case.fail(
                f"{what} or its stream draws from {' and '.join(draws.others)}'s global generator, which Stage.seed does not fix",
                "draw with torch, or from a generator that is made of the step inside the stream",
            )
        if not all(math.isfinite(float(v)) for v in values):
            case.fail(
                f"{what} is {[float(v) for v in values]} at the start",
                "look for log, sqrt or division at 0, and at the data",
            )
        again = _values(stage, params, lam, steps)
        if not _close(values, again):
            case.fail(
                f"{what} gives {float(again[0]):.8g} where it gave {float(values[0]):.8g} before, for the same step, parameters and "
                "hyperparameters",
                "let it keep no state between calls: no counters, no running statistics, no change of a batch in place; from_module "
                "gives every evaluation its own copy of the buffers",
            )
        if stage.first_order is not None:
            quick = [stage.objective(t, first_order=True)(params, lam) for t in steps]
            if not _close(values, quick, 1e-3):
                case.fail(
                    f"Stage.first_order gives {float(quick[0]):.8g} where {what} gives {float(values[0]):.8g}: the run would not be that of "
                    "the loss",
                    "first_order=torch.compile(loss), of the same loss",
                )
        if stage.steps:  # where the next stage begins
            params = (
                run(stage, params if i else problem.start, lam, tail=0).end.params
                if i < len(problem.stages) - 1
                else params
            )
    outer_after = _outer(case, case.start, lam)
    if not _close([outer_before], [outer_after]):
        case.fail(
            f"the outer loss was {float(outer_before):.8g} and is {float(outer_after):.8g} after the inner one was evaluated, at the same "
            "parameters: something outside params has changed (BatchNorm's running statistics, a module's mode, a counter)",
            "build the losses with from_module, which leaves the module as it is",
        )
    case.add("ok", "losses and streams give the same whenever they are asked")


def _values(stage: Stage, params: Tree, lam: Tree, steps: range) -> list[Tensor]:
    return [stage.objective(t)(params, lam) for t in steps]


def remarks(case: Case) -> None:
    """What surprises, though nothing is wrong with it."""
    for i, watch in enumerate(case.inner):
        what = case.which(i)
        if watch.batch_norm:
            case.add(
                "warning",
                f"{what} has BatchNorm in training mode: an example's loss depends on its batch (its derivatives are right), and running "
                "statistics stay as they are, so an outer loss in eval mode would see those of the start",
                "evaluate the outer loss in training mode, too; or use GroupNorm, or net.eval() with statistics that fit",
            )
        if watch.random and case.problem.stages[i].seed is not None:
            case.add(
                "note",
                f"{what} draws ({_named(watch)}): the same numbers whenever a step is evaluated, as Stage.seed wants it",
            )
        if watch.called & set(ATTENTION) and case.twice:
            case.add(
                "note",
                f"{what} uses fused attention: second-order products evaluate it by torch's plain kernel (right, with memory quadratic in "
                "the sequence length); first-order passes, and estimators that take only those (sama), keep the fused one",
            )
    if not case.found.takes("seed"):
        case.add(
            "note",
            f"{case.found.name} takes no seed: it is one point, and a comparison of estimators has no spread",
            "def make(seed: int = 0), and draw data and start from it",
        )


def problem_hparams(case: Case) -> Tree:
    return tree.detach(case.problem.hparams)


def _outer(case: Case, params: Tree, lam: Tree) -> Tensor:
    return scalar(lambda: case.problem.outer(params, lam), "the outer loss", params, lam)


def _no_draws_outside(case: Case, what: str, draws: Draws, watch: Watch) -> None:
    if draws.torch or draws.others:
        case.fail(
            f"{what} draws random numbers ({_named(watch)}): no two evaluations would agree",
            "switch dropout off there: from_loaders(..., validated=copy.deepcopy(net).eval()), or from_module(copy.deepcopy(net).eval(), ...); "
            "fix a validation batch that is sampled",
        )


def _batch(case: Case, i: int, t: int) -> Any:
    stage = case.problem.stages[i]
    with stage._seeded(2 * t):
        try:
            (batch, _, draws) = watched(lambda: stage.stream(t))
        except StopIteration:
            case.fail(
                f"stream({t}) of stage {i} has run out: an iterator can be asked once, and estimators replay steps",
                "batches = list(loader) once, then stream=lambda t: batches[t % len(batches)]",
            )
    if draws.torch and stage.seed is None:
        case.fail(
            f"the stream of stage {i} draws random numbers, and the stage has no seed: replayed steps would get other batches",
            "Stage(..., seed=0), or stream=lambda t: batches[t % len(batches)]",
        )
    return batch


def _named(watch: Watch) -> str:
    return ", ".join(watch.random) or "no function that says so in its name"


def _close(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-5) -> bool:
    """Up to what a kernel that adds in no fixed order may do."""
    return all(
        abs(float(x) - float(y)) <= tolerance * max(abs(float(x)), abs(float(y)), 1e-30)
        for x, y in zip(a, b, strict=True)
    )
