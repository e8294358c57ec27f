"""What meta steps cost, in the layout of SAMA's Tables 2, 8 and 9, with the paper's ratios beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import published
from .style import order

PLAIN = "plain training"

KINDS = {
    "parameters": "par.", "slots": "slots", "recorded": "rec.", "graph": "graph", "buffers": "buf.", "hyperparameters": "hyp.",
    "data": "data",
}  # fmt: skip
"""Part of the split -> its head in a table."""

SAME = ["problem", "setting", "dtype", "device_asked", "kernel"]
"""Rows that agree in these share a table."""


def show(frame: pd.DataFrame, console: Console) -> None:
    """Print a table for each workload at one size, on one device, in one dtype; then what the columns mean."""
    rows = frame[frame["kind"] == "meta"]
    if rows.empty:
        return
    groups = [group for _, group in rows.groupby(SAME, sort=False, dropna=False)]
    for group in sorted(groups, key=lambda g: (str(g["problem"].iloc[0]), g["params"].fillna(0).max())):
        console.print(costs(group, split=console.width >= 180))
        beside = _relative_to_sama(group)
        if beside is not None:
            console.print(beside)
    console.print(
        "One meta step is `unroll` steps of training, the hypergradient and the meta update. samples/s: training examples a "
        "second. / plain: relative to plain training of the same model by the same workers, \\[95 % confidence interval] of the "
        "median of ratios taken in turn. meta step: its cost beyond the steps, in steps of plain training, "
        "unroll × (1 / ratio - 1). peak: exact bytes of live tensors, parameters and slots included, of one rank; then its "
        "split in percent (par.: parameters; rec.: recorded states; graph: activations and gradients; buf.: what estimator and "
        "optimizer make for themselves; hyp.: hyperparameters).",
        style="dim",
    )
    measured = rows[rows["status"] == "ok"]
    busy = int(measured["busy"].eq(True).sum())
    if busy:
        console.print(
            f"{busy} of {len(measured)} rows: the machine was busy with other work when they were timed. Bytes are exact all the same; "
            "of the times trust the ratio before samples/s, and take both again when it is idle (--force).",
            style="yellow",
        )
    wide = int(measured["reached"].eq(False).sum())
    if wide:
        console.print(
            f"{wide} of {len(measured)} rows: the time ran out before the confidence intervals were as narrow as was asked for "
            "([effort] width); a larger budget narrows them.",
            style="yellow",
        )
    if any(_row_of(r) is not None for _, r in rows.iterrows()):
        console.print(
            f"T8, T9, T2: {published.CITATION}, Tables 8 (AGNews), 9 (IMDB), both relative to plain, and 2, published, on other hardware, by other code. Their "
            "2 and 4 GPUs are relative to plain training on one. DARTS stands beside t1t2 at unroll 1, the only one that fitted.",
            style="dim",
        )


def costs(rows: pd.DataFrame, *, split: bool = True) -> Table:
    """One workload: a row an estimator, its unroll length and its workers."""
    fine = rows[rows["status"] == "ok"]
    compared = any(_row_of(r) is not None for _, r in rows.iterrows())
    table = Table(title=_title(rows), title_justify="left", title_style="bold", padding=(0, 1 if split else 0))
    heads = ["estimator", "unroll", "workers", "samples/s", "/ plain", "meta step", "peak", "/ plain"]
    heads += list(KINDS.values()) if split else []
    heads += ["T8 | T9 samples/s", "T8 | T9 peak"] if compared else []
    for head in heads:
        table.add_column(
            head, justify="left" if head == "estimator" else "right", overflow="fold", no_wrap=head == "estimator"
        )
    for (unroll, workers), group in fine.groupby(["unroll", "workers"]):
        texts = [PLAIN, f"{unroll:.0f}", f"{workers:.0f}", _rate(group["plain_throughput"].median()), "1", "0"]
        texts += [size(group["plain_peak"].median()), "1"]
        texts += shares(group["plain_split"].iloc[0]) if split else []
        table.add_row(*texts, *(["", ""] if compared else []), style="dim")
    lost = []
    for name in order(rows["estimator"]):
        for (unroll, workers), mine in rows[rows["estimator"] == name].groupby(["unroll", "workers"], dropna=False):
            good = mine[mine["status"] == "ok"]
            what = [name, "" if pd.isna(unroll) else f"{unroll:.0f}", f"{workers:.0f}"]
            if good.empty:
                word = str(mine["failure"].fillna(mine["status"]).iloc[0])
                table.add_row(*what, f"[red]{escape(word)}[/]", *[""] * (len(heads) - 4))
                lost.append(name)
                continue
            table.add_row(*what, *_figures(good, split), *(_beside(good.iloc[0]) if compared else []))
    if lost:
        table.caption, table.caption_justify = f"no figures (reasons below): {', '.join(dict.fromkeys(lost))}", "left"
    return table


def _figures(rows: pd.DataFrame, split: bool) -> list[str]:
    """Of one estimator: medians over seeds, and the interval of the ratio where there is one seed."""
    middle = rows[["throughput", "throughput_ratio", "meta_step_units", "meta_peak", "memory_ratio"]].median()
    ratio = f"{middle['throughput_ratio']:.3g}"
    if len(rows) == 1:
        low, high = rows.iloc[0][["throughput_ratio_low", "throughput_ratio_high"]]
        ratio += f" \\[{low:.2g}, {high:.2g}]" if pd.notna(low) else f" ({_rounds(rows.iloc[0]['rounds'])})"
    texts = [_rate(middle["throughput"]), ratio, f"{middle['meta_step_units']:.3g}"]
    texts += [size(middle["meta_peak"]), f"{middle['memory_ratio']:.2f}"]
    return texts + (shares(rows["memory_split"].iloc[0]) if split else [])


def _rounds(number: float) -> str:
    return "1 round" if number == 1 else f"{number:.0f} rounds"


def _beside(row: pd.Series) -> list[str]:
    theirs = _row_of(row)
    if theirs is None:
        return ["", ""]
    eight, nine = published.TABLE_8[theirs], published.TABLE_9[theirs]
    return [f"{eight.throughput:g} | {nine.throughput:g}", f"{eight.memory:.2f} | {nine.memory:.2f}"]


def _relative_to_sama(rows: pd.DataFrame) -> Table | None:
    """The layout of Table 2: everything relative to SAMA on one worker."""
    fine = rows[(rows["status"] == "ok") & rows["problem"].eq(published.WORKLOAD)]
    base = fine[(fine["name"] == "sama") & (fine["unroll"] == 10) & (fine["workers"] == 1)]
    others = [(r, theirs) for _, r in fine.iterrows() if (theirs := _row_of(r)) in published.TABLE_2]
    if base.empty or len(others) < 2:
        return None
    table = Table(title="relative to sama, as Table 2", title_justify="left", title_style="bold")
    for head in ("estimator", "workers", "samples/s / sama", "T2", "peak / sama", "T2"):
        table.add_column(head, justify="left" if head == "estimator" else "right")
    one = base[["throughput", "meta_peak"]].median()
    for row, theirs in others:
        assert theirs is not None
        paper = published.TABLE_2[theirs]
        table.add_row(
            str(row["estimator"]), f"{row['workers']:.0f}", f"{row['throughput'] / one['throughput']:.3g}",
            f"{paper.throughput:g}", f"{row['meta_peak'] / one['meta_peak']:.2f}", f"{paper.memory:.2f}",
        )  # fmt: skip
    return table


def _row_of(row: pd.Series) -> published.Row | None:
    if pd.isna(row["unroll"]):
        return None
    return published.find(row["problem"], row["name"], int(row["unroll"]), int(row["workers"]))


def _title(rows: pd.DataFrame) -> str:
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
    return escape("; ".join(words))


def shares(split: Mapping[str, Any]) -> list[str]:
    """Percent of the peak, in the order of `KINDS`."""
    whole = sum(split.values())
    return [f"{100 * split.get(kind, 0) / whole:.0f}" for kind in KINDS]


def size(nbytes: float) -> str:
    """Three digits and a binary unit."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}" if nbytes < 1000 * factor else f"{nbytes / factor:.0f} {unit}"
    return f"{nbytes:.0f} B"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
