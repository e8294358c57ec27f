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
    "error_bound": "error_bound.relative",
    "error_bound_rigorous": "error_bound.rigorous",
    "error_bound_reason": "error_bound.reason",
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
    "failure": "failure",
    "device_asked": "config.device",
    "workers": "config.workers",
    "kernel": "config.meta.kernel",
    "workload": "workload.name",
    "size": "config.settings.size",
    "unroll": "workload.unroll",
    "batch": "workload.samples",
    "params": "workload.params",
    "hparams": "workload.hparams",
    "data": "workload.data",
    "throughput": "throughput.samples_per_second",
    "plain_throughput": "throughput.plain_samples_per_second",
    "throughput_ratio": "throughput.ratio",
    "throughput_ratio_low": "throughput.ratio_low",
    "throughput_ratio_high": "throughput.ratio_high",
    "meta_step_units": "throughput.meta_step_units",
    "rounds": "throughput.samples",
    "meta_peak": "memory.peak_bytes",
    "plain_peak": "memory.plain_peak_bytes",
    "memory_ratio": "memory.ratio",
    "memory_split": "memory.split",
    "plain_split": "memory.plain_split",
    "cuda_reserved": "memory.cuda.reserved_bytes",
    "cuda_before": "memory.cuda.before_bytes",
    "error_bound_angle": "error_bound.angle",
    "gradient_ratio": "gradient_ratio",
    "control": "claim.control",
    "code": "code",
    "run_ratio": "time.ratio",
    "meta_seconds": "time.seconds",
    "predicted": "memory.predicted",
    "nonfinite": "nonfinite",
    "jobs": "environment.jobs",
    "busy": "environment.busy",
    "reached": "throughput.reached",
    "method": "config.meta.method",
    "products_or_steps": "config.meta.steps",
    "library": "peers.library",
    "version": "peers.version",
    "variant": "peers.variant",
    "note": "peers.note",
    "settle": "peers.settle",
    "rate": "peers.lr",
    "to_first": "cost.to_first",
    "size_params": "size.params",
    "size_hparams": "size.hparams",
    "threads": "environment.threads",
    "cpu": "environment.cpu",
    "device": "environment.device",
    "torch": "environment.torch",
    "commit": "environment.commit",
    "dirty": "environment.dirty",
}
"""column -> where it stands in a file; what a file does not say is missing."""

NUMBERS = (
    "cond", "meta_lr", "cosine", "relative_error", "direction_error", "angle", "norm_ratio", "run_error", "bound_error",
    "bound_angle", "error_bound", "seconds", "gradient_seconds", "time_ratio", "run_seconds", "peak_bytes", "gradient_peak_bytes",
    "peak_ratio", "kept_bytes", "kept_ratio", "gradients", "products", "matvecs", "jobs", "seconds_in_all", "workers",
    "unroll", "batch", "params", "hparams", "throughput", "plain_throughput", "throughput_ratio", "throughput_ratio_low",
    "throughput_ratio_high", "meta_step_units", "rounds", "meta_peak", "plain_peak", "memory_ratio", "cuda_reserved",
    "cuda_before", "to_first", "products_or_steps", "size_params", "size_hparams", "error_bound_angle",
    "gradient_ratio", "run_ratio", "meta_seconds",
)  # fmt: skip


def load(path: Path | str, ids: Collection[str] | None = None) -> pd.DataFrame:
    """Every readable result below ``path``, a folder that `run` wrote (or its ``cells``, or several of them).

    Args:
        path: the folder.
        ids: of these cells only (default: all).

    Of results that differ in the registered estimator, the version of the code or the length of the path only, the
    newest is kept (of those in ``ids``). An estimator that a sweep gave several values of a field is several, "cg(solver.steps=5)"
    and so on; ``name`` is what it is registered as. ``frame.attrs["damaged"]`` names the files that could not be read: they are
    left out; ``frame.attrs["limits"]`` is what the last `advise` had to keep to, if it was asked here.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    rows, damaged, asked = [], [], []
    for file in sorted(path.rglob("*.json")):
        try:
            content = json.loads(file.read_text())
            if file.parent.name == "sweeps":  # how they were asked for, not what was found
                if content["grid"]["kind"] == "advice":
                    asked.append((content["began"], content["grid"]["meta"]["limits"][0]))
                continue
            if content["schema"] not in SCHEMAS:
                raise ValueError("unknown schema")
            rows.append(_row(content))
        except (ValueError, KeyError, TypeError, OSError):
            damaged.append(file.name)
    frame = pd.DataFrame(
        rows,
        columns=[
            *FIELDS,
            "name",
            "fields",
            "case",
            "setting",
            "task",
            "outcome",
            "outcome_text",
            "outcomes",
            "residual",
            "curvature",
        ],
    )
    if ids is not None:
        frame = frame[frame["id"].isin(set(ids))].copy()
    for column in NUMBERS:
        frame[column] = pd.to_numeric(frame[column])
    frame = frame.sort_values("finished", kind="stable", na_position="first")
    same = [
        "kind",
        "estimator",
        "problem",
        "case",
        "seed",
        "dtype",
        "device_asked",
        "workers",
        "kernel",
        "fields",
        "task",
    ]
    frame = frame.drop_duplicates(same, keep="last")
    swept = frame.groupby("name")["fields"].transform("nunique") > 1
    frame.loc[swept, "estimator"] = frame["name"] + frame["fields"].map(lambda text: f"({text})" if text else "")
    rank = {name: i for i, name in enumerate(order(frame["estimator"]))}
    frame = frame.assign(_rank=frame["estimator"].map(rank)).sort_values(
        ["kind", "problem", "cond", "case", "_rank", "seed"], kind="stable", na_position="last"
    )
    frame = frame.drop(columns="_rank").reset_index(drop=True)
    frame.attrs["damaged"] = damaged
    if asked:
        frame.attrs["limits"] = max(asked, key=lambda entry: entry[0])[1]
    return frame


def _row(content: Mapping[str, Any]) -> dict[str, Any]:
    row = {column: _at(content, where) for column, where in FIELDS.items()}
    config = content["config"]
    settings = _listed(config["settings"])
    row["name"], row["fields"] = config["estimator"], _listed(config.get("fields") or {})
    row["case"] = f"{config['problem']} ({settings})" if settings else config["problem"]
    row["setting"] = _listed({k: v for k, v in config["settings"].items() if k != "unroll"})
    row["unroll"] = config["settings"].get("unroll") if row["unroll"] is None else row["unroll"]
    row["task"] = _listed(config["meta"]) if config["kind"] == "peers" else None
    row["workers"] = row["workers"] or 1
    pullbacks = content.get("pullbacks") or []
    row["outcome"] = ", ".join(p["outcome"].lower().replace("_", " ") for p in pullbacks) or None
    row["outcome_text"] = "; ".join(dict.fromkeys(p["text"] for p in pullbacks)) or None
    row["outcomes"] = {p["outcome"].lower().replace("_", " "): p["text"] for p in pullbacks}
    row["residual"] = max((p["residual"] for p in pullbacks if p["residual"] is not None), default=None)
    row["curvature"] = min((p["curvature"] for p in pullbacks if p["curvature"] is not None), default=None)
    return row


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())


def _at(content: Any, where: str) -> Any:
    for key in where.split("."):
        if not isinstance(content, Mapping) or key not in content:
            return None
        content = content[key]
    return content
