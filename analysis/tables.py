"""The result table: one block a problem instance, one line an estimator, the spread over seeds beside each number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from . import advice, layouts, meta_tables, peer_tables
from .ranking import ranking
from .sheet import Head, Line, Note, Section, Sheet
from .stats import LEAST_SEEDS
from .style import order
from .text import short

ALL = "all"
"""Every table that there is, in place of one of `layouts.LAYOUTS`."""
WIDTH = 210
SPARE = {160: ("estimates", "kept / gradient"), 110: ("ms", "peak / gradient", "products", "error bound")}
"""width -> what is left out below it, so that words are not cut."""
COLUMNS = (
    "estimator", "estimates", "cosine", "relative error", "error bound", "ms", "time / gradient", "peak / gradient",
    "kept / gradient", "products", "outcome",
)  # fmt: skip
SCALES = {"lr": " ×lr", "1/H": " ×H"}


def show(frame: pd.DataFrame, console: Console | None = None, layout: str = ALL) -> None:
    """Print what points, meta steps, peers and advice say, then what failed or was refused, with reasons; one run after another."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=WIDTH)
    for run, found in of_runs(frame, layout, console.width):
        if run is not None:
            console.rule(escape(run), align="left")
        for section in found:
            section.show(console)


def of_runs(frame: pd.DataFrame, layout: str = ALL, width: int = WIDTH) -> list[tuple[str | None, list[Section]]]:
    """The tables of each run, with its name if there are several.

    Args:
        frame: as `load` gives it.
        layout: `ALL`, or one of `layouts.LAYOUTS`.
        width: as in `sections`.
    """
    if layout == ALL:
        return [(run, sections(rows, width)) for run, rows in by_run(frame)]
    return [(run, [Section(layouts.LAYOUTS[layout](rows), [])]) for run, rows in by_run(frame)]


def by_run(frame: pd.DataFrame) -> list[tuple[str | None, pd.DataFrame]]:
    """The rows of each folder, with its name if there are several: they are never pooled."""
    there = set(frame["run"])
    runs = [run for run in frame.attrs["folders"] if run in there]
    return [(run, frame[frame["run"] == run]) for run in runs] if len(runs) > 1 else [(None, frame)]


def sections(frame: pd.DataFrame, width: int = WIDTH) -> list[Section]:
    """All tables of one run, each kind with its notes.

    Args:
        frame: of one run.
        width: letters that a line of the terminal has; columns are left out where they would not fit.
    """
    found = []
    if not frame["kind"].isin(["meta", "peers", "advice"]).all():
        found.append(_points(frame, width))
    if metas := meta_tables.groups(frame):
        sheets = []
        for group in metas:
            sheets.append(meta_tables.costs(group, split=width >= 180))
            beside = layouts.table2(group)
            sheets += [
                sheet for sheet in beside if sheet.data is not None and (sheet.data["outcome"] == "ok").sum() > 1
            ]
        found.append(Section(sheets, meta_tables.notes(frame)))
    if frame["kind"].eq("peers").any():
        found.append(Section([*map(peer_tables.table, peer_tables.tasks(frame))], peer_tables.notes(frame)))
    found += [advice.section(one, head=head) for head, _, one in advice.of_places(frame)]
    rest = frame[frame["kind"] != "advice"]  # its tables say their own reasons
    many = "Some timings were taken with several processes at a time: compare them with care."
    return [*found, Section([], [*[Note(many, "yellow")] * bool((rest["jobs"] > 1).any()), *_reasons(rest)])]


def _points(frame: pd.DataFrame, width: int) -> Section:
    spare = [name for least, names in SPARE.items() if width < least for name in names]
    points = frame[frame["kind"] == "point"]
    sheets = [
        block(str(case), f"{dtype}, {device}" if device != "cpu" else str(dtype), rows, spare)
        for (case, dtype, device), rows in points.groupby(["case", "dtype", "device_asked"], sort=False)
    ]
    bounded = any(head.text == "error bound" for sheet in sheets for head in sheet.heads)
    kept = "come on top" if spare else "(next column) come on top"
    notes = [Note(
        "Median over seeds [smallest..largest]. cosine, relative error: to the truth; undefined: the answer is 0. "
        + "error bound: of the relative error, found without the truth. " * bounded
        + "ms: "
        "the hypergradient alone, given the run. / gradient: in units of one plain training gradient, timed in turn "
        f"with it; peak: of the pullback alone, the kept states {kept}. products: second-order ones. ×lr, ×H: the "
        "estimate is scaled by definition, so its relative error says little.",
        "dim",
    )]  # fmt: skip
    if spare:
        notes.append(Note(f"Left out for want of width: {', '.join(spare)}; table.txt has them.", "dim"))
    words = {w: _brief(t) for found in points["outcomes"] if isinstance(found, dict) for w, t in found.items()}
    if words:
        notes.append(Note("Outcomes: " + "; ".join(f"{w}: {t}" for w, t in words.items()) + ".", "dim"))
    seeds = points[points["status"] == "ok"].groupby(["case", "dtype", "device_asked", "estimator"])["seed"].nunique()
    if len(seeds) and seeds.max() < LEAST_SEEDS:
        notes.append(Note(f"{seeds.max()} seed(s): not enough for 'A beats B', which takes {LEAST_SEEDS}.", "dim"))
    return Section(sheets, notes)


def save(frame: pd.DataFrame, path: Path, layout: str = ALL) -> None:
    """The same as plain text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        show(frame, Console(file=file, width=WIDTH, highlight=False), layout)


def block(case: str, place: str, rows: pd.DataFrame, spare: Collection[str] = ()) -> Sheet:
    """One problem instance in one dtype on one device (``place``), without the ``spare`` columns."""
    fine, narrow = rows[rows["status"] == "ok"], bool(spare)
    truths = ", ".join(sorted(set(fine["truth"].dropna()))) or "unknown"
    count = rows["seed"].nunique()
    if fine["error_bound"].isna().all():
        spare = {*spare, "error bound"}
    shown = [i for i, name in enumerate(COLUMNS) if name not in spare]
    lines, refused = [], []
    for name in order(rows["estimator"]):
        mine = rows[rows["estimator"] == name]
        if (mine["status"] == "refused").all():
            refused.append(name)
            continue
        texts = line(name, mine)
        if narrow:
            texts[2] = texts[2].replace(" [", "\n[")  # the cosine
        lines.append(Line([texts[i] for i in shown], "" if (mine["status"] == "ok").any() else "red"))
    captions = [f"does not apply (reasons below): {', '.join(refused)}."] if refused else []
    if count >= LEAST_SEEDS:  # with fewer there is one note for all
        captions.append(ranking(rows).sentence)
    words = ("estimator", "estimates", "outcome")
    return Sheet(
        title=f"{case}, {place}, {count} seed{'s' * (count > 1)}; truth: {truths}", tight=narrow, lines=lines,
        heads=[Head(COLUMNS[i], COLUMNS[i] in words, COLUMNS[i] in ("estimator", "cosine")) for i in shown],
        caption=" ".join(captions),
    )  # fmt: skip


def line(name: str, rows: pd.DataFrame) -> list[str]:
    """One estimator on one problem instance."""
    fine = rows[rows["status"] == "ok"]
    states = Counter(fine["outcome"].dropna())
    states.update(rows.loc[rows["status"] != "ok", "status"])
    outcome = ", ".join(what if len(states) == 1 else f"{what} ({n})" for what, n in states.items())
    if fine.empty:
        return [name, *[""] * (len(COLUMNS) - 2), outcome]
    unknown = "unknown" if fine["truth"].isna().all() else "not finite"  # no truth: there is nothing to compare with
    undefined = fine.loc[fine["cosine"].isna(), "relative_error"].notna().all()
    scale = SCALES.get(fine["scale"].iloc[0], "")
    return [
        name,
        str(fine["of"].iloc[0]),
        spread(fine["cosine"], lambda x: f"{x:.4f}", "undefined" if undefined else unknown),
        spread(fine["relative_error"], short, unknown) + scale * (unknown != "unknown"),
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
    return (middle if low == high else f"{middle} [{low}..{high}]") + lost


def _brief(text: str) -> str:
    """What an outcome means, without the advice."""
    head, _, rest = text.partition(": ")
    return (head if " " in head else rest or head).partition("; ")[0]


def _reasons(frame: pd.DataFrame) -> list[Note]:
    """Failures and refusals, equal ones together."""
    notes = []
    for status, style in (("failed", "red"), ("refused", "dim")):
        rows = frame[frame["status"] == status]
        if rows.empty:
            continue
        notes.append(Note(f"\n{status}", "bold"))
        for (name, reason), group in rows.groupby(["estimator", "reason"], sort=False, dropna=False):
            cases = ", ".join(dict.fromkeys(group["case"] + group["kind"].map({"path": " path"}).fillna("")))
            notes.append(Note(f"{name} on {cases}: {reason}", style))
    return notes
