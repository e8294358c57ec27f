"""Processes that must not outlive the one that started them, however that one dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import TextIO

PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


def die_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when its parent dies, by SIGKILL or otherwise; Linux only.

    The signal comes when the *thread* that started this process ends: it should wait for it.

    Args:
        parent: its process id. If it is gone already, this process ends at once.

    Returns:
        Whether the kernel does it; if not, `die_at_end_of` is the portable way.
    """
    if not sys.platform.startswith("linux"):
        return False
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        return False
    if os.getppid() != parent:  # it died before the request
        os._exit(1)
    return True


def die_at_end_of(stream: TextIO) -> None:
    """End this process as soon as ``stream``, whose other end the parent holds open, is at its end.

    A computation that never gives up the interpreter's lock delays it.
    """

    def watch() -> None:
        while stream.readline():
            pass
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
