"""What the peak of memory is made of: the count of live storages, with a note of what each of them is for."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from estimators import State

from .live_bytes import LiveBytes, Work, storages
from .watched import Watcher

Category = Literal["parameters", "slots", "recorded", "graph", "buffers", "hyperparameters", "data"]
"""What a storage is for:

- parameters, slots: of the current state.
- recorded: of earlier states, the start among them, that somebody still holds: the record, or whoever called.
- graph: made by an evaluation of a loss or inside a backward pass: activations, and gradients.
- hyperparameters: with the meta optimizer's state.
- data: what the stream makes.
- buffers: all else, that is what an estimator, a solver or an optimizer step makes for itself (replayed states too).
"""

CATEGORIES: tuple[Category, ...] = get_args(Category)


@dataclass(frozen=True)
class Memory:
    """A peak of live tensor bytes, and what it was made of.

    Attributes:
        peak: largest number of bytes held at any one time, what was named as resident included.
        split: category -> bytes at that moment (the first, if there were several); they add up to ``peak``.
        resident: bytes that were there before and named.
    """

    peak: int
    split: dict[Category, int]
    resident: int


class Meter(LiveBytes, Watcher):
    """Counts live bytes and logs every change, so that the peak can be looked at afterwards.

    A storage belongs to the category that it was last given before the peak; if it was given one only later, to the first
    (new parameters are named when a step is done, but the peak may lie inside the step); if never, to the one it was
    made in: "graph" inside a backward pass, else the innermost `phase`, else "buffers".

    Example:
        meter = Meter()
        meter.resident({"parameters": state.params, "slots": state.slots})
        with meter.measuring():
            record = run(meter.stage(stage), state, hparams, tail=0, watch=meter.state)
            hypergradient(meter.loss(outer), [meter.stage(stage)], [estimator], [record], hparams)
        meter.memory().split["graph"]
    """

    def __init__(self) -> None:
        super().__init__()
        self._serial: dict[int, int] = {}  # address -> number of the allocation, which is not used again
        self._made: list[Category] = []  # by number
        self._given: dict[int, list[tuple[int, Category]]] = {}  # number -> (length of the log then, category)
        self._numbers, self._changes = array("q"), array("q")  # the log
        self._peak_at = 0  # its length at the peak
        self._phases: list[Category] = ["buffers"]
        self._resident_bytes = 0
        self._current: set[int] = set()

    def resident(self, held: Mapping[Category, Any]) -> None:
        """Count what was there before. To be called first.

        Args:
            held: category -> tensors, in lists, tuples and dicts as deep as one likes.
        """
        for category, values in held.items():
            self.hold(values)
            self.tag(values, category)
        self._resident_bytes = self.now

    def tag(self, values: Any, category: Category) -> None:
        """Say what these tensors' storages are for, from now on. What was there before, unnamed, is not counted at all."""
        if category not in CATEGORIES:
            raise ValueError(f"no category {category!r}: there are {', '.join(CATEGORIES)}")
        self._give(self._numbers_of(values), category)

    def state(self, state: State) -> None:
        """Say that this is the current state: the one before it is recorded, or gone. To be given as ``run(watch=...)``."""
        current = self._numbers_of([state.params, state.slots])
        self._give(self._current - current, "recorded")
        self.tag(state.params, "parameters")
        self.tag(state.slots, "slots")
        self._current = current

    @contextmanager
    def phase(self, category: Category) -> Iterator[None]:
        """What is made inside is for ``category``, unless something more special is said."""
        self._phases.append(category)
        try:
            yield
        finally:
            self._phases.pop()

    def at_loss(self) -> AbstractContextManager[None]:
        """A loss makes "graph"."""
        return self.phase("graph")

    def at_stream(self) -> AbstractContextManager[None]:
        """A stream makes "data"."""
        return self.phase("data")

    def memory(self) -> Memory:
        """The peak so far, and what it was made of."""
        held: dict[int, int] = {}
        for number, change in zip(self._numbers[: self._peak_at], self._changes[: self._peak_at], strict=True):
            held[number] = held.get(number, 0) + change
        split = dict.fromkeys(CATEGORIES, 0)
        for number, nbytes in held.items():
            split[self._category(number)] += nbytes
        return Memory(self.peak, split, self._resident_bytes)

    def _give(self, numbers: set[int], category: Category) -> None:
        for number in numbers:
            self._given.setdefault(number, []).append((len(self._changes), category))

    def _category(self, number: int) -> Category:
        given = self._given.get(number)
        if not given:
            return self._made[number]
        before = bisect_left(given, self._peak_at, key=lambda entry: entry[0])
        return given[max(before - 1, 0)][1]

    def _numbers_of(self, values: Any) -> set[int]:
        return {self._serial[s._cdata] for s in storages(values) if s._cdata in self._serial}

    def _change(self, key: int, nbytes: int) -> None:
        number = self._serial.get(key)
        if number is None:
            number = self._serial[key] = len(self._made)
            self._made.append("graph" if torch._C._current_autograd_node() is not None else self._phases[-1])
        self._numbers.append(number)
        self._changes.append(nbytes)
        peak = self.peak
        super()._change(key, nbytes)
        if self.peak > peak:
            self._peak_at = len(self._changes)

    def _forget(self, key: int) -> None:
        super()._forget(key)
        self._serial.pop(key, None)


def peak(fn: Work, resident: Mapping[Category, Any] | None = None) -> Memory:
    """As `peak_bytes`, counting also what was there before and is named here.

    Args:
        fn: what to measure; its result counts.
        resident: category -> tensors that existed before, such as ``{"parameters": params, "slots": slots}``: figures of
            a GPU's allocator hold them too. What is not named costs nothing.

    Returns:
        A `Memory` in which whatever ``fn`` makes is "graph" if made in a backward pass, else "buffers". For more, use a `Meter`.
    """
    meter = Meter()
    meter.resident(resident or {})
    with meter.measuring():
        fn()
    return meter.memory()
