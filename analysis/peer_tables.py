"""This library beside others: a table a method, with ratios to the best of the others."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from .sheet import Head, Line, Note, Sheet
from .style import OURS

WRONG = 0.05
"""Relative error in float32 above which an answer is of something else than what was asked for, and its cost no yardstick."""

ABOUT: Mapping[str, str] = {
    "cg": "implicit gradient at the point, {n} steps of conjugate gradient",
    "neumann": "implicit gradient at the point, {n} products of the Neumann series",
    "unroll": "{n} SGD steps from the point, differentiated",
    "unroll-adam": "{n} Adam steps from the point, differentiated",
    "sama": "a meta step of SAMA with {n} Adam steps, beside as many steps of plain training; peak with parameters and slots",
    "run": "{n} SGD steps, nothing differentiated",
    "run-adam": "{n} Adam steps, nothing differentiated",
}

SAME = ["case", "task", "dtype", "device_asked", "seed"]
"""Rows that agree in these share a table."""


def notes(frame: pd.DataFrame) -> list[Note]:
    """What the columns mean."""
    rows = frame[frame["kind"] == "peers"]
    found = [
        Note(
            "error, cosine: to the same definition in float64 by plain autograd. ms: median of calls taken in turn in one process "
            "(processor time on one CPU thread). MiB: exact peak of live tensors above what was there before. / best: ours to the "
            f"fastest of the others (median of paired ratios), and to the lightest. Those whose error is above {WRONG:g} are "
            "off, and no yardstick.",
            "dim",
        )
    ]
    busy = int(rows["busy"].eq(True).sum())
    if busy:
        found.append(Note(f"{busy} of {len(rows)} rows: the machine was busy with other work.", "yellow"))
    return found


def tasks(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """`with_ratios` of the rows of each task, in the order of `ABOUT`."""
    rows = frame[frame["kind"] == "peers"]
    groups = [with_ratios(group) for _, group in rows.groupby(SAME, sort=False, dropna=False)]
    rank = {method: i for i, method in enumerate(ABOUT)}
    return sorted(groups, key=lambda g: (rank.get(g["method"].iloc[0], len(rank)), g["products_or_steps"].iloc[0]))


def about(method: str, n: float) -> str:
    """What was done, in words; a method that this version does not know is named all the same."""
    return ABOUT.get(method, "{n} products or steps").format(n=int(n))


def with_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one task with ``wrong``, ``time_to_best`` and ``peak_to_best``: the latter of ours only, and not where a
    solver stopped early at negative curvature, which is less work."""
    found = rows.assign(wrong=rows["relative_error"] > WRONG)
    library = found["estimator"].str.partition(": ")[0]
    ours = library == OURS
    others = found[~ours & (found["status"] == "ok") & ~found["wrong"]]
    found["library"] = library
    for column, what in (("time_to_best", "to_first"), ("peak_to_best", "peak_bytes")):
        best = others[what].min() if len(others) else float("nan")
        found[column] = (found[what] / best).where(ours & (found["outcome"] != "indefinite"))
    return found


def table(rows: pd.DataFrame) -> Sheet:
    """One task; `with_ratios` of it."""
    words = ("library", "how", "remarks")
    heads = ("library", "how", "error", "cosine", "ms", "/ best", "MiB", "/ best", "remarks")
    lines = []
    for _, row in rows.sort_values("library", key=lambda names: names != OURS, kind="stable").iterrows():
        lines.append(Line(line(row), "red" if row["status"] != "ok" else "dim" if row["wrong"] else ""))
    return Sheet(title=title(rows), heads=[Head(h, h in words, h not in words) for h in heads], lines=lines)


def title(rows: pd.DataFrame) -> str:
    """What was done, to what."""
    first = rows.iloc[0]
    return f"{first['method']}: {about(first['method'], first['products_or_steps'])}; {first['case']}, {first['dtype']}, seed {first['seed']}"


def line(row: pd.Series) -> list[str]:
    """One contestant."""
    library, _, variant = str(row["estimator"]).partition(": ")
    if row["status"] != "ok":
        why = str(row["reason"]).splitlines()[0]
        return [library, variant, *["-"] * 6, why]
    version = f" {row['version']}" if library != OURS and row["version"] != "no metadata" else ""
    remarks = [str(row["note"])] if row["note"] else []
    if row["wrong"]:
        remarks.insert(0, "off")
    if pd.notna(row["outcome"]) and row["outcome"] not in ("budget", "done"):
        remarks.append(str(row["outcome"]))

    def number(x: float, text: str) -> str:
        return "" if pd.isna(x) else text.format(x)

    return [
        library + version, variant, number(row["relative_error"], "{:.1e}"), number(row["cosine"], "{:.4f}"),
        short(row["seconds"] * 1e3), number(row["time_to_best"], "{:.2f}"), short(row["peak_bytes"] / 2**20),
        number(row["peak_to_best"], "{:.2f}"), "; ".join(remarks),
    ]  # fmt: skip


def summary(frame: pd.DataFrame) -> list[str]:
    """Markdown: of each task our operating points, and of the others the fastest and the lightest that are not off."""
    lines = ["| task | library | error | ms | / best | MiB | / best |", "|---|---|---|---|---|---|---|"]
    for rows in tasks(frame):
        fine = rows[rows["status"] == "ok"]
        others = fine[(fine["library"] != OURS) & ~fine["wrong"]]
        best = [others[column].idxmin() for column in ("to_first", "peak_bytes") if len(others)]
        shown = fine[(fine["library"] == OURS) | fine.index.isin(best)]
        for _, row in shown.sort_values("library", key=lambda names: names != OURS, kind="stable").iterrows():
            library, variant, error, _, ms, faster, mib, lighter, _ = line(row)
            task = f"`{row['method']}`, {int(row['products_or_steps'])}"
            who = f"**{variant}**" if row["library"] == OURS else f"{library} {variant}"
            lines.append(f"| {task} | {who} | {error or '-'} | {ms} | {faster or '-'} | {mib} | {lighter or '-'} |")
    return lines


def short(x: float) -> str:
    """Three figures, without an exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"
