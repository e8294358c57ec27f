"""The result table: one block a problem instance, one line an estimator, the spread over seeds beside each number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .style import order

WIDTH = 210
COLUMNS = (
    "estimator", "estimates", "cosine", "relative error", "ms", "time / gradient", "peak / gradient",
    "kept / gradient", "products", "outcome",
)  # fmt: skip
SCALES = {"lr": " ×lr", "1/H": " ×H"}


def show(frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print every block, then what failed or was refused, with reasons."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=WIDTH)
    points = frame[frame["kind"] == "point"]
    for (case, dtype), rows in points.groupby(["case", "dtype"], sort=False):
        console.print(block(str(case), str(dtype), rows))
    console.print(
        "Median over seeds \\[smallest..largest]. cosine, relative error: to the truth. ms: the hypergradient alone, given "
        "the run. / gradient: in units of one plain training gradient, timed in turn with it; peak: tensor bytes alive "
        "at once; kept: bytes of recorded states. products: second-order ones. ×lr, ×H: the estimate is scaled by "
        "definition, so its relative error says little.",
        style="dim",
    )
    seeds = points[points["status"] == "ok"].groupby(["case", "estimator"])["seed"].nunique()
    if len(seeds) and seeds.max() < 6:
        console.print(f"{seeds.max()} seed(s): fewer than the 6 that a claim 'A beats B' needs.", style="dim")
    if (points["jobs"] > 1).any():
        console.print(
            "Some timings were taken with several processes at a time: compare them with care.", style="yellow"
        )
    _reasons(frame, console)


def save(frame: pd.DataFrame, path: Path) -> None:
    """The same as plain text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        show(frame, Console(file=file, width=WIDTH, highlight=False))


def block(case: str, dtype: str, rows: pd.DataFrame) -> Table:
    """One problem instance."""
    fine = rows[rows["status"] == "ok"]
    truths = ", ".join(sorted(set(fine["truth"].dropna()))) or "unknown"
    count = rows["seed"].nunique()
    title = f"{escape(case)}, {dtype}, {count} seed{'s' * (count > 1)}; truth: {truths}"
    table = Table(title=title, title_justify="left", title_style="bold", padding=(0, 1))
    for name in COLUMNS:
        text = name in ("estimator", "estimates", "outcome")
        table.add_column(name, justify="left" if text else "right", no_wrap=name == "estimator", overflow="fold")
    refused = []
    for name in order(rows["estimator"]):
        mine = rows[rows["estimator"] == name]
        if (mine["status"] == "refused").all():
            refused.append(name)
            continue
        table.add_row(*line(name, mine))
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
    scale = SCALES.get(fine["scale"].iloc[0], "")
    return [
        name,
        str(fine["of"].iloc[0]),
        spread(fine["cosine"], lambda x: f"{x:.4f}"),
        spread(fine["relative_error"], short) + scale,
        spread(fine["seconds"] * 1e3, short),
        spread(fine["time_ratio"], short),
        spread(fine["peak_ratio"], lambda x: f"{x:.1f}"),
        spread(fine["kept_ratio"], lambda x: f"{x:.1f}"),
        spread(fine["products"], lambda x: f"{x:.0f}"),
        outcome,
    ]


def spread(values: pd.Series, write: Callable[[float], str]) -> str:
    """Median and range; the range is left out where it rounds to nothing."""
    known = values.dropna()
    if known.empty:
        return "not finite"
    low, middle, high = (write(x) for x in (known.min(), known.median(), known.max()))
    lost = f" ({len(values) - len(known)} not finite)" if len(known) < len(values) else ""
    return (middle if low == high else f"{middle} \\[{low}..{high}]") + lost


def short(x: float) -> str:
    """Two or three digits, exponents only where needed."""
    if x == 0:
        return "0"
    if abs(x) < 1e-3 or abs(x) >= 1e5:
        return f"{x:.0e}"
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.2g}"


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
