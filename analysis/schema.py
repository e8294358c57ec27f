"""Versions of result files, and how an older one is brought to today's form. Reading never changes a file.

A version is raised whenever a field changes its meaning or a field that tables rely on becomes part of every file; what is
merely new and may be missing needs none.

    1  until 21 November 2026. The first files lack what came with time: device, workers and swept fields of the configuration, the
       failure in a word, whether the estimator is a control. (Nor do they say by which clock: `cost.clock` is then unknown.)
    2  every file has those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

CURRENT = 2
"""What `benchmarks.cells` writes today."""

CONTROLS = ("plain", "direct", "random")
"""Registered as such when files did not say so yet."""

WORDS = (
    ("timeout", re.compile(r"^timeout: ")),
    ("oom", re.compile(r"can't allocate memory|out of memory(?!\?)|std::bad_alloc|\bMemoryError\b", re.I)),
    ("crash", re.compile(r"^the process (was killed|ended)")),
    ("nan", re.compile(r"^(NonFiniteError|FloatingPointError)\b")),
)
"""How the reason of a failure begins, or what it contains, in files that give it no word."""


def upgraded(content: Any) -> dict[str, Any]:
    """A result file's content in today's form.

    Raises:
        ValueError: it is no result file of ours, or of a version that this code does not know; says which.
    """
    if not isinstance(content, dict):
        raise ValueError(f"no result file: it holds {'nothing' if content is None else f'a {type(content).__name__}'}")
    if "schema" not in content:
        raise ValueError("no result file: it has no schema")
    version = content["schema"]
    if type(version) is not int or version < 1:
        raise ValueError(f"no result file of ours: its schema is {version!r}")
    if version > CURRENT:
        raise ValueError(
            f"written by a newer hypergradbench: schema {version}, and this one knows 1 to {CURRENT}; update it"
        )
    if not isinstance(content.get("config"), dict):
        raise ValueError("no result of a cell: it has no config")
    for old in range(version, CURRENT):
        content = MIGRATIONS[old](content)
    return content


def failure_word(reason: Any) -> str:
    """The word for a failure of which there is but a sentence."""
    return next((word for word, pattern in WORDS if pattern.search(str(reason))), "error")


def _one_to_two(content: Mapping[str, Any]) -> dict[str, Any]:
    then = {"device": "cpu", "fields": {}, "workers": 1}  # all that there was before these could be said
    config = then | content["config"]
    new = {**content, "schema": 2, "config": config}
    if content.get("failure") is None:
        new["failure"] = failure_word(content.get("reason")) if content.get("status") == "failed" else None
    if isinstance(claim := content.get("claim"), dict):
        new["claim"] = {"control": config.get("estimator") in CONTROLS} | claim
    return new


MIGRATIONS: Mapping[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _one_to_two}
"""version -> what makes the next one of it. To add one: raise `CURRENT` here and `SCHEMA` in `benchmarks.cells`, write what became of
the version above, and keep a real file of the old one in `tests/old_results`."""
