"""What a meta step would need, counted over fake tensors: no kernel runs, and no memory is taken.

Fake tensors know their shape, dtype and device, and nothing else. The counter of `live_bytes` sees their storages as it sees
others', so that the count is that of a measurement, to the byte, at sizes far beyond the machine:

    from benchmarks.cells import Cell
    from benchmarks.measure.predict import predict

    print(predict(Cell(kind="meta", estimator="unroll", problem="bert_noisy", dtype="float32", settings={"size": "large"})))
"""

from __future__ import annotations

import functools
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from estimators import Estimator, Hypergradient, NotApplicableError, Outcome, State, per_stage, registry, tree
from estimators.stage import identity

from ..cells import AUTOCAST, Cell
from ..meta_step import WARM_STEPS, Kernel, MetaStep, PlainTraining, copied
from ..workloads import WORKLOADS, Workload, of_rank, with_autocast
from .live_bytes import LiveBytes
from .of_meta_step import memory_of
from .split import CATEGORIES, Category

Status = Literal["exact", "at most", "depends on data", "refused", "failed"]

LOOSE_CHANGE = 16
"""Bytes by which a step or a product more may add to the peak without being a state or a vector: a few 0-d tensors."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one meta cell would need.

    Attributes:
        status: "exact": what a measurement would give, to the byte. "at most": a tolerance may end the work earlier than its
            budget, which is counted whole. Otherwise there is no number, and ``reason`` says why.
        peak_bytes: as `memory_of` gives it.
        plain_peak_bytes: the same of plain training.
        split: what the peak is made of.
        held_bytes: what a measurement holds beside: the workload itself (first weights, data), the state that timed steps
            start from, and the model that is trained plainly.
        parameters: scalars of theta.
        counted: lengths, in steps or in products of a solver, at which bytes were counted, where what was asked for is
            longer; empty if it was counted itself.
        note: what the number leaves out, if anything.
        seconds: that it took.
        reason: why there is no number.
    """

    status: Status
    peak_bytes: int | None = None
    plain_peak_bytes: int | None = None
    split: Mapping[Category, int] = field(default_factory=dict)
    held_bytes: int | None = None
    parameters: int | None = None
    counted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0
    reason: str | None = None

    @property
    def needed_bytes(self) -> int | None:
        """What measuring the cell takes in all."""
        return None if self.peak_bytes is None or self.held_bytes is None else self.peak_bytes + self.held_bytes

    def fits(self, limit: int) -> bool | None:
        """Whether that is within ``limit`` bytes; None if nothing is known. A kernel's scratch and torch itself, some 300 MB on
        a CPU, come on top."""
        if self.needed_bytes is None:
            return None
        if self.needed_bytes <= limit:
            return True
        return None if self.status == "at most" else False


def predict(cell: Cell) -> Prediction:
    """Count a meta cell over fake tensors.

    A length of run that would take many steps is not walked through: see `extended`. The estimators' own checks that a
    number is finite pass, since there are no numbers; where a number decides how much work is done, the answer is that it
    depends on data.

    Args:
        cell: of kind "meta". One for a device that this torch does not know is counted as on a CPU, and the note says so.
    """
    begin = time.perf_counter()
    gc.collect()
    gc.freeze()  # the collections before every count need not walk through torch
    try:
        if cell.kind != "meta":
            return Prediction(status="refused", reason=f"cells of kind {cell.kind!r} are small: measure them")
        found = _predicted(cell)
    except NotApplicableError as error:
        found = Prediction(status="refused", reason=str(error))
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        reason = f"{cell.estimator} reads a value back {_where(error)} to decide how to go on: give a fixed budget (rtol=0), or measure"
        found = Prediction(status="depends on data", reason=reason)
    except Exception as error:  # as in a sweep: a row of its own
        found = Prediction(status="failed", reason=f"{type(error).__name__}: {error}")
    finally:
        gc.unfreeze()
    return replace(found, seconds=time.perf_counter() - begin)


@dataclass(frozen=True)
class Count:
    """Bytes at the peak of one meta step.

    Attributes:
        split: category -> bytes; they add up to the peak.
        at_most: see `Prediction.status`.
    """

    split: Mapping[Category, int]
    at_most: bool = False

    @property
    def peak(self) -> int:
        return sum(self.split.values())


def count(
    workload: Workload, estimator: Estimator, *, kernel: Kernel = "best", warm: int = WARM_STEPS, real: bool = False
) -> Count:
    """Of a workload that was made without values (see `without_values`), inside the same context.

    Args:
        warm: steps that were taken before.
        real: its losses and its stream hold tensors with values.
    """
    step = _Told(workload, estimator, _state(workload, warm), kernel=kernel, onward=True)
    step.real = real
    step.warm()
    memory = memory_of(step)
    return Count(memory.split, Outcome.UNREAD in step.outcomes)


class _Told(MetaStep):
    """Remembers what became of its estimates."""

    real = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.outcomes: list[Outcome] = []

    def __call__(self) -> Hypergradient:
        with _Twins() if self.real else nullcontext():  # inside of the counter, which is to see fake tensors only
            found = super().__call__()
        self.outcomes += found.outcomes
        return found


class _Fake(FakeTensorMode):
    """Answers without its dispatcher what is asked most often: on which device a tensor is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        return super().__torch_dispatch__(func, types, args, kwargs)


@functools.cache
def _fake(real: bool = False) -> _Fake:
    return _Fake(allow_non_fake_inputs=real)


class _Twins(TorchDispatchMode):
    """Puts a tensor without values in the place of every one with values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_twins(args), **_twins(kwargs or {}))


def _twins(values: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda x: x if isinstance(x, FakeTensor) else _fake(True).from_tensor(x), values)


@contextmanager
def without_values(*, real: bool = False) -> Iterator[None]:
    """Tensors that are made inside have no values, and no operation on them computes anything. What was made in one such
    context can be used in another.

    Args:
        real: tensors with values may take part: only their shapes are looked at.
    """
    with _fake(real):
        yield


def peak_of(workload: Workload, estimator: Estimator, *, warm: int = 0) -> Count:
    """Of a workload with values, none of which is looked at: for problems that cannot be made without.

    Args:
        warm: steps that were taken before the meta step.

    Raises:
        DataDependentOutputException, DynamicOutputShapeException: a value decides what is done.
        Exception: whatever the estimator raises.
    """
    problem = workload.problem
    start = problem.start.params if isinstance(problem.start, State) else problem.start
    with without_values(real=True):
        problem = replace(problem, start=_twins(start), hparams=_twins(problem.hparams))
        return _counted(replace(workload, problem=problem), estimator, "best", warm=warm, real=True)[0]


def extended(
    counted: Callable[[int], Count], whole: int, first: int, every: int = 1, state: int = 0
) -> tuple[Count, tuple[int, ...]]:
    """``counted(whole)`` without counting so much: from some length on, a peak grows by the same with every ``every`` steps.

    That is taken for granted when two lengths in a row differ by one recorded state, or by none, and a few 0-d tensors; or
    three by the same amount in every category. Otherwise longer ones are counted, in the end ``whole`` itself.

    Args:
        counted: length -> count.
        whole: length that is asked for.
        first: shortest length from which this may be tried.
        every: steps to a period.
        state: bytes of a state.

    Returns:
        (count, lengths that were counted; none if that is ``whole`` itself).
    """
    first += (whole - first) % every
    if whole <= first + every:
        return counted(whole), ()
    found: list[Count] = []
    for n in range(first, whole, every):
        found.append(counted(n))
        if len(found) > 1:
            growth = _growth(found[-2], found[-1])
            loose = sum(growth.values()) - growth["recorded"]
            if growth["recorded"] in (0, state) and 0 <= loose <= LOOSE_CHANGE * every:
                if not all(0 <= g <= loose for category, g in growth.items() if category != "recorded"):
                    # another moment with the same peak: what follows is made of what the longer one is made of
                    growth = {**dict.fromkeys(CATEGORIES, 0), "recorded": growth["recorded"], "buffers": loose}
            elif len(found) < 3 or growth != _growth(found[-3], found[-2]):
                continue
            times = (whole - n) // every
            split = {category: found[-1].split[category] + times * growth[category] for category in CATEGORIES}
            return Count(split, any(c.at_most for c in found)), tuple(range(first, n + 1, every))
    return counted(whole), ()


def _growth(a: Count, b: Count) -> dict[Category, int]:
    return {category: b.split[category] - a.split[category] for category in CATEGORIES}


def _predicted(cell: Cell) -> Prediction:
    entry = registry[cell.estimator]
    kernel = cell.meta.get("kernel", "best")
    with without_values():
        workload, held, note = _workload(cell)
        refused = entry.claim.refuses(workload.problem)
        if refused:
            raise NotApplicableError(refused)
        (estimator,) = per_stage(_with_fields(entry.estimator, cell.fields), 1)
        state = _state(workload)
        in_state = _bytes_of(state)
        found, lengths = _counted(workload, estimator, kernel)
        plain = _plain(cell)
    return Prediction(
        status="at most" if found.at_most else "exact",
        peak_bytes=found.peak,
        plain_peak_bytes=plain[0],
        split=found.split,
        held_bytes=held + in_state + plain[1],
        parameters=tree.size(state.params),
        counted={what: ns for what, ns in lengths.items() if ns},
        note=note,
    )


def _bytes_of(state: State) -> int:
    return sum(map(tree.nbytes, [state.params, *state.slots.values()]))


def _counted(
    workload: Workload, estimator: Estimator, kernel: Kernel, **options: Any
) -> tuple[Count, dict[str, tuple[int, ...]]]:
    """(count, see `Prediction.counted`)."""
    in_state = _bytes_of(_state(workload))
    steps, tail = workload.stage.steps, estimator.tail
    every = getattr(estimator, "every", 1)
    whole = every >= steps or tail == 0
    lengths: dict[str, tuple[int, ...]] = {}

    def of_steps(estimator: Estimator) -> Count:
        found, lengths["steps"] = extended(
            lambda n: count(_of_length(workload, n), estimator, kernel=kernel, **options), steps,
            2 if tail is None else tail + 2, 1 if whole else every, in_state,
        )  # fmt: skip
        return found

    if getattr(estimator, "budget", None) is not None:  # of bytes: memory grows as long as they allow, and then no more
        return count(workload, estimator, kernel=kernel, **options), {}
    budget = _budget(estimator)
    if budget > 4:
        found, lengths["products"] = extended(lambda k: of_steps(_of_budget(estimator, k)), budget, 2)
    else:
        found = of_steps(estimator)
    return found, lengths


def _workload(cell: Cell) -> tuple[Workload, int, str]:
    """(the workload, bytes that it holds, what is left out)."""
    notes, device = [], torch.device(cell.device)
    if device.type != "cpu" and not getattr(torch, device.type).is_available():
        notes.append(f"counted as on a CPU: this torch sees no {device.type}, whose kernels may keep other things")
        device = torch.device("cpu")
    if cell.workers > 1:
        notes.append("buffers of the communication between workers left out")
    autocast = cell.dtype == AUTOCAST
    dtype = torch.float32 if autocast else getattr(torch, cell.dtype)
    counter = LiveBytes()
    with counter.measuring():
        made = WORKLOADS[cell.problem].make(seed=cell.seed, dtype=dtype, device=device, **cell.settings)
        held = counter.now
    made = with_autocast(made) if autocast else made
    made = of_rank(made, 0, cell.workers, identity) if cell.workers > 1 else made
    return made, held, "; ".join(notes)


_PLAIN: dict[str, tuple[int, int]] = {}


def _plain(cell: Cell) -> tuple[int, int]:
    """(peak of plain training, what it holds between steps): the same for all estimators of an instance."""
    key = replace(cell, estimator="", fields={}, built="", code="").id
    if key not in _PLAIN:
        workload, _, _ = _workload(cell)
        plain = PlainTraining(_of_length(workload, 1), _state(workload), kernel=cell.meta.get("kernel", "best"))
        plain.warm()
        memory = memory_of(plain)
        _PLAIN[key] = memory.peak, memory.resident
    return _PLAIN[key]


def _state(workload: Workload, warm: int = WARM_STEPS) -> State:
    """As after ``warm`` steps, which change no shape."""
    problem, stage = workload.problem, workload.stage
    start = problem.start if isinstance(problem.start, State) else stage.initial(problem.start, problem.hparams)
    return copied(start)._replace(step=start.step + warm)


def _of_length(workload: Workload, steps: int) -> Workload:
    problem, stage = workload.problem, workload.stage
    return replace(workload, problem=replace(problem, stages=[replace(stage, steps=steps)]))


def _budget(estimator: Estimator) -> int:
    """Most products that its solver makes; 0 if it has none, or one of another kind."""
    solver = getattr(estimator, "solver", None)
    return getattr(solver, "steps", 0) if is_dataclass(solver) else 0


def _of_budget(estimator: Any, products: int) -> Estimator:
    made: Estimator = replace(estimator, solver=replace(estimator.solver, steps=products))
    return made


def _with_fields(estimators: Any, fields: Mapping[str, Any]) -> Any:
    if not fields:
        return estimators
    from ..plan import with_fields

    return with_fields(estimators, fields)


def _where(error: BaseException) -> str:
    """The line outside of torch that asked."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(own)]
    if not frames:
        return "somewhere"
    file = Path(frames[-1].filename)
    return f"({file.parent.name}{os.sep}{file.name}:{frames[-1].lineno}: `{frames[-1].line}`)"
