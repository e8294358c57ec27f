"""Timings of several pieces of work, taken in turn so that a busy machine slows all of them alike."""

from __future__ import annotations

import math
import random
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from .clock import Clock, Overhead, Stopwatch, Work, no_collections, overhead
from .order_statistics import summary

T = TypeVar("T")

LONG_SAMPLE = 0.1
"""Seconds of a short work beside one sample of a long one, however long: pauses of a busy machine are shorter."""

OVERHEAD_SHARE = 0.005
"""Samples are made long enough for the clock's own cost to stay below this part of them."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds a call, and ratios to the reference's sample of the same round.

    Attributes:
        seconds: median.
        low, high: quartiles of the seconds.
        interval: 95 % confidence interval of the median, from order statistics; None below six samples.
        width: its length relative to the median.
        ratio: median of the paired ratios; 1 for the reference itself.
        ratio_low, ratio_high: quartiles of the ratios.
        ratio_interval, ratio_width: as ``interval`` and ``width``, of the ratio.
        reference_seconds: median of the reference.
        samples: number of rounds.
        calls: calls a sample.
        reached: whether both widths are within what was asked for.
        overhead: share of a sample that is the clock's, not the work's.
        clock: which one was read.
    """

    seconds: float
    low: float
    high: float
    interval: tuple[float, float] | None
    width: float | None
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_interval: tuple[float, float] | None
    ratio_width: float | None
    reference_seconds: float
    samples: int
    calls: int
    reached: bool
    overhead: float
    clock: str


def interleaved(
    works: Mapping[str, Work],
    reference: str,
    *,
    width: float = 0.05,
    budget: float = 10.0,
    least: int = 6,
    most: int = 1000,
    device: torch.device | str = "cpu",
    at: Callable[[str], object] | None = None,
    warm: int = 1,
    patience: float = math.inf,
    slice_seconds: float = 1e-3,
    clock: Clock | None = None,
    agree: Callable[[float], float] = float,
    seed: int = 0,
) -> dict[str, Timing | Exception]:
    """Time all works in rounds, one sample of each a round, in an order drawn anew for every round.

    Args:
        works: name -> what to time; every call of it must do the same amount of work.
        reference: the name of the unit, for instance plain training.
        width: rounds go on until the confidence interval of every median, of the seconds and of the paired ratio, is
            relatively narrower than this ...
        budget: ... or this many seconds are spent, warming up not counted.
        least, most: bounds on the number of rounds.
        device: see `Stopwatch`.
        at: called with a work's name before each of its samples, outside the clock: a process that dies has said in what.
        warm: calls of each work before the first sample.
        patience: seconds after which even ``least`` rounds are not waited for (one is always taken).
        slice_seconds: a sample repeats a short call until it takes about this long, or as long as the longest call of all
            (but no more than `LONG_SAMPLE`), or as long as the clock's own cost demands.
        clock: see `Stopwatch`.
        agree: maximum over the processes that time together, as they must make the same calls and stop after the same round;
            all of them need the same ``seed``.
        seed: of the order.

    Returns:
        name -> its `Timing`, or the exception that it raised: it is then left out, and the others go on.

    Raises:
        ValueError: no work has the reference's name.
        Exception: whatever the reference raises; without it there is no ratio.
    """
    if reference not in works:
        raise ValueError(f"the reference {reference!r} is none of the works {', '.join(works)}")
    rounds = _Rounds(works, reference, Stopwatch(device, clock), at or (lambda name: None))
    order = random.Random(seed)
    with no_collections():
        rounds.each(list(works), lambda fn: [fn() for _ in range(warm)])
        cost = overhead(rounds.stopwatch)
        begin = time.perf_counter()
        rounds.calibrate(agree(max(slice_seconds, cost.fixed / OVERHEAD_SHARE)), agree)
        while True:
            names = list(rounds.works)
            order.shuffle(names)
            rounds.take(names)
            done, spent = rounds.count, time.perf_counter() - begin
            enough = done >= most or spent > patience or (done >= least and (spent > budget or rounds.within(width)))
            if agree(float(not (enough or rounds.alone))) == 0:  # nobody wants to go on
                break
    return {name: rounds.failed[name] if name in rounds.failed else rounds.timing(name, width, cost) for name in works}


def paired_timing(
    fn: Work,
    reference: Work,
    *,
    width: float = 0.0,
    device: torch.device | str = "cpu",
    budget: float = 0.2,
    least: int = 3,
    most: int = 15,
    patience: float = 0.4,
    slice_seconds: float = 1e-3,
) -> Timing:
    """`interleaved` of one work and its unit, in less time; call both once before, so that they are warm.

    Raises:
        Exception: whatever either of them raises.
    """
    found = interleaved(
        {"reference": reference, "work": fn}, "reference", width=width, budget=budget, least=least, most=most, device=device,
        warm=0, patience=patience, slice_seconds=slice_seconds,
    )["work"]  # fmt: skip
    if isinstance(found, Exception):
        raise found
    return found


class _Rounds:
    """The samples so far, of the works that are still alive."""

    def __init__(
        self, works: Mapping[str, Work], reference: str, stopwatch: Stopwatch, at: Callable[[str], object]
    ) -> None:
        self.works, self.reference, self.stopwatch, self.at = dict(works), reference, stopwatch, at
        self.failed: dict[str, Exception] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in works}
        self.calls = dict.fromkeys(works, 1)
        self._ready: dict[str, float] = {}

    @property
    def count(self) -> int:
        return len(self.seconds[self.reference])

    @property
    def alone(self) -> bool:
        """Whether all that was to be compared with the reference has failed."""
        return len(self.works) == 1 and bool(self.failed)

    def each(self, names: Sequence[str], use: Callable[[Work], T]) -> dict[str, T]:
        """``use`` of every work that does not fail in it."""
        found: dict[str, T] = {}
        for name in names:
            self.at(name)
            try:
                found[name] = use(self.works[name])
            except Exception as error:
                if name == self.reference:
                    raise
                traceback.clear_frames(error.__traceback__)  # they hold its tensors, which the others need room for
                self.failed[name] = error
                del self.works[name]
        return found

    def calibrate(self, shortest: float, agree: Callable[[float], float]) -> None:
        """Choose the calls a sample, from one call of each; one that is long enough is a sample itself."""
        first = self.each(list(self.works), lambda fn: self.stopwatch.sample(fn, 1))
        agreed = {name: max(agree(t), 1e-9) for name, t in first.items()}
        length = max(shortest, min(max(agreed.values()), LONG_SAMPLE))
        self.calls = {name: max(1, round(length / t)) for name, t in agreed.items()}
        self._ready = {name: t for name, t in first.items() if self.calls[name] == 1}

    def take(self, names: Sequence[str]) -> None:
        """One round."""
        ready, self._ready = self._ready, {}

        def sample(name: str) -> Callable[[Work], float]:
            return lambda fn: self.stopwatch.sample(fn, self.calls[name]) / self.calls[name]

        for name in names:
            if name in ready:
                self.seconds[name].append(ready[name])
            else:
                self.seconds[name] += self.each([name], sample(name)).values()

    def ratios(self, name: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[name], self.seconds[self.reference], strict=True)]

    def within(self, width: float) -> bool:
        """Whether all intervals are narrow enough."""
        return all(_narrow(summary(x).width, width) for n in self.works for x in (self.seconds[n], self.ratios(n)))

    def timing(self, name: str, width: float, cost: Overhead) -> Timing:
        own, ratio, calls = summary(self.seconds[name]), summary(self.ratios(name)), self.calls[name]
        return Timing(
            seconds=own.median,
            low=own.low,
            high=own.high,
            interval=own.interval,
            width=own.width,
            ratio=ratio.median,
            ratio_low=ratio.low,
            ratio_high=ratio.high,
            ratio_interval=ratio.interval,
            ratio_width=ratio.width,
            reference_seconds=summary(self.seconds[self.reference]).median,
            samples=self.count,
            calls=calls,
            reached=_narrow(own.width, width) and _narrow(ratio.width, width),
            overhead=cost.share(own.median * calls, calls),
            clock=self.stopwatch.name,
        )


def _narrow(width: float | None, wanted: float) -> bool:
    return width is not None and width <= wanted
