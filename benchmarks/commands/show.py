"""``hypergradbench show``: what a results folder was asked for, and what became of it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from tyro.conf import Positional


@dataclass(frozen=True)
class Show:
    """Print the configurations that are saved in a results folder, and its rows by status, with the reasons of failures."""

    folder: Positional[Path]
    """Folder that `sweep` or `run` wrote (its --out)."""


def show(command: Show) -> int:
    """`show`."""
    from .. import saved
    from ..listing import plain_console

    if not command.folder.is_dir():
        print(f"hypergradbench: there is no folder {command.folder}", file=sys.stderr)
        return 2
    configurations, (rows, damaged) = saved.load(command.folder), _rows(command.folder)
    if not configurations and not rows:
        print(f"hypergradbench: no sweep was saved in {command.folder}, and no results are there", file=sys.stderr)
        return 1
    console = plain_console()
    for configuration in configurations:
        _configuration(configuration, rows, console)
    _summary(list(rows.values()), console)
    if damaged:
        console.print(f"damaged, to be measured again: {', '.join(damaged)}", markup=False)
    return 0


def _rows(out: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(id -> row, names of the files that could not be read)."""
    found, damaged = {}, []
    for file in sorted((out / "cells").glob("*.json")):
        try:
            row = json.loads(file.read_text())
            row["status"], row["config"]["estimator"]
            found[file.stem] = row
        except (OSError, ValueError, KeyError, TypeError):
            damaged.append(file.name)
    return found, damaged


def _configuration(content: Mapping[str, Any], rows: Mapping[str, Any], console: Console) -> None:
    there = sum(i in rows for i in content["ids"])
    part = f", part {content['shard']}" if content["shard"] else ""
    console.rule(f"{content['name']}{part}", align="left")
    if content["about"]:
        console.print(content["about"], markup=False)
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items() if v not in (None, False, True))
    console.print(
        f"begun {content['began']} with {versions}" + " (changed since)" * bool(content["versions"]["dirty"]),
        markup=False,
    )
    console.print("$ " + " ".join(content["command"]), markup=False, soft_wrap=True)
    console.print(f"{there} of {content['cells']} cells are there", markup=False)
    for key, value in content["grid"].items():
        if key not in ("name", "about") and value not in ({}, [], None):
            console.print(f"  {key} = {json.dumps(value)}", markup=False, soft_wrap=True)
    console.print()


def _summary(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    console.rule("rows", align="left")
    counts = Counter(row["status"] for row in rows)
    console.print(f"{len(rows)} rows: " + (", ".join(f"{n} {s}" for s, n in sorted(counts.items())) or "none"))
    for status in ("failed", "refused"):
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            if row["status"] == status:
                key = row.get("failure") or status, str(row["reason"]).splitlines()[0] if row["reason"] else ""
                reasons.setdefault(key, []).append(row["config"]["estimator"])
        for (word, reason), names in sorted(reasons.items()):
            who = ", ".join(sorted(set(names)))
            console.print(f"  {len(names)} × {word}: {reason} ({who})", markup=False, soft_wrap=True)
