"""Claims on cells: two sweeps that write to one folder never measure the same cell at the same time.

A claim is a POSIX record lock on one byte of ``OUT/.claims``, the byte that the cell's id names. The kernel drops it when its
holder ends, however it ends, so that no claim is ever left behind; network file systems carry it between machines if their
lock service runs. Where there are no locks (Windows, some network mounts) every claim is granted: sweeps that share a folder
may then measure a cell twice, the last row stays, and ``--shard`` is the remedy.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_guard = threading.Lock()
_files: dict[Path, int] = {}
"""Folder -> the one descriptor that this process ever opens there: closing any drops all of its locks (see fcntl(2))."""
_held: set[tuple[Path, str]] = set()

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}
"""What a file system without locks answers."""


def claim(out: Path, cell_id: str) -> bool:
    """Take the claim on a cell.

    Args:
        out: folder of the results.
        cell_id: `Cell.id`.

    Returns:
        False if somebody has it, in this process or another.
    """
    with _guard:
        key = (out.resolve(), cell_id)
        if key in _held:
            return False
        if sys.platform != "win32":
            try:
                fcntl.lockf(_file(key[0]), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(cell_id))
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
                if error.errno not in UNSUPPORTED:
                    raise
        _held.add(key)
        return True


def release(out: Path, cell_id: str) -> None:
    """Give it back; nothing if it was not taken."""
    with _guard:
        key = (out.resolve(), cell_id)
        if key in _held:
            _held.discard(key)
            if sys.platform != "win32":
                try:
                    fcntl.lockf(_file(key[0]), fcntl.LOCK_UN, 1, _offset(cell_id))
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise


def supported(out: Path) -> bool:
    """Whether the file system of ``out`` has locks."""
    if sys.platform == "win32":
        return False
    with _guard:
        try:
            fcntl.lockf(_file(out.resolve()), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset("f" * 16))
            fcntl.lockf(_file(out.resolve()), fcntl.LOCK_UN, 1, _offset("f" * 16))
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return True


def _file(out: Path) -> int:
    if out not in _files:
        out.mkdir(parents=True, exist_ok=True)
        _files[out] = os.open(out / ".claims", os.O_RDWR | os.O_CREAT, 0o644)
    return _files[out]


def _offset(cell_id: str) -> int:
    return int(cell_id[:15], 16)  # 60 bits: offsets are signed, and cells that share them are not met
