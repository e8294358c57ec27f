"""Running a study: a result file whatever happens, and what stands in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..cells import write
from ..measure import environment
from .base import Row, Study

SCHEMA = 1
"""Version of a study's result file; raised whenever a field changes its meaning."""


def result_file(out: Path, name: str) -> Path:
    return out / f"{name}.json"


def execute(name: str, study: Study, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run one study and write ``out/name.json``, in place of what an earlier run left there.

    A study that raises is a result with its reason; an interrupt leaves the earlier file as it is. Draws start from the
    same state whatever ran before.

    Returns:
        What was written.
    """
    begin = time.perf_counter()
    content: dict[str, Any] = {"status": "ok", "reason": None, "rows": [], "claims": []}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            content["rows"] = flat(study.run(**settings))
            content["claims"] = [asdict(c) for c in study.claims(content["rows"])]
    except Exception as error:
        content |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        if content["rows"]:
            content["reason"] += (
                " (in the claims; the rows are there, and may be too few at other settings than the defaults)"
            )
    where = environment()
    del where["dtype"]  # a study's dtypes are its settings
    done = {
        "schema": SCHEMA, "study": name, "about": study.about, "citation": study.citation, "method": study.method, "settings": settings,
        "defaults": settings == study.defaults, **content, "environment": where,
        "seconds": round(time.perf_counter() - begin, 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }  # fmt: skip
    write(result_file(out, name), done)
    return done


def flat(rows: Sequence[Row]) -> list[Row]:
    """``rows``, if each is a flat dictionary of JSON scalars.

    Raises:
        TypeError: one is not: a tensor, a numpy number, a list.
        ValueError: there are none.
    """
    if not rows:
        raise ValueError("the study gave no rows")
    for i, row in enumerate(rows):
        for key, value in row.items():
            if not isinstance(key, str) or type(value) not in (str, int, float, bool, type(None)):
                raise TypeError(f"row {i}: {key}={value!r} is no JSON scalar ({type(value).__name__})")
    return list(rows)
