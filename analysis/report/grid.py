"""A table of the page: a frame, what its columns are called and mean, and the result files behind each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from ..text import short

SOURCES = "sources"
"""The column of a grid's frame that lists the ids of the result files behind a row."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        key: of the frame.
        head: what stands above it.
        about: what it means, with its unit.
        write: number -> text; None for a column of words.
        better: "less" or "more", "" where neither is.
        spread: whether the frame has ``key_low`` and ``key_high`` too, to be shown behind.
        facet: whether the reader can choose among its values.
    """

    key: str
    head: str
    about: str
    write: Callable[[float], str] | None = None
    better: str = ""
    spread: bool = False
    facet: bool = False

    @property
    def heading(self) -> str:
        return self.head + {"less": " ↓", "more": " ↑"}.get(self.better, "")


@dataclass(frozen=True, kw_only=True)
class Field:
    """What stands in one place of a table.

    Attributes:
        text: the number or the words, "" for nothing.
        spread: its interval, "" for none.
        key: what it is sorted by: a number, words, or None, which comes last.
    """

    text: str
    spread: str
    key: float | str | None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table.

    Attributes:
        name: of its file when it is downloaded, and of its place on the page.
        title: what it shows.
        notes: how to read it.
        columns: in order.
        frame: a row a line, with the columns' keys, `SOURCES`, and ``status`` where lines can have failed.
    """

    name: str
    title: str
    notes: Sequence[str]
    columns: Sequence[Column]
    frame: pd.DataFrame

    @cached_property
    def shown(self) -> list[Column]:
        """The columns but for those that say the same in every line (see `common`), or nothing."""
        return [c for i, c in enumerate(self.columns) if i == 0 or not (c.facet and len(self._values[c.key]) <= 1)]

    @property
    def common(self) -> list[tuple[str, str]]:
        """(head, value) of what all lines have in common."""
        return [(c.head, self._values[c.key][0]) for c in self.columns if c not in self.shown and self._values[c.key]]

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        """What the columns that are facets hold, as it is written."""
        texts = {c.key: [_field(c, row).text for _, row in self.frame.iterrows()] for c in self.columns if c.facet}
        return {key: [text for text in dict.fromkeys(found) if text] for key, found in texts.items()}

    def fields(self, row: pd.Series) -> list[Field]:
        """One line as it is shown."""
        return [_field(column, row) for column in self.shown]

    def lines(self) -> list[dict[str, Any]]:
        """All lines: fields, ids of the result files, status, and the place on the page."""
        statuses = self.frame["status"] if "status" in self.frame else pd.Series("ok", index=self.frame.index)
        return [
            {"fields": self.fields(row), "sources": row[SOURCES], "status": status, "anchor": f"{self.name}-{i}"}
            for i, ((_, row), status) in enumerate(zip(self.frame.iterrows(), statuses, strict=True))
        ]

    def facets(self) -> list[tuple[int, Column, list[str]]]:
        """(place, column, its values) of what the reader can choose from; of one value there is no choice."""
        found = [(i, c, self._values.get(c.key, [])) for i, c in enumerate(self.shown)]
        return [entry for entry in found if len(entry[2]) > 1]

    def csv(self) -> str:
        """Everything at full precision; the files' ids in one column, separated by spaces."""
        keys = [k for c in self.columns for k in ([c.key, f"{c.key}_low", f"{c.key}_high"] if c.spread else [c.key])]
        return csv(self.frame[keys].assign(sources=self.frame[SOURCES].map(" ".join)))


def csv(frame: pd.DataFrame) -> str:
    """``frame`` as CSV; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    words = frame.select_dtypes(exclude="number").columns
    return frame.assign(**{c: frame[c].map(_inert) for c in words}).to_csv(index=False, lineterminator="\n")


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _field(column: Column, row: pd.Series) -> Field:
    value = row[column.key]
    if column.write is None:
        text = "" if value is None or value != value else str(value)  # NaN
        return Field(text=text, spread="", key=text or None)
    if pd.isna(value):
        return Field(text="", spread="", key=None)
    spread = ""
    if column.spread and pd.notna(row[f"{column.key}_low"]):
        ends = [column.write(float(row[f"{column.key}_{end}"])) for end in ("low", "high")]
        spread = "" if ends[0] == ends[1] == column.write(float(value)) else f"[{ends[0]}, {ends[1]}]"
    return Field(text=column.write(float(value)), spread=spread, key=float(value))


def number(x: float) -> str:
    """Two or three digits."""
    return short(x)


def count(x: float) -> str:
    """A whole number."""
    return f"{x:.0f}"
