"""Time against peak bytes of every library, a panel a method."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..peer_tables import tasks
from ..style import LIBRARIES, OURS, Look, spare
from .common import area, better, legend_below, log_limits, log_ticks, not_shown, panels, title_above

MIB = 2**20
COLUMNS = 4


ABOUT = "Time against peak memory of the same hypergradient by this library and by others, a panel a method."
PLACE = ["case", "dtype", "device_asked", "seed"]


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a contestant: seconds, peak bytes, and whether its answer is off."""
    mine = _one_place(frame)
    groups = [g[g["status"] == "ok"] for g in tasks(mine)]
    columns = [
        "id",
        "library",
        "version",
        "variant",
        "method",
        "products_or_steps",
        *PLACE,
        "seconds",
        "peak_bytes",
        "relative_error",
        "wrong",
    ]
    return pd.concat(groups, ignore_index=True)[columns] if groups else pd.DataFrame(columns=columns)


def draw(frame: pd.DataFrame) -> Figure | None:
    """A panel a method of the problem, precision and device that most contestants have; numbered where a library has several
    ways."""
    mine = _one_place(frame)
    if mine.empty:
        return None
    best = mine.iloc[0][PLACE]
    groups = [g for g in tasks(mine) if (g["status"] == "ok").any()]
    figure, grid = panels(len(groups), 2.0, 0.5, COLUMNS)
    names = [
        name
        for name in [*LIBRARIES, *sorted(set(mine["library"].dropna()) - LIBRARIES.keys())]
        if name in set(mine["library"].dropna())
    ]
    for axes, group in zip(grid.flat, groups, strict=False):
        _panel(axes, group, names)
    title_above(figure, ", ".join(best[["case", "dtype", "device_asked"]]))
    handles = [
        Line2D(
            [],
            [],
            color=_look(n, names).color,
            marker=_look(n, names).marker,
            linestyle="none",
            label="this library" if n == OURS else n,
        )
        for n in names
    ]
    handles.append(
        Line2D(
            [], [], color="#555555", marker="o", markerfacecolor="none", linestyle="none", label="off by more than 5 %"
        )
    )
    notes = [
        "medians of calls taken in turn; exact peak of live tensors above what was there before (sama: parameters and slots included)"
    ]
    absent = [
        f"{e} ({m}: {str(r).splitlines()[0]})"
        for e, m, r in mine.loc[mine["status"] != "ok", ["estimator", "method", "reason"]].itertuples(index=False)
    ]
    legend_below(figure, handles, 7, [*notes, *not_shown(absent)])
    return figure


def _one_place(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the problem, precision, device and seed for which most succeeded; none if nothing did."""
    rows = frame[frame["kind"] == "peers"]
    fine = rows[rows["status"] == "ok"]
    if fine.empty:
        return fine
    return rows[(rows[PLACE] == list(fine.groupby(PLACE).size().idxmax())).all(axis=1)]


def _look(name: str, names: list[str]) -> Look:
    if name in LIBRARIES:
        return LIBRARIES[name]
    return spare(name, set(names) - LIBRARIES.keys())


def _panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    fine = rows[rows["status"] == "ok"]
    for name in names:
        points, style = fine[fine["library"] == name], _look(name, names)
        x, y = points["peak_bytes"] / MIB, points["seconds"] * 1e3
        faces = ["none" if wrong else style.color for wrong in points["wrong"]]
        axes.scatter(
            x, y, s=area(style.marker if isinstance(style.marker, str) else "", 30), facecolors=faces, edgecolors=style.color,
            marker=style.marker, linewidths=0.9, zorder=4 if name == OURS else 3, gid=name,
        )  # fmt: skip
        if name == OURS and len(points) > 1:
            at = points.sort_values("peak_bytes")
            axes.plot(
                at["peak_bytes"] / MIB, at["seconds"] * 1e3, color=style.color, linewidth=0.8, alpha=0.6, zorder=2
            )
    axes.set(xscale="log", yscale="log")
    axes.set_title(f"{rows['method'].iloc[0]}, {int(rows['products_or_steps'].iloc[0])}", loc="left", fontsize=7)
    axes.set_xlabel("peak (MiB)", fontsize=7)
    axes.set_ylabel("time (ms)", fontsize=7)
    better(axes, "down left")
    for axis, limits, values in (
        (axes.xaxis, axes.set_xlim, fine["peak_bytes"] / MIB),
        (axes.yaxis, axes.set_ylim, fine["seconds"] * 1e3),
    ):
        low, high = log_limits(float(values.min()), float(values.max()))
        limits(low, high)
        ticks = log_ticks(low, high)
        axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_ticks([], minor=True)
    axes.tick_params(which="both", labelsize=6)
    axes.grid()
