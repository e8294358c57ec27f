"""Learned weights of training examples: those whose label is right against those whose label is wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from scipy.stats import mannwhitneyu

from ..style import ARMS, order
from .common import legend_below, missing, not_shown, panels, title_above
from .paths import one_path

ABOUT = (
    "Weights of training examples with right and with wrong labels, before and after learning them with each estimator."
)
COLUMNS = 4
BINS = np.linspace(0, 1, 21)
LABELS = {"right": ARMS[0], "wrong": ARMS[1]}
START = "before learning"


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a training example: its weight before the first meta step ("first") and after the last ("last")."""
    columns = ["id", "estimator", "case", "seed", "dtype"]
    parts = [
        pd.DataFrame({**row[columns], "when": when, "label": label, "weight": values})
        for _, row in _good(_cells(frame)[0]).iterrows()
        for when, found in row["path_observed"].items()
        for label, values in found["weights"].items()
    ]
    columns += ["when", "label", "weight"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def draw(frame: pd.DataFrame) -> Figure | None:
    """A panel an estimator, after one with the weights that all start from."""
    points = data(frame)
    if points.empty:
        return None
    cells, dtype, others = _cells(frame)
    names = order(points["estimator"])
    last = {n: points[(points["estimator"] == n) & (points["when"] == "last")] for n in names}
    shown = {START: points[(points["estimator"] == names[0]) & (points["when"] == "first")], **last}
    figure, grid = panels(len(shown), 1.45, 0.8, COLUMNS, sharex=True, sharey=True)
    for i, (axes, (name, mine)) in enumerate(zip(grid.flat, shown.items(), strict=False)):
        _panel(axes, mine)
        axes.set_title(f"{name}\nright above wrong: {apart(mine):.0%}", loc="left", fontsize=7.5)
        if i + grid.shape[1] >= len(shown):
            axes.set_xlabel("weight")
            axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of examples (%)")
    first = _good(cells).iloc[0]
    steps = len(first["path_value"])
    title_above(figure, f"{first['case']}, seed {first['seed']}{dtype}: weights after {steps} meta steps")
    counts = shown[START]["label"].value_counts()
    handles = [
        Line2D(
            [],
            [],
            color=style.color,
            linestyle=style.line,
            linewidth=1.4,
            label=f"{counts.get(k, 0)} examples with a {k} label",
        )
        for k, style in LABELS.items()
    ]
    notes = [
        "better: right labels at 1, wrong ones at 0. Right above wrong: how often a right label outweighs a wrong one, of all pairs "
        "(50 %: the weights know nothing; ties count half)"
    ]
    legend_below(figure, handles, 2, [*notes, *not_shown([*missing(cells, []), *others])])
    return figure


def apart(points: pd.DataFrame) -> float:
    """Probability that the weight of a right label is above that of a wrong one, ties counted half: the area under the ROC
    curve."""
    right, wrong = (points.loc[points["label"] == k, "weight"] for k in LABELS)
    if right.empty or wrong.empty:
        return float("nan")
    return float(mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong))


def _panel(axes: Axes, points: pd.DataFrame) -> None:
    for label, style in LABELS.items():
        weights = points.loc[points["label"] == label, "weight"].to_numpy(dtype=float)
        shares = np.histogram(weights.clip(0, 1), BINS)[0] / max(len(weights), 1)
        axes.stairs(shares, BINS, color=style.color, linestyle=style.line, linewidth=1.3)
        axes.stairs(shares, BINS, color=style.color, alpha=0.2, fill=True, linewidth=0)
    axes.set_xlim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    axes.grid()


def _cells(frame: pd.DataFrame) -> tuple[pd.DataFrame, str, list[str]]:
    watched = frame["path_observed"].map(lambda found: isinstance(found, dict) and "weights" in found.get("last", {}))
    return one_path(frame[watched | ((frame["kind"] == "path") & (frame["status"] != "ok"))], "path_observed")


def _good(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[cells["status"] == "ok"]
