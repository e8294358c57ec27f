"""What went wrong with a cell, as a word that a program can read and a sentence for people."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .cells import Failure

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|out of memory|std::bad_alloc|\bMemoryError\b|Cannot allocate memory", re.I
)
"""What torch's CPU and CUDA allocators, C++ and Python say. A CPU allocation that fails is a plain `RuntimeError`."""

ASKED = (
    (re.compile(r"tried to allocate (\d+) bytes"), 1.0),
    (re.compile(r"[Tt]ried to allocate ([\d.]+) KiB"), 2.0**10),
    (re.compile(r"[Tt]ried to allocate ([\d.]+) MiB"), 2.0**20),
    (re.compile(r"[Tt]ried to allocate ([\d.]+) GiB"), 2.0**30),
    (re.compile(r"Unable to allocate ([\d.]+) MiB"), 2.0**20),  # NumPy
    (re.compile(r"Unable to allocate ([\d.]+) GiB"), 2.0**30),
)
"""(how a message says what was asked for, bytes of its unit)."""


class Verdict(NamedTuple):
    """What a row says of a failure.

    Attributes:
        failure: see `Failure`.
        reason: in words.
        asked_bytes: of the allocation that failed, where the message says it.
    """

    failure: Failure
    reason: str
    asked_bytes: int | None = None


def of_error(error: BaseException) -> Verdict:
    """The verdict on what a cell raised."""
    import torch  # late: who only starts processes does not need it

    from estimators import NonFiniteError

    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))
    ):
        return Verdict("oom", reason, asked_bytes(str(error)))
    return Verdict("nan" if isinstance(error, NonFiniteError) else "error", reason)


def of_exit(code: int, *, late: bool, limit: float, said: Sequence[str]) -> Verdict:
    """The verdict on a process that ended without a word about the cell that it was at.

    Args:
        code: its exit code, negative for a signal, as `subprocess` has it.
        late: it was killed because the cell took too long.
        limit: seconds that a cell has.
        said: last lines of its standard error.
    """
    if late:
        return Verdict("timeout", f"timeout: killed after {limit:g} s")
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = " (out of memory?)" if name == "SIGKILL" else ""  # the kernel's way, but also an operator's
        reason = f"the process was killed by {name}{hint}"
    else:
        reason = f"the process ended with exit code {code}: {said[-1] if said else 'it said nothing'}"
    told = next((line for line in reversed(said) if OUT_OF_MEMORY.search(line)), None)
    if told is not None:
        return Verdict("oom", reason if told in reason else f"{reason}: {told}", asked_bytes(told))
    return Verdict("crash", reason)


def asked_bytes(message: str) -> int | None:
    """Size of the allocation that failed, if ``message`` says it."""
    for pattern, unit in ASKED:
        if found := pattern.search(message):
            return int(float(found[1]) * unit)
    return None


def frames(error: BaseException) -> list[str]:
    """The last frames, as module file and line, without the folders of this machine."""
    last = traceback.extract_tb(error.__traceback__)[-6:]
    return [f"{Path(f.filename).name}:{f.lineno} in {f.name}: {f.line}" for f in last]


def content(verdict: Verdict) -> dict[str, Any]:
    """The fields of a failed row, as keywords of `benchmarks.cells.row`."""
    return verdict._asdict()
