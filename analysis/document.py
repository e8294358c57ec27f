"""Tables as a document: Markdown, LaTeX, or CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pandas as pd

from . import sheet
from .columns import COLUMNS
from .tables import ALL, of_runs

PAGE = 150
"""Letters of a line, for columns to be left out, that can still be read when it is shrunk to a page."""


def markdown(frame: pd.DataFrame, layout: str = ALL) -> str:
    """Tables under headings, with their notes as paragraphs."""
    parts = []
    for run, found in of_runs(frame, layout):
        parts += [] if run is None else [f"## {sheet.unmarked(run)}"]
        for section in found:
            parts += [
                *map(sheet.markdown, section.sheets),
                *(sheet.unmarked(note.text.strip()) for note in section.notes),
            ]
    return "\n\n".join(parts) + "\n"


def latex(frame: pd.DataFrame, layout: str = ALL) -> str:
    """A ``table`` each, with their notes as paragraphs; for a document that loads booktabs."""
    parts = [sheet.PREAMBLE]
    for run, found in of_runs(frame, layout, PAGE):
        parts += [] if run is None else [rf"\paragraph{{{sheet.tex(run)}}}"]
        for section in found:
            parts += [*map(sheet.latex, section.sheets), *(sheet.tex(note.text.strip()) for note in section.notes)]
    return "\n\n".join(parts) + "\n"


def csv(frame: pd.DataFrame, layout: str = ALL) -> str:
    """Unrounded: all rows and columns of the results; of a layout its rows.

    Series and mappings are JSON text; what is missing is empty.
    """
    if layout == ALL:
        nested = [c.name for c in COLUMNS if c.kind in ("series", "mapping")]
        as_text = {
            name: frame[name].map(lambda x: json.dumps(x) if isinstance(x, (list, dict)) else None) for name in nested
        }
        return frame.assign(**as_text).to_csv(index=False)
    found = [
        s.data.assign(run=run or frame["run"].iloc[0])
        for run, those in of_runs(frame, layout)
        for section in those
        for s in section.sheets
        if s.data is not None
    ]
    return pd.concat(found).to_csv(index=False) if found else ""


FORMS: Mapping[str, Callable[[pd.DataFrame, str], str]] = {"markdown": markdown, "latex": latex, "csv": csv}
