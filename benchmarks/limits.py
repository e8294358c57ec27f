"""Bounds on the memory of a process that measures, so that a cell that asks for too much fails and the machine does not."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

LEAST = 2**29
"""Bytes: a process that has imported torch and its parts holds nearly half of it before it measures anything."""


def size(text: str | int, least: int = LEAST) -> int:
    """Bytes, from "4GiB", "500 MB" or a number.

    Raises:
        ValueError: it is no size, or below ``least``.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if isinstance(text, bool) or found is None or found[2] not in UNITS:
        raise ValueError(f"{text!r} is no size of memory: write a number and one of {', '.join(filter(None, UNITS))}")
    number = int(float(found[1]) * UNITS[found[2]])
    if number < least:
        raise ValueError(f"a memory limit of {text} leaves nothing to measure in: give at least {least // 2**20}MiB")
    return number


def supported(device: str) -> bool:
    """Whether a limit can be set for a cell on ``device`` here."""
    return device.startswith("cuda") or sys.platform.startswith("linux")


@contextmanager
def memory(limit: int | None, device: str = "cpu") -> Iterator[None]:
    """Within, an allocation beyond the limit raises: `MemoryError` in Python, a `RuntimeError` or `torch.OutOfMemoryError` in torch.

    On the CPU it bounds the process's private writable memory (RLIMIT_DATA: what it has reserved, torch's own included, not
    the libraries' code). On CUDA it bounds what torch's allocator takes of the device, and not the host's memory.

    Args:
        limit: bytes; None for no limit.
        device: where the cell computes.
    """
    if limit is None:
        yield
        return
    if device.startswith("cuda"):
        import torch  # late: who only starts processes does not need it

        index = torch.device(device).index or 0
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), index)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, index)
        return
    import resource  # not on Windows

    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:  # the row must be written, whatever is left
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def peak_rss() -> int | None:
    """Bytes of the most memory that this process ever had resident; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return rss_of(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def rss_of(ru_maxrss: int) -> int:
    """Bytes of ``ru_maxrss``, which Linux gives in KiB and macOS in bytes."""
    return ru_maxrss if sys.platform == "darwin" else ru_maxrss * 1024
