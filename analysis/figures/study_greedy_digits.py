"""Greedy learning on digits: alpha over training with and without label noise, and accuracy beside static rates."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..style import ARMS, WIDTH, Look
from .common import band, better


def draw(rows: pd.DataFrame) -> Figure | None:
    """Every seed is a line, or a point; the guided trainings' accuracy is a level, as they end at no single rate."""
    rules = list(dict.fromkeys(rows["rule"]))
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    noisy, clean, static = figure.subplots(1, 3)
    guided = rows[rows["part"] == "guided"]
    for axes, mine in ((noisy, guided[guided["noise"] > 0]), (clean, guided[guided["noise"] == 0])):
        for rule, look in zip(rules, ARMS, strict=False):
            _trajectories(axes, mine[mine["rule"] == rule], look, rule)
        axes.axhline(1, color="#888888", linewidth=0.7)
        axes.set(xlabel="step", yscale="log")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:g}"[-1] in "25" else "")
    noisy.set_ylabel(r"learning rate scalar $\alpha$")
    noisy.set_title(f"{guided['noise'].max():.0%} of the labels redrawn", loc="left")
    clean.set_title("right labels", loc="left")
    low, high = (f(a.get_ylim()[i] for a in (noisy, clean)) for i, f in enumerate((min, max)))
    for axes in (noisy, clean):
        axes.set_ylim(low, high)
    grid, ends = rows[rows["part"] == "static"], rows[(rows["part"] == "end") & (rows["noise"] > 0)]
    for rule, look in zip(rules, ARMS, strict=False):
        if (mine := grid[grid["rule"] == rule]).empty:
            continue
        band(static, mine, "log_lr", "accuracy", look, rule)
        level = ends.loc[ends["rule"] == rule, "accuracy"].median()
        static.axhline(level, color=look.color, linestyle=(0, (2, 2)), linewidth=0.9)
    static.plot([], [], color="#555555", linestyle=(0, (2, 2)), linewidth=0.9, label="guided (median)")
    static.set(xlabel="log_lr of a static rate", ylabel="accuracy on held-out examples")
    static.set_title("static rates, redrawn", loc="left")
    better(static, "up")
    for axes in figure.axes:
        axes.grid()
    handles = [*noisy.get_legend_handles_labels()[0], *static.get_legend_handles_labels()[0][-1:]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _trajectories(axes: Axes, rows: pd.DataFrame, look: Look, label: str) -> None:
    for i, (_, one) in enumerate(rows.groupby("seed")):
        axes.plot(
            one["step"], one["alpha"], color=look.color, linestyle=look.line, linewidth=0.9, label=label if i == 0 else None
        )  # fmt: skip
