"""A call in a process of its own, so that code of the user's that hangs, crashes or eats the memory ends nothing but that."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


class AsideError(RuntimeError):
    """What was to be done aside was not: the message says why."""


def aside(function: Callable[..., T], *args: Any, seconds: float, on: str = "cpu", **kwargs: Any) -> T:
    """``function(*args, **kwargs)``, in a fresh process.

    Args:
        function: of a module, with arguments and result that can be pickled.
        seconds: after which the process is killed.
        on: device whose memory the process may take.

    Raises:
        AsideError: it raised, took too long, or died.
    """
    context = multiprocessing.get_context("spawn")
    told, to_tell = context.Pipe(duplex=False)
    child = context.Process(target=_call, args=(to_tell, on, function, args, kwargs), daemon=True)
    child.start()
    to_tell.close()
    try:
        if not told.poll(seconds):
            raise AsideError(f"it took more than {seconds:g} s")
        fine, answer = told.recv()
    except EOFError:
        child.join()
        raise AsideError(_death(child.exitcode)) from None
    finally:
        with contextlib.suppress(OSError):
            child.kill()
        child.join()
    if not fine:
        raise AsideError(answer)
    return answer


def _call(
    to_tell: Connection, device: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    import torch

    from .commands.prediction import machine_memory
    from .failures import of_error
    from .limits import memory

    torch.set_num_threads(1)  # as the workers have it
    limit = machine_memory(device) if sys.platform.startswith("linux") else None
    try:
        with memory(limit, device):
            answer = True, function(*args, **kwargs)
    except Exception as error:
        answer = False, of_error(error).reason
    to_tell.send(answer)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"its process was killed by {name}" + " (out of memory?)" * (name == "SIGKILL")
    return f"its process ended with exit code {code}"
