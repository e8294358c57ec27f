"""Held-out accuracy of SAMA's arms, and how long the extra update is."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ..style import ARMS, WIDTH
from .common import better

ORDER = ("plain", "meta only", "extra only", "both")


def draw(rows: pd.DataFrame) -> Figure | None:
    """Every seed a point, its arm's mean a bar; right: the extra update in units of Adam's last step."""
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    found = [(arm, a) for arm in ORDER for a in sorted(rows.loc[rows["arm"] == arm, "alpha"].unique())]
    labels = [arm if a == 0 else f"{arm}\n" + rf"$\alpha = {a:g}$" for arm, a in found]
    for i, (arm, alpha) in enumerate(found):
        look = ARMS[ORDER.index(arm)]
        at = rows[(rows["arm"] == arm) & (rows["alpha"] == alpha)]
        spots = i + (at["seed"] - at["seed"].mean()) / (4 * max(at["seed"].max(), 1))
        left.plot(spots, 100 * at["accuracy"], look.marker, color=look.color, alpha=0.8, markeredgewidth=0)
        left.hlines(100 * at["accuracy"].mean(), i - 0.3, i + 0.3, color="black", linewidth=1)
        if alpha:
            right.plot(spots, at["extra_relative"], look.marker, color=look.color, alpha=0.8, markeredgewidth=0)
    left.set_xticks(range(len(found)), labels)
    left.set_ylabel("held-out accuracy (%)")
    extra = [i for i, (_, a) in enumerate(found) if a]
    right.set_xticks(extra, [labels[i] for i in extra])
    right.axhline(1, color="#888888", linewidth=0.7)
    right.set(yscale="log", ylabel="extra update / last Adam step")
    for axes in (left, right):
        axes.grid(axis="y")
    better(left, "up")
    left.set_title("each seed, and the mean", loc="left")
    return figure
