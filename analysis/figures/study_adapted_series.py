"""Cosine to the exact implicit gradient, by products spent and by how far the Hessian is from diagonal."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ..style import ARMS, WIDTH
from .common import band, better

NAMES = {
    "plain series": "plain series ($K = 0$: SAMA-NA)",
    "adapted series": "adapted series ($K = 0$: SAMA)",
    "plain CG": "plain CG",
    "adapted CG": "adapted CG",
}


def draw(rows: pd.DataFrame) -> Figure | None:
    """Medians and whole ranges over seeds; one panel a coupling."""
    couplings = sorted(rows["coupling"].unique())
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    grid = figure.subplots(1, len(couplings), sharey=True, squeeze=False)[0]
    for axes, coupling in zip(grid, couplings, strict=True):
        at = rows[rows["coupling"] == coupling]
        for (arm, label), look in zip(NAMES.items(), ARMS, strict=False):
            band(axes, at[at["arm"] == arm], "products", "cosine", look, label)
        axes.set_xscale("symlog", linthresh=1)
        ticks = sorted(rows["products"].unique())
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.set(xlabel="products $K$", ylim=(0, 1.03))
        axes.set_title(f"coupling {coupling:g}\ncond. {at['condition'].median():.0f}", loc="left")
        axes.grid()
    better(grid[-1], "up")
    grid[0].set_ylabel("cosine to the exact gradient")
    figure.legend(handles=grid[0].get_legend_handles_labels()[0], loc="outside lower center", ncols=4)
    return figure
