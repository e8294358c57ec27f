"""The result table: one block a problem instance, one line an estimator, the spread over seeds beside each number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import advice, meta_tables, peer_tables
from .style import order
from .text import short

WIDTH = 210
SPARE = {160: ("estimates", "kept / gradient"), 110: ("ms", "peak / gradient", "products", "error bound")}
"""width -> what is left out below it, so that words are not cut."""
COLUMNS = (
    "estimator", "estimates", "cosine", "relative error", "error bound", "ms", "time / gradient", "peak / gradient",
    "kept / gradient", "products", "outcome",
)  # fmt: skip
SCALES = {"lr": " ×lr", "1/H": " ×H"}


def show(frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print what points, meta steps and peers say, then what failed or was refused, with reasons."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=WIDTH)
    if not frame["kind"].isin(["meta", "peers", "advice"]).all():
        _show_points(frame, console)
    meta_tables.show(frame, console)
    peer_tables.show(frame, console)
    if frame["kind"].eq("advice").any():
        for (case, dtype), rows in frame[frame["kind"] == "advice"].groupby(["case", "dtype"], sort=False):
            advice.show(advice.advise(rows, frame.attrs.get("limits")), console, head=f"{case}, {dtype}")
        frame = frame[frame["kind"] != "advice"]
    if (frame["jobs"] > 1).any():
        console.print(
            "Some timings were taken with several processes at a time: compare them with care.", style="yellow"
        )
    _reasons(frame, console)


def _show_points(frame: pd.DataFrame, console: Console) -> None:
    spare = [name for width, names in SPARE.items() if console.width < width for name in names]
    points = frame[frame["kind"] == "point"]
    for (case, dtype), rows in points.groupby(["case", "dtype"], sort=False):
        console.print(block(str(case), str(dtype), rows, spare))
    kept = "come on top" if spare else "(next column) come on top"
    console.print(
        "Median over seeds \\[smallest..largest]. cosine, relative error: to the truth; undefined: the answer is 0. error bound: of "
        "the relative error, found without the truth. ms: "
        "the hypergradient alone, given the run. / gradient: in units of one plain training gradient, timed in turn "
        f"with it; peak: of the pullback alone, the kept states {kept}. products: second-order ones. ×lr, ×H: the "
        "estimate is scaled by definition, so its relative error says little.",
        style="dim",
    )
    if spare:
        console.print(f"Left out for want of width: {', '.join(spare)}; table.txt has them.", style="dim")
    words = {w: _brief(t) for found in points["outcomes"] if isinstance(found, dict) for w, t in found.items()}
    if words:
        console.print("Outcomes: " + escape("; ".join(f"{w}: {t}" for w, t in words.items())) + ".", style="dim")
    seeds = points[points["status"] == "ok"].groupby(["case", "estimator"])["seed"].nunique()
    if len(seeds) and seeds.max() < 6:
        console.print(f"{seeds.max()} seed(s): fewer than the 6 that a claim 'A beats B' needs.", style="dim")


def save(frame: pd.DataFrame, path: Path) -> None:
    """The same as plain text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        show(frame, Console(file=file, width=WIDTH, highlight=False))


def block(case: str, dtype: str, rows: pd.DataFrame, spare: Collection[str] = ()) -> Table:
    """One problem instance, without the ``spare`` columns."""
    fine, narrow = rows[rows["status"] == "ok"], bool(spare)
    truths = ", ".join(sorted(set(fine["truth"].dropna()))) or "unknown"
    count = rows["seed"].nunique()
    if fine["error_bound"].isna().all():
        spare = {*spare, "error bound"}
    title = f"{escape(case)}, {dtype}, {count} seed{'s' * (count > 1)}; truth: {truths}"
    table = Table(title=title, title_justify="left", title_style="bold", padding=(0, 0 if narrow else 1))
    shown = [i for i, name in enumerate(COLUMNS) if name not in spare]
    for name in (COLUMNS[i] for i in shown):
        text = name in ("estimator", "estimates", "outcome")
        table.add_column(
            name, justify="left" if text else "right", no_wrap=name in ("estimator", "cosine"), overflow="fold"
        )
    refused = []
    for name in order(rows["estimator"]):
        mine = rows[rows["estimator"] == name]
        if (mine["status"] == "refused").all():
            refused.append(name)
            continue
        texts = line(name, mine)
        if narrow:
            texts[2] = texts[2].replace(" \\[", "\n\\[")  # the cosine
        table.add_row(*(texts[i] for i in shown))
    if refused:
        table.caption = f"does not apply (reasons below): {', '.join(refused)}"
        table.caption_justify = "left"
    return table


def line(name: str, rows: pd.DataFrame) -> list[str]:
    """One estimator on one problem instance."""
    fine = rows[rows["status"] == "ok"]
    states = Counter(fine["outcome"])
    states.update(rows.loc[rows["status"] != "ok", "status"])
    outcome = ", ".join(what if len(states) == 1 else f"{what} ({n})" for what, n in states.items())
    if fine.empty:
        return [name, *[""] * (len(COLUMNS) - 2), f"[red]{outcome}[/]"]
    undefined = fine.loc[fine["cosine"].isna(), "relative_error"].notna().all()
    scale = SCALES.get(fine["scale"].iloc[0], "")
    return [
        name,
        str(fine["of"].iloc[0]),
        spread(fine["cosine"], lambda x: f"{x:.4f}", "undefined" if undefined else "not finite"),
        spread(fine["relative_error"], short) + scale,
        spread(fine["error_bound"], short, "none") if fine["error_bound"].notna().any() else "",
        spread(fine["seconds"] * 1e3, short),
        spread(fine["time_ratio"], short),
        spread(fine["peak_ratio"], lambda x: f"{x:.1f}"),
        spread(fine["kept_ratio"], lambda x: f"{x:.1f}"),
        spread(fine["products"], lambda x: f"{x:.0f}"),
        outcome,
    ]


def spread(values: pd.Series, write: Callable[[float], str], missing: str = "not finite") -> str:
    """Median and range; the range is left out where it rounds to nothing. ``missing``: what to call a NaN."""
    known = values.dropna()
    if known.empty:
        return missing
    low, middle, high = (write(x) for x in (known.min(), known.median(), known.max()))
    lost = f" ({len(values) - len(known)} {missing})" if len(known) < len(values) else ""
    return (middle if low == high else f"{middle} \\[{low}..{high}]") + lost


def _brief(text: str) -> str:
    """What an outcome means, without the advice."""
    head, _, rest = text.partition(": ")
    return (head if " " in head else rest or head).partition("; ")[0]


def _reasons(frame: pd.DataFrame, console: Console) -> None:
    """Failures and refusals, equal ones together."""
    for status, style in (("failed", "red"), ("refused", "dim")):
        rows = frame[frame["status"] == status]
        if rows.empty:
            continue
        console.print(f"\n[bold]{status}[/]")
        for (name, reason), group in rows.groupby(["estimator", "reason"], sort=False):
            cases = ", ".join(dict.fromkeys(group["case"] + group["kind"].map({"path": " path"}).fillna("")))
            console.print(f"[{style}]{escape(str(name))}[/] on {escape(cases)}: {escape(str(reason))}")
