"""What the peak memory of a meta step is made of."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..style import WIDTH, order
from .common import better, legend_below, not_shown
from .meta import at_one_unroll, chosen, lost

PARTS = {
    "parameters": ("#332288", "", "parameters"),
    "slots": ("#0072B2", "", "optimizer slots"),
    "recorded": ("#56B4E9", "///", "recorded states"),
    "graph": ("#E69F00", "", "graph: activations, gradients"),
    "buffers": ("#F0E442", "...", "buffers of estimator and optimizer"),
    "hyperparameters": ("#CC79A7", "", "hyperparameters, their slots"),
    "data": ("#999999", "xxx", "data"),
}
"""part -> colour, hatch (for grey prints), words."""


ABOUT = "What the peak memory of a meta step is made of, in units of the peak of plain training."


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and part: bytes at the peak of the meta step, and at that of plain training."""
    rows = chosen(frame)[0]
    rows = rows[_known(rows)]
    columns = ["id", "estimator", "case", "dtype", "device", "unroll", "workers", "seed"]
    parts = [
        {
            **row[columns],
            "part": part,
            "bytes": row["memory_split"].get(part, 0),
            "plain_bytes": row["plain_split"].get(part, 0),
        }
        for _, row in rows.iterrows()
        for part in PARTS
    ]
    return pd.DataFrame(parts, columns=[*columns, "part", "bytes", "plain_bytes"])


def _known(rows: pd.DataFrame) -> pd.Series:
    return rows["status"].eq("ok") & rows["memory_split"].notna() & rows["plain_split"].notna()


def draw(frame: pd.DataFrame) -> Figure | None:
    """A bar an estimator, in units of the peak of plain training, whose own split is the first bar."""
    rows, title, others = chosen(frame)
    fine = rows[_known(rows)]
    if fine.empty:
        return None
    bars = [("plain training", fine.iloc[0]["plain_split"], float(fine.iloc[0]["plain_peak"]), 1.0)]
    several = fine[["unroll", "workers"]].drop_duplicates().shape[0] > 1
    for name in order(fine["estimator"]):
        for (unroll, workers), mine in fine[fine["estimator"] == name].groupby(["unroll", "workers"]):
            text = name + (f"\nunroll {unroll:.0f}" if several else "") + (f" ×{workers:.0f}" if workers > 1 else "")
            one = mine.iloc[0]
            bars.append((text, one["memory_split"], float(one["plain_peak"]), float(one["memory_ratio"])))
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, (_, split, unit, total) in enumerate(bars):
        below = 0.0
        for part, (color, hatch, _) in PARTS.items():
            share = split.get(part, 0) / unit
            axes.bar(i, share, bottom=below, color=color, hatch=hatch, edgecolor="white", linewidth=0.4, width=0.75)
            below += share
        axes.annotate(f"{total:.3g}", (i, below), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7)
    turned = len(bars) > 9
    axes.set_xticks(
        range(len(bars)), [b[0] for b in bars], rotation=45 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_ylabel("bytes at the peak /\npeak of plain training")
    axes.grid(axis="y")
    axes.margins(x=0.02, y=0.08)
    better(axes, "down")
    figure.suptitle(title if several else title + at_one_unroll(fine), fontsize=8)
    handles = [Patch(facecolor=c, hatch=h, edgecolor="white", label=text) for c, h, text in PARTS.values()]
    legend_below(figure, handles, 4, not_shown([*lost(rows), *others]))
    return figure
