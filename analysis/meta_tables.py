"""What meta steps cost: a table a workload, with the ratios of SAMA's Tables 8 and 9 beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from . import published
from .sheet import Head, Line, Note, Sheet
from .style import order

PLAIN = "plain training"

KINDS = {
    "parameters": "par.", "slots": "slots", "recorded": "rec.", "graph": "graph", "buffers": "buf.", "hyperparameters": "hyp.",
    "data": "data",
}  # fmt: skip
"""Part of the split -> its head in a table."""

SAME = ["problem", "setting", "dtype", "device_asked", "kernel"]
"""Rows that agree in these share a table."""


def groups(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The meta steps of each workload at one size, on one device, in one dtype; small models first."""
    rows = frame[frame["kind"] == "meta"]
    found = [group for _, group in rows.groupby(SAME, sort=False, dropna=False)]
    return sorted(found, key=lambda g: (str(g["problem"].iloc[0]), g["params"].fillna(0).max()))


def notes(frame: pd.DataFrame) -> list[Note]:
    """What the columns mean, and what to beware of."""
    rows = frame[frame["kind"] == "meta"]
    found = [
        Note(
            "One meta step is `unroll` steps of training, the hypergradient and the meta update. samples/s: training examples a "
            "second. / plain: relative to plain training of the same model by the same workers, [95 % confidence interval] of the "
            "median of ratios taken in turn. meta step: its cost beyond the steps, in steps of plain training, "
            "unroll × (1 / ratio - 1). peak: exact bytes of live tensors, parameters and slots included, of one rank; then its "
            "split in percent (par.: parameters; rec.: recorded states; graph: activations and gradients; buf.: what estimator and "
            "optimizer make for themselves; hyp.: hyperparameters).",
            "dim",
        )
    ]
    measured = rows[rows["status"] == "ok"]
    busy = int(measured["busy"].eq(True).sum())
    if busy:
        found.append(Note(
            f"{busy} of {len(measured)} rows: the machine was busy with other work when they were timed. Bytes are exact all the same; "
            "of the times trust the ratio before samples/s, and take both again when it is idle (--force).",
            "yellow",
        ))  # fmt: skip
    wide = int(measured["reached"].eq(False).sum())
    if wide:
        found.append(Note(
            f"{wide} of {len(measured)} rows: the time ran out before the confidence intervals were as narrow as was asked for "
            "([effort] width); a larger budget narrows them.",
            "yellow",
        ))  # fmt: skip
    if any(paper_row(r) is not None for _, r in rows.iterrows()):
        found.append(Note(
            f"T8, T9: {published.CITATION}, Tables 8 (AGNews) and 9 (IMDB), published, on other hardware, by other code. Their "
            "2 and 4 GPUs are relative to plain training on one. DARTS stands beside t1t2 at unroll 1, the only one that fitted.",
            "dim",
        ))  # fmt: skip
    return found


def costs(rows: pd.DataFrame, *, split: bool = True) -> Sheet:
    """One workload: a row an estimator, its unroll length and its workers."""
    fine = rows[rows["status"] == "ok"]
    compared = any(paper_row(r) is not None for _, r in rows.iterrows())
    heads = ["estimator", "unroll", "workers", "samples/s", "/ plain", "meta step", "peak", "/ plain"]
    heads += list(KINDS.values()) if split else []
    heads += ["T8 | T9 samples/s", "T8 | T9 peak"] if compared else []
    lines = []
    for (unroll, workers), group in fine.groupby(["unroll", "workers"]):
        texts = [PLAIN, f"{unroll:.0f}", f"{workers:.0f}", rate(group["plain_throughput"].median()), "1", "0"]
        texts += [size(group["plain_peak"].median()), "1"]
        texts += shares(group["plain_split"].iloc[0]) if split else []
        lines.append(Line([*texts, *(["", ""] if compared else [])], "dim"))
    lost = []
    for name in order(rows["estimator"]):
        for (unroll, workers), mine in rows[rows["estimator"] == name].groupby(["unroll", "workers"], dropna=False):
            good = mine[mine["status"] == "ok"]
            what = [name, "" if pd.isna(unroll) else f"{unroll:.0f}", f"{workers:.0f}"]
            if good.empty:
                word = str(mine["failure"].fillna(mine["status"]).iloc[0])
                lines.append(Line([*what, word, *[""] * (len(heads) - 4)], "red"))
                lost.append(name)
                continue
            lines.append(Line([*what, *_figures(good, split), *(_beside(good.iloc[0]) if compared else [])]))
    return Sheet(
        title=title(rows), heads=[Head(h, h == "estimator", h == "estimator") for h in heads], lines=lines, tight=not split,
        caption=f"no figures (reasons below): {', '.join(dict.fromkeys(lost))}" if lost else "",
    )  # fmt: skip


def _figures(rows: pd.DataFrame, split: bool) -> list[str]:
    """Of one estimator: medians over seeds, and the interval of the ratio where there is one seed."""
    middle = rows[["throughput", "throughput_ratio", "meta_step_units", "meta_peak", "memory_ratio"]].median()
    ratio = f"{middle['throughput_ratio']:.3g}"
    if len(rows) == 1:
        low, high = rows.iloc[0][["throughput_ratio_low", "throughput_ratio_high"]]
        ratio += f" [{low:.2g}, {high:.2g}]" if pd.notna(low) else f" ({_rounds(rows.iloc[0]['rounds'])})"
    texts = [rate(middle["throughput"]), ratio, f"{middle['meta_step_units']:.3g}"]
    texts += [size(middle["meta_peak"]), f"{middle['memory_ratio']:.2f}"]
    return texts + (shares(rows["memory_split"].iloc[0]) if split else [])


def _rounds(number: float) -> str:
    return "1 round" if number == 1 else f"{number:.0f} rounds"


def _beside(row: pd.Series) -> list[str]:
    theirs = paper_row(row)
    if theirs is None:
        return ["", ""]
    eight, nine = published.TABLE_8[theirs], published.TABLE_9[theirs]
    return [f"{eight.throughput:.3g} | {nine.throughput:.3g}", f"{eight.memory:.2f} | {nine.memory:.2f}"]


def paper_row(row: pd.Series) -> published.Row | None:
    """The paper's row for one of ours, None if it has none."""
    if pd.isna(row["unroll"]):
        return None
    return published.find(row["problem"], row["name"], int(row["unroll"]), int(row["workers"]))


def title(rows: pd.DataFrame) -> str:
    """What was trained, on what, and how large it is."""
    first = rows.iloc[0]
    known = rows[rows["status"] == "ok"]
    what = f"{first['problem']} ({first['setting']})" if first["setting"] else str(first["problem"])
    words = [what, str(first["dtype"]), str((known if len(known) else rows).iloc[0]["device"] or first["device_asked"])]
    words.append(f"{first['kernel'] or 'best'} kernels")
    if len(known):
        seen = known.iloc[0]
        words.append(
            f"{seen['params']:,.0f} parameters, {seen['hparams']:,.0f} hyperparameters, batch {seen['batch']:.0f}"
        )
        words.append(f"data {seen['data']}")
    return "; ".join(words)


def shares(split: Mapping[str, Any] | None) -> list[str]:
    """Percent of the peak, in the order of `KINDS`; nothing where it is not known."""
    whole = sum(split.values()) if split else 0
    if not split or not whole:
        return [""] * len(KINDS)
    return [f"{100 * split.get(kind, 0) / whole:.0f}" for kind in KINDS]


def size(nbytes: float) -> str:
    """Three digits and a binary unit."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}" if nbytes < 1000 * factor else f"{nbytes / factor:.0f} {unit}"
    return f"{nbytes:.0f} B"


def rate(value: float) -> str:
    """Samples a second."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
