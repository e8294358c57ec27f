"""Cosine of a central difference to the product: detached inputs by the steepness of the net, random draws by alpha."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ..style import ARMS, WIDTH
from .common import band, better

PANELS = {
    "detached": ("detached input", "steepness", "factor on the weight net's last layer"),
    "dropout": ("dropout", "alpha", r"$\alpha$"),
    "hard weights": ("hard weights", "alpha", r"$\alpha$"),
}
LABELS = {"same loss": "held and shared (ours)", "plain": "plain difference"}


def draw(rows: pd.DataFrame) -> Figure | None:
    """Medians and whole ranges over seeds and draws."""
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    grid = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (case, (title, x, label)) in zip(grid, PANELS.items(), strict=True):
        for (arm, name), look in zip(LABELS.items(), ARMS, strict=False):
            band(axes, rows[(rows["case"] == case) & (rows["arm"] == arm)], x, "cosine", look, name)
        axes.axhline(0, color="#888888", linewidth=0.7)
        axes.set(xscale="log", xlabel=label, ylim=(-1.05, 1.05))
        axes.set_title(title, loc="left")
        axes.grid()
        better(axes, "up")
    grid[0].set_ylabel(r"cosine to the exact $M^\top v$")
    figure.legend(handles=grid[0].get_legend_handles_labels()[0], loc="outside lower center", ncols=2)
    return figure
