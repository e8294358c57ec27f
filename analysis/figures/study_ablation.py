"""Cosine of every cell of the grid: adaptation by colour, product by marker, inverse along the axis, decay by panel."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import ARMS, WIDTH
from .common import better

ADAPT = {False: "not adapted", True: "adapted"}


def draw(rows: pd.DataFrame) -> Figure | None:
    """Medians, and bars over the whole range of the seeds."""
    decays, inverses, products = (list(rows[c].unique()) for c in ("l2", "inverse", "product"))
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    grid = figure.subplots(1, len(decays), sharey=True, squeeze=False)[0]
    looks = {adapt: ARMS[i] for i, adapt in enumerate(ADAPT)}
    markers = {product: ARMS[i].marker for i, product in enumerate(products)}
    for axes, l2 in zip(grid, decays, strict=True):
        for (inverse, adapt, product), mine in rows[rows["l2"] == l2].groupby(["inverse", "adapt", "product"]):
            low, middle, high = (mine["cosine"].quantile(q) for q in (0, 0.5, 1))
            slot = products.index(product) + len(products) * int(adapt)
            axes.errorbar(
                inverses.index(inverse) + 0.11 * (slot - len(products) + 0.5), middle,
                yerr=[[middle - low], [high - middle]], color=looks[bool(adapt)].color, marker=markers[product],
                markersize=4, elinewidth=0.8,
            )  # fmt: skip
        axes.set_title(rf"$\ell_2$ penalty {l2:g}", loc="left")
        axes.set_xticks(range(len(inverses)), inverses, rotation=25, ha="right")
        axes.grid(axis="y")
        better(axes, "up")
    grid[0].set_ylabel("cosine to the implicit gradient")
    handles = [Line2D([], [], color=looks[a].color, linewidth=4, label=label) for a, label in ADAPT.items()]
    handles += [
        Line2D(
            [],
            [],
            color="#555555",
            marker=m,
            linestyle="none",
            label=p.replace("|theta|", r"$\|\theta\|$").replace("alpha", r"$\alpha$"),
        )
        for p, m in markers.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
