"""What the figures share."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import WIDTH, Look, in_column, look, order, width

FLOOR = 1e-16
"""Where an error of exactly 0 is drawn on a logarithmic axis."""


def handle(name: str, names: Sequence[str], label: str | None = None, *, line: bool = True) -> Line2D:
    """A legend entry."""
    style = look(name, names)
    return Line2D(
        [], [], color=style.color, marker=style.marker, linestyle=style.line if line else "none", label=label or name,
        markeredgewidth=0.8,
    )  # fmt: skip


LOWEST = 1.3
"""Inches of height of a line of panels that can still be read."""


def panels(
    count: int,
    each: float,
    rest: float,
    most: int = 0,
    *,
    tallest: float = 7.2,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure with panels of one size: side by side on a page, and in one column of a paper half as many, so that two or three
    are stacked. Those are lower where the column would be too tall, but not lower than `LOWEST`.

    Args:
        count: how many.
        each: inches of height of one line of them.
        rest: inches of height of what there is besides: title and legend.
        most: so many side by side on a page; else all.
        tallest: inches of height in a column, without what `legend_below` adds.
        sharex: as of `Figure.subplots`; so is ``sharey``.

    Returns:
        The figure, and its axes, shape (lines, columns); those beyond ``count`` are hidden.
    """
    columns = min(most or count, count)
    if in_column():
        columns = max(columns // 2, 1)
    lines = -(-count // columns)
    if in_column():
        each = min(each, max((tallest - rest) / lines, LOWEST))
    figure = Figure(figsize=(width(), rest + each * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=sharex, sharey=sharey)
    for axes in list(grid.flat)[count:]:
        axes.set_visible(False)
    return figure, grid


def title_above(figure: Figure, text: str) -> None:
    """What all panels have in common, wrapped to the width."""
    figure.suptitle(textwrap.fill(text, int(110 * figure.get_figwidth() / WIDTH)), fontsize=8)


ROOM = 0.6
"""Inches of a figure's height that its legend may take; for more the figure grows."""


def legend_below(figure: Figure, handles: Sequence[Any], columns: int, notes: Sequence[str] = ()) -> None:
    """One legend for all panels, outside of them, and under it small grey lines; the figure grows for what there is no room for.

    Args:
        figure: its panels are there.
        handles: of the legend.
        columns: of the legend, or fewer if so many are too wide.
        notes: each is wrapped.
    """
    words = {"handlelength": 2.6, "columnspacing": 1.4, "fontsize": 7}
    columns, tall = _fitting(figure, handles, words | {"ncols": columns})
    more = note_below(figure, notes, max(tall - ROOM, 0))
    words |= {"ncols": columns, "borderaxespad": 0.5 + more * 72 / 7}  # above the notes
    figure.legend(handles=list(handles), loc="outside lower center", **words)


def note_below(figure: Figure, notes: Sequence[str], grow: float = 0) -> float:
    """Small grey lines at the foot of a figure, for which it grows, and by ``grow`` inches.

    Returns:
        The height of the lines, in inches.
    """
    width, height = figure.get_size_inches()
    lines = [line for note in notes for line in textwrap.wrap(note, int(160 * width / WIDTH))]
    more = 0.108 * len(lines) + 0.04 * bool(lines)  # inches
    grown = height + more + grow
    figure.set_size_inches(width, grown)
    low = more / grown
    figure.set_layout_engine("constrained", rect=(0, low, 1, 1 - low))
    figure.text(0.01, low, "\n".join(lines), va="top", fontsize=6, color="#666666", linespacing=1.2)
    return more


def _fitting(figure: Figure, handles: Sequence[Any], words: Mapping[str, Any]) -> tuple[int, float]:
    """(columns with which a legend is not wider than the figure, its height in inches)."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(words["ncols"], 0, -1):
        legend = figure.legend(
            handles=list(handles), loc="lower left", **{**words, "ncols": columns, "borderaxespad": 0}
        )
        box = legend.get_window_extent(renderer)
        legend.remove()
        if box.width <= figure.bbox.width or columns == 1:
            break
    return columns, box.height / figure.dpi


def setting_of(label: str) -> str:
    """The short name of a point of "cg(solver.steps=5, solver.rtol=0)": the 5."""
    return label.partition("(")[2].rstrip(")").split(",")[0].partition("=")[2]


def budget_of(label: str) -> str:
    """The number of "cg(solver.steps=5)"; "" where the fields are not one number."""
    fields = label.partition("(")[2].rstrip(")")
    value = setting_of(label)
    return value if "," not in fields and value.replace(".", "", 1).isdecimal() else ""


def not_shown(items: Sequence[str]) -> list[str]:
    """The note on what is left out, if anything is."""
    return ["not shown: " + "; ".join(items)] if items else []


def one_place(rows: pd.DataFrame) -> tuple[pd.DataFrame, str, list[str]]:
    """Rows of one dtype on one device: others are never pooled with them.

    Returns:
        The rows of the place that most results have, what a title adds about it, and the names of the others.
    """
    places = pd.Series(list(zip(rows["dtype"], rows["device_asked"], strict=True)), index=rows.index, dtype=object)
    counts = places[rows["status"] == "ok"].value_counts()
    if counts.empty:
        return rows, "", []
    kept = max(counts.index, key=lambda place: (counts[place], place))
    dtype, device = kept
    title = f", {dtype}" * (dtype != "float64") + f", {device}" * (device != "cpu")
    others = [d + f" on {v}" * (v != device) for d, v in sorted({*places} - {kept})]
    return rows[[place == kept for place in places]], title, others


def missing(rows: pd.DataFrame, values: Sequence[str], names: Collection[str] = ()) -> list[str]:
    """``name (reason)`` of what failed or lacks one of ``values``; of what was refused too if it is in ``names``."""
    notes = []
    for name in order(rows["estimator"]):
        mine = rows[rows["estimator"] == name]
        reasons = Counter(r for _, row in mine.iterrows() if (r := _reason(row, values, name in names)))
        texts = [why if n == len(mine) else f"{why}, {n} of {len(mine)}" for why, n in reasons.items()]
        if texts:
            notes.append(f"{name} ({', '.join(texts)})")
    return notes


def _reason(row: pd.Series, values: Sequence[str], refusals: bool) -> str | None:
    if row["status"] == "refused":
        return "does not apply" if refusals else None
    if row["status"] != "ok":
        return textwrap.shorten(f"{row['status']}: {row['reason'] or 'no reason given'}", 60, placeholder=" …")
    lost = [v for v in values if pd.isna(row[v])]
    if not lost:
        return None
    return "undefined: the answer is 0" if lost == ["angle"] and pd.notna(row["relative_error"]) else "not finite"


ARROWS = {
    "down": "↓ better", "up": "↑ better", "down left": "↙ better", "up left": "↖ better", "up right": "↗ better",
    "left": "← better", "right": "→ better", "to the dashes": "dashes: best",
}  # fmt: skip


def better(axes: Axes, where: str) -> None:
    """Mark the direction of better above the panel: one of `ARROWS`, or "" where neither side is."""
    if not where:
        return
    axes.annotate(
        ARROWS[where], (1.0, 1.0), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", ha="right", va="bottom",
        fontsize=6.5, color="#555555", gid="better",
    )  # fmt: skip


def coinciding(curves: dict[str, np.ndarray], tolerance: float) -> list[list[str]]:
    """Names whose curves differ by at most ``tolerance`` from the first of their group, in the usual order."""
    groups: list[list[str]] = []
    for name in order(curves):
        for group in groups:
            a, b = curves[group[0]], curves[name]
            if a.shape == b.shape and np.allclose(a, b, atol=tolerance, rtol=0, equal_nan=True):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def floored(values: pd.Series, floor: float = FLOOR) -> pd.Series:
    """For a logarithmic axis."""
    return values.clip(lower=floor)


def log_limits(low: float, high: float) -> tuple[float, float]:
    """Ends of a logarithmic axis: some room at both, and a factor of 2.5 at least, so that equals look equal."""
    room = max((high / low) ** 0.15, (2.5 / min(high / low, 2.5)) ** 0.5)
    return low / room, high * room


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends, few enough to be read."""
    found: list[float] = []
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [
            s * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for s in steps
        ]
        found = [t for t in found if low <= t <= high]
        if len(found) <= 4:
            break
    return found


def area(marker: str, points: float) -> float:
    """Size for ``scatter`` at which markers look alike: stars and crosses have little ink."""
    return points * {"*": 2.2, "P": 1.3, "X": 1.3, "d": 1.2, "s": 0.8, "D": 0.7}.get(marker, 1.0)


def band(axes: Axes, rows: pd.DataFrame, x: str, y: str, look: Look, label: str) -> None:
    """The median of ``y`` over all rows that share an ``x``, and their whole range behind it."""
    spread = rows.groupby(x)[y].agg(["min", "median", "max"]).dropna()
    axes.fill_between(spread.index, spread["min"], spread["max"], color=look.color, alpha=0.15, linewidth=0)
    axes.plot(
        spread.index, spread["median"], color=look.color, marker=look.marker, linestyle=look.line, markersize=3, label=label
    )  # fmt: skip
