"""What a loss does while it is evaluated: which functions of torch it calls, which entries it reads, whether it draws."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

CUTS = ("detach", "item", "tolist", "numpy", "__float__", "__array__", "tensor", "as_tensor")
"""Functions that take a tensor out of its graph."""

ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


class Watch(TorchFunctionMode):
    """Notes the names of torch's functions, and whether a BatchNorm is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()
        self.batch_norm = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "batch_norm":
            self.batch_norm |= bool(kwargs.get("training", args[5] if len(args) > 5 else False))
        self.called.add(name)
        return func(*args, **kwargs)

    @property
    def random(self) -> list[str]:
        """What was called that draws, as far as its name says so."""
        words = ("dropout", "rand", "bernoulli", "multinomial", "normal_", "uniform_")
        return sorted(n for n in self.called if any(w in n for w in words))


class Noted(dict[str, Tensor]):
    """A tree that knows which of its entries were read."""

    def __init__(self, tree: dict[str, Tensor]) -> None:
        super().__init__(tree)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def items(self) -> Any:
        self.read |= set(self)
        return super().items()

    def values(self) -> Any:
        self.read |= set(self)
        return super().values()


class Draws:
    """Which global generators moved.

    Attributes:
        torch: torch's, of the CPU or of a CUDA device.
        others: "NumPy", "Python".
    """

    def __init__(self) -> None:
        self.torch = False
        self.others: list[str] = []


@contextmanager
def drawing() -> Iterator[Draws]:
    """Within, note which global generators are drawn from. They are put back afterwards."""
    found, python, numpy = Draws(), random.getstate(), np.random.get_state(legacy=False)
    before = _torch_states()
    try:
        yield found
    finally:
        found.torch = not all(map(torch.equal, before, _torch_states()))
        if random.getstate() != python:
            found.others.append("Python")
        if not _same(np.random.get_state(legacy=False), numpy):
            found.others.append("NumPy")
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(before[0])


def _torch_states() -> list[Tensor]:
    used = torch.cuda.is_initialized()
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if used else [])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_same(x, b[k]) for k, x in a.items())
    return bool(np.array_equal(a, b))


def same(a: Any, b: Any) -> bool:
    """Whether two batches, or two trees, hold the same numbers; True where it cannot be told."""
    (xs, one), (ys, other) = tree_flatten(a), tree_flatten(b)
    return len(xs) == len(ys) and one == other and all(_equal(x, y) for x, y in zip(xs, ys, strict=True))


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        if x.shape != y.shape or x.dtype != y.dtype:
            return False
        return torch.equal(x, y) or bool(((x == y) | (x.isnan() & y.isnan())).all())
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return bool(np.array_equal(x, y))
    return bool(x == y) if isinstance(x, (int, float, str, bool, type(None))) else True


def watched(function: Callable[[], Any]) -> tuple[Any, Watch, Draws]:
    """(what ``function`` gives, what it called, from what it drew)."""
    watch = Watch()
    with drawing() as draws, watch:
        value = function()
    return value, watch, draws
