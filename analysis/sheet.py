"""A table before it has a form: plain text in rows, which the terminal, Markdown and LaTeX then write in their ways."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Head(NamedTuple):
    """Of a column.

    Attributes:
        text: its name; two columns may have the same.
        words: whether it holds words, which start at the left, or numbers.
        whole: whether the terminal must not break its lines.
    """

    text: str
    words: bool = False
    whole: bool = False


class Line(NamedTuple):
    """A row.

    Attributes:
        cells: one a column.
        style: on a terminal, as `rich` says it: "dim", "red".
    """

    cells: Sequence[str]
    style: str = ""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table.

    Attributes:
        title: above it.
        heads: its columns.
        lines: its rows.
        caption: below it, in sentences.
        tight: for a narrow terminal.
        data: the same unrounded, a row a line, for CSV; None if that is the results themselves.
    """

    title: str
    heads: Sequence[Head]
    lines: Sequence[Line]
    caption: str = ""
    tight: bool = False
    data: pd.DataFrame | None = field(default=None, compare=False)


def terminal(sheet: Sheet) -> Table:
    """For `rich` to print."""
    table = Table(
        title=escape(sheet.title), title_justify="left", title_style="bold", padding=(0, 0 if sheet.tight else 1)
    )
    for head in sheet.heads:
        longest = max(map(len, head.text.split()), default=None)  # a head is broken between words only
        table.add_column(
            escape(head.text),
            justify="left" if head.words else "right",
            overflow="fold",
            no_wrap=head.whole,
            min_width=longest,
        )
    for line in sheet.lines:
        table.add_row(*map(escape, line.cells), style=line.style)
    table.caption, table.caption_justify = (escape(sheet.caption) or None), "left"
    return table


def markdown(sheet: Sheet) -> str:
    """A heading, a table with bars, a paragraph."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(unmarked(c).split()) for c in cells) + " |"

    rule = "|" + "|".join("---" if head.words else "---:" for head in sheet.heads) + "|"
    table = [line([head.text for head in sheet.heads]), rule, *(line(found.cells) for found in sheet.lines)]
    return "\n".join(
        [
            f"### {unmarked(_flat(sheet.title))}",
            "",
            *table,
            *(["", unmarked(sheet.caption)] if sheet.caption else []),
        ]
    )


def latex(sheet: Sheet) -> str:
    """A ``table`` with the rules of booktabs, shrunk to the line if it would be longer; the caption has the title."""
    frame = pd.DataFrame([list(found.cells) for found in sheet.lines], columns=range(len(sheet.heads)), dtype=object)
    body = frame.map(tex).to_latex(
        index=False, header=[tex(head.text) for head in sheet.heads], escape=False,
        column_format="".join("l" if head.words else "r" for head in sheet.heads),
    ).rstrip()  # fmt: skip
    columns = zip([head.text for head in sheet.heads], *(found.cells for found in sheet.lines), strict=True)
    if sum(max(map(len, column)) + 3 for column in columns) > LETTERS:
        body = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body}}}"
    said = ". ".join(part.rstrip(".") for part in (_flat(sheet.title), sheet.caption) if part)
    return "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{tex(said)}.}}", body, r"\end{table}"])


class Note(NamedTuple):
    """A paragraph below tables.

    Attributes:
        text: of it.
        style: on a terminal.
        whole: whether the terminal must not break it, code for one.
    """

    text: str
    style: str = ""
    whole: bool = False


class Section(NamedTuple):
    """Tables of one kind, and what there is to say of all of them."""

    sheets: Sequence[Sheet]
    notes: Sequence[Note]

    def show(self, console: Console) -> None:
        """Print all of it."""
        for sheet in self.sheets:
            console.print(terminal(sheet))
        for note in self.notes:
            console.print(note.text, style=note.style, markup=False, soft_wrap=note.whole)


LETTERS = 90
"""That fit a line of a page."""
PREAMBLE = "% In the preamble: \\usepackage{booktabs,graphicx,textcomp}"

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "`": r"\textasciigrave{}", "×": r"$\times$", "→": r"$\rightarrow$", "²": r"$^2$", "\N{MINUS SIGN}": "$-$", "\n": " ",
}  # fmt: skip
"""What LaTeX reads as a command, or has no letter for."""


def tex(text: str) -> str:
    """``text`` as LaTeX prints it."""
    known = "".join(TEX.get(letter, letter) for letter in text if letter.isprintable() or letter == "\n")
    known = known.replace("[", "{[}")  # after a line's end it would be an option of the break
    known = known.replace("--", "-{}-")  # or it is a dash
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", known)


def unmarked(text: str) -> str:
    """``text`` as Markdown shows it: without entities, emphasis, links, code or another column."""
    text = (
        "".join(letter for letter in text if letter.isprintable() or letter == "\n")
        .replace("&", "&amp;")
        .replace("<", "&lt;")
    )
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in text)


def _flat(title: str) -> str:
    return "; ".join(title.splitlines())
