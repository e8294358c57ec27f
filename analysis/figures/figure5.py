"""Figure 5 of SAMA (Choe et al. 2023): is the direction right, and does it lead to the optimum?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..style import look, order
from .common import better, coinciding, handle, legend_below, missing, not_shown, panels, title_above
from .paths import one_path, series, wrapped

VALUES = ("cosine", "distance", "value")
SAME_COSINE = 0.002
SAME_DISTANCE = 0.005
"""Of the largest distance. Curves that differ by less than both are drawn as one."""


ABOUT = "Each estimator followed by a meta optimizer: cosine to the true hypergradient, and distance to the optimum (or outer loss)."


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row an estimator and meta step: cosine of the estimate there; distance and outer loss before the step is taken."""
    rows = one_path(frame)[0]
    columns = ["id", "estimator", "case", "seed", "dtype"]
    parts = []
    for _, row in rows[rows["status"] == "ok"].iterrows():
        found = {value: pd.Series(series(row[f"path_{value}"])) for value in VALUES}
        steps = range(max(len(y) for y in found.values()))
        parts.append(pd.DataFrame({**row[columns], "meta_step": steps, **found}))
    columns += ["meta_step", *VALUES]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def draw(frame: pd.DataFrame) -> Figure | None:
    """Left: cosine to the true hypergradient at each estimator's own lambda. Right: distance to the best lambda, or the outer loss
    where no best one is known."""
    cells, dtype, others = one_path(frame)
    rows = cells[cells["status"] == "ok"]
    if rows.empty:
        return None
    first = rows.iloc[0]
    names = list(rows["estimator"])
    cosines = {n: series(y) for n, y in zip(names, rows["path_cosine"], strict=True)}
    distances = {n: series(y) for n, y in zip(names, rows["path_distance"], strict=True)}
    losses = {n: series(y) for n, y in zip(names, rows["path_value"], strict=True)}
    what = "distance"
    if not _finite(distances).size and _finite(losses).size:
        what, distances = "outer loss", losses
    controls = set(rows.loc[rows["scale"] == "none", "estimator"])
    all_cosines, all_distances = _finite(cosines), _finite(distances)
    if not all_cosines.size and not all_distances.size:
        return None
    groups = _both(
        coinciding(cosines, SAME_COSINE), coinciding(distances, SAME_DISTANCE * float(all_distances.max(initial=0)))
    )

    lines = sum(-(-len(group) // 3) for group in groups)  # of the legend, in two columns
    figure, grid = panels(2, 2.1, 0.6 + 0.08 * lines)
    left, right = grid.flat
    for i, group in enumerate(groups):
        style = look(group[0], names)
        for axes, curves in ((left, cosines), (right, distances)):
            y = curves[group[0]]
            axes.plot(
                y, color=style.color, marker=style.marker, linestyle=style.line, markersize=3.5,
                markevery=(2 * i % 10, 10), zorder=3 - i / 100, gid=group[0],
            )  # fmt: skip
    left.set(xlabel="meta step $t$", ylabel="cosine to the true\n" r"$\nabla_\lambda M$ at own $\lambda_t$")
    ylabel = r"distance $\|\lambda_t-\lambda^*\|_2$" if what == "distance" else r"outer loss $M$ at own $\lambda_t$"
    right.set(xlabel="meta step $t$", ylabel=ylabel)
    low = float(all_cosines.min(initial=1))
    left.set_ylim(min(0.0, low - 0.05) if low < 0.5 else low - 0.05, 1.05)
    reach = [y for n, y in distances.items() if n not in controls and np.isfinite(y).any()]
    if reach and len(reach) < len(distances):  # what goes nowhere must not set the scale
        span = max(float(np.nanmax(y)) for y in reach)
        right.set_ylim(0.95 * min(float(np.nanmin(y)) for y in reach), 1.05 * span)
    left.set_title("direction", loc="left")
    right.set_title("distance to the optimum" if what == "distance" else "outer loss", loc="left")
    for axes, values in ((left, all_cosines), (right, all_distances)):
        axes.grid()
        if not values.size:
            axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", color="#666666")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    better(left, "up")
    better(right, "down")
    title_above(figure, f"{first['case']}, seed {first['seed']}{dtype}: every estimator on its own path (Adam)")
    lost = missing(cells, [])
    if all_cosines.size:
        lost += _gaps(cosines, "cosine")
    if all_distances.size:
        lost += _gaps(distances, what)
    steps = max(map(len, losses.values()))
    notes = [_length(first, steps, distances if what == "distance" else {}), *not_shown([*lost, *others])]
    legend_below(figure, [handle(g[0], names, wrapped(g)) for g in groups], 2, notes)
    return figure


def _finite(curves: dict[str, np.ndarray]) -> np.ndarray:
    values = np.concatenate(list(curves.values()))
    return values[np.isfinite(values)]


def _both(one: list[list[str]], other: list[list[str]]) -> list[list[str]]:
    """Groups of names that are together in both groupings."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in order(name for group in one for name in group):
        groups.setdefault(tuple(i for part in (one, other) for i, g in enumerate(part) if name in g), []).append(name)
    return list(groups.values())


def _gaps(curves: dict[str, np.ndarray], what: str) -> list[str]:
    """Curves that are not drawn, or not as a whole."""
    names: dict[str, list[str]] = {}
    for name, y in curves.items():
        lost = int((~np.isfinite(y)).sum())
        if lost == y.size:
            names.setdefault("undefined or not finite", []).append(name)
        elif lost:
            names.setdefault(f"not finite at {lost} of {y.size} steps", []).append(name)
    return [f"{', '.join(who)} ({what}: {why})" for why, who in names.items()]


def _length(first: pd.Series, steps: int, distances: dict[str, np.ndarray]) -> str:
    """What the paths are, and how little their ends say."""
    text = f"one seed; {steps} steps of Adam"
    if pd.notna(first["meta_lr"]):
        text += f", lr {first['meta_lr']:g}"
    shares = [y[-1] / y[0] for y in distances.values() if y.size and np.isfinite(y[[0, -1]]).all() and y[0] > 0]
    if shares and min(shares) > 0.1:
        text += ": far from converged, a shorter distance here is not a better gradient"
    return text
