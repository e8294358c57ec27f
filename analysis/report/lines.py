"""Cells -> lines of a table: seeds taken together, failures kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from .. import stats
from .grid import SOURCES

FLOOR = 1e-16
"""What an error of exactly 0 counts as where logarithms are taken."""


def collect(rows: pd.DataFrame, by: Sequence[str], measures: Mapping[str, bool]) -> pd.DataFrame:
    """A line for each value of ``by``, in the order in which they come.

    Args:
        rows: of cells.
        by: columns; a missing value counts as one.
        measures: column -> whether it is compared on logarithms.

    Returns:
        ``by``, and of every measure its middle, ``_low`` and ``_high`` (see `stats.interval`); ``status`` ("ok" if a cell
        succeeded, else the first one's), ``seeds`` (that succeeded), ``cells``, ``outcome`` in words, and `SOURCES`.
    """
    found = []
    for key, mine in rows.groupby(list(by), sort=False, dropna=False):
        fine = mine[mine["status"] == "ok"]
        line: dict[str, object] = dict(zip(by, key, strict=True))
        for name, log in measures.items():
            at = interval(fine[name], log=log)
            line |= {name: at.middle, f"{name}_low": at.low, f"{name}_high": at.high}
        line |= {
            "status": "ok" if len(fine) else mine["status"].iloc[0], "seeds": fine["seed"].nunique(), "cells": len(mine),
            "outcome": outcome(mine), SOURCES: list(mine["id"]),
        }  # fmt: skip
        found.append(line)
    ends = [f"{m}{end}" for m in measures for end in ("", "_low", "_high")]
    return pd.DataFrame(found, columns=[*by, *ends, "status", "seeds", "cells", "outcome", SOURCES])


def interval(values: pd.Series, *, log: bool) -> stats.Interval:
    """`stats.interval` of what is finite; on logarithms an exact 0 counts as `FLOOR`."""
    known = values.astype(float).to_numpy()
    known = known[np.isfinite(known)]
    found = stats.interval((known.clip(min=FLOOR) if log else known).tolist(), log=log)
    if len(known) and known.min() == known.max():  # exact counts stay exact: no detour by logarithms
        ends = float(known[0]) if len(known) > 1 else np.nan
        return replace(found, low=ends, middle=float(known[0]), high=ends)
    return found


def outcome(rows: pd.DataFrame) -> str:
    """What became of the cells: outcomes of those that succeeded, the reasons of the others."""
    states = Counter(str(x) for x in rows.loc[rows["status"] == "ok", "outcome"].dropna())
    states.update(why(row) for _, row in rows[rows["status"] != "ok"].iterrows())
    return "; ".join(what if n == len(rows) else f"{what} ({n} of {len(rows)})" for what, n in states.items())


def why(row: pd.Series) -> str:
    """Why a cell has no figures: first the word for it."""
    failed = row["failure"] if pd.notna(row["failure"]) else row["status"]
    word = "does not apply" if row["status"] == "refused" else failed
    return f"{word}: {row['reason']}" if row["reason"] else str(word)
