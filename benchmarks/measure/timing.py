"""A synchronised clock, and timings that a busy machine slows alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

Work = Callable[[], Any]

LONG_SAMPLE = 0.1
"""Seconds of reference beside one sample, however long the sample: pauses of a busy machine are shorter."""


def synchronise(device: torch.device | str) -> None:
    """Wait until the device has finished; nothing to wait for on a CPU."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))


class Timing(NamedTuple):
    """Seconds a call, and paired ratios to the reference.

    Attributes:
        seconds: median of ``fn``.
        reference_seconds: median of the reference.
        ratio: median of the ratios of neighbouring samples.
        ratio_low, ratio_high: their quartiles.
        samples: number of pairs.
    """

    seconds: float
    reference_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    samples: int


def paired_timing(
    fn: Work,
    reference: Work,
    *,
    device: torch.device | str = "cpu",
    budget: float = 0.2,
    least: int = 3,
    most: int = 15,
    patience: float = 0.4,
    slice_seconds: float = 1e-3,
) -> Timing:
    """Time ``fn`` beside ``reference``, one sample of each in turn, so that a busy machine slows both.

    Args:
        fn: what to time; call it once before, so that it is warm.
        reference: the unit, for instance one plain training gradient; likewise.
        device: synchronised before and after every sample, never inside.
        budget: seconds to spend; ``least`` pairs are taken all the same.
        least, most: bounds on the number of pairs.
        patience: seconds after which even ``least`` pairs are not waited for (one is always taken).
        slice_seconds: a sample repeats a short call until it takes about this long.
    """
    pairs: list[tuple[float, float]] = []
    with _no_gc():
        first = _sample(fn, 1, device)
        calls = max(1, round(slice_seconds / max(first, 1e-9)))
        # as long as a sample of ``fn``: a short one would slip between the pauses that a busy machine imposes
        long = min(max(slice_seconds, first), LONG_SAMPLE)
        units = max(1, round(long / max(_sample(reference, 1, device), 1e-9)))
        if calls == 1:  # long enough to be a sample itself
            pairs.append((first, _sample(reference, units, device)))
        begin = time.perf_counter() - (first if calls == 1 else 0.0)
        while len(pairs) < most:
            spent = time.perf_counter() - begin
            if pairs and (spent > patience or (len(pairs) >= least and spent > budget)):
                break
            pairs.append((_sample(fn, calls, device), _sample(reference, units, device)))
    ratios = [a / b for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Timing(
        statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), middle, low, high, len(pairs)
    )


def _sample(fn: Work, calls: int, device: torch.device | str) -> float:
    """Seconds a call: of this thread's processor time on a single-threaded CPU, where nothing else is at work."""
    alone = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    synchronise(device)
    start = clock()
    for _ in range(calls):
        fn()
    synchronise(device)
    return (clock() - start) / calls


@contextmanager
def _no_gc() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
