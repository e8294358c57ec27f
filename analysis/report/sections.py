"""The tables of a run, each with what it says: one section a kind of result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pandas as pd

from . import meta, overview, paper, points, words, words_cost
from .grid import Grid
from .runs import Run
from .words import Finding


class Section(NamedTuple):
    """A table and what it says."""

    grid: Grid
    findings: list[Finding]


Make = Callable[[Run, str], Iterator[Section]]
"""Of a run and the prefix of the tables' names."""


def _of(
    make: Callable[[pd.DataFrame, str], Grid | None], say: Callable[[pd.DataFrame, Grid], list[Finding]], name: str
) -> Make:
    def sections(run: Run, prefix: str) -> Iterator[Section]:
        grid = make(run.frame, f"{prefix}-{name}")
        if grid is not None:
            yield Section(grid, say(run.frame, grid))

    return sections


def _paper(run: Run, prefix: str) -> Iterator[Section]:
    for grid in paper.grids(run.frame, prefix):
        yield Section(grid, [])


def _claims(run: Run, prefix: str) -> Iterator[Section]:
    grid = overview.claims(run, f"{prefix}-claims")
    if grid is not None:
        yield Section(grid, words_cost.of_studies([found for _, found in run.studies], grid))


SECTIONS: dict[str, Make] = {
    "points": _of(points.grid, words.of_points, "points"),
    "paths": _of(points.paths_grid, words.of_paths, "paths"),
    "meta steps": _of(meta.grid, words_cost.of_meta_steps, "meta"),
    "the paper's tables": _paper,
    "other libraries": _of(meta.peers_grid, words_cost.of_peers, "peers"),
    "advice": _of(meta.advice_grid, words_cost.of_advice, "advice"),
    "claims": _claims,
}
"""what it is about -> its tables, in the order of the page."""


def of(run: Run, prefix: str) -> tuple[list[Section], list[str]]:
    """Every section that the results allow, and why one that they should allow is not there: it costs the page no other."""
    found, troubles = list[Section](), list[str]()
    for what, make in SECTIONS.items():
        try:
            found += list(make(run, prefix))
        except Exception as error:  # results of any age and origin
            troubles.append(f"The section on {what} could not be made: {type(error).__name__}: {error}")
    return found, troubles
