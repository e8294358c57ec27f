"""Schedules against brute force and against Griewank & Walther's numbers."""

from __future__ import annotations

import math
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimators import HypergradientError
from estimators.checkpointing import Schedule, Sizes, cheapest, in_bytes


@cache
def fewest(steps: int, snapshots: int, stretch: int) -> float:
    """Steps taken by the best of all splits, by trying them."""
    if steps <= stretch:
        return steps
    if snapshots == 0:
        return math.inf
    return min(c + fewest(steps - c, snapshots - 1, stretch) + fewest(c, snapshots, stretch) for c in range(1, steps))


def by_following(steps: int, schedule: Schedule) -> int:
    """Steps taken where it says to split; more states at a time than it has would be an error in `deeper`."""
    if steps <= schedule.stretch:
        return steps
    c = schedule.split(steps)
    assert 1 <= c < steps
    return c + by_following(steps - c, schedule.deeper) + by_following(c, schedule)


@pytest.mark.parametrize("stretch", [1, 2, 5])
@pytest.mark.parametrize("snapshots", [0, 1, 2, 3, 6])
def test_no_schedule_takes_fewer_steps(stretch: int, snapshots: int) -> None:
    schedule = Schedule(stretch=stretch, snapshots=snapshots)
    for steps in range(stretch + 1 if snapshots == 0 else 50):
        assert schedule.taken(steps) == fewest(steps, snapshots, stretch) == by_following(steps, schedule)


def test_the_published_numbers() -> None:
    """Griewank & Walther 2000: with s snapshots and r repetitions C(s + r, s) steps at most; theirs count those beyond the run,
    and the one step of a stretch holds no snapshot."""
    for s in range(1, 7):
        for r in range(1, 6):
            schedule = Schedule(stretch=1, snapshots=s)
            longest = math.comb(s + r, s)
            assert schedule.reach(r + 1) == longest
            assert schedule.repetitions(longest) == r + 1 < schedule.repetitions(longest + 1)


@given(steps=st.integers(1, 40), state=st.integers(1, 9), graph=st.integers(0, 20), spare=st.integers(0, 400))
def test_the_cheapest_that_fits(steps: int, state: int, graph: int, spare: int) -> None:
    sizes = Sizes(state, state + graph)
    budget = min(steps * sizes.step, state + sizes.step) + spare
    chosen = cheapest(steps, budget, sizes)
    assert chosen.snapshots * state + min(chosen.stretch, steps) * sizes.step <= budget
    best = min(
        fewest(steps, (budget - n * sizes.step) // state, n) for n in range(1, steps + 1) if n * sizes.step <= budget
    )
    assert chosen.taken(steps) == best


@given(steps=st.integers(1, 60), first=st.integers(0, 5), stretch=st.integers(1, 7), snapshots=st.integers(1, 9))
def test_a_plan_holds_the_end_of_the_run(steps: int, first: int, stretch: int, snapshots: int) -> None:
    plan = Schedule(stretch=stretch, snapshots=snapshots).plan(range(first, first + steps))
    assert plan.steps.stop == first + steps
    assert 1 <= len(plan.steps) <= stretch
    assert min(plan.states) == first
    # the state before the stretch is the stretch's own
    assert len(plan.states - {plan.steps.start}) <= snapshots


def test_too_little_says_how_much_is_needed() -> None:
    with pytest.raises(
        HypergradientError, match=r"64 steps need at least 17 bytes, a state of 5 .* of 12: give budget=17"
    ):
        cheapest(64, 16, Sizes(5, 12))
    assert cheapest(64, 17, Sizes(5, 12)) == Schedule(stretch=1, snapshots=1)
    with pytest.raises(HypergradientError, match="1 steps need at least 12 bytes"):
        cheapest(1, 11, Sizes(5, 12))
    with pytest.raises(HypergradientError, match="at least one snapshot"):
        Schedule(stretch=3, snapshots=0).taken(4)


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GiB", 2**31), ("2 gib", 2**31), ("1.5kB", 1500), (77, 77), ("77", 77), ("3MB", 3_000_000), ("1K", 1000)],
)
def test_sizes_in_words(text: int | str, count: int) -> None:
    assert in_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "2 parsecs", 0, -3, "0.1B", "1.2.3MB", 0.0])
def test_what_is_no_size(text: int | str) -> None:
    with pytest.raises(HypergradientError, match=r"budget=.*2GiB"):
        in_bytes(text)
