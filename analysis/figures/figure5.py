"""Figure 5 of SAMA (Choe et al. 2023): is the direction right, and does it lead to the optimum?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..style import WIDTH, look
from .common import better, coinciding, handle, legend_below


def draw(frame: pd.DataFrame) -> Figure | None:
    """Left: cosine to the true hypergradient at each estimator's own lambda. Right: distance to the best lambda."""
    rows = frame[(frame["kind"] == "path") & (frame["status"] == "ok")]
    if rows.empty:
        return None
    rows = rows[(rows["case"] == rows["case"].iloc[0]) & (rows["dtype"] == rows["dtype"].iloc[0])]
    rows = rows.drop_duplicates("estimator")
    names = list(rows["estimator"])
    cosines = {r.estimator: np.array(r.path_cosine, dtype=float) for r in rows.itertuples()}
    distances = {r.estimator: np.array(r.path_distance, dtype=float) for r in rows.itertuples()}
    both = {n: np.concatenate([cosines[n], distances[n]]) for n in names}
    groups = coinciding(both, 0.005 * float(np.nanmax(np.concatenate(list(distances.values())))))

    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, group in enumerate(groups):
        style = look(group[0], names)
        for axes, curves in ((left, cosines), (right, distances)):
            y = curves[group[0]]
            axes.plot(
                y, color=style.color, marker=style.marker, linestyle=style.line, markersize=3.5,
                markevery=(2 * i % 10, 10), zorder=3 - i / 100, gid=group[0],
            )  # fmt: skip
    left.set(xlabel="meta step $t$", ylabel=r"cosine to the true $\nabla_\lambda M$ at own $\lambda_t$")
    right.set(xlabel="meta step $t$", ylabel=r"distance $\|\lambda_t-\lambda^*\|_2$")
    low = min(float(np.nanmin(c)) for c in cosines.values())
    left.set_ylim(min(0.0, low - 0.05) if low < 0.5 else low - 0.05, 1.02)
    left.set_title("direction", loc="left")
    right.set_title("convergence", loc="left")
    for axes in (left, right):
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    better(left, "up")
    better(right, "down")
    figure.suptitle(
        f"{rows['case'].iloc[0]}, seed {rows['seed'].iloc[0]}: every estimator on its own path (Adam)", fontsize=8
    )
    legend_below(figure, [handle(g[0], names, _wrapped(g)) for g in groups], 2)
    return figure


def _wrapped(group: list[str]) -> str:
    """Every name of a group whose curves coincide, three a line."""
    lines = [" = ".join(group[i : i + 3]) for i in range(0, len(group), 3)]
    return " =\n".join(lines)
