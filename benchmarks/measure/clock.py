"""One sample of time, synchronised with the device, and what taking it costs."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Work = Callable[[], Any]
Clock = Callable[[], float]
"""-> seconds since some fixed moment."""


def synchronise(device: torch.device | str) -> None:
    """Wait until the device has finished; nothing to wait for on a CPU."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))


@dataclass(frozen=True)
class Stopwatch:
    """Times calls on a device.

    CUDA: by a pair of events in the current stream, the device synchronised once, after the second. Other accelerators: by
    `time.perf_counter`, synchronised at both ends. CPU: by `time.thread_time` if torch has one thread (this thread's
    processor time: what pre-empts a sample is not the work's), else by `time.perf_counter`.

    Args:
        device: whose work is timed.
        clock: read instead of all that. Give `time.perf_counter` where the work waits for other processes: waiting is no
            processor time.
    """

    device: torch.device | str = "cpu"
    clock: Clock | None = None

    @property
    def name(self) -> str:
        """Of the clock that is read, for the records."""
        if self.clock is not None:
            return getattr(self.clock, "__name__", type(self.clock).__name__)
        if self._kind == "cuda":
            return "cuda events"
        return self._host_clock.__name__

    def sample(self, fn: Work, calls: int) -> float:
        """Seconds that ``calls`` calls take together."""
        if self._kind == "cuda" and self.clock is None:
            return self._by_events(fn, calls)
        clock = self.clock or self._host_clock
        synchronise(self.device)
        start = clock()
        for _ in range(calls):
            fn()
        synchronise(self.device)
        return clock() - start

    @property
    def _kind(self) -> str:
        return torch.device(self.device).type

    @property
    def _host_clock(self) -> Clock:
        return time.thread_time if self._kind == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def _by_events(self, fn: Work, calls: int) -> float:
        with torch.cuda.device(self.device):
            # the sample before ended synchronised: the device is idle, and passes the first event at once
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(calls):
                fn()
            end.record()
            torch.cuda.synchronize()  # not `end` alone: nothing of this sample may run into the next
        return begin.elapsed_time(end) / 1e3


@dataclass(frozen=True)
class Overhead:
    """What timing adds to what it times.

    Attributes:
        fixed: seconds a sample: clock reads or events, synchronising, and the first turn of the loop.
        per_call: seconds for every further call: a turn of the loop, and a call of a function that does nothing.
    """

    fixed: float
    per_call: float

    def share(self, seconds: float, calls: int) -> float:
        """Which part of a sample of ``seconds`` with ``calls`` calls is overhead."""
        return (self.fixed + (calls - 1) * self.per_call) / seconds


def overhead(stopwatch: Stopwatch, *, repeat: int = 15, calls: int = 300) -> Overhead:
    """Measure it here and now, by timing a function that does nothing.

    Args:
        stopwatch: which.
        repeat: samples, of which the median is taken.
        calls: in the long samples.
    """

    def nothing() -> None:
        pass

    fixed = statistics.median(stopwatch.sample(nothing, 1) for _ in range(repeat))
    long = statistics.median(stopwatch.sample(nothing, calls) for _ in range(repeat // 3))
    return Overhead(fixed, max(long - fixed, 0.0) / (calls - 1))


@contextmanager
def no_collections() -> Iterator[None]:
    """Garbage is collected before, and not inside."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
