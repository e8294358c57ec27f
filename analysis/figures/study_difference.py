"""The central difference's error against alpha: by precision, and by the width of the network in two units of alpha."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..style import ARMS, WIDTH
from .common import band, better

PUBLISHED = {1.0: "SAMA", 0.01: "DARTS"}


def draw(rows: pd.DataFrame) -> Figure | None:
    """Medians and whole ranges: over seeds and widths on the left, over seeds on the right."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for name, look in zip(rows["precision"].unique(), ARMS, strict=False):
        band(left, rows[rows["precision"] == name], "alpha", "relative_error", look, name)
    left.set_title("precisions", loc="left")
    double = rows[rows["precision"] == "float64"]
    for (width, mine), look in zip(double.groupby("width"), ARMS, strict=False):
        theta = mine["theta"].median()
        label = rf"width {width}, $\|\theta\|$ = {theta:.1f}"
        band(middle, mine, "alpha", "relative_error", look, label)
        band(right, mine.assign(relative=mine["alpha"] / theta), "relative", "relative_error", look, label)
    middle.set_title("float64, absolute", loc="left")
    right.set_title("float64, relative", loc="left")
    for axes in (left, middle, right):
        axes.set(xscale="log", yscale="log", xlabel=r"$\alpha$")
        axes.grid()
        better(axes, "down")
    for axes in (left, middle):
        _published(axes)
    right.set_xlabel(r"$\alpha \,/\, \|\theta\|$")
    left.set_ylabel(r"relative error of $M^\top v$")
    figure.legend(handles=left.get_legend_handles_labels()[0], loc="outside lower left", ncols=2, fontsize=7)
    figure.legend(handles=middle.get_legend_handles_labels()[0], loc="outside lower right", ncols=2, fontsize=7)
    return figure


def _published(axes: Axes) -> None:
    for alpha, name in PUBLISHED.items():
        axes.axvline(alpha, color="#888888", linewidth=0.7, linestyle=":")
        axes.annotate(
            name, (alpha, 0), xycoords=("data", "axes fraction"), xytext=(2, 3), textcoords="offset points", fontsize=6,
            color="#555555", rotation=90, va="bottom",
        )  # fmt: skip
