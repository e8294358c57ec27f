"""Greedy learning on the noisy quadratic: alpha over training for several meta rates, momentum from several starts."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..style import ARMS, WIDTH

PANELS = (
    ("alpha", "momentum", "eta", r"learning rate: scalar $\alpha$", r"$\hat\eta$ = {:g}"),
    ("momentum", "averaged", "start", r"averaged momentum: $\beta$", "from {:g}"),
    ("momentum", "momentum", "start", r"heavy ball: $\mu$", "from {:g}"),
)


def draw(rows: pd.DataFrame) -> Figure | None:
    """Three panels; every seed is a line."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    for axes, (learned, rule, by, title, label) in zip(figure.subplots(1, 3), PANELS, strict=True):
        lines(axes, rows[(rows["learned"] == learned) & (rows["rule"] == rule)], by, label)
        axes.set_title(title, loc="left")
        axes.set(xlabel="step", yscale="log" if learned == "alpha" else "linear")
        axes.grid()
        if learned == "alpha":
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        else:
            axes.set_ylim(-0.03, 1.03)
    alpha, start, _ = figure.axes
    figure.legend(handles=alpha.get_legend_handles_labels()[0], loc="outside lower left", ncols=3, handlelength=2.6)
    figure.legend(handles=start.get_legend_handles_labels()[0], loc="outside lower right", ncols=3, handlelength=2.6)
    return figure


def lines(axes: Axes, rows: pd.DataFrame, by: str, label: str) -> None:
    """One look for each value of ``by``, one line for each seed."""
    for (value, mine), look in zip(rows.groupby(by), ARMS, strict=False):
        for i, (_, one) in enumerate(mine.dropna(subset="value").groupby("seed")):
            axes.plot(
                one["step"], one["value"], color=look.color, linestyle=look.line, linewidth=0.9,
                label=label.format(value) if i == 0 else None,
            )  # fmt: skip
