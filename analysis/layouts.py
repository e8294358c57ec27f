"""SAMA's Tables 2, 8 and 9, row by row: what we measured, what they printed, and the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from . import published
from .meta_tables import groups, rate, size, title
from .published import NAMES, SAMA, Ratio, Row
from .sheet import Head, Line, Sheet
from .style import order

OF_PAPER = "base"
"""The size at which our workload is the paper's model."""

Base = tuple[float, float]
"""What ratios are to: samples a second, and bytes."""

WORDS = ("method", "ours", "base Jacobian", "adaptation", "distributed")

ABOUT = (
    f"paper: {published.CITATION}, {{}}, on their GPUs, by their code; difference: ours - paper, and in percent of the paper's. Rows of "
    "several workers, theirs and ours, are relative to one. DARTS is t1t2, with one step a meta step. peak: of one worker; ours counts "
    "live tensors, theirs what the GPU held. Ours is trained on generated data, for its cost: there is no accuracy to compare."
)


def table2(frame: pd.DataFrame) -> list[Sheet]:
    """Table 2: memory and throughput relative to SAMA on one worker. A table for each model and device, if our SAMA was measured."""
    sheets = []
    for rows in groups(_theirs(frame)):
        base = _base(_of(rows, SAMA), "throughput", "meta_peak")
        if base is None:
            continue
        data = compared(rows, published.TABLE_2, dict.fromkeys(published.TABLE_2, base))
        heads = [
            "method",
            "ours",
            "workers",
            "peak",
            "/ SAMA",
            "paper",
            "difference",
            "samples/s",
            "/ SAMA",
            "paper",
            "difference",
        ]
        lines = [
            Line([row["method"], row["estimator"], f"{row['workers']}", *_memory(row), *_throughput(row)], _style(row))
            for _, row in data.iterrows()
        ]
        sheets.append(_sheet("Table 2", rows, heads, lines, data))
    return sheets


def table8(frame: pd.DataFrame) -> list[Sheet]:
    """Table 8 (AGNews): throughput and memory relative to plain training on one worker."""
    return _ablation(frame, "Table 8", published.TABLE_8)


def table9(frame: pd.DataFrame) -> list[Sheet]:
    """Table 9 (IMDB): the same."""
    return _ablation(frame, "Table 9", published.TABLE_9)


LAYOUTS: Mapping[str, Callable[[pd.DataFrame], list[Sheet]]] = {"table2": table2, "table8": table8, "table9": table9}
"""name -> the tables of this layout that a frame of one run allows."""


def compared(
    rows: pd.DataFrame, paper: Mapping[Row, Ratio], bases: Mapping[Row, Base | None], paired: str | None = None
) -> pd.DataFrame:
    """A row for each of the paper's, or for each of our estimators that is theirs with other fields.

    Args:
        rows: meta steps of one workload at one size, on one device.
        paper: ratios that were printed.
        bases: what ours are relative to, None if it was not measured.
        paired: column that has the ratio of throughputs where one worker is compared with one, from times taken in turn.

    Returns:
        method, estimator (ours), unroll, workers, outcome (ok, not run, or what went wrong), seeds; throughput (samples a second) and
        memory (bytes), medians over seeds; each with _ratio, _paper (printed ratio) and _difference (the first less the second).
    """
    found = []
    for theirs in paper:
        mine = _of(rows, theirs)
        for label in order(mine["estimator"]) or [""]:
            of_label = mine[mine["estimator"] == label]
            fine = of_label[of_label["status"] == "ok"]
            row: dict[str, Any] = {
                "method": NAMES[theirs], "estimator": label, "unroll": theirs.unroll, "workers": theirs.workers,
                "outcome": _outcome(of_label), "seeds": fine["seed"].nunique(),
            }  # fmt: skip
            ours, unit = _base(fine, "throughput", "meta_peak"), bases[theirs]
            for i, (name, printed) in enumerate(zip(("throughput", "memory"), paper[theirs], strict=True)):
                value = float("nan") if ours is None else ours[i]
                ratio = float("nan") if unit is None else value / unit[i]
                if name == "throughput" and paired is not None and theirs.workers == 1:
                    ratio = fine[paired].median()
                row |= {
                    name: value,
                    f"{name}_ratio": ratio,
                    f"{name}_paper": printed,
                    f"{name}_difference": ratio - printed,
                }
            found.append(row)
    return pd.DataFrame(found)


def _ablation(frame: pd.DataFrame, name: str, paper: Mapping[Row, Ratio]) -> list[Sheet]:
    sheets = []
    for rows in groups(_theirs(frame)):
        alone = rows[(rows["workers"] == 1) & (rows["status"] == "ok")]

        unit = _base(alone, "plain_throughput", "plain_peak")
        bases = {
            row: _base(alone[alone["unroll"] == row.unroll], "plain_throughput", "plain_peak") or unit for row in paper
        }
        data = compared(rows, paper, bases, "throughput_ratio")
        unit = bases[SAMA]
        heads = [
            "method", "ours", "base Jacobian", "adaptation", "distributed", "samples/s", "/ plain", "paper", "difference",
            "peak", "/ plain", "paper", "difference",
        ]  # fmt: skip
        figures = ["", "", "", ""] * 2 if unit is None else [rate(unit[0]), "1", "1", "0", size(unit[1]), "1", "1", "0"]
        lines = [Line(["fine-tuning", "plain training", "x", "x", "x", *figures], "dim")]
        for (_, row), marks in zip(data.iterrows(), map(_parts, data["method"]), strict=True):
            lines.append(Line([row["method"], row["estimator"], *marks, *_throughput(row), *_memory(row)], _style(row)))
        sheets.append(_sheet(name, rows, heads, lines, data))
    return sheets


def _theirs(frame: pd.DataFrame) -> pd.DataFrame:
    """Meta steps that some row of the paper's has."""
    keys = [
        published.find(p, n, u, w)
        for p, n, u, w in frame[["problem", "name", "unroll", "workers"]].itertuples(index=False)
    ]
    return frame[frame["kind"].eq("meta") & pd.Series([key is not None for key in keys], index=frame.index, dtype=bool)]


def _of(rows: pd.DataFrame, theirs: Row) -> pd.DataFrame:
    return rows[
        (rows["name"] == theirs.estimator) & (rows["unroll"] == theirs.unroll) & (rows["workers"] == theirs.workers)
    ]


def _base(rows: pd.DataFrame, throughput: str, memory: str) -> Base | None:
    middle = rows.loc[rows["status"] == "ok", [throughput, memory]].median()
    return None if middle.isna().any() else (float(middle[throughput]), float(middle[memory]))


def _outcome(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "not run"
    lost = rows[rows["status"] != "ok"]
    return "ok" if len(lost) < len(rows) else str(lost["failure"].fillna(lost["status"]).iloc[0])


def _parts(method: str) -> list[str]:
    """The crosses and circles of Tables 8 and 9: identity for the base Jacobian, adaptation, several GPUs."""
    row = next(theirs for theirs, name in NAMES.items() if name == method)
    has = (row.estimator in ("t1t2", "sama-na", "sama"), row.estimator == "sama", row.workers > 1)
    return ["o" if part else "x" for part in has]


def _throughput(row: pd.Series) -> list[str]:
    if row["outcome"] != "ok":
        return [str(row["outcome"]), "", f"{row['throughput_paper']:.3g}", ""]
    return [rate(row["throughput"]), *_beside(row, "throughput", ".3g")]


def _memory(row: pd.Series) -> list[str]:
    if row["outcome"] != "ok":
        return [str(row["outcome"]), "", f"{row['memory_paper']:.2f}", ""]
    return [size(row["memory"]), *_beside(row, "memory", ".2f")]


def _beside(row: pd.Series, name: str, form: str) -> list[str]:
    ratio, paper, difference = (row[f"{name}_{what}"] for what in ("ratio", "paper", "difference"))
    if pd.isna(ratio):  # nothing was run on one worker
        return ["-", f"{paper:{form}}", "-"]
    return [f"{ratio:{form}}", f"{paper:{form}}", f"{difference:+.2f} ({difference / paper:+.0%})"]


def _style(row: pd.Series) -> str:
    return "" if row["outcome"] == "ok" else "dim" if row["outcome"] == "not run" else "red"


def _sheet(name: str, rows: pd.DataFrame, heads: Sequence[str], lines: Sequence[Line], data: pd.DataFrame) -> Sheet:
    sizes = rows["size"].dropna().unique()
    other = (
        f"Of size {', '.join(sizes)}, which is not the paper's model (--sizes {OF_PAPER} is). "
        if OF_PAPER not in sizes
        else ""
    )
    seeds = data["seeds"].max()
    same = rows.iloc[0][["problem", "setting", "dtype", "device_asked", "kernel"]]
    return Sheet(
        title=f"SAMA's {name} beside ours: {title(rows)}{f'; medians over {seeds} seeds' if seeds > 1 else ''}",
        heads=[Head(text, text in WORDS, text == "method") for text in heads], lines=lines,
        caption=other + ABOUT.format(name), data=data.assign(table=name, **same),
    )  # fmt: skip
