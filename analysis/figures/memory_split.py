"""What the peak memory of a meta step is made of."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..style import in_column, order
from .common import better, legend_below, not_shown, panels, title_above
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
    lying = in_column()  # for their names there is no room below them
    figure, grid = panels(1, 0.6 + 0.17 * len(bars) if lying else 2.5, 0.7)
    axes = grid[0, 0]
    for i, (_, split, unit, total) in enumerate(bars):
        end = 0.0
        for part, (color, hatch, _) in PARTS.items():
            share = split.get(part, 0) / unit
            ink = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
            if lying:
                axes.barh(i, share, left=end, height=0.75, **ink)
            else:
                axes.bar(i, share, bottom=end, width=0.75, **ink)
            end += share
        axes.annotate(
            f"{total:.3g}", (end, i) if lying else (i, end), xytext=(3, 0) if lying else (0, 2), textcoords="offset points",
            ha="left" if lying else "center", va="center" if lying else "baseline", fontsize=7,
        )  # fmt: skip
    if lying:
        axes.set_yticks(range(len(bars)), [b[0].replace("\n", ", ") for b in bars])
        axes.invert_yaxis()
        axes.set_xlabel("bytes at the peak /\npeak of plain training", loc="left", labelpad=12)  # below a power of ten
    else:
        turned = len(bars) > 9
        axes.set_xticks(
            range(len(bars)), [b[0] for b in bars], rotation=45 if turned else 0, ha="right" if turned else "center"
        )
        axes.set_ylabel("bytes at the peak /\npeak of plain training")
    axes.grid(axis="x" if lying else "y")
    axes.margins(x=0.1 if lying else 0.02, y=0.02 if lying else 0.08)
    better(axes, "left" if lying else "down")
    title_above(figure, title if several else title + at_one_unroll(fine))
    handles = [Patch(facecolor=c, hatch=h, edgecolor="white", label=text) for c, h, text in PARTS.values()]
    legend_below(figure, handles, 4, not_shown([*lost(rows), *others]))
    return figure
