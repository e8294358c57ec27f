"""META-TARTAN's weights of tasks while a network trains, by the head that the outer loss is read from."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..style import ARMS, WIDTH
from .common import band, legend_below, not_shown

TASKS = dict(zip(("end", "useful", "useless"), ARMS, strict=False))
HEADS = {"same": "own head", "ridge": "ridge head", "trained": "trained head", "barely": "barely trained"}
AUXILIARY = {"renamed": "useful: same digits", "other": "useful: other digits"}


def draw(rows: pd.DataFrame) -> Figure | None:
    """Medians and whole ranges over seeds; of the accuracies every seed."""
    good = rows[rows["status"] == "ok"]
    if good.empty:
        return None
    cosine, dot = good[good["form"] == "cosine"], good[good["form"] == "dot"]
    figure = Figure(figsize=(WIDTH, 5.4))
    grid = figure.subplots(3, 4)
    for row, (auxiliary, what) in zip(grid, AUXILIARY.items(), strict=False):
        for axes, (head, name) in zip(row, HEADS.items(), strict=True):
            _weights(axes, cosine[(cosine["head"] == head) & (cosine["auxiliary"] == auxiliary)])
            axes.set_title(f"cosine: {name}", loc="left")
        row[0].set_ylabel(f"weight\n({what})")
    for axes, head in zip(grid[2], ("same", "ridge"), strict=False):
        _weights(axes, dot[dot["head"] == head])
        axes.set_title(f"dot product: {HEADS[head]}", loc="left")
        axes.set_xlabel("step")
    grid[2, 0].set_ylabel(f"weight\n({AUXILIARY['renamed']})")
    separate = cosine[cosine["head"] != "same"]
    separate = separate.assign(loss=separate["head_loss"].astype(float) / separate["head_chance"].astype(float))
    for (head, name), look in zip(list(HEADS.items())[1:], ARMS[3:], strict=False):
        band(grid[2, 2], separate[separate["head"] == head], "step", "loss", look, name)
    grid[2, 2].set_title("outer head's loss / chance", loc="left")
    grid[2, 2].set(ylim=(0, 1.15), xlabel="step")
    _accuracies(grid[2, 3], good)
    for axes in figure.axes:
        axes.grid()
    handles = [*grid[0, 0].get_legend_handles_labels()[0], *grid[2, 2].get_legend_handles_labels()[0]]
    failed = rows[rows["status"] != "ok"]
    left_out = [f"{r['form']}, {r['head']}, {r['auxiliary']}, seed {r['seed']}" for _, r in failed.iterrows()]
    legend_below(figure, handles, 6, not_shown(left_out))
    return figure


def _weights(axes: Axes, rows: pd.DataFrame) -> None:
    for task, look in TASKS.items():
        band(axes, rows, "step", f"weight_{task}", look, task)
    axes.set_ylim(0, 1)


def _accuracies(axes: Axes, rows: pd.DataFrame) -> None:
    """At the end, by that of the same seed with equal weights, in percentage points; a column an arm."""
    end = rows[rows["step"] == rows["step"].max()].set_index(["auxiliary", "seed"])
    fixed = end.loc[end["form"] == "fixed", "test_accuracy"]
    arms = [("cosine", head) for head in HEADS] + [("dot", "same"), ("dot", "ridge")]
    for i, (form, head) in enumerate(arms):
        mine = end.loc[(end["form"] == form) & (end["head"] == head), "test_accuracy"]
        gain = 100 * (mine - fixed.reindex(mine.index))
        axes.plot([i] * len(gain), gain, "o", color="#444444", markersize=3, alpha=0.5, markeredgewidth=0)
        axes.plot([i - 0.3, i + 0.3], [gain.median()] * 2, color="#000000", linewidth=1)
    axes.axhline(0, color="#888888", linewidth=0.7)
    axes.set_xticks(range(len(arms)), ["own", "ridge", "trained", "barely", "own, dot", "ridge, dot"], rotation=55,
                    ha="right", rotation_mode="anchor")  # fmt: skip
    axes.set_title("accuracy gained, points", loc="left")
