"""Cosine of every cell of the grid, as heat maps: inverse and adaptation by product, a panel a decay."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from .heatmap import heat_maps


def draw(rows: pd.DataFrame) -> Figure | None:
    """Medians, and whole ranges of the seeds."""
    inverses, products = list(rows["inverse"].unique()), list(rows["product"].unique())
    shown = {p: p.replace("|theta|", r"$\|\theta\|$").replace("alpha", r"$\alpha$") for p in products}
    labels = [label for i in inverses for label in (i, f"{i}, adapted")]
    points = pd.DataFrame(
        {
            "row": rows["inverse"] + rows["adapt"].map({True: ", adapted", False: ""}), "column": rows["product"].map(shown),
            "value": rows["cosine"].astype(float), "why": "undefined",
        }
    )  # fmt: skip
    panels = {rf"$\ell_2$ penalty {l2:g}": rows["l2"] == l2 for l2 in rows["l2"].unique()}
    return heat_maps(points, panels, labels, list(shown.values()), "cosine to the implicit gradient")
