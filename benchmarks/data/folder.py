"""A user's folder of data: opened, named, and refused in words that help."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

SHOWN = 6
"""Names that a message lists."""


class DataError(ValueError):
    """A user's data cannot be used. The message says what is wrong, in which file, and what to give instead."""


def opened(data: str | Path, holds: str) -> Path:
    """``data`` as a folder that exists.

    Args:
        data: what the user gave.
        holds: what the folder should hold, in words.

    Raises:
        DataError: there is none, or it is a file.
    """
    folder = Path(data)
    if folder.is_file():
        raise DataError(f"--data {folder} is a file: give the folder that holds {holds}")
    if not folder.is_dir():
        raise DataError(f"--data {folder}: there is no such folder. Give one that holds {holds}")
    return folder


def origin(name: str, folder: Path) -> str:
    """How outputs name data that were read: the set, and the folder's own name (not where it lies)."""
    return f"{name} from {folder.resolve().name}"


def contents(folder: Path) -> str:
    """What a folder holds, for messages: "it is empty" or "it holds a, b, c, ..."."""
    names = [p.name + "/" * p.is_dir() for p in folder.iterdir()]
    if not names:
        return "it is empty"
    return f"it holds {shown(names)}"


def shown(names: Iterable[str]) -> str:
    """The first of them in order, for messages: "a, b, c, ..."."""
    first = sorted(names)
    return ", ".join(x[:80] for x in first[:SHOWN]) + ", ..." * (len(first) > SHOWN)
