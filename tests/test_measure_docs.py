"""The example in docs/measuring.md runs, and the page names every number there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import torch

from benchmarks.measure import CATEGORIES, Counts, Timing

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "measuring.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.M | re.S)
    threads, names = torch.get_num_threads(), dict[str, object]()
    try:
        exec(compile(example, "measuring.md", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    time, memory, counts = names["time"], names["memory"], names["counts"]
    assert isinstance(time, Timing)
    assert time.samples >= 6
    assert sum(memory.split.values()) == memory.peak  # type: ignore[attr-defined]
    # five steps, the outer loss, and both sides of a central difference
    assert counts.forwards == 5 + 1 + 2  # type: ignore[attr-defined]


def test_every_number_is_explained() -> None:
    named = set(re.findall(r"`([a-z_]+)`", TEXT))
    assert {f.name for f in fields(Counts)} | set(CATEGORIES) <= named
    assert {f.name for f in fields(Timing)} - {"reference_seconds", "clock"} <= named
