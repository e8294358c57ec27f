"""Which steps of a run to keep for the sweep back over it, and which to take again. Nothing here knows a tensor.

Binomial checkpointing (Griewank & Walther 2000, "revolve"), with a stretch of steps in the place of a single one: the
`stretch` is kept ready for its products, `snapshots` are states from which earlier steps are taken again.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from .errors import HypergradientError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Sizes(NamedTuple):
    """Bytes.

    Attributes:
        state: of a state, parameters and slots.
        step: of a step that is kept for its product: the state before it, the graph of its gradient, and for a nonlinear
            rule the gradient itself.
    """

    state: int
    step: int


class Plan(NamedTuple):
    """What a run is to keep.

    Attributes:
        states: the steps before which the state is recorded.
        steps: those that are kept for their products.
        sizes: as measured, where they were asked for.
    """

    states: frozenset[int]
    steps: range
    sizes: Sizes | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a sweep over any number of steps goes back.

    Attributes:
        stretch: steps that are kept for their products at a time, >= 1.
        snapshots: states that are held beside them at a time, >= 0.
    """

    stretch: int
    snapshots: int

    def reach(self, repetitions: int) -> int:
        """Most steps of which none is taken more than so often: stretch C(snapshots + repetitions - 1, snapshots)."""
        return self.stretch * math.comb(self.snapshots + repetitions - 1, self.snapshots) if repetitions > 0 else 0

    def repetitions(self, steps: int) -> int:
        """How often some step is taken, the run itself counted.

        Raises:
            HypergradientError: without a snapshot nothing can be taken again.
        """
        if self.snapshots == 0 and steps > self.stretch:
            raise HypergradientError(f"{self}: {steps} steps need at least one snapshot")
        times = 1
        while self.reach(times) < steps:
            times += 1
        return times

    def taken(self, steps: int) -> int:
        """Steps that are taken in all, the run included: r n - stretch C(snapshots + r - 1, snapshots + 1)."""
        r = self.repetitions(steps)
        return r * steps - self.stretch * math.comb(self.snapshots + r - 1, self.snapshots + 1)

    @property
    def deeper(self) -> Schedule:
        """What is left when one snapshot more is taken."""
        return Schedule(stretch=self.stretch, snapshots=self.snapshots - 1)

    def split(self, steps: int) -> int:
        """How far from its first state the next snapshot of so many steps stands; for more than a stretch.

        Of those that are optimal the farthest, so that as few are held as may be.
        """
        r = self.repetitions(steps)
        return min(self.reach(r - 1), steps - self.deeper.reach(r - 1))

    def plan(self, steps: range, sizes: Sizes | None = None) -> Plan:
        """What the run keeps of ``steps``: the snapshots that stand at its end, and the last stretch."""
        states, begin, left = {steps.start}, steps.start, self
        while steps.stop - begin > self.stretch:
            begin += left.split(steps.stop - begin)
            left = left.deeper
            states.add(begin)
        return Plan(frozenset(states), range(begin, steps.stop), sizes)


def cheapest(steps: int, budget: int, sizes: Sizes, who: str = "the sweep") -> Schedule:
    """The schedule that takes the fewest steps with ``snapshots * state + stretch * step`` bytes within ``budget``.

    Args:
        steps: of the run.
        budget: bytes.
        sizes: of what is kept.
        who: for the message.

    Raises:
        HypergradientError: not even one snapshot and one step fit.
    """
    least = min(steps * sizes.step, sizes.state + sizes.step)
    if budget < least:
        raise HypergradientError(
            f"{who}: {steps} steps need at least {least} bytes, a state of {sizes.state} and a step's graph with its state "
            f"of {sizes.step}: give budget={least} or more, a smaller batch, or Unroll(last=...)"
        )
    longest = min(steps, budget // sizes.step) if sizes.step else steps
    if longest >= steps:
        return Schedule(stretch=max(steps, 1), snapshots=0)
    able = []
    for stretch in range(1, longest + 1):
        snapshots = min((budget - stretch * sizes.step) // sizes.state, steps)
        if snapshots:
            able.append(Schedule(stretch=stretch, snapshots=snapshots))
    return min(able, key=lambda s: (s.taken(steps), s.stretch))


def in_bytes(size: int | str) -> int:
    """2147483648 from "2GiB"; a number is taken for bytes.

    Raises:
        HypergradientError: it is neither, or not positive.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]i?)?b?\s*", str(size), re.IGNORECASE)
    try:
        count = int(float(found[1]) * _UNITS[(found[2] or "").lower()]) if found else 0
    except ValueError:
        count = 0
    if count < 1:
        raise HypergradientError(f'budget={size!r}: give bytes, or a size such as "2GiB" or "500MB"')
    return count
