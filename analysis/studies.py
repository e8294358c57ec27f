"""Result files of studies -> what they claim, as a table on the terminal and as pages of the docs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import figures

SCHEMAS = (1,)
"""Versions of the result files that can be read."""

RULES = "rules"
"""The study whose rows are a page of their own, `rules.md`."""

GENERATED = "<!-- Written by `hypergradbench claims`: change the study or the analysis, not this page. -->"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One result file.

    Attributes:
        name: the study's.
        content: the file's.
        rows: one measured point a row.
    """

    name: str
    content: Mapping[str, Any]
    rows: pd.DataFrame

    @property
    def ok(self) -> bool:
        return self.content["status"] == "ok"

    @property
    def claims(self) -> Sequence[Mapping[str, Any]]:
        return self.content["claims"]


def load(file: Path) -> Found:
    """One study's results.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    try:
        content = json.loads(file.read_text())
        if content["schema"] not in SCHEMAS:
            raise ValueError(f"unknown schema {content['schema']!r}")
        return Found(name=content["study"], content=content, rows=pd.DataFrame(content["rows"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file.name} is damaged or no study's result ({type(error).__name__}: {error})") from None


def load_all(folder: Path) -> tuple[list[Found], list[str]]:
    """Every study's results in ``folder``, by name, and what could not be read."""
    found, damaged = [], []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(load(file))
        except ValueError as error:
            damaged.append(str(error))
    return found, damaged


def show(found: Found, console: Console) -> None:
    """Print the claims, or why there are none."""
    if not found.ok:
        console.print(f"[bold]{escape(found.name)}[/] [red]failed[/]: {escape(str(found.content['reason']))}")
        return
    note = "" if found.content["defaults"] else " (not at the default settings: the thresholds are not meant for these)"
    title = f"{found.name}: {found.content['about']}{note}"
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for column in ("claim", "measured", "holds"):
        table.add_column(column, overflow="fold")
    for c in found.claims:
        table.add_row(escape(c["text"]), escape(c["measured"]), "[green]yes[/]" if c["holds"] else "[red]NO[/]")
    console.print(table)


def write_docs(found: Sequence[Found], docs: Path) -> list[Path]:
    """Write ``claims.md``, ``rules.md`` if that study is there, and the figures under ``images/``.

    Returns:
        The files written.
    """
    drawn = {f.name: figures.draw_study(f.name, f.rows, docs / "images", ("png",)) for f in found if f.ok}
    pages = {"claims.md": claims_page(found, {name: files for name, files in drawn.items() if files})}
    for f in found:
        if f.name == RULES and f.ok:
            pages["rules.md"] = rules_page(f)
    for name, text in pages.items():
        (docs / name).write_text(text)
    return [*(docs / name for name in pages), *(file for files in drawn.values() for file in files)]


def claims_page(found: Sequence[Found], drawn: Mapping[str, Sequence[Path]]) -> str:
    """Markdown: a section a study, after a table of all claims."""
    lines = [
        GENERATED, "", "# Claims", "",
        "What papers claim and what we claim, measured. Each section comes from one command; the pages from",
        "`hypergradbench study --all` and then `hypergradbench claims`. A claim that does not hold stays here.", "",
        *_table(
            ["study", "claims that hold", "what it shows"],
            [[f"[{f.name}](#{f.name})", _count(f), f.content["about"]] for f in found],
        ),
    ]  # fmt: skip
    for f in found:
        lines += ["", *_section(f, [path.name for path in drawn.get(f.name, ())])]
    return "\n".join(lines) + "\n"


def rules_page(found: Found) -> str:
    """Markdown: the rows of the study of rules, each rule a row."""
    lines = [GENERATED, "", "# Rules", "", found.content["about"] + ".", "", f"From `{command(found)}`."]
    lines += ["", *_method(found), *table_of(found.rows), "", *_claims(found), "", *_provenance(found)]
    return "\n".join(lines) + "\n"


def table_of(rows: pd.DataFrame) -> list[str]:
    """A markdown table of all rows and columns."""
    return _table(
        [str(c).replace("_", " ") for c in rows.columns],
        [[text(row[c]) for c in rows.columns] for _, row in rows.iterrows()],
    )


def text(value: Any) -> str:
    """One cell of a table."""
    if value is None or value != value:  # None, NaN
        return "-"
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.2g}"
    return str(value)


def command(found: Found) -> str:
    """What was typed, or would have to be, for these results."""
    changed = "" if found.content["defaults"] else " --set " + " ".join(_settings(found))
    return f"hypergradbench study {found.name}{changed}"


def _section(found: Found, images: Sequence[str]) -> list[str]:
    content = found.content
    lines = [f"## {found.name}", "", f"{content['about']}.".replace("..", "."), "", f"Source: {content['citation']}."]
    lines += ["", f"    {command(found)}", "", *([] if found.name == RULES else _method(found))]
    if not found.ok:
        return [*lines, f"**Failed:** {_cell(str(content['reason']))}"]
    lines += _claims(found)
    if found.name == RULES:
        lines += ["", "The table is [a page of its own](rules.md)."]
    for image in images:
        lines += ["", f"![{found.name}](images/{image})"]
    return [*lines, "", *_provenance(found)]


def _method(found: Found) -> list[str]:
    """The study's own words: a docstring, and Markdown too."""
    method = found.content.get("method", "")
    return [*method.splitlines(), ""] if method else []


def _claims(found: Found) -> list[str]:
    rows = [[c["text"], c["measured"], "yes" if c["holds"] else "**no**"] for c in found.claims]
    return _table(["claim", "measured", "holds"], rows)


def _provenance(found: Found) -> list[str]:
    where = found.content["environment"]
    settings = ", ".join(_settings(found)) or "none"
    commit = f"{str(where['commit'])[:10]}{' with changes' if where['dirty'] else ''}" if where["commit"] else "unknown"
    return [
        f"Settings: {settings}. {len(found.rows)} measured points in {found.content['seconds']:.0f} s on "
        f"{where['device']} ({where['cpu']}, {where['threads']} thread(s)), torch {where['torch']}, commit {commit}, "
        f"{found.content['finished'][:10]}."
    ]


def _settings(found: Found) -> list[str]:
    def plain(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    return [f"{key}={plain(value)}" for key, value in found.content["settings"].items()]


def _count(found: Found) -> str:
    return f"{sum(c['holds'] for c in found.claims)} of {len(found.claims)}" if found.ok else "failed"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_cell, cells)) + " |"

    return [line(columns), "|" + "---|" * len(columns), *map(line, rows)]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
