"""Figures from result files: one module a figure, registered in `FIGURES`, or in `STUDY_FIGURES` if of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from ..style import RC, at_width
from . import (
    ablation,
    error_condition,
    error_cost,
    error_memory,
    error_products,
    figure5,
    memory_size,
    memory_split,
    memory_unroll,
    pareto,
    peers,
    study_ablation,
    study_adapted_series,
    study_appendix_c,
    study_difference,
    study_error_bound,
    study_extra_update,
    study_greedy_digits,
    study_greedy_quadratic,
    study_horizon,
    study_memory_growth,
    study_randomness,
    study_tartan,
    study_young_adam,
    throughput_memory,
    trajectories,
    weights,
    workers,
)


class Drawing(NamedTuple):
    """A registered figure.

    Attributes:
        about: its caption, one sentence.
        draw: loaded results -> the figure; None if they do not hold what it shows.
        data: loaded results -> what the figure shows, a tidy frame, empty if there is nothing. A row is a measured point;
            ``id``, where there is that column, names the result file that it is from.
    """

    about: str
    draw: Callable[[pd.DataFrame], Figure | None]
    data: Callable[[pd.DataFrame], pd.DataFrame]


FIGURES: dict[str, Drawing] = {
    name: Drawing(module.ABOUT, module.draw, module.data)
    for name, module in {
        "figure5": figure5,
        "error_condition": error_condition,
        "error_cost": error_cost,
        "error_products": error_products,
        "error_memory": error_memory,
        "ablation": ablation,
        "throughput_memory": throughput_memory,
        "memory_size": memory_size,
        "memory_unroll": memory_unroll,
        "memory_split": memory_split,
        "workers": workers,
        "peers": peers,
        "pareto": pareto,
        "trajectories": trajectories,
        "weights": weights,
    }.items()
}

STUDY_FIGURES: dict[str, Callable[[pd.DataFrame], Figure | None]] = {
    "ablation": study_ablation.draw,
    "difference": study_difference.draw,
    "error_bound": study_error_bound.draw,
    "extra_update": study_extra_update.draw,
    "randomness": study_randomness.draw,
    "adapted_series": study_adapted_series.draw,
    "appendix_c": study_appendix_c.draw,
    "young_adam": study_young_adam.draw,
    "greedy_quadratic": study_greedy_quadratic.draw,
    "greedy_digits": study_greedy_digits.draw,
    "horizon": study_horizon.draw,
    "tartan": study_tartan.draw,
    "memory_growth": study_memory_growth.draw,
}
"""name of a study -> function of its rows; None if they do not hold what the figure shows."""

METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What each format would otherwise write into the file: with it the same results would not give the same bytes."""


def draw(name: str, frame: pd.DataFrame, width: str = "page") -> Figure | None:
    """A registered figure, in our style; None if the results do not hold what it shows.

    Args:
        width: one of `analysis.style.WIDTHS`: "page", or "column" for one column of two.
    """
    with mpl.rc_context(RC), at_width(width):
        return FIGURES[name].draw(frame)


def data(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """What a registered figure shows, as a tidy frame; empty if there is nothing to show."""
    return FIGURES[name].data(frame).reset_index(drop=True)


def image(name: str, frame: pd.DataFrame, kind: str = "svg", width: str = "page") -> bytes | None:
    """A registered figure as the bytes of a file, the same for the same results.

    Args:
        kind: "svg", "png" or "pdf".
        width: as of `draw`.
    """
    with mpl.rc_context(RC), at_width(width):
        figure = FIGURES[name].draw(frame)
        return None if figure is None else _encoded(figure, kind)


def draw_all(frame: pd.DataFrame, folder: Path, width: str = "page") -> list[Path]:
    """Draw what the results allow, as PNG and as SVG; the names of those for a column end in ``_column``.

    Args:
        width: as of `draw`.

    Returns:
        The files written; the same results give the same bytes.
    """
    end = "" if width == "page" else f"_{width}"
    with at_width(width):
        return [path for name, one in FIGURES.items() for path in _save(one.draw, frame, folder / f"{name}{end}")]


def draw_study(name: str, rows: pd.DataFrame, folder: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw the figure of a study as ``folder/study_NAME.FORMAT``, if it has one and the rows allow it.

    Returns:
        The files written.
    """
    draw = STUDY_FIGURES.get(name)
    return [] if draw is None else _save(draw, rows, folder / f"study_{name}", formats)


def _save(
    draw: Callable[[pd.DataFrame], Figure | None],
    frame: pd.DataFrame,
    stem: Path,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    with mpl.rc_context(RC):
        figure = draw(frame)
        if figure is None:
            return []
        stem.parent.mkdir(parents=True, exist_ok=True)
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in formats]
        for path, kind in zip(paths, formats, strict=True):
            path.write_bytes(_encoded(figure, kind))
    return paths


def _encoded(figure: Figure, kind: str) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, metadata=METADATA[kind])
    return buffer.getvalue()
