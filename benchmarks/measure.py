"""What a measurement rests on: a synchronised clock, exact peak memory, and a note of where it was taken.

Time and memory are never measured in the same pass: counting storages slows every operation down.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], Any]

LONG_SAMPLE = 0.1
"""Seconds of reference beside one sample, however long the sample: pauses of a busy machine are shorter."""

# ``torch.tensor(...)`` reaches the dispatcher only as lift_fresh(x) -> x: that argument is new, not an outsider.
_FRESH = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default}


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that came to life inside, while they live.

    Storages are keyed by their C++ address. What an operation receives and was not seen before existed outside and
    is not counted, so that a view of an argument costs nothing. Blind to scratch memory inside one kernel, and
    therefore the same on every machine and thread count.
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
        inputs = [*_storages(args), *_storages(kwargs)]
        if func not in _FRESH:
            for storage in inputs:
                if storage._cdata not in self.live:
                    self._outside(storage)
        out = func(*args, **kwargs)
        for storage in inputs:  # resize_ and set_ change a storage in place
            if storage._cdata in self.live:
                self._count(storage._cdata, storage.nbytes())
        for storage in _storages(out):
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

    def _count(self, key: int, nbytes: int) -> None:
        self.now += nbytes - self.live.get(key, 0)
        self.live[key] = nbytes
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)

    def close(self) -> None:
        self._watches.clear()  # a weak reference that is gone calls nobody


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """Of all tensors in what an operation takes or gives: tensors, and lists, tuples and dicts of them."""
    if isinstance(values, Tensor):
        try:
            yield values.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse and other wrappers without a storage of their own
            return
    elif isinstance(values, (list, tuple, dict)):  # by hand: torch's pytree takes five times as long
        for x in values.values() if isinstance(values, dict) else values:
            yield from _storages(x)


def peak_bytes(fn: Work) -> int:
    """Largest number of bytes that tensors made by ``fn`` held at any one time, to the byte.

    Args:
        fn: what to measure; its result counts, what it is given does not.
    """
    gc.collect()
    mode = _LiveBytes()
    enabled = gc.isenabled()
    gc.disable()  # collected at a time of its own choosing, a cycle would move the peak
    try:
        with mode:
            fn()
    finally:
        mode.close()
        if enabled:
            gc.enable()
    return mode.peak


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


def environment(*, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Where a number was measured: enough to compare machines, nothing that names a user, a host or a path."""
    commit, dirty = _commit()
    kind = torch.device(device).type
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if kind == "cuda" else kind,
        "dtype": str(dtype).removeprefix("torch."),
        "load_average": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "commit": commit,
        "dirty": dirty,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the code that runs and whether it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=20).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != here:
            return None, None  # installed inside some other project's checkout
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None
