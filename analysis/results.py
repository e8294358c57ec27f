"""Result files -> one table, a row a cell."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .style import order

SCHEMAS = (1,)
"""Versions of the result files that can be read."""

FIELDS = {
    "id": "id",
    "status": "status",
    "reason": "reason",
    "finished": "finished",
    "seconds_in_all": "seconds",
    "estimator": "config.estimator",
    "problem": "config.problem",
    "seed": "config.seed",
    "dtype": "config.dtype",
    "kind": "config.kind",
    "meta_lr": "config.meta.lr",
    "cond": "config.settings.cond",
    "of": "claim.of",
    "citation": "claim.citation",
    "target": "claim.target",
    "exact": "claim.exact",
    "scale": "claim.scale",
    "truth": "truth",
    "cosine": "accuracy.cosine",
    "relative_error": "accuracy.relative_error",
    "direction_error": "accuracy.direction_error",
    "angle": "accuracy.angle",
    "norm_ratio": "accuracy.norm_ratio",
    "run_error": "accuracy_on_run.relative_error",
    "bound_error": "bound.relative_error",
    "bound_angle": "bound.angle",
    "bound_by": "bound.by",
    "seconds": "cost.seconds",
    "gradient_seconds": "cost.gradient_seconds",
    "time_ratio": "cost.time_ratio",
    "run_seconds": "cost.run_seconds",
    "peak_bytes": "cost.peak_bytes",
    "gradient_peak_bytes": "cost.gradient_peak_bytes",
    "peak_ratio": "cost.peak_ratio",
    "kept_bytes": "cost.kept_bytes",
    "kept_ratio": "cost.kept_ratio",
    "gradients": "cost.gradients",
    "products": "cost.products",
    "matvecs": "cost.matvecs",
    "path_cosine": "path.cosine",
    "path_angle": "path.angle",
    "path_distance": "path.distance",
    "path_value": "path.value",
    "nonfinite": "nonfinite",
    "jobs": "environment.jobs",
    "cpu": "environment.cpu",
    "device": "environment.device",
    "torch": "environment.torch",
    "commit": "environment.commit",
    "dirty": "environment.dirty",
}
"""column -> where it stands in a file; what a file does not say is missing."""

NUMBERS = (
    "cond", "meta_lr", "cosine", "relative_error", "direction_error", "angle", "norm_ratio", "run_error", "bound_error",
    "bound_angle", "seconds", "gradient_seconds", "time_ratio", "run_seconds", "peak_bytes", "gradient_peak_bytes",
    "peak_ratio", "kept_bytes", "kept_ratio", "gradients", "products", "matvecs", "jobs", "seconds_in_all",
)  # fmt: skip


def load(path: Path | str, ids: Collection[str] | None = None) -> pd.DataFrame:
    """Every readable result below ``path``, a folder that `run` wrote (or its ``cells``, or several of them).

    Args:
        path: the folder.
        ids: of these cells only (default: all).

    Of results that differ in the estimator's fields, the version of the code or the length of the path only, the
    newest is kept (of those in ``ids``). ``frame.attrs["damaged"]`` names the files that could not be read: they are
    left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    rows, damaged = [], []
    for file in sorted(path.rglob("*.json")):
        if file.parent.name == "sweeps":  # how they were asked for, not what was found
            continue
        try:
            content = json.loads(file.read_text())
            if content["schema"] not in SCHEMAS:
                raise ValueError("unknown schema")
            rows.append(_row(content))
        except (ValueError, KeyError, TypeError, OSError):
            damaged.append(file.name)
    frame = pd.DataFrame(
        rows, columns=[*FIELDS, "case", "outcome", "outcome_text", "outcomes", "residual", "curvature"]
    )
    if ids is not None:
        frame = frame[frame["id"].isin(set(ids))].copy()
    for column in NUMBERS:
        frame[column] = pd.to_numeric(frame[column])
    frame = frame.sort_values("finished", kind="stable", na_position="first")
    frame = frame.drop_duplicates(["kind", "estimator", "problem", "case", "seed", "dtype"], keep="last")
    rank = {name: i for i, name in enumerate(order(frame["estimator"]))}
    frame = frame.assign(_rank=frame["estimator"].map(rank)).sort_values(
        ["kind", "problem", "cond", "case", "_rank", "seed"], kind="stable", na_position="last"
    )
    frame = frame.drop(columns="_rank").reset_index(drop=True)
    frame.attrs["damaged"] = damaged
    return frame


def _row(content: Mapping[str, Any]) -> dict[str, Any]:
    row = {column: _at(content, where) for column, where in FIELDS.items()}
    config = content["config"]
    settings = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in config["settings"].items())
    row["case"] = f"{config['problem']} ({settings})" if settings else config["problem"]
    pullbacks = content.get("pullbacks") or []
    row["outcome"] = ", ".join(p["outcome"].lower().replace("_", " ") for p in pullbacks) or None
    row["outcome_text"] = "; ".join(dict.fromkeys(p["text"] for p in pullbacks)) or None
    row["outcomes"] = {p["outcome"].lower().replace("_", " "): p["text"] for p in pullbacks}
    row["residual"] = max((p["residual"] for p in pullbacks if p["residual"] is not None), default=None)
    row["curvature"] = min((p["curvature"] for p in pullbacks if p["curvature"] is not None), default=None)
    return row


def _at(content: Any, where: str) -> Any:
    for key in where.split("."):
        if not isinstance(content, Mapping) or key not in content:
            return None
        content = content[key]
    return content
