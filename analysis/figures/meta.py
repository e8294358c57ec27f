"""What the figures of meta steps share: which rows are comparable, and what is left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis

from ..style import look, order
from .common import area

PLACE = ["problem", "dtype", "device_asked", "kernel"]
"""Rows that agree in these, and in the setting, can stand in one panel."""


def chosen(frame: pd.DataFrame, *, over: str = "") -> tuple[pd.DataFrame, str, list[str]]:
    """The rows of meta steps to be drawn.

    Args:
        frame: all results.
        over: a column: the place with most values of it is taken; of "params" the setting may differ.

    Returns:
        (the rows of the place, and setting, with most estimators that succeeded; a title; the other places).
    """
    rows = frame[frame["kind"] == "meta"]
    if rows.empty:
        return rows, "", []
    keys = PLACE if over == "params" else [*PLACE, "setting"]
    rows = rows.fillna(dict.fromkeys(keys, ""))
    groups = {key: group for key, group in rows.groupby(keys, sort=False)}  # noqa: C416 - pandas calls `keys`
    best = max(groups, key=lambda key: _weight(groups[key], over))
    taken = groups[best]
    fine = taken[taken["status"] == "ok"]
    where = fine["device"].iloc[0] if len(fine) else taken["device_asked"].iloc[0]
    title = f"{best[0]}, {best[1]}, {where}, {best[3] or 'best'} kernels"
    if over != "params" and best[-1]:
        title += f"; {best[-1]}"
    if len(fine) and str(fine["data"].iloc[0]).startswith("generated"):
        title += "; generated data"
    others = [f"{key[0]} ({', '.join(str(x) for x in key[1:] if x)})" for key in groups if key != best]
    return taken, title, others


def _weight(rows: pd.DataFrame, over: str) -> tuple[float, ...]:
    """Values of ``over`` first, then estimators, then how well they were timed."""
    fine = rows[rows["status"] == "ok"]
    return (fine[over].nunique() if over else 0), fine["estimator"].nunique(), float(fine["rounds"].sum())


def one_setting(rows: pd.DataFrame) -> tuple[pd.DataFrame, float, list[str]]:
    """Of several unroll lengths and workers the one with most points, and what the others are."""
    fine = rows[rows["status"] == "ok"]
    if fine.empty:
        return rows, 0.0, []
    counts = fine.groupby(["unroll", "workers"]).size()
    unroll, workers = max(counts.index, key=lambda key: (counts[key], key[0]))
    mine = rows[(rows["unroll"] == unroll) & (rows["workers"] == workers)]
    more = [f"unroll {u:.0f}" + f" ×{w:.0f}" * (w > 1) for u, w in counts.index if (u, w) != (unroll, workers)]
    return mine, float(unroll), more


def one_of(rows: pd.DataFrame, column: str) -> tuple[pd.DataFrame, float, list[str]]:
    """Of several values of ``column`` ("unroll" or "workers") the rows with the one that has most, and what the others are."""
    fine = rows[rows["status"] == "ok"]
    if fine.empty:
        return rows, 0.0, []
    counts = fine.groupby(column).size()
    kept = max(counts.index, key=lambda value: (counts[value], value))
    word = "unroll {:.0f}" if column == "unroll" else "{:.0f} workers"
    return rows[rows[column] == kept], float(kept), [word.format(value) for value in counts.index if value != kept]


def curves(axes: Axes, rows: pd.DataFrame, x: str, y: str, names: Sequence[str]) -> None:
    """A line an estimator through the medians, and every cell a point."""
    for name in names:
        mine, style = rows[rows["estimator"] == name].dropna(subset=[x, y]).sort_values(x), look(name, names)
        middle = mine.groupby(x)[y].median()
        axes.plot(middle.index, middle, color=style.color, linestyle=style.line, linewidth=1.1, zorder=2)
        axes.scatter(
            mine[x], mine[y], s=area(style.marker, 24), color=style.color, marker=style.marker, edgecolors="white", linewidths=0.4,
            zorder=3, gid=name,
        )  # fmt: skip


def plain_curve(axes: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Plain training's."""
    middle = rows.groupby(x)[y].median()
    axes.plot(middle.index, middle, color="black", linestyle="--", marker="*", markersize=6, gid="plain training")


def whole(axis: Axis, values: Iterable[float]) -> None:
    """A tick at each value, and none else."""
    ticks = sorted(set(values))
    axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_ticks([], minor=True)


def unit_of(most: float) -> tuple[int, str]:
    """(bytes, name) of the unit for peaks up to ``most`` bytes."""
    return next(((u, word) for u, word in ((2**30, "GiB"), (2**20, "MiB")) if most >= u), (2**10, "KiB"))


def at_one_unroll(rows: pd.DataFrame) -> str:
    """End of a title, for rows that share their unroll length and workers: without it a ratio says nothing."""
    first = rows.iloc[0]
    return f"; unroll {first['unroll']:.0f}" + (f" ×{first['workers']:.0f}" if first["workers"] > 1 else "")


def lost(rows: pd.DataFrame, *, at: str = "") -> list[str]:
    """``name (why)`` of what has no figures, with the value of the column ``at``; what does not apply is left to the table."""
    notes = []
    bad = rows[rows["status"] == "failed"]
    for name in order(bad["estimator"]):
        whys = []
        for _, row in bad[bad["estimator"] == name].iterrows():
            known = str(row["failure"]) if pd.notna(row["failure"]) else str(row["reason"])
            why = {"oom": "out of memory"}.get(known, known)
            value = row[at] if at else None
            where = f" at {value:.0f}" if isinstance(value, float) else f" at {value}"
            whys.append(textwrap.shorten(why + where * bool(at and pd.notna(value) and value), 60, placeholder=" …"))
        notes.append(f"{name} ({', '.join(dict.fromkeys(whys))})")
    return notes
