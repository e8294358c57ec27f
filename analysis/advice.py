"""Which estimator to take: what was measured on one problem -> a table, a recommendation, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from .meta_tables import size
from .sheet import Head, Line, Note, Section, Sheet
from .style import order
from .text import short

REFERENCE = "reference"
FLOOR = 1e-4
"""Smaller errors are alike: nobody pays for them."""
AT_OPTIMUM = 1e-3
"""Gradient at the end of the run, relative to the start's, below which it has reached an optimum."""
BEWARE = ("indefinite", "young", "not stationary", "diverged", "missed", "singular", "not positive", "nonfinite")
"""Outcomes that a user should know of before taking an estimator."""
LIMITS: Mapping[str, Any] = {
    "memory": None, "time_ratio": None, "time_seconds": None, "tolerance": 0.05, "error": "direction",
}  # fmt: skip
"""None: no limit."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What the rows say.

    Attributes:
        rows: one a candidate, by label; see `candidates`.
        limits: see `LIMITS`.
        truth: what errors are to, in words; None if there was no reference.
        gradient_ratio: of the run's end, relative to its start; None if unknown.
        best: label of the smallest error within the limits, None if nothing fits.
        choice: label of the cheapest whose error is within the tolerance of the best.
        nearest: label of what misses the limits by least, where nothing fits.
    """

    rows: pd.DataFrame
    limits: Mapping[str, Any]
    truth: str | None
    gradient_ratio: float | None
    best: str | None
    choice: str | None
    nearest: str | None


def advise(frame: pd.DataFrame, limits: Mapping[str, Any] | None = None) -> Advice:
    """Judge the rows of kind "advice" of one problem.

    Args:
        frame: as `results.load` gives it.
        limits: see `LIMITS`; those that are missing are none.
    """
    limits = {**LIMITS, **(limits or {})}
    frame = frame[frame["kind"] == "advice"]
    references = frame[frame["name"].eq(REFERENCE) & frame["status"].eq("ok")]
    rows = candidates(frame[frame["name"] != REFERENCE], limits)
    may = rows[rows["fits"] & ~rows["control"] & rows["error"].notna()]
    best = choice = nearest = None
    if len(may):
        best = str(may.assign(error=may["error"].clip(lower=FLOOR)).sort_values(["error", "time"]).index[0])
        near = may[may["error"] <= max(may.loc[best, "error"], FLOOR) + limits["tolerance"]]
        fast = near[near["time"] <= 1.05 * near["time"].min()]  # times that cannot be told apart
        choice = str(fast.sort_values("peak").index[0])
        if may.loc[choice, "error"] <= max(may.loc[best, "error"], FLOOR):  # alike: the cheapest of them is the best
            best = choice
    elif len(missed := rows[(rows["excess"] > 1) & ~rows["control"]]):
        nearest = str(missed["excess"].idxmin())
    return Advice(
        rows=rows, limits=limits, best=best, choice=choice, nearest=nearest,
        truth=", ".join(dict.fromkeys(references["truth"])) or None,
        gradient_ratio=None if references["gradient_ratio"].isna().all() else float(references["gradient_ratio"].max()),
    )  # fmt: skip


def of_places(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame, Advice]]:
    """(what it is, its rows, what they say) of each problem in each dtype on each device that advice was asked for; without those
    of which there is no candidate yet."""
    rows, found = frame[frame["kind"] == "advice"], []
    for (case, dtype, device), mine in rows.groupby(["case", "dtype", "device_asked"], sort=False):
        if mine["name"].ne(REFERENCE).any():
            head = f"{case}, {dtype}" + f", {device}" * (device != "cpu")
            found.append((head, mine, advise(mine, frame.attrs.get("limits"))))
    return found


def candidates(frame: pd.DataFrame, limits: Mapping[str, Any]) -> pd.DataFrame:
    """One row a candidate, indexed by its label.

    Columns: name, status, reason, control, code, outcome and its text; error with error_low and error_high, cosine,
    relative_error and norm_ratio (medians over points); time (in runs), seconds, peak (bytes), products, bound; points; excess
    (the largest ratio to a limit), fits; front_time and front_memory (no other candidate has less error and less time, or memory).
    """
    relative = limits["error"] == "relative"
    known = frame["relative_error"] if relative else distance(frame["angle"])
    if known.isna().all():  # there was no reference
        known = frame["error_bound"] if relative else distance(frame["error_bound_angle"])
    frame = frame.assign(error=known)
    found = []
    for label in order(frame["estimator"]):
        mine = frame[frame["estimator"] == label]
        fine = mine[mine["status"] == "ok"]
        costed = mine[mine["meta_peak"].notna()]
        first = (costed if len(costed) else mine).iloc[0]
        ratio, seconds, peak = first["run_ratio"], first["meta_seconds"], first["meta_peak"]
        over = [
            value / limit
            for value, limit in (
                (peak, limits["memory"]),
                (ratio, limits["time_ratio"]),
                (seconds, limits["time_seconds"]),
            )
            if limit is not None and pd.notna(value)
        ]
        lost = mine[mine["status"] != "ok"]
        discarded = first["predicted"] is True
        found.append({
            "label": label, "name": first["name"], "reason": None if lost.empty else lost["reason"].iloc[0],
            "status": "discarded" if discarded else "ok" if lost.empty else lost["status"].iloc[0],
            "control": bool(first["control"]), "code": first["code"], "points": len(fine),
            "outcomes": {w: t for o in fine["outcomes"] for w, t in o.items()},
            "error": fine["error"].median(), "error_low": fine["error"].min(), "error_high": fine["error"].max(),
            "cosine": fine["cosine"].median(), "relative_error": fine["relative_error"].median(),
            "norm_ratio": fine["norm_ratio"].median(), "time": ratio, "seconds": seconds, "peak": peak,
            "products": first["products"], "bound": first["error_bound"],
            "excess": max(over, default=0.0), "fits": lost.empty and pd.notna(peak) and max(over, default=0.0) <= 1,
        })  # fmt: skip
    rows = pd.DataFrame(found).set_index("label")
    fine = rows[rows["status"].eq("ok") & ~rows["control"] & rows["error"].notna()]
    for column, cost in (("front_time", "time"), ("front_memory", "peak")):
        rows[column] = rows.index.isin(front(fine, cost))
    return rows


def distance(angle: pd.Series) -> pd.Series:
    """Of the unit vectors, from the angle in degrees: 0 the same, 1.41 across, 2 opposite."""
    return 2 * np.sin(np.radians(angle.astype(float)) / 2)


def front(rows: pd.DataFrame, cost: str) -> list[str]:
    """Labels of the rows that no other beats in both ``cost`` and error, by rising cost."""
    least, kept = np.inf, []
    floored = rows.assign(error=rows["error"].clip(lower=FLOOR))
    for label, row in floored.sort_values([cost, "error"]).iterrows():
        if row["error"] < least:
            least = row["error"]
            kept.append(str(label))
    return kept


def show(advice: Advice, console: Console, *, head: str = "", notes: Sequence[str] = ()) -> None:
    """Print the table, the recommendation, and what to beware of.

    Args:
        head: what the problem is.
        notes: on how the reference was chosen.
    """
    section(advice, head=head, notes=notes).show(console)


def section(advice: Advice, *, head: str = "", notes: Sequence[str] = ()) -> Section:
    """The same as a table and what follows it."""
    said = []
    for name in ("refused", "failed", "discarded"):
        rows = advice.rows[advice.rows["status"] == name]
        for reason, group in rows.groupby("reason", sort=False):
            said.append(Note(f"{name}: {', '.join(group.index)}: {reason}", "dim"))
    said += [Note(f"Note: {note}.") for note in notes]
    said += [Note(line, whole=True) for line in words(advice)]
    return Section([_table(advice, head)], said)


def words(advice: Advice) -> list[str]:
    """The recommendation, and what to beware of."""
    return [*_recommendation(advice), *_warnings(advice)]


def _table(advice: Advice, head: str) -> Sheet:
    limits, bounded = _limits(advice.limits), bool(advice.rows["bound"].notna().any())
    heads = [
        Head("", words=True), Head("estimator", words=True, whole=True), Head("error", whole=True), Head("cosine"),
        Head("relative error"), Head("norm ratio"), Head("time / run"), Head("peak"), Head("products"),
        Head("outcome", words=True, whole=True), Head("fits", words=True), *[Head("error bound")] * bounded,
    ]  # fmt: skip
    lines = []
    rows = advice.rows[advice.rows["status"].isin(["ok", "discarded"])]
    for label, row in rows.sort_values(["control", "error"], kind="stable").iterrows():
        mark = "→" if label == advice.choice else ""
        marks = mark + "T" * bool(row["front_time"]) + "M" * bool(row["front_memory"])
        style = "bold" if mark else "dim" if row["control"] or not row["fits"] else ""
        texts = _texts(str(label), row, advice.limits) + ([written(row["bound"])] if bounded else [])
        lines.append(Line([marks, *texts], style))
    return Sheet(
        title=f"{head}\nerror: {_error_words(advice)}; limits: {limits or 'none'}", heads=heads, lines=lines,
        caption="→ recommended; T, M: no other has less error and less time (T) or memory (M). error: median over points "
        "[smallest..largest]. time / run: a whole meta step, in runs without it. peak: exact bytes of live tensors, parameters and "
        "slots included. Dim: outside the limits, or no estimate but what one must beat."
        + " error bound: of the relative error to the optimum's derivative, found without any reference." * bounded,
    )  # fmt: skip


def _texts(label: str, row: pd.Series, limits: Mapping[str, Any]) -> list[str]:
    missing = "undefined" if row["points"] else ""
    error = short(row["error"]) if pd.notna(row["error"]) else missing
    if pd.notna(row["error"]) and short(row["error_low"]) != short(row["error_high"]):
        error += f" [{short(row['error_low'])}..{short(row['error_high'])}]"
    return [
        label, error, *(written(row[k], "{:.4f}" if k == "cosine" else None) for k in ("cosine", "relative_error", "norm_ratio")),
        written(row["time"], "{:.2f}"), "" if pd.isna(row["peak"]) else size(row["peak"]), written(row["products"], "{:.0f}"),
        ", ".join(row["outcomes"]), _fits(row, limits),
    ]  # fmt: skip


def written(value: float, form: str | None = None) -> str:
    """A number, or nothing where there is none."""
    return "" if pd.isna(value) else form.format(value) if form else short(value)


def _over(row: pd.Series, limits: Mapping[str, Any]) -> dict[str, str]:
    """Limit -> how it is exceeded."""
    over = {}
    if limits["memory"] is not None and row["peak"] > limits["memory"]:
        over["memory"] = f"{size(row['peak'])} of {size(limits['memory'])}"
    if limits["time_ratio"] is not None and row["time"] > limits["time_ratio"]:
        over["time"] = f"{row['time']:.3g}x of {limits['time_ratio']:g}x"
    if limits["time_seconds"] is not None and row["seconds"] > limits["time_seconds"]:
        over["time"] = f"{row['seconds']:.3g} s of {limits['time_seconds']:g} s"
    return over


def _fits(row: pd.Series, limits: Mapping[str, Any]) -> str:
    if row["status"] == "discarded":
        return "no: predicted"
    return "yes" if row["fits"] else f"no: {', '.join(_over(row, limits)) or 'not measured'}"


def _limits(limits: Mapping[str, Any]) -> str:
    words = []
    if limits["memory"] is not None:
        words.append(size(limits["memory"]))
    if limits["time_ratio"] is not None:
        words.append(f"{limits['time_ratio']:g} times the run")
    if limits["time_seconds"] is not None:
        words.append(f"{limits['time_seconds']:g} s")
    return ", ".join(words)


def _error_words(advice: Advice) -> str:
    what = (
        "relative error"
        if advice.limits["error"] == "relative"
        else "distance of the directions (0 same, 1.41 across, 2 opposite)"
    )
    if advice.truth is None and advice.rows["error"].notna().any():
        return f"upper bound on the {what} to the derivative of the optimum, since no reference could be had"
    return f"{what} to the {advice.truth}" if advice.truth else "no reference could be had"


def _recommendation(advice: Advice) -> list[str]:
    rows = advice.rows
    if advice.choice is not None:
        choice, best = rows.loc[advice.choice], rows.loc[advice.best]
        lines = [f"Recommended: {advice.choice}, {_words(choice)}.", f"    {choice['code']}"]
        if advice.choice == advice.best:
            alike = f" (below {FLOOR:.0e} all count as equal)".replace("e-0", "e-") if best["error"] < FLOOR else ""
            lines.append(f"No other has a smaller error within the limits{alike}.")
        else:
            lines[0] = lines[0][:-1] + f": the cheapest within {advice.limits['tolerance']:g} of the smallest error."
            lines += [f"Smallest error within the limits: {advice.best}, {_words(best)}.", f"    {best['code']}"]
        control = rows[rows["control"] & (rows["error"] <= max(choice["error"], FLOOR))]
        if len(control):
            lines.append(
                f"Beware: {', '.join(control.index)} is no worse, without any second-order work: nothing speaks for an estimator here."
            )
        return lines
    if advice.truth is None and advice.rows["error"].isna().all():
        return [
            "No recommendation: without a reference nothing is known of errors. Raise --budget; the table says what fits."
        ]
    if advice.nearest is not None:
        row = rows.loc[advice.nearest]
        return [
            f"Nothing fits. Nearest: {advice.nearest}, {_words(row)}: {', '.join(_over(row, advice.limits).values())}, "
            f"{row['excess']:.2g} times the limit.", *([f"    {row['code']}"] if isinstance(row["code"], str) else []),
        ]  # fmt: skip
    return ["No recommendation: no candidate gave an estimate; the reasons stand above."]


def _words(row: pd.Series) -> str:
    words = [f"error {short(row['error'])}"] if pd.notna(row["error"]) else []
    words += [f"{row['time']:.3g} times the run"] if pd.notna(row["time"]) else []
    words += [size(row["peak"])] if pd.notna(row["peak"]) else []
    return ", ".join(words)


def _warnings(advice: Advice) -> list[str]:
    lines = []
    ratio = advice.gradient_ratio
    if ratio is not None and ratio > AT_OPTIMUM:
        of = "the optimum" if advice.truth and advice.truth.startswith(("CG", "closed")) else "the steps taken"
        lines.append(
            f"The run does not end at an optimum: its last gradient is {short(ratio)} of its first. Implicit estimators answer for the "
            f"optimum, unrolled ones for the steps taken, and these differ here; errors are to {of} (--reference asks the other)."
        )
    for label in dict.fromkeys(x for x in (advice.choice, advice.best) if x is not None):
        for word, text in advice.rows.loc[label, "outcomes"].items():
            if word in BEWARE:
                lines.append(f"Beware: {label}: {text}.")
    seen: dict[str, list[str]] = {}
    for label, row in advice.rows.iterrows():
        for word in row["outcomes"]:
            if word in BEWARE and label not in (advice.choice, advice.best):
                seen.setdefault(word, []).append(str(label))
    lines += [f"{word}: {', '.join(labels)}." for word, labels in seen.items()]
    points = advice.rows.loc[advice.rows["status"] == "ok", "points"]
    if len(points) and points.max() < 2:
        lines.append("Errors are from one point: raise --points, or --budget, to see how they spread.")
    return lines
