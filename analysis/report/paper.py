"""SAMA's Tables 2, 8 and 9, with what we measured beside each of their rows."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from ..layouts import LAYOUTS
from ..meta_tables import size
from .grid import SOURCES, Column, Grid, count
from .meta import PLACE

SAME = ("problem", "setting", "dtype", "device_asked", "kernel", "estimator", "unroll", "workers")
"""Cells that agree in these with a line are what it was made of."""

COLUMNS = (
    Column(key="method", head="method", about="as the paper calls it"),
    Column(key="estimator", head="ours", about="the estimator that is the paper's method"),
    *PLACE,
    Column(key="workers", head="workers", about="data-parallel processes, or their GPUs", write=count, facet=True),
    Column(key="throughput", head="examples / s", better="more", write="{:,.4g}".format, about="ours"),
    Column(key="throughput_ratio", head="throughput", better="more", write="{:.3g}".format, about="ours, relative to one worker's base"),
    Column(key="throughput_paper", head="the paper's", better="more", write="{:.3g}".format, about="throughput that was printed, relative"),
    Column(key="throughput_difference", head="difference", write="{:+.2f}".format, about="ours less the paper's"),
    Column(key="memory", head="peak", better="less", write=size, about="ours, of one worker"),
    Column(key="memory_ratio", head="memory", better="less", write="{:.2f}".format, about="ours, relative to one worker's base"),
    Column(key="memory_paper", head="the paper's", better="less", write="{:.2f}".format, about="memory that was printed, relative"),
    Column(key="memory_difference", head="difference", write="{:+.2f}".format, about="ours less the paper's"),
    Column(key="outcome", head="outcome", about="ok, not run, or what went wrong"),
)  # fmt: skip


def grids(frame: pd.DataFrame, prefix: str) -> Iterator[Grid]:
    """One for each of the paper's tables that was measured, at least in part."""
    for name, layout in LAYOUTS.items():
        sheets = layout(frame)
        if not sheets:
            continue
        lines = pd.concat([sheet.data for sheet in sheets], ignore_index=True)
        lines[SOURCES] = [_sources(frame, line) for _, line in lines.iterrows()]
        lines["status"] = lines["outcome"].map({"ok": "ok", "not run": "refused"}).fillna("failed")
        title = f"SAMA's {lines['table'].iloc[0]} beside ours"
        notes = list(dict.fromkeys(sheet.caption for sheet in sheets))
        yield Grid(name=f"{prefix}-{name}", title=title, notes=notes, columns=COLUMNS, frame=lines)


def _sources(frame: pd.DataFrame, line: pd.Series) -> list[str]:
    same = frame["kind"].eq("meta")
    for name in SAME:
        same &= frame[name].isna() if pd.isna(line[name]) else frame[name].eq(line[name])
    return list(frame.loc[same, "id"])
