"""Where the candidates are measured: one stage of the user's problem, from one start."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from estimators import HypergradientError, NotApplicableError, Problem, State, Tree, gradients, run, tree
from estimators.error_bound import Certificate, NoBound, certify

from ..cells import Cell
from ..double import AGREE, doubled, promoted
from ..measure import Category, Memory, memory_of
from ..meta_step import WARM_STEPS, copied, settled
from ..own_problem import Found, find
from ..plan import UnknownName
from ..workloads import Workload


@dataclass(frozen=True, eq=False)
class Place:
    """A problem of one stage, as a workload, and the state from which every run of it starts.

    Attributes:
        workload: whose meta optimizer holds nothing: its state is the same for every estimator, and not counted.
        state: before the stage's first step.
        warm: steps that were taken before.
    """

    workload: Workload
    state: State
    warm: int

    @property
    def hparams(self) -> Tree:
        return tree.detach(self.workload.problem.hparams)

    @functools.cached_property
    def plain_memory(self) -> Memory:
        """Of the run alone."""
        return memory_of(PlainRun(self, onward=True))

    @functools.cached_property
    def certificate(self) -> Certificate | NoBound:
        """What bounds every estimate's error at the end of the run."""
        stage = self.workload.stage
        record = run(stage, self.state, self.hparams, tail=0)
        try:
            return certify(self.workload.problem.outer, stage, record, self.hparams)
        except HypergradientError as error:
            return NoBound(reason=str(error))

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.state.params.values())).dtype


class PlainRun:
    """The steps alone, as `run` takes them without recording: the unit of time.

    Args:
        place: where.
        onward: as for `MetaStep`.
    """

    watch = None

    def __init__(self, place: Place, *, onward: bool = False) -> None:
        self.workload, self._hparams = place.workload, place.hparams
        self._held, self._onward = [copied(place.state) if onward else place.state], onward

    @property
    def resident(self) -> Mapping[Category, Any]:
        return {"parameters": self._held[0].params, "slots": self._held[0].slots, "hyperparameters": self._hparams}

    def __call__(self) -> object:
        start = self._held.pop() if self._onward else self._held[0]
        return run(self.workload.stage, start, self._hparams, tail=0, watch=self.watch, donate=self._onward)


def of(cell: Cell) -> Place:
    """Where ``cell`` is measured; the last one that was asked for is kept."""
    return _of(json.dumps([cell.problem, cell.settings, cell.seed, cell.dtype, cell.device], sort_keys=True))


@functools.lru_cache(maxsize=1)
def _of(key: str) -> Place:
    problem, settings, seed, dtype, device = json.loads(key)
    made = make(find(problem), settings, seed=seed, dtype=getattr(torch, dtype), device=device)
    gc.collect()
    gc.freeze()  # the collections around every measurement need not walk through torch, nor what it imported
    return made


def make(found: Found, settings: Mapping[str, Any], *, seed: int, dtype: torch.dtype | None, device: str) -> Place:
    """Make the problem and warm it up.

    A workload starts after `WARM_STEPS` of its own steps, a problem as it is given. A problem that takes no ``seed`` is at a later
    point of its run for every further one: it goes on from the end of the run before.

    Raises:
        UnknownName: it has more than one stage; and as `Found.make`.
        Exception: whatever making and running it raises.
    """
    made = found.make(seed=seed, dtype=dtype, device=device, **settings)
    if isinstance(made, Workload):
        state = settled(made)
        warm = WARM_STEPS
    else:
        made, warm = _as_workload(made), 0
        start = made.problem.start
        state = start if isinstance(start, State) else made.stage.initial(start, made.problem.hparams)
    made = replace(made, meta=lambda leaves: torch.optim.SGD(leaves, lr=0.0))
    for _ in range(0 if found.takes("seed") else seed):
        state = run(made.stage, state, tree.detach(made.problem.hparams), tail=0).end
        warm += made.stage.steps
    return Place(made, state, warm)


def _as_workload(problem: Problem) -> Workload:
    if len(problem.stages) != 1:
        raise UnknownName(
            f"{problem.name} has {len(problem.stages)} stages, and advice is for one: give the last one alone, with the end of the "
            "earlier ones as its start; `hypergradbench run` compares composed estimators"
        )
    (stage,) = problem.stages
    return Workload(
        problem=problem,
        samples=0,
        plain=lambda params, batch: stage.loss(params, problem.hparams, batch),
        optimizer=torch.optim.SGD,
        meta=torch.optim.SGD,
        data="",
    )


def in_float64(cell: Cell) -> tuple[Place, str]:
    """The same place in float64, and how that was reached: the numbers converted, else the problem made in float64, else as it is."""
    own = of(cell)
    if own.dtype == torch.float64:
        return own, "float64"
    for make_it in (_converted, _remade):
        try:
            other = make_it(own, cell)
            if _agree(own, other):
                return other, "float64"
        except Exception:  # losses that hold data in their own dtype, a function that has none of float64
            continue
    return own, f"{str(own.dtype).removeprefix('torch.')}, since the losses cannot be evaluated in float64"


def _converted(own: Place, _: Cell) -> Place:
    problem, stage, state = own.workload.problem, own.workload.stage, own.state
    stage = replace(stage, loss=promoted(stage.loss), first_order=None)
    problem = replace(problem, stages=[stage], outer=promoted(problem.outer), hparams=doubled(problem.hparams))
    state = state._replace(params=doubled(state.params), slots=doubled(state.slots))
    return replace(own, workload=replace(own.workload, problem=problem), state=state)


def _remade(_: Place, cell: Cell) -> Place:
    return make(find(cell.problem), cell.settings, seed=cell.seed, dtype=torch.float64, device=cell.device)


def _agree(a: Place, b: Place) -> bool:
    return all(abs(x - y) <= AGREE * max(abs(x), abs(y)) for x, y in zip(_losses(a), _losses(b), strict=True))


def _losses(place: Place) -> list[float]:
    problem, stage, state, h = place.workload.problem, place.workload.stage, place.state, place.hparams
    return [float(stage.objective(state.step)(state.params, h)), float(problem.outer(state.params, h))]


def gradient_ratio(place: Place, end: State) -> float | None:
    """||gradient|| of the last step's loss at ``end``, relative to the first step's at the start: how far from an optimum the run
    stops. None if the start is one."""
    stage = place.workload.stage

    def norm(state: State, step: int) -> float:
        _, grads, _ = gradients(
            stage.objective(step), state.params, place.hparams, wrt_params=stage.trained(state.params)
        )
        return float(tree.norm(stage.reduce(grads)))

    first = norm(place.state, place.state.step)
    return norm(end, max(end.step - 1, 0)) / first if first else None


def problem_error(error: Exception) -> str:
    """What a user is told who gave a problem that cannot be made."""
    return str(error) if isinstance(error, (UnknownName, NotApplicableError)) else f"{type(error).__name__}: {error}"
