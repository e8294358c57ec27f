"""What is compared of a result: errors, time and bytes, each lower the better."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from .style import OURS

INSTANCE = (
    "kind", "name", "fields", "problem", "case", "dtype", "device_asked", "workers", "kernel", "task", "meta_lr", "products_or_steps",
)  # fmt: skip
"""What two cells share if they differ in seed and code only."""

FLOORS = {"float64": 1e-10, "float32": 1e-5}
"""Errors below are rounding, and all the same."""
OTHER_FLOOR = 1e-2
"""Of bfloat16, whose unit of rounding is 0.004."""

ERRORS = {"error": "error", "error on the run": "error_on_run"}
BYTES = {"peak bytes": "peak", "kept bytes": "kept"}
MEASURES = {**ERRORS, "time": "time", **BYTES}
"""What is compared, in words: its column of `measured`."""


def labelled(row: pd.Series) -> str:
    """An estimator with the fields that a sweep gave it."""
    return f"{row['name']}({row['fields']})" if row["fields"] else str(row["name"])


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns error, error_on_run, time, peak and kept of each row: lower is better; NaN where the kind of cell has none.

    error: relative to the truth, or, of an estimate that is scaled by definition, the distance of the directions, 2 sin(angle / 2)
    (the sine itself would call the opposite direction right); of a path, the distance left at its end, or the outer loss
    where no optimum is known. error_on_run: to the exact
    derivative of the steps taken, of an estimator that is after that. time: relative to plain training, or to a gradient. peak, kept: bytes.
    """
    direction = 2 * np.sin(np.radians(frame["angle"].astype(float)) / 2)
    scaled = frame["scale"].notna() & frame["scale"].ne("true")
    error = frame["relative_error"].astype(float).where(~scaled, direction)
    left = frame["path_distance"].map(_end).astype(float).fillna(frame["path_value"].map(_end).astype(float))
    error = error.where(frame["kind"].ne("path"), left)
    time = frame["time_ratio"].astype(float)
    for other in (frame["run_ratio"], 1 / frame["throughput_ratio"].astype(float), frame["to_first"]):
        time = time.fillna(other)
    return pd.DataFrame({
        "error": error, "error_on_run": frame["run_error"].astype(float).where(frame["target"].eq("run")), "time": time,
        "peak": frame["peak_bytes"].fillna(frame["meta_peak"]).astype(float), "kept": frame["kept_bytes"].astype(float),
    })  # fmt: skip


def _end(values: object) -> float:
    last = values[-1] if isinstance(values, list) and values else None
    return math.nan if last is None else float(last)


def by_the_others(pairs: pd.DataFrame) -> pd.DataFrame:
    """Times of this library's own contestants in units of the other libraries' geometric mean.

    They come relative to the first contestant, which is one of ours: a slower one of ours would look like faster others. The others
    are the yardstick, and not compared themselves; without any there is none.
    """
    peers = pairs["kind"].eq("peers")
    if not peers.any():
        return pairs
    theirs = peers & ~pairs["name"].str.startswith(f"{OURS}: ")
    task = [pairs[c] for c in INSTANCE if c not in ("name", "fields")] + [pairs["seed"]]
    for side in ("a", "b"):
        unit = np.exp(np.log(pairs[side].where(theirs)).groupby(task).transform("mean"))
        pairs[side] = pairs[side].where(~peers, pairs[side] / unit).where(~theirs)
    return pairs


def floored(errors: pd.Series, dtype: pd.Series, floor: float | None = None) -> pd.Series:
    """Errors not below ``floor`` (None: that of each one's dtype): rounding is all the same."""
    lowest = dtype.map(FLOORS).fillna(OTHER_FLOOR) if floor is None else floor
    return errors.clip(lower=lowest)
