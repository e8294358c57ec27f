"""What an autograd graph keeps alive."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef


def saved_tensors(nodes: Iterable[Node]) -> list[Tensor]:
    """The tensors that the graph behind ``nodes`` saved for its backward pass; one may appear several times.

    Read from the nodes, since hooks on saving would be refused inside `torch.func`. What a C++ extension keeps by itself is not
    seen.
    """
    seen: set[Node] = set()
    found: list[Tensor] = []
    left = list(nodes)
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        left += [n for n, _ in node.next_functions if n is not None]
        for name in _names(type(node)):
            found += _tensors(node, name)
    return found


@functools.cache
def _names(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors"]


def _tensors(node: Any, name: str) -> list[Tensor]:
    try:
        value = getattr(node, name)
    except RuntimeError:  # was written over since: no backward pass will need it, or that pass will say so
        return []
    values = value if isinstance(value, (tuple, list)) else [value]
    return [x for x in values if isinstance(x, torch.Tensor)]


def freed_with(tensors: Iterable[Tensor]) -> Callable[[], int]:
    """Looks at the storages of ``tensors`` now; what is returned gives the bytes of those that are gone since."""
    found = {s._cdata: (StorageWeakRef(s), s.nbytes()) for s in (x.untyped_storage() for x in tensors)}  # type: ignore[no-untyped-call]

    def gone() -> int:
        left = [nbytes for reference, nbytes in found.values() if reference.expired()]  # type: ignore[no-untyped-call]
        return sum(left)

    return gone


def storage_bytes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the tensors' storages, each once, by their addresses."""
    return {s._cdata: s.nbytes() for s in (x.untyped_storage() for x in tensors)}
