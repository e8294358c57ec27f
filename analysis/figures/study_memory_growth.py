"""Peak bytes of a hypergradient by the number of unrolled steps: against T, and against sqrt(T)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ..style import WIDTH, look, order
from .common import better

NEAR = {"unroll-checkpointed": "unroll, a checkpoint every sqrt(T)", "unroll-budget": "unroll, a budget for 4 steps"}


def draw(rows: pd.DataFrame) -> Figure | None:
    """A line an estimator. The right panel leaves out the one that keeps every state."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = order(rows["estimator"])
    for name in names:
        mine, style = rows[rows["estimator"] == name].sort_values("steps"), look(name, names)
        mebibytes = mine["peak_bytes"] / 2**20
        for axes, x in ((left, mine["steps"]), (right, mine["steps"] ** 0.5)):
            if axes is left or name != "unroll":
                axes.plot(
                    x, mebibytes, color=style.color, marker=style.marker, linestyle=style.line, markersize=4,
                    label=NEAR.get(name, name),
                )  # fmt: skip
    left.set(xlabel="steps unrolled, $T$", ylabel="live tensors at the peak (MiB)", xlim=(0, None), ylim=(0, None))
    right.set(xlabel=r"$\sqrt{T}$", xlim=(0, None), ylim=(0, None))
    left.set_title("by the steps", loc="left")
    right.set_title("by their square root, without unroll", loc="left")
    left.legend(loc="upper left")
    for axes in (left, right):
        axes.grid()
        better(axes, "down")
    return figure
