"""What `hypergradbench compare` prints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .comparison import (
    BETTER,
    BYTES,
    ERRORS,
    SAME,
    TOO_FEW,
    UNDECIDED,
    WORSE,
    Compared,
    Comparison,
    Thresholds,
    labelled,
)
from .measures import INSTANCE
from .meta_tables import size
from .stats import EQUAL
from .text import short

STYLES = {WORSE: "bold red", BETTER: "green", UNDECIDED: "yellow", TOO_FEW: "yellow", SAME: "dim"}
"""Verdicts, in the order in which they are shown."""

MACHINE = {"cpu": "processors", "device": "devices", "threads": "numbers of threads", "torch": "versions of torch"}


def show(found: Compared, thresholds: Thresholds, console: Console, *, everything: bool = False) -> None:
    """Print a table for each of accuracy, time and bytes; what appeared, disappeared, fails; and what regressed.

    Args:
        everything: also comparisons that are within the thresholds.
    """
    measures = (
        ("accuracy", tuple(ERRORS), f"error: {thresholds.error:.3g}"),
        ("time, relative to plain training or to a gradient", ("time",), f"time: {thresholds.time:.3g}"),
        ("bytes at the peak and kept", tuple(BYTES), f"bytes: {thresholds.bytes:.3g}"),
    )
    for title, names, threshold in measures:
        mine = [c for c in found.comparisons if c.measure in names]
        if not mine:
            continue
        shown = sorted(
            (c for c in mine if everything or c.verdict != SAME),
            key=lambda c: ([*STYLES].index(c.verdict), -abs(math.log(c.paired.effect))),
        )
        counts, equal = Counter(c.verdict for c in mine), sum(c.paired.verdict == EQUAL for c in mine)
        words = ", ".join(
            f"{counts[v]} {v}" + f" ({equal} equal)" * (v == SAME and equal > 0) for v in STYLES if counts[v]
        )
        console.print(f"\n[bold]{title}[/] (threshold of {threshold}): {words}", soft_wrap=True)
        if shown:
            console.print(table(shown))
    if any(c.verdict in (TOO_FEW, UNDECIDED) for c in found.comparisons):
        console.print(
            "not decided, too few pairs: beyond the threshold, but no more than the scatter of the pairs would give by chance, or "
            "fewer than 3 pairs; more seeds decide it. Such a change is no regression.",
            style="yellow",
        )
    _cells(found, console)


def table(comparisons: Sequence[Comparison]) -> Table:
    """A row a comparison, all of errors, of times or of bytes."""
    exact, several = comparisons[0].measure in BYTES, len({c.measure for c in comparisons}) > 1
    write = size if exact else short
    made = Table(padding=(0, 1))
    heads = ["estimator", "on", *["what"] * several, "pairs", "before", "after", "after / before"]
    for head in (*heads, *["95 % interval", "p (Holm)"] * (not exact), "verdict"):
        text = head in ("estimator", "on", "what", "verdict")
        made.add_column(
            head, justify="left" if text else "right", overflow="fold", no_wrap=head in ("estimator", "what")
        )
    for c in comparisons:
        texts = [escape(c.estimator), escape(_on(c)), *[c.measure] * several, str(c.paired.n)]
        texts += [write(c.before), write(c.after), ratio(c.paired.effect) + _most(c)]
        if not exact:
            texts.append("" if math.isnan(c.paired.low) else f"{ratio(c.paired.low)} .. {ratio(c.paired.high)}")
            texts.append("" if math.isnan(c.p) else short(c.p))
        made.add_row(*texts, f"[{STYLES[c.verdict]}]{c.verdict}[/]")
    return made


def as_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """The same as data: a row a comparison."""
    return pd.DataFrame(
        [
            {
                "measure": c.measure, **c.instance, "before": c.before, "after": c.after, "ratio": c.paired.effect, "low": c.paired.low,
                "high": c.paired.high, "pairs": c.paired.n, "least": c.least, "most": c.most, "at": c.at, "p_t": c.paired.p_t,
                "p_permutation": c.paired.p, "p_holm": c.p, "verdict": c.verdict,
            }
            for c in comparisons
        ]
    )  # fmt: skip


def ratio(x: float) -> str:
    """A factor near 1 with the digits that matter."""
    return f"{x:.3f}" if 0.9 < x < 1.1 else f"{x:.2f}" if 0.1 < x < 10 else short(x)


def sides(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """What tells the two apart beside the code, and spoils the comparison of times."""
    notes = []
    for column, words in MACHINE.items():
        a, b = (sorted({str(v) for v in f.loc[f["status"] == "ok", column].dropna()}) for f in (before, after))
        if a and b and a != b:
            what = "times" if column != "torch" else "times, bytes and rounding"
            notes.append(
                f"{words} differ ({', '.join(a)} before, {', '.join(b)} after): {what} may differ for that reason alone"
            )
    commits = {c for f in (before, after) for c in f["commit"].dropna()}
    if len(commits) == 1 and not (before["dirty"].eq(True).any() or after["dirty"].eq(True).any()):
        edited = _edited(before, after)
        notes.append(
            f"both are of the same commit, but files that do not belong to it changed: those of {', '.join(edited)}, or of a plugin"
            if edited
            else "both are of the same commit: what differs between them is chance, or the machine"
        )
    for name, frame in (("before", before), ("after", after)):
        measured = frame[frame["status"] == "ok"]
        disturbed = measured["busy"].eq(True) | measured["jobs"].gt(1)
        if disturbed.any():
            notes.append(
                f"{disturbed.sum()} of {len(measured)} cells {name} were timed while the machine was busy with other work"
            )
        if frame["dirty"].eq(True).any():
            notes.append(f"{name}: the code was changed since its commit, and is not recorded")
    return notes


def _edited(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """Problems with cells in both that other code measured."""
    key = [*INSTANCE, "seed"]
    a, b = (frame[frame["status"] == "ok"][[*key, "sources"]].astype(str) for frame in (before, after))
    both = a.merge(b, on=key, suffixes=("_before", "_after"))
    return sorted(set(both.loc[both["sources_before"] != both["sources_after"], "problem"]))


def _on(c: Comparison) -> str:
    i = c.instance
    words = [str(i["case"])] if "case" in i else ["all its cases"]
    words += [str(i["kind"])] * (i["kind"] != "point") + [str(i["dtype"])] * (i["dtype"] != "float64")
    words += [str(i["device_asked"])] * (i["device_asked"] != "cpu")
    words += [f"{i['workers']} workers"] * (i["workers"] not in (1, "")) + [str(i["kernel"])] * (i["kernel"] != "")
    words += [str(i.get("task", ""))] * (i.get("task", "") != "")
    return ", ".join(words)


def _most(c: Comparison) -> str:
    """The worst pair, where the mean does not tell."""
    if c.verdict != WORSE or ratio(c.most) == ratio(c.paired.effect):
        return ""
    return f" (up to {ratio(c.most)}: {c.at.rpartition(', ')[2] if 'case' in c.instance else c.at})"


def _cells(found: Compared, console: Console) -> None:
    for title, rows, style in (
        ("newly failing", found.newly_failing, "bold red"),
        ("no longer a number", found.lost, "bold red"),
        ("works now", found.now_working, "green"),
        ("only before", found.disappeared, "yellow"),
        ("only after", found.appeared, "dim"),
        ("built otherwise", found.rebuilt, "yellow"),
    ):
        if rows.empty:
            continue
        console.print(f"[{style}]{title}: {len(rows)} cells[/]" if len(rows) > 1 else f"[{style}]{title}: 1 cell[/]")
        for (who, why), group in rows.groupby(
            [rows.apply(labelled, axis=1), rows.apply(_why, axis=1, title=title)], sort=False
        ):
            cases = "; ".join(
                f"{case}, seed{'s' * (seeds.nunique() > 1)} {', '.join(str(s) for s in sorted(set(seeds)))}"
                for case, seeds in group.groupby("case", sort=False)["seed"]
            )
            console.print(f"  {who} on {cases}{f': {why}' if why else ''}", markup=False, soft_wrap=True)
    if found.retruthed:
        console.print(
            f"{found.retruthed} pairs have errors to different truths: these are not compared", style="yellow"
        )
    if found.still_failing:
        console.print(f"{found.still_failing} cells failed or were refused both times", style="dim")


def _why(row: pd.Series, title: str) -> str:
    if title == "built otherwise":
        return f"{row['built_before']} became {row['built']}"
    if title == "no longer a number":
        return str(row["measures"])
    if title in ("only before", "only after"):
        return ""
    return f"{row['status']} ({str(row['reason']).splitlines()[0] if row['reason'] else row['failure']})"


def conclusion(found: Compared, thresholds: Thresholds) -> str:
    """One sentence, or one and a list."""
    worst = sorted(found.worse, key=lambda c: -abs(math.log(c.paired.effect)))
    words = [f"{c.measure} of {c.estimator} on {_on(c)}: × {ratio(c.paired.effect)}{_most(c)}" for c in worst]
    for rows, what in ((found.newly_failing, "newly failing"), (found.lost, "without a number that was there")):
        words += [f"{len(rows)} cell{'s' * (len(rows) > 1)} {what}"] * (not rows.empty)
    if words:
        return "\n".join([f"Regressions: {len(words)}", *(f"  {w}" for w in words)])
    limits = f"error {thresholds.error:.3g}, time {thresholds.time:.3g}, bytes {thresholds.bytes:.3g}"
    gone = f" {len(found.disappeared)} cells are only before (--complete makes that a regression)." * (
        not found.disappeared.empty
    )
    return f"No regression beyond the thresholds ({limits}) in {found.pairs} pairs of cells.{gone}"
