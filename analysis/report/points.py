"""Tables of accuracy and cost at a point, and along paths."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..advice import distance
from .grid import Column, Grid, count, number
from .lines import collect

PLACE = ["case", "dtype", "device_asked"]
"""Cells that agree in these are compared with one another."""

MEASURES = {
    "direction_error": True, "relative_error": True, "cosine": False, "error_bound": True, "time_ratio": True, "ms": True,
    "bytes_ratio": True, "products": False,
}  # fmt: skip

COLUMNS = (
    Column(key="estimator", head="estimator", about="its registered name", facet=True),
    Column(key="case", head="problem", about="the problem and its settings", facet=True),
    Column(key="dtype", head="dtype", about="precision of the estimator; the truth is computed in float64", facet=True),
    Column(key="device_asked", head="device", about="as it was asked for", facet=True),
    Column(key="seeds", head="seeds", about="seeds that gave an estimate", write=count),
    Column(
        key="direction_error", head="direction error", better="less", write=number, spread=True,
        about="distance of the unit vectors of estimate and truth: 0 the same, 1.41 across, 2 opposite",
    ),
    Column(
        key="relative_error", head="relative error", better="less", write=number, spread=True,
        about="length of the difference to the truth, in lengths of the truth; says little where the estimate is scaled by definition",
    ),
    Column(key="scale", head="scale", about="lr: the estimate carries a learning rate; 1/H: it lacks an inverse Hessian; none: its length means nothing"),
    Column(key="cosine", head="cosine", better="more", write="{:.4f}".format, about="of the angle to the truth"),
    Column(
        key="error_bound", head="error bound", better="less", write=number, spread=True,
        about="bound of the relative error that was found without the truth",
    ),
    Column(
        key="time_ratio", head="time / gradient", better="less", write=number, spread=True,
        about="time of the hypergradient, the run not included, in plain training gradients timed in turn with it",
    ),
    Column(key="ms", head="ms", better="less", write=number, spread=True, about="the same in milliseconds"),
    Column(
        key="bytes_ratio", head="bytes / gradient", better="less", write=number, spread=True,
        about="peak of live tensors in the hypergradient, and the states of the run that it needs, in peaks of a plain training gradient",
    ),
    Column(key="products", head="products", better="less", write=count, about="second-order products"),
    Column(key="outcome", head="outcome", about="what the estimator said of itself, or why there is no estimate"),
    Column(key="of", head="estimates", about="what it claims to estimate"),
)  # fmt: skip


def with_measures(rows: pd.DataFrame) -> pd.DataFrame:
    """Points with ``direction_error`` (see `advice.distance`), ``ms``, and ``bytes_ratio``, the kept states included."""
    total = rows["peak_bytes"] + rows["kept_bytes"]
    return rows.assign(
        direction_error=distance(rows["angle"]),
        ms=rows["seconds"] * 1e3,
        bytes_ratio=total / rows["gradient_peak_bytes"],
    )


def grid(frame: pd.DataFrame, name: str) -> Grid | None:
    """Of all points, None if there are none."""
    rows = frame[frame["kind"] == "point"]
    if rows.empty:
        return None
    lines = collect(with_measures(rows), [*PLACE, "estimator"], MEASURES)
    lines["direction_error_high"] = lines["direction_error_high"].clip(upper=2.0)  # as far as directions can be apart
    first = rows[rows["status"] == "ok"].groupby("estimator")[["of", "scale"]].first()
    lines = lines.assign(**{c: lines["estimator"].map(first[c]).fillna("") for c in first})
    known = [c for c in COLUMNS if c.key != "error_bound" or lines["error_bound"].notna().any()]
    return Grid(
        name=name, title="Error and cost at a point", columns=known, frame=lines,
        notes=["An estimate is compared with the truth at the same hyperparameters, on the same run."],
    )  # fmt: skip


PATH_MEASURES = {"mean_cosine": False, "least_cosine": False, "distance_left": True, "last_value": False}

PATHS = (
    *COLUMNS[:4],
    Column(key="seeds", head="seeds", about="seeds of the problem", write=count),
    Column(key="products_or_steps", head="steps", about="meta steps", write=count),
    Column(key="mean_cosine", head="mean cosine", better="more", write="{:.4f}".format, about="to the truth, over all steps, each at the estimator's own hyperparameters"),
    Column(key="least_cosine", head="least cosine", better="more", write="{:.4f}".format, about="the smallest of all steps"),
    Column(
        key="distance_left", head="distance left", better="less", write=number, spread=True,
        about="distance to the best hyperparameters after the last step, as a share of that at the start",
    ),
    Column(key="last_value", head="outer loss", better="less", write=number, spread=True, about="at the last step"),
    COLUMNS[-2],
)  # fmt: skip


def paths_grid(frame: pd.DataFrame, name: str) -> Grid | None:
    """Of all paths, None if there are none."""
    rows = frame[frame["kind"] == "path"]
    if rows.empty:
        return None
    cosines = rows["path_cosine"].map(_numbers)
    lefts = [d[-1] / d[0] if len(d) > 1 and d[0] else np.nan for d in rows["path_distance"].map(_numbers)]
    rows = rows.assign(
        mean_cosine=[np.nanmean(c) if np.isfinite(c).any() else np.nan for c in cosines],
        least_cosine=[np.nanmin(c) if np.isfinite(c).any() else np.nan for c in cosines], distance_left=lefts,
        last_value=[v[-1] if len(v) else np.nan for v in rows["path_value"].map(_numbers)],
    )  # fmt: skip
    return Grid(
        name=name, title="Following an estimator", columns=PATHS, notes=["Each estimator is followed by a meta optimizer for some steps."],
        frame=collect(rows, [*PLACE, "estimator", "products_or_steps"], PATH_MEASURES),
    )  # fmt: skip


def _numbers(series: object) -> np.ndarray:
    return pd.to_numeric(pd.Series(series if isinstance(series, list) else [], dtype=object), errors="coerce").to_numpy(
        float
    )
