"""Exact peak memory: the bytes of the storages that tensors hold, counted as operations make and drop them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], Any]

# ``torch.tensor(...)`` reaches the dispatcher only as lift_fresh(x) -> x: that argument is new, not an outsider.
_FRESH = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that came to life inside, while they live.

    Storages are keyed by their C++ address. What an operation receives and was not seen before existed outside and
    is not counted, so that a view of an argument costs nothing. Blind to scratch memory inside one kernel, and
    therefore the same on every machine and thread count. Fake tensors have storages of their own, which hold no memory but
    know their length: under a `FakeTensorMode` that is entered *before*, the count is the same to the byte.

    Attributes:
        now, peak: bytes.
        live: bytes by address.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.external: set[int] = set()
        self.now = self.peak = 0
        self._watches: dict[int, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; torch's guard against compiling would double what each operation costs."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [*storages(args), *storages(kwargs)]
        if func not in _FRESH:
            for storage in inputs:
                if storage._cdata not in self.live:
                    self._outside(storage)
        out = func(*args, **kwargs)
        for storage in inputs:  # resize_ and set_ change a storage in place
            if storage._cdata in self.live:
                self._count(storage._cdata, storage.nbytes())
        for storage in storages(out):
            if storage._cdata not in self.external and storage._cdata not in self.live:
                self._watch(storage, self._forget)
                self._count(storage._cdata, storage.nbytes())
        return out

    def _outside(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.external:
            self.external.add(storage._cdata)
            self._watch(storage, self.external.discard)  # the address may be used again

    def _watch(self, storage: torch.UntypedStorage, gone: Callable[[int], object]) -> None:
        key = storage._cdata

        def callback(_: Any) -> None:
            self._watches.pop(key, None)
            gone(key)

        self._watches[key] = weakref.ref(storage, callback)

    def hold(self, values: Any) -> None:
        """Count from now on what these tensors hold, although it was there before."""
        for storage in storages(values):
            if storage._cdata not in self.live:
                self._watch(storage, self._forget)
                self._count(storage._cdata, storage.nbytes())

    def _count(self, key: int, nbytes: int) -> None:
        change = nbytes - self.live.get(key, 0)
        self.live[key] = nbytes
        if change:
            self._change(key, change)

    def _forget(self, key: int) -> None:
        nbytes = self.live.pop(key, 0)
        if nbytes:
            self._change(key, -nbytes)

    def _change(self, key: int, nbytes: int) -> None:
        """``nbytes`` more (or less) at ``key``."""
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    @contextmanager
    def measuring(self) -> Iterator[Self]:
        """Count what happens inside, once."""
        gc.collect()
        enabled = gc.isenabled()
        gc.disable()  # collected at a time of its own choosing, a cycle would move the peak
        try:
            with self:
                yield self
        finally:
            self._watches.clear()  # a weak reference that is gone calls nobody
            if enabled:
                gc.enable()


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in what an operation takes or gives: tensors, and lists, tuples and dicts of them."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple, dict)):  # by hand: torch's pytree takes five times as long
        for x in values.values() if isinstance(values, dict) else values:
            yield from tensors(x)


def storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """Theirs, as often as they have one."""
    for x in tensors(values):
        try:
            yield x.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse and other wrappers without a storage of their own
            continue


def peak_bytes(fn: Work) -> int:
    """Largest number of bytes that tensors made by ``fn`` held at any one time, to the byte.

    Args:
        fn: what to measure; its result counts, what it is given does not.
    """
    counter = LiveBytes()
    with counter.measuring():
        fn()
    return counter.peak
