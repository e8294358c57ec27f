"""The tables of whole meta steps, of libraries side by side, and of advice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .. import advice, peer_tables
from ..meta_tables import SAME, size
from .grid import SOURCES, Column, Grid, count, number
from .lines import collect, why

MEASURES = {
    "throughput_ratio": True,
    "throughput": True,
    "meta_step_units": False,
    "memory_ratio": True,
    "meta_peak": True,
}

PLACE = (
    Column(key="problem", head="workload", about="what was trained", facet=True),
    Column(key="setting", head="settings", about="of the workload", facet=True),
    Column(key="dtype", head="dtype", about="of the parameters, or of the autocast", facet=True),
    Column(key="device_asked", head="device", about="as it was asked for", facet=True),
    Column(key="kernel", head="kernels", about="attention kernels that were allowed", facet=True),
    Column(key="unroll", head="unroll", about="training steps in a meta step", write=count, facet=True),
)
"""Which workload, and how it was run."""

META = (
    Column(key="estimator", head="estimator", about="its registered name", facet=True),
    *PLACE,
    Column(key="workers", head="workers", about="data-parallel processes", write=count, facet=True),
    Column(
        key="throughput_ratio", head="throughput / plain", better="more", write="{:.3g}".format, spread=True,
        about="examples a second, relative to plain training of the same model by as many workers, taken in turn",
    ),
    Column(key="throughput", head="examples / s", better="more", write="{:,.4g}".format, about="training examples a second"),
    Column(
        key="meta_step_units", head="meta step", better="less", write="{:.3g}".format,
        about="what a meta step costs beyond its training steps, in training steps: unroll × (1 / ratio - 1)",
    ),
    Column(key="memory_ratio", head="peak / plain", better="less", write="{:.2f}".format, spread=True, about="peak memory relative to plain training"),
    Column(key="meta_peak", head="peak", better="less", write=size, about="exact peak of live tensor bytes of one rank, parameters and optimizer included"),
    Column(key="split", head="made of", about="shares of the peak in percent"),
    Column(key="outcome", head="outcome", about="what the estimator said of itself, or why there are no figures"),
)  # fmt: skip


def grid(frame: pd.DataFrame, name: str) -> Grid | None:
    """Of all meta steps, None if there are none."""
    rows = frame[frame["kind"] == "meta"]
    if rows.empty:
        return None
    lines = collect(rows, [*SAME, "estimator", "unroll", "workers"], MEASURES)
    by_id = rows.set_index("id")
    lines["split"] = [_split([by_id.loc[i, "memory_split"] for i in ids]) for ids in lines[SOURCES]]
    for i, ids in enumerate(lines[SOURCES]):  # one seed: the interval is that of the timing itself
        if len(ids) == 1 and lines.at[i, "status"] == "ok":
            for end in ("low", "high"):
                lines.at[i, f"throughput_ratio_{end}"] = by_id.loc[ids[0], f"throughput_ratio_{end}"]
    return Grid(
        name=name, title="Throughput and memory of meta steps", columns=META, frame=lines,
        notes=["A meta step is some training steps, the hypergradient at their end and the update of the hyperparameters."],
    )  # fmt: skip


def _split(splits: list[Mapping[str, float] | None]) -> str:
    split = next((s for s in splits if isinstance(s, Mapping)), {})
    whole = sum(split.values())
    return (
        ", ".join(f"{part} {100 * n / whole:.0f}" for part, n in split.items() if n >= 0.005 * whole) if whole else ""
    )


PEERS = (
    Column(key="library", head="library", about="and its version", facet=True),
    Column(key="what", head="task", about="what every library did, and the number of products or steps", facet=True),
    Column(key="case", head="problem", about="on what", facet=True),
    Column(key="variant", head="how", about="the interface that was called"),
    Column(key="dtype", head="dtype", about="precision", facet=True),
    Column(key="device_asked", head="device", about="as it was asked for", facet=True),
    Column(key="seed", head="seed", about="of the problem", write=count, facet=True),
    Column(key="relative_error", head="error", better="less", write="{:.1e}".format, about="relative, to the same definition in float64 by plain autograd"),
    Column(key="cosine", head="cosine", better="more", write="{:.4f}".format, about="to the same"),
    Column(key="ms", head="ms", better="less", write=number, about="median of calls taken in turn"),
    Column(key="time_to_best", head="time / best", better="less", write="{:.2f}".format, about="ours over the fastest other whose answer is right"),
    Column(key="mib", head="MiB", better="less", write=number, about="exact peak of live tensors above what was there before"),
    Column(key="peak_to_best", head="peak / best", better="less", write="{:.2f}".format, about="ours over the lightest other whose answer is right"),
    Column(key="outcome", head="remarks", about="what is to be known of it, or why there are no figures"),
)  # fmt: skip


def peers_grid(frame: pd.DataFrame, name: str) -> Grid | None:
    """Of this library beside others, None if that was not asked."""
    found = peer_tables.tasks(frame)
    if not found:
        return None
    rows = pd.concat(found)
    parts = rows["estimator"].str.partition(": ")
    lines = rows.assign(
        library=parts[0] + rows["version"].map(lambda v: f" {v}" if pd.notna(v) and v != "no metadata" else ""), variant=parts[2],
        what=[f"{m}, {n:.0f}" for m, n in zip(rows["method"], rows["products_or_steps"], strict=True)], ms=rows["seconds"] * 1e3, mib=rows["peak_bytes"] / 2**20, outcome=[_remarks(r) for _, r in rows.iterrows()],
        **{SOURCES: rows["id"].map(lambda i: [i])},
    )  # fmt: skip
    about = [
        f"{m}, {n:.0f}: {peer_tables.about(m, n)}."
        for m, n in dict.fromkeys(zip(rows["method"], rows["products_or_steps"], strict=True))
    ]
    return Grid(
        name=name, title="Beside other libraries", columns=PEERS, frame=lines,
        notes=[*about, f"An answer whose error is above {peer_tables.WRONG:g} is off: its cost is no yardstick."],
    )  # fmt: skip


def _remarks(row: pd.Series) -> str:
    if row["status"] != "ok":
        return why(row)
    said = row["outcome"] if row["outcome"] not in ("budget", "done") else None
    return "; ".join(str(x) for x in ("off" if row["wrong"] else None, row["note"], said) if x and pd.notna(x))


ADVICE = (
    Column(key="label", head="estimator", about="its registered name and what was tried"),
    Column(key="case", head="problem", about="the problem and its settings", facet=True),
    Column(key="dtype", head="dtype", about="precision", facet=True),
    Column(key="device_asked", head="device", about="as it was asked for", facet=True),
    Column(key="error", head="error", better="less", write=number, spread=True, about="to the reference; in brackets the smallest and the largest over points"),
    Column(key="cosine", head="cosine", better="more", write="{:.4f}".format, about="of the angle to the reference"),
    Column(key="time", head="time / run", better="less", write="{:.2f}".format, about="of a whole meta step, in runs without it"),
    Column(key="peak", head="peak", better="less", write=size, about="exact bytes of live tensors, parameters and optimizer included"),
    Column(key="products", head="products", better="less", write=count, about="second-order products"),
    Column(key="verdict", head="verdict", about="recommended, or whether it fits the limits", facet=True),
    Column(key="outcome", head="outcome", about="what the estimator said of itself, or why there are no figures"),
)  # fmt: skip


KEPT = ("error", "error_low", "error_high", "cosine", "time", "peak", "products", "status")
"""What the lines have from `advice.candidates`."""


def advice_grid(frame: pd.DataFrame, name: str) -> Grid | None:
    """Of the candidates of `advise`, None if it was not asked."""
    found = []
    for _, mine, advised in advice.of_places(frame):
        ids = mine.groupby("estimator")["id"].agg(list)
        for label, row in advised.rows.iterrows():
            said = ", ".join(row["outcomes"]) or f"{row['status']}: {row['reason']}"
            line: dict[str, Any] = dict(row[list(KEPT)])
            own = {
                **mine.iloc[0][["case", "dtype", "device_asked"]],
                "label": label,
                "verdict": _verdict(row, label == advised.choice),
                "outcome": said,
            }
            found.append(line | own | {SOURCES: ids[label]})
    if not found:
        return None
    return Grid(name=name, title="Candidates of the advice", columns=ADVICE, frame=pd.DataFrame(found), notes=[])


def _verdict(row: pd.Series, chosen: bool) -> str:
    if chosen:
        return "recommended"
    if row["status"] not in ("ok", "discarded"):
        return "no estimate"
    return "control" if row["control"] else "fits" if row["fits"] else "does not fit"
