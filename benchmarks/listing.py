"""``hypergradbench list``: everything that is registered, one line and the source of each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from estimators import RULES, SOLVERS, WRAPPERS, registry

from .problems import PROBLEMS
from .studies import STUDIES
from .workloads import WORKLOADS


def show(console: Console | None = None) -> None:
    """Print seven tables."""
    console = console or plain_console()
    rows = [
        (name, entry.claim.of + (f"; {entry.claim.bias}" if entry.claim.bias else ""), entry.claim.citation)
        for name, entry in registry.items()
    ]
    console.print(_table("Estimators", ("name", "estimates", "citation"), rows))
    problems = [(name, entry.about, entry.citation) for name, entry in PROBLEMS.items()]
    console.print(_table("Problems", ("name", "what it is", "citation"), problems))
    workloads = [(name, f"{w.about}; sizes {', '.join(w.sizes)}", w.citation) for name, w in WORKLOADS.items()]
    console.print(_table("Workloads (what cost is measured on)", ("name", "what it is", "citation"), workloads))
    for title, kinds in (
        ("Rules (inner optimizers)", RULES),
        ("Rules around rules", WRAPPERS),
        ("Solvers (inside Implicit)", SOLVERS),
    ):
        rows = [(name, first_line(kind), source(kind)) for name, kind in kinds.items()]
        console.print(_table(title, ("name", "what it does", "source"), rows))
    studies = [(name, study.about, study.citation) for name, study in STUDIES.items()]
    console.print(_table("Studies", ("name", "what it shows", "whose claim"), studies))


def plain_console() -> Console:
    """For tables: wide where the terminal does not say how wide it is."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=160)  # a pipe has no width of its own


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    return table


def first_line(kind: Any) -> str:
    """First line of a class's docstring."""
    return inspect.getdoc(kind).split("\n")[0].rstrip(".") if kind.__doc__ else ""  # type: ignore[union-attr]


def source(kind: Any) -> str:
    """First paragraph of the module's docstring: there a method names its source."""
    text = inspect.getdoc(inspect.getmodule(kind)) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")
