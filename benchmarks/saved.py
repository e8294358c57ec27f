"""The configuration of every sweep that wrote to a folder, beside its results."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .cells import SCHEMA, Cell, write_json
from .grid import Grid


def folder(out: Path) -> Path:
    """Where configurations are kept."""
    return out / "sweeps"


def save(out: Path, grid: Grid, todo: Sequence[Cell], *, command: Sequence[str], shard: str | None, jobs: int) -> Path:
    """Write the configuration of a sweep; the same one again leaves the file as it is.

    Args:
        out: folder of the results.
        grid: the sweep.
        todo: its cells, of this shard.
        command: words of the command line.
        shard: as on the command line.
        jobs: processes at a time.
    """
    from .measure import environment

    where = environment()
    content = {
        "schema": SCHEMA, "name": grid.name, "about": grid.about, "grid": grid.config, "shard": shard, "jobs": jobs,
        "cells": len(todo), "ids": [c.id for c in todo],
        "versions": {"hypergradbench": _version(), "python": platform.python_version(), "torch": where["torch"],
                     "commit": where["commit"], "dirty": where["dirty"]},
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    path = folder(out) / f"{grid.name}-{digest}.json"
    if not path.exists():
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(path, content | {"command": ["hypergradbench", *command], "began": began})
    return path


def load(out: Path) -> list[dict[str, Any]]:
    """The configurations in ``out``, oldest first; damaged files are left out."""
    found = []
    for file in folder(out).glob("*.json"):
        try:
            content = json.loads(file.read_text())
            found.append((content["began"], file.name, content))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [content for *_, content in sorted(found, key=lambda entry: entry[:2])]


def _version() -> str | None:
    try:
        return version("hypergradbench")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None
