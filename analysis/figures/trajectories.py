"""Hyperparameters along a path: which values each estimator leads to."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..style import look
from .common import better, coinciding, handle, legend_below, missing, not_shown, panels, title_above
from .paths import one_path, series, wrapped

ABOUT = "Values of some hyperparameters by meta step, each estimator on its own path, and their values at the optimum."
COLUMNS = 4
SAME = 0.01
"""Of a panel's range. Paths that differ by less in every panel are drawn as one."""


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row an estimator, hyperparameter and meta step."""
    rows = _cells(frame)[0]
    columns = ["id", "estimator", "case", "seed", "dtype"]
    parts = [
        pd.DataFrame(
            {
                **row[columns], "hyperparameter": name, "meta_step": range(len(values)), "value": series(values),
                "optimum": (row["path_optimum"] or {}).get(name, np.nan),
            }
        )
        for _, row in rows[rows["status"] == "ok"].iterrows()
        for name, values in (row["path_trajectory"] or {}).items()
    ]  # fmt: skip
    columns += ["hyperparameter", "meta_step", "value", "optimum"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def draw(frame: pd.DataFrame) -> Figure | None:
    """A panel a hyperparameter."""
    points = data(frame)
    if points.empty:
        return None
    cells, dtype, others = _cells(frame)
    names, entries = list(dict.fromkeys(points["estimator"])), list(dict.fromkeys(points["hyperparameter"]))
    curves = {n: _curve(points, n, entries) for n in names}
    groups = coinciding(curves, SAME)
    figure, grid = panels(len(entries), 1.45, 0.7 + 0.06 * len(names), COLUMNS, sharex=True)
    columns = grid.shape[1]
    for axes, entry in zip(grid.flat, entries, strict=False):
        mine = points[points["hyperparameter"] == entry]
        for i, group in enumerate(groups):
            one, style = mine[mine["estimator"] == group[0]], look(group[0], names)
            axes.plot(
                one["meta_step"], one["value"], color=style.color, marker=style.marker, linestyle=style.line, markersize=3,
                markevery=(2 * i % 10, 10), zorder=3 - i / 100, gid=group[0],
            )  # fmt: skip
        best = mine["optimum"].iloc[0]
        if np.isfinite(best):
            axes.axhline(best, color="#777777", linestyle=(0, (2, 2)), linewidth=0.9, zorder=1)
        axes.set_title(entry, loc="left")
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        better(axes, "to the dashes" if np.isfinite(best) else "")
    for i, axes in enumerate(grid.flat[: len(entries)]):
        if i + columns >= len(entries):
            axes.set_xlabel("meta step $t$")
            axes.tick_params(labelbottom=True)
        if i % columns == 0:
            axes.set_ylabel("value")
    first = cells.iloc[0]
    title_above(figure, f"{first['case']}, seed {first['seed']}{dtype}: hyperparameters on each estimator's own path")
    handles = [handle(g[0], names, wrapped(g)) for g in groups]
    known = points["optimum"].notna().any()
    if known:
        handles.append(Line2D([], [], color="#777777", linestyle=(0, (2, 2)), linewidth=0.9, label="at the optimum"))
    notes = [] if known else ["the optimum is not known: of these values none is better than another"]
    legend_below(
        figure,
        handles,
        2 if any(len(g) > 1 for g in groups) else 5,
        [*notes, *not_shown([*missing(cells, []), *others])],
    )
    return figure


def _cells(frame: pd.DataFrame) -> tuple[pd.DataFrame, str, list[str]]:
    return one_path(frame, "path_trajectory")


def _curve(points: pd.DataFrame, name: str, entries: list[str]) -> np.ndarray:
    """All entries of one estimator one after the other, each in units of its panel's range."""
    table = points[points["estimator"] == name].pivot(index="meta_step", columns="hyperparameter", values="value")
    ranges = points.groupby("hyperparameter")["value"].agg(lambda v: max(v.max() - v.min(), 1e-300))
    return np.asarray((table / ranges)[entries].T).reshape(-1)
