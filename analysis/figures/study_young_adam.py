"""Adam's adaptation after a reset, and what rows without a gradient do to a product in float32."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from ..style import ARMS, WIDTH
from .common import band, better


def draw(rows: pd.DataFrame) -> Figure | None:
    """Medians and whole ranges over seeds."""
    young, unused = rows[rows["part"] == "young"], rows[rows["part"] == "unused"]
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    negative, norm, error = figure.subplots(1, 3)
    for (name, mine), look in zip(young.groupby("gradients"), ARMS, strict=False):
        band(negative, mine, "t", "negative", look, str(name))
        band(norm, mine, "t", "norm", look, str(name))
    negative.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    negative.set_title("negative entries of $D$", loc="left")
    norm.set(yscale="log")
    norm.set_title(r"$\|D\|$, by that at the end", loc="left")
    norm.axhline(1, color="#888888", linewidth=0.7)
    for axes in (negative, norm):
        axes.set(xscale="log", xlabel="step $t$ of Adam")
    single = unused[unused["dtype"] == "float32"]
    for masked, label, look in ((True, "$D$ = 0 there (ours)", ARMS[3]), (False, "$D$ by the formula", ARMS[4])):
        band(error, single[single["masked"] == masked], "unused", "relative_error", look, label)
    error.set(xscale="log", yscale="log", xlabel="rows without a gradient")
    error.xaxis.set_major_locator(FixedLocator(sorted(set(single["unused"]))))
    error.xaxis.set_minor_locator(NullLocator())
    error.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    error.set_title("error of SAMA's product", loc="left")
    better(error, "down")
    for axes in figure.axes:
        axes.grid()
    figure.legend(handles=negative.get_legend_handles_labels()[0], loc="outside lower left", ncols=3)
    figure.legend(handles=error.get_legend_handles_labels()[0], loc="outside lower right", ncols=2)
    return figure
