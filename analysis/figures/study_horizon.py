"""The bias of a short horizon: slope of the learning rate, and training with a learned one, by the horizon K."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ..style import ARMS, WIDTH
from .common import band, better


def draw(rows: pd.DataFrame) -> Figure | None:
    """Every seed a point; medians joined, whole ranges behind them."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    slope, online = figure.subplots(1, 2)
    slopes, learned = rows[rows["part"] == "slope"], rows[rows["part"] == "online"]
    for (log_lr, mine), look in zip(slopes.groupby("log_lr"), ARMS, strict=False):
        band(slope, mine, "horizon", "slope", look, f"log_lr = {log_lr:g}")
        slope.scatter(mine["horizon"], mine["slope"], s=5, color=look.color, alpha=0.5, linewidths=0)
    slope.axhline(0, color="#888888", linewidth=0.7)
    slope.set_yscale("symlog", linthresh=0.1)
    slope.set_ylabel(r"$\mathrm{d}M/\mathrm{d}\log \mathrm{lr}$ through the last $K$ steps")
    slope.set_title("slope: below 0 asks for a larger rate", loc="left")
    slope.legend(loc="lower left")
    band(online, learned, "horizon", "excess", ARMS[2], "learned on the way")
    online.scatter(learned["horizon"], learned["excess"], s=5, color=ARMS[2].color, alpha=0.5, linewidths=0)
    constant = rows[rows["part"] == "constant"].groupby("log_lr")["excess"].median()
    best = constant.idxmin()
    online.axhline(
        constant[best], color=ARMS[5].color, linestyle="--", linewidth=0.9, label=f"best constant, log_lr = {best:g}"
    )
    online.set(yscale="log", ylabel="loss at the end above its minimum")
    online.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    online.yaxis.set_minor_formatter(lambda y, _: f"{y:g}")
    online.set_title("training with a learned rate", loc="left")
    online.legend()
    better(online, "down")
    for axes, mine in ((slope, slopes), (online, learned)):
        axes.set(xscale="log", xlabel="horizon $K$ (steps)")
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(mine["horizon"]))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.grid()
    return figure
