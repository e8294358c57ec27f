"""What a meta step costs: samples a second and bytes, beside plain training of the same model in the same minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from estimators import Cost, Estimator, Hypergradient, NonFiniteError, Tree, tree

from . import limits
from .measure import (
    Counts,
    Memory,
    Timing,
    allocator_peak_bytes,
    counts_of,
    cuda_memory,
    interleaved,
    memory_of,
    peak_bytes,
)
from .meta_step import Kernel, MetaStep, PlainTraining, copied, preloaded, settled
from .point import told
from .workloads import Workload

Work = Callable[[], Any]

PLAIN = "plain training"
"""What `Bench.time` calls the reference; no estimator has a blank in its name."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long the clock may run.

    Attributes:
        width: of the confidence interval of the median, relative to it: narrow enough.
        budget: seconds a cell, after warming up, in which to reach it.
        least, most: bounds on the number of rounds.
        patience: times the budget, after which even ``least`` rounds are not waited for.
    """

    width: float = 0.05
    budget: float = 3.0
    least: int = 6
    most: int = 300
    patience: float = 5.0


def units(ratio: float, unroll: int) -> float:
    """Cost of one meta step beyond its ``unroll`` steps, in steps of plain training.

    Args:
        ratio: throughput relative to plain training.
    """
    return unroll * (1 / ratio - 1)


class Bench:
    """One workload, its plain training, and any number of estimators that are measured beside it.

    Args:
        workload: what is trained; of a data-parallel rank its own share.
        kernel: see `benchmarks.meta_step.Kernel`.
        effort: for the clock.
        world: data-parallel ranks that share every step.

    Raises:
        Exception: whatever the workload raises.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        kernel: Kernel = "best",
        effort: Effort | None = None,
        world: int = 1,
    ) -> None:
        self.workload, self.kernel, self.effort, self.world = workload, kernel, effort or Effort(), world
        self._state = settled(workload)
        plain = PlainTraining(workload, self._state, kernel=kernel)
        plain()
        self._plain_memory, self._plain_counts = memory_of(plain), counts_of(plain)
        self._plain_cuda = cuda_memory(plain, self.device)
        self._entries: dict[str, _Entry] = {}

    @property
    def device(self) -> torch.device:
        return next(iter(self.workload.problem.hparams.values())).device

    def enter(self, name: str, estimator: Estimator) -> None:
        """Warm up, look at the answer, and take memory and counts. Then the estimator waits for `time`.

        Raises:
            NonFiniteError: the hypergradient is NaN or infinite.
            Exception: whatever the estimator raises.
        """
        step = MetaStep(self.workload, estimator, copied(self._state), kernel=self.kernel, onward=True)
        found, cost = _told(step())  # and the answer is gone: its cotangents are as large as the parameters
        memory, counts, cuda = memory_of(step), counts_of(step), cuda_memory(step, self.device)
        held = MetaStep(self.workload, estimator, self._state, kernel=self.kernel)
        self._entries[name] = _Entry(estimator, found, cost, memory, counts, self._second_opinion(held), cuda)

    def _second_opinion(self, step: MetaStep) -> dict[str, int] | None:
        """What the CPU allocator gave out to a step, beside the exact count of the same.

        The allocator does not tell that what was there before is freed: the start is held, and not counted by either.
        """
        if self.device.type != "cpu":
            return None
        step()
        return {"allocator_bytes": allocator_peak_bytes(step), "exact_bytes": peak_bytes(step)}

    def time(self, at: Callable[[str], None] = lambda name: None, agree: Callable[[float], float] = float) -> None:
        """Time every estimator that was entered, in turn with plain training.

        Args:
            at: told the name before each sample, so that a process that dies in it has said where.
            agree: maximum over data-parallel ranks.

        Raises:
            Exception: whatever plain training raises. What an estimator raises is raised by `content`.
        """
        workload = preloaded(self.workload)
        calls: dict[str, Work] = {
            name: MetaStep(workload, entry.estimator, self._state, kernel=self.kernel)
            for name, entry in self._entries.items()
        }
        calls[PLAIN] = PlainTraining(workload, self._state, kernel=self.kernel)
        e, shares = self.effort, len(self._entries)
        timings = interleaved(
            calls, PLAIN, width=e.width, budget=shares * e.budget, least=e.least, most=e.most, device=self.device,
            at=lambda name: None if name == PLAIN else at(name), patience=shares * e.patience * e.budget,
            clock=time.perf_counter if self.world > 1 else None, agree=agree,
        )  # fmt: skip
        for name, entry in self._entries.items():
            entry.timing = timings[name]

    def content(self, name: str) -> dict[str, Any]:
        """What the row of a cell says.

        Raises:
            Exception: what the estimator raised while it was timed.
        """
        entry, stage = self._entries[name], self.workload.stage
        if isinstance(entry.timing, Exception):
            raise entry.timing
        assert entry.timing is not None  # `time` was called
        samples = self.workload.samples * self.world
        return {
            "workload": {
                "name": self.workload.problem.name,
                "size": self.workload.settings.get("size"),
                "unroll": stage.steps,
                "samples": samples,
                "params": _count(self._state.params),
                "hparams": _count(self.workload.problem.hparams),
                "data": self.workload.data,
                "kernel": self.kernel,
                "settings": self.workload.settings,
            },
            "throughput": throughput(entry.timing, samples=samples, unroll=stage.steps),
            "memory": {
                "peak_bytes": entry.memory.peak,
                "plain_peak_bytes": self._plain_memory.peak,
                "ratio": entry.memory.peak / self._plain_memory.peak,
                "split": entry.memory.split,
                "plain_split": self._plain_memory.split,
                "resident_bytes": entry.memory.resident,
                "allocator": entry.allocator,
                "rss_bytes": limits.peak_rss(),
                "cuda": entry.cuda,
                "plain_cuda": self._plain_cuda,
            },
            "counters": {
                **asdict(entry.counts),
                "plain_flops": self._plain_counts.flops,
                "plain_collectives": self._plain_counts.collectives,
                "plain_collective_bytes": self._plain_counts.collective_bytes,
                "gradients": entry.cost.gradients,
                "products": entry.cost.products,
                "matvecs": entry.cost.matvecs,
            },
            "overhead": {"share": entry.timing.overhead, "calls": entry.timing.calls, "clock": entry.timing.clock},
            **entry.found,
        }


@dataclass
class _Entry:
    estimator: Estimator
    found: dict[str, Any]
    cost: Cost
    memory: Memory
    counts: Counts
    allocator: dict[str, int] | None
    cuda: dict[str, int] | None
    timing: Timing | Exception | None = None


def _told(answer: Hypergradient) -> tuple[dict[str, Any], Cost]:
    """What the row says of the answer, in numbers, and what the estimator says that it cost.

    Raises:
        NonFiniteError: the hypergradient is NaN or infinite.
    """
    if not tree.all_finite(answer.hparams):
        outcomes = ", ".join(o.value for o in answer.outcomes)
        raise NonFiniteError(f"the estimate is NaN or infinite ({outcomes})")
    found = {
        "value": float(answer.value),
        "hypergradient": {k: {"mean": float(x.mean()), "norm": float(x.norm())} for k, x in answer.hparams.items()},
        "pullbacks": told(answer),
    }
    return found, answer.cost


def throughput(timing: Timing, *, samples: int, unroll: int) -> dict[str, Any]:
    """Samples a second, and what one meta step costs in units of a plain step, from times of ``unroll`` steps each.

    Args:
        timing: of the meta step, with the plain training as its reference.
        samples: training examples a step.
        unroll: steps.
    """
    ratio = 1 / timing.ratio
    low, high = (None, None) if timing.ratio_interval is None else (1 / t for t in reversed(timing.ratio_interval))
    return {
        "samples_per_second": samples * unroll / timing.seconds,
        "plain_samples_per_second": samples * unroll / timing.reference_seconds,
        "seconds": timing.seconds,
        "seconds_low": timing.low,
        "seconds_high": timing.high,
        "plain_seconds": timing.reference_seconds,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "meta_step_units": units(ratio, unroll),
        "meta_step_units_low": None if high is None else units(high, unroll),
        "meta_step_units_high": None if low is None else units(low, unroll),
        "samples": timing.samples,
        "relative_width": timing.ratio_width,
        "reached": timing.reached,
    }


def _count(a: Tree) -> int:
    return sum(x.numel() for x in a.values())
