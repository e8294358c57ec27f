"""What the figures of meta steps share: which rows are comparable, and what is left out."""

from __future__ import annotations

import textwrap

import pandas as pd

from ..style import order

PLACE = ["problem", "dtype", "device_asked", "kernel"]
"""Rows that agree in these, and in the setting, can stand in one panel."""


def chosen(frame: pd.DataFrame, *, sizes: bool = False) -> tuple[pd.DataFrame, str, list[str]]:
    """The rows of meta steps to be drawn.

    Args:
        frame: all results.
        sizes: the setting may differ; the workload with most numbers of parameters is taken.

    Returns:
        (the rows of the place, and setting, with most estimators that succeeded; a title; the other places).
    """
    rows = frame[frame["kind"] == "meta"]
    if rows.empty:
        return rows, "", []
    keys = PLACE if sizes else [*PLACE, "setting"]
    rows = rows.fillna(dict.fromkeys(keys, ""))
    groups = {key: group for key, group in rows.groupby(keys, sort=False)}  # noqa: C416 - pandas calls `keys`
    best = max(groups, key=lambda key: _weight(groups[key], sizes))
    taken = groups[best]
    fine = taken[taken["status"] == "ok"]
    where = fine["device"].iloc[0] if len(fine) else taken["device_asked"].iloc[0]
    title = f"{best[0]}, {best[1]}, {where}, {best[3] or 'best'} kernels"
    if not sizes and best[-1]:
        title += f"; {best[-1]}"
    if len(fine) and str(fine["data"].iloc[0]).startswith("generated"):
        title += "; generated data"
    others = [f"{key[0]} ({', '.join(str(x) for x in key[1:] if x)})" for key in groups if key != best]
    return taken, title, others


def _weight(rows: pd.DataFrame, sizes: bool) -> tuple[float, ...]:
    """Sizes first if they are asked for, then estimators, then how well they were timed."""
    fine = rows[rows["status"] == "ok"]
    return (fine["params"].nunique() if sizes else 0), fine["estimator"].nunique(), float(fine["rounds"].sum())


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


def at_one_unroll(rows: pd.DataFrame) -> str:
    """End of a title, for rows that share their unroll length and workers: without it a ratio says nothing."""
    first = rows.iloc[0]
    return f"; unroll {first['unroll']:.0f}" + (f" ×{first['workers']:.0f}" if first["workers"] > 1 else "")


def lost(rows: pd.DataFrame, *, sizes: bool = False) -> list[str]:
    """``name (why)`` of what has no figures; what does not apply is left to the table."""
    notes = []
    bad = rows[rows["status"] == "failed"]
    for name in order(bad["estimator"]):
        whys = []
        for _, row in bad[bad["estimator"] == name].iterrows():
            known = str(row["failure"]) if pd.notna(row["failure"]) else str(row["reason"])
            why = {"oom": "out of memory"}.get(known, known)
            at = f" at {row['size']}" if sizes and row["size"] else ""
            whys.append(textwrap.shorten(f"{why}{at}", 60, placeholder=" …"))
        notes.append(f"{name} ({', '.join(dict.fromkeys(whys))})")
    return notes
