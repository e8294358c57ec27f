"""Where a run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from .tree import Tree


class State(NamedTuple):
    """Everything a run needs to go on.

    Attributes:
        params: theta, keyed as ``named_parameters()``.
        slots: optimizer state of every trained leaf.
        step: steps taken so far; step t (from 0) reads ``stream(t)``.
        missed: how many of them found no gradient for a leaf (absent: none). As in torch.optim such a leaf is left
            alone, and its own count of updates stays behind.
    """

    params: Tree
    slots: dict[str, Tree]
    step: int
    missed: Mapping[str, int] = {}

    def tensors(self) -> list[Tensor]:
        """Parameters and slots."""
        return [*self.params.values(), *(x for slots in self.slots.values() for x in slots.values())]

    def update_number(self, leaf: str) -> int:
        """The ``t`` of the next update of ``leaf``, from 1."""
        return self.step + 1 - self.missed.get(leaf, 0)
