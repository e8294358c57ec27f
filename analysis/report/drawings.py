"""The figures of a run, each with the numbers that it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from .. import figures
from ..style import RC
from .grid import csv
from .runs import Run
from .svg import inline

OUTLINES = {**RC, "svg.fonttype": "path"}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure.

    Attributes:
        name: as it is registered.
        about: its caption.
        svg: the element; None if it could not be drawn.
        colors: see `svg.inline`.
        data: what it shows, as CSV.
        trouble: why there is no figure.
    """

    name: str
    about: str
    svg: str | None
    colors: frozenset[str]
    data: str
    trouble: str | None


def of(run: Run, prefix: str) -> list[Drawing]:
    """Every registered figure that the results allow, then those of the studies. ``prefix`` begins the ids of their parts."""
    found = []
    for name, one in figures.FIGURES.items():
        found.append(_drawn(name, one.about, one.draw, run.frame, one.data, prefix))
    for _, study in run.studies:
        if study.ok and study.name in figures.STUDY_FIGURES:
            about = str(study.content["about"])
            found.append(
                _drawn(
                    f"study_{study.name}",
                    about,
                    figures.STUDY_FIGURES[study.name],
                    study.rows,
                    lambda rows: rows,
                    prefix,
                )
            )
    return [drawing for drawing in found if drawing is not None]


def _drawn(
    name: str,
    about: str,
    draw: Callable[[pd.DataFrame], Figure | None],
    rows: pd.DataFrame,
    data: Callable[[pd.DataFrame], pd.DataFrame],
    prefix: str,
) -> Drawing | None:
    """The figure; None if the results do not hold what it shows. One that cannot be drawn costs the page no other."""
    try:
        with mpl.rc_context(OUTLINES):
            figure = draw(rows)
            if figure is None:
                return None
            svg, colors = inline(figure, f"{prefix}-{name}", about)
        return Drawing(name=name, about=about, svg=svg, colors=frozenset(colors), data=csv(data(rows)), trouble=None)
    except Exception as error:  # results of any age and origin
        trouble = f"{type(error).__name__}: {error}"
        return Drawing(name=name, about=about, svg=None, colors=frozenset(), data="", trouble=trouble)
