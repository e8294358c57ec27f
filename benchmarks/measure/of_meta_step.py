"""Memory and counts of one meta step, and of plain training beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from ..workloads import Workload
from .counters import Counts, counting
from .split import Category, Memory, Meter
from .watched import Watcher


class Measurable(Protocol):
    """A `MetaStep` or `PlainTraining`.

    Attributes:
        workload: whose losses and streams it uses.
        resident: tensors that are held between calls, by what they are for.
    """

    workload: Workload

    @property
    def resident(self) -> Mapping[Category, Any]: ...

    def __call__(self) -> object: ...


def memory_of(step: Measurable) -> Memory:
    """Peak bytes of one call, split, with all that is held between calls: parameters, slots, hyperparameters.

    That is what a GPU's figure of the same call holds, but for the kernels' scratch, the allocator's rounding, and data
    that were there before. The start counts as long as somebody holds it: in a `MetaStep` that goes onward, only the step does.

    Args:
        step: called once before, so that the optimizer (a meta step's meta optimizer) has its state. The call that is
            measured updates it once more.

    Raises:
        Exception: whatever the step raises.
    """
    meter = Meter()
    meter.resident(step.resident)
    work = watched(step, meter)
    with _meta_update(meter, getattr(step, "meta", None)), meter.measuring():
        work()
    return meter.memory()


def counts_of(step: Measurable) -> Counts:
    """Forwards, backwards, FLOPs and collectives of one call; see `Counts`."""
    with counting() as counter:
        watched(step, counter)()
    return counter.counts()


def watched(step: Measurable, watcher: Watcher) -> Callable[[], object]:
    """The same work on the same tensors, with its losses and streams watched and, by a `Meter`, its states."""
    other = copy.copy(step)
    workload = step.workload
    other.workload = replace(workload, problem=watcher.problem(workload.problem), plain=watcher.loss(workload.plain))
    if isinstance(watcher, Meter) and hasattr(other, "watch"):
        other.watch = watcher.state
    return other


@contextmanager
def _meta_update(meter: Meter, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """What the meta optimizer makes is for the hyperparameters."""
    if optimizer is None:
        yield
        return
    inside = []

    def before(*_: object) -> None:
        inside.append(meter.phase("hyperparameters"))
        inside[-1].__enter__()

    def after(*_: object) -> None:
        inside.pop().__exit__(None, None, None)

    hooks = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
