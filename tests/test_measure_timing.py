"""The clock on simulated time, where every answer is known: works move a clock of their own, so that nothing waits."""

from __future__ import annotations

import itertools
import math
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks.measure import Overhead, Stopwatch, Timing, interleaved, median_interval, overhead, summary
from benchmarks.measure.timing import OVERHEAD_SHARE


class Simulated:
    """A clock that only works move.

    Args:
        read: seconds that looking at it takes.
    """

    def __init__(self, read: float = 0.0) -> None:
        self.now, self.read = 0.0, read

    def __call__(self) -> float:
        self.now += self.read
        return self.now

    def work(self, seconds: float | Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds() if callable(seconds) else seconds

        return run


def timed(works: dict[str, Any], clock: Simulated, **options: Any) -> dict[str, Timing]:
    found = interleaved(works, next(iter(works)), clock=clock, **options)
    assert all(isinstance(t, Timing) for t in found.values()), found
    return found  # type: ignore[return-value]


def test_intervals_are_those_of_the_tables() -> None:
    """Ranks of the 95 % interval of the median, as in textbooks: 1 of 6, 2 of 9, 2 of 10, 6 of 20, 18 of 50, 40 of 100."""
    for n, k in [(6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (50, 18), (100, 40)]:
        shuffled = np.random.default_rng(n).permutation(np.arange(1.0, n + 1)).tolist()
        assert median_interval(shuffled) == (k, n + 1 - k)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None  # covered with 1 - 2/32 = 93.75 % at most
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0], confidence=0.9) == (1.0, 5.0)
    for n in range(6, 200):
        k = round(median_interval(list(map(float, range(1, n + 1))))[0])  # type: ignore[index]
        binomial = scipy.stats.binom(n, 0.5)
        assert 2 * binomial.cdf(k - 1) <= 0.05 < 2 * binomial.cdf(k)


def test_intervals_cover_the_median_of_a_skewed_distribution() -> None:
    draws = np.random.default_rng(0).lognormal(sigma=1.5, size=(3000, 15))  # median 1, mean 3
    hits = [low <= 1 <= high for low, high in (median_interval(row) or (math.nan, math.nan) for row in draws.tolist())]
    exact = 1 - 2 * scipy.stats.binom(15, 0.5).cdf(3)
    assert exact == pytest.approx(0.965, abs=1e-3)
    assert np.mean(hits) == pytest.approx(exact, abs=3.5 * math.sqrt(exact * (1 - exact) / len(hits)))


def test_stopping_at_a_narrow_interval_costs_little_coverage() -> None:
    """Looked at after every round, an interval stops when it happens to be narrow: below 95 %, but not by much."""
    source, hits, used = np.random.default_rng(1), [], []
    for row in source.lognormal(sigma=0.1, size=(400, 150)).tolist():
        n = next((n for n in range(6, len(row)) if (summary(row[:n]).width or 1) <= 0.06), len(row))
        low, high = median_interval(row[:n]) or (math.nan, math.nan)
        hits.append(low <= 1 <= high)
        used.append(n)
    assert 10 < np.median(used) < 150
    assert np.mean(hits) > 0.88


def test_summary_by_hand() -> None:
    assert summary([3.0]) == (3.0, 3.0, 3.0, None, None)
    found = summary([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
    assert found.median == 3.5
    assert (found.low, found.high) == (2.25, 4.75)  # NumPy's default quartiles
    assert found.interval == (1.0, 7.0)
    assert found.width == pytest.approx(6 / 3.5)


def test_steady_works_need_the_fewest_rounds() -> None:
    clock = Simulated()
    found = timed({"plain": clock.work(2e-3), "meta": clock.work(14e-3)}, clock, width=0.01)
    meta, plain = found["meta"], found["plain"]
    assert (meta.samples, plain.samples) == (6, 6)  # no interval below
    assert meta.reached
    assert meta.seconds == pytest.approx(14e-3)
    assert meta.reference_seconds == plain.seconds == pytest.approx(2e-3)
    assert meta.ratio == pytest.approx(7)
    assert meta.ratio_interval == pytest.approx((7, 7))
    assert (plain.ratio, plain.ratio_width) == (1, 0)
    assert (plain.calls, meta.calls) == (7, 1)  # samples of equal length


def test_a_drifting_machine_moves_the_seconds_but_not_the_ratio() -> None:
    clock, slowdown = Simulated(), itertools.count(1)
    factor = [1.0]

    def at(name: str) -> None:
        if name == "plain":
            factor[0] = next(slowdown)

    works = {"plain": clock.work(lambda: 1e-3 * factor[0]), "meta": clock.work(lambda: 3e-3 * factor[0])}
    found = timed(works, clock, at=at, width=0.05, most=20)["meta"]
    assert found.high > 1.5 * found.low  # by the end everything takes twenty times as long
    assert not found.reached
    assert found.samples == 20
    assert found.ratio_low < 3.2
    assert 2.6 < found.ratio < 3.2


def test_rounds_are_interleaved_in_changing_order() -> None:
    clock, calls = Simulated(), list[str]()
    works = {name: clock.work(5e-3) for name in "abcd"}
    timed(works, clock, at=calls.append, least=8, most=8, warm=1)
    rounds = ["".join(calls[i : i + 4]) for i in range(0, len(calls), 4)]
    assert all(sorted(r) == list("abcd") for r in rounds)
    # one to warm up, one to choose the number of calls, which is the first sample, too; seven more
    assert len(rounds) == 9
    assert len(set(rounds)) >= 6
    again = list[str]()
    timed(works, clock, at=again.append, least=8, most=8, warm=1)
    assert again == calls


def test_rounds_go_on_until_the_interval_is_narrow() -> None:
    clock, source = Simulated(), np.random.default_rng(3)
    works = {"plain": clock.work(5e-3), "meta": clock.work(lambda: 1e-2 * source.lognormal(sigma=0.1))}
    wide = timed(works, clock, width=0.2, most=500)["meta"]
    narrow = timed(works, clock, width=0.04, most=500)["meta"]
    assert wide.reached
    assert narrow.reached
    assert narrow.samples > 2 * wide.samples
    assert narrow.width is not None
    assert narrow.width <= 0.04
    assert narrow.ratio == pytest.approx(2, rel=0.1)


def test_the_budget_ends_it() -> None:
    clock = Simulated()
    source = np.random.default_rng(3)
    works = {"plain": clock.work(lambda: source.lognormal(sigma=2))}
    found = timed(works, clock, width=1e-6, budget=0.0, least=6)["plain"]
    assert found.samples == 6
    assert not found.reached


def test_a_work_that_fails_is_left_out_and_the_others_go_on() -> None:
    class Big:
        pass

    held = list[weakref.ref[Big]]()
    clock, left = Simulated(), itertools.count()

    def fragile() -> None:
        big = Big()
        held.append(weakref.ref(big))
        clock.now += 1e-2
        if next(left) == 3:
            raise MemoryError("no room")

    found = interleaved(
        {"plain": clock.work(1e-2), "fragile": fragile, "other": clock.work(2e-2)}, "plain", clock=clock
    )
    assert isinstance(found["fragile"], MemoryError)
    assert all(x() is None for x in held)  # what its frames held is free for the others
    assert isinstance(found["other"], Timing)
    assert found["other"].ratio == pytest.approx(2)
    assert found["other"].samples >= 6
    assert list(found) == ["plain", "fragile", "other"]


def test_without_the_reference_there_is_nothing() -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        interleaved({"plain": fail, "meta": lambda: None}, "plain")
    with pytest.raises(ValueError, match="the reference 'plain' is none of the works meta"):
        interleaved({"meta": lambda: None}, "plain")
    clock = Simulated()
    found = interleaved({"plain": clock.work(1e-2), "meta": fail}, "plain", clock=clock)
    assert isinstance(found["meta"], RuntimeError)  # and the rounds end: there is nothing left to compare with
    assert isinstance(found["plain"], Timing)
    assert found["plain"].samples == 1


def test_processes_that_time_together_take_the_same_decisions() -> None:
    """Another rank is slower, and is not content before the tenth round."""
    clock, asked = Simulated(), list[float]()

    def agree(x: float) -> float:
        asked.append(x)
        return max(x, 4e-3 if len(asked) <= 3 else float(len(asked) - 3 < 10))

    found = timed({"plain": clock.work(1e-3), "meta": clock.work(2e-3)}, clock, agree=agree, slice_seconds=8e-3)
    assert found["plain"].samples == 10
    assert found["plain"].calls == 2  # as long as the slower rank needs for 8 ms
    assert asked[:3] == pytest.approx([8e-3, 1e-3, 2e-3])  # how long a sample must be; one call of each


def test_a_planted_slow_clock_is_found_and_paid_for() -> None:
    clock = Simulated(read=1e-4)
    cost = overhead(Stopwatch(clock=clock))
    assert cost.fixed == pytest.approx(1e-4)
    assert cost.per_call == pytest.approx(0, abs=1e-9)
    assert cost.share(1e-3, 1) == pytest.approx(0.1)
    found = timed({"plain": clock.work(1e-3)}, clock)["plain"]
    assert found.calls > 15  # longer samples, since looking costs much
    assert found.overhead == pytest.approx(1e-4 / (found.calls * found.seconds))
    assert found.overhead <= 2 * OVERHEAD_SHARE < 0.02 + 1e-12


def test_the_share_of_overhead_by_hand() -> None:
    assert Overhead(fixed=2e-6, per_call=1e-7).share(1e-3, 11) == pytest.approx((2e-6 + 10 * 1e-7) / 1e-3)


def test_looking_at_the_clock_costs_less_than_two_percent_of_a_millisecond() -> None:
    def work() -> None:
        end = time.thread_time() + 1e-3
        while time.thread_time() < end:
            pass

    found = interleaved({"work": work}, "work", budget=0.05)["work"]
    assert isinstance(found, Timing)
    assert 0 < found.overhead < 0.02
    assert found.clock == "thread_time"


def test_cuda_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log = list[str]()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.name = f"event {sum(entry == 'new' for entry in log)}"
            log.append("new")

        def record(self) -> None:
            log.append(f"record {self.name}")

        def elapsed_time(self, other: Event) -> float:
            log.append(f"{self.name} to {other.name}")
            return 250.0  # milliseconds

    class Device:
        def __init__(self, device: object) -> None:
            pass

        def __enter__(self) -> None:
            log.append("device")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(
        torch, "cuda", SimpleNamespace(Event=Event, device=Device, synchronize=lambda: log.append("synchronise"))
    )
    watch = Stopwatch("cuda")
    assert watch.sample(lambda: log.append("work"), 2) == 0.25
    assert watch.name == "cuda events"
    assert log == [
        "device",
        "new",
        "new",
        "record event 0",
        "work",
        "work",
        "record event 1",
        "synchronise",
        "event 0 to event 1",
    ]


def test_threads_decide_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Stopwatch().name == "thread_time"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert Stopwatch().name == "perf_counter"
    assert Stopwatch(clock=time.monotonic).name == "monotonic"
