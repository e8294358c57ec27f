"""The memory of one meta step, and of plain training beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .split import Memory, Meter

if TYPE_CHECKING:  # not at run time: meta steps may measure themselves
    from ..meta_step import MetaStep, PlainTraining


def memory_of_meta_step(step: MetaStep) -> Memory:
    """Peak bytes of one meta step, split, with all that is held between meta steps: parameters, slots, hyperparameters.

    That is what a GPU's figure of the same step holds, but for the kernels' scratch, the allocator's rounding, and data
    that were there before. The caller holds the start as long as the step lasts, and so it counts as long.

    Args:
        step: called once before, so that the meta optimizer has its state. It is as it was afterwards, but for one more
            update of the meta optimizer.

    Raises:
        Exception: whatever the step raises.
    """
    meter, watched = Meter(), copy.copy(step)
    watched.workload = replace(step.workload, problem=meter.problem(step.workload.problem))
    watched.watch = meter.state
    meter.resident(step.resident)
    with _meta_update(meter, step.meta):
        return _measured(meter, watched)


def memory_of_training(plain: PlainTraining) -> Memory:
    """The same of plain training: as many steps as the meta step has, parameters and slots included.

    Args:
        plain: called once before, so that the optimizer has its slots.
    """
    meter, watched = Meter(), copy.copy(plain)
    workload = plain.workload
    problem = replace(workload.problem, stages=[meter.stage(workload.stage)])
    watched.workload = replace(workload, problem=problem, plain=meter.loss(workload.plain))
    meter.resident(plain.resident)
    return _measured(meter, watched)


def _measured(meter: Meter, work: Callable[[], object]) -> Memory:
    with meter.measuring():
        work()
    return meter.memory()


@contextmanager
def _meta_update(meter: Meter, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """What the meta optimizer makes is for the hyperparameters."""
    open_phases = []

    def before(*_: object) -> None:
        open_phases.append(meter.phase("hyperparameters"))
        open_phases[-1].__enter__()

    def after(*_: object) -> None:
        open_phases.pop().__exit__(None, None, None)

    hooks = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
