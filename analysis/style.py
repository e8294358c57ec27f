"""How estimators look: one colour and one marker each, the same in every figure, told apart in grey as well."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple


class Look(NamedTuple):
    """Colour, marker (a filled one: their edges are drawn in white) and line of one estimator."""

    color: str
    marker: Any
    line: Any


# Families share a hue (blue: the run differentiated; orange to brown: implicit; green and violet: one product), from
# palettes made for colour-blind readers (Okabe and Ito; Tol). Markers alone tell all of them apart.
LOOKS: dict[str, Look] = {
    "unroll": Look("#0072B2", "o", "-"),
    "unroll-checkpointed": Look("#004D80", "s", (0, (4, 1))),
    "forward": Look("#33BBEE", ">", (0, (1, 1))),
    "unroll-truncated": Look("#56B4E9", "v", "--"),
    "unroll-budget": Look("#3A6EA5", "H", (0, (6, 1))),
    "dense": Look("#000000", "D", "-"),
    "cg": Look("#D55E00", "X", "-"),
    "neumann": Look("#E69F00", "P", "--"),
    "adapted-neumann": Look("#F0C060", (8, 1, 0), "--"),
    "adapted-cg": Look("#FF8C42", (5, 0, 36), (0, (3, 1))),
    "fixed-point": Look("#B8860B", "h", (0, (5, 1, 1, 1))),
    "nystrom": Look("#7A3B00", "*", "-."),
    "t1t2": Look("#009E73", "^", "-"),
    "sama-na": Look("#44AA99", "<", (0, (1, 1))),
    "sama": Look("#AA3377", "d", "-"),
    "sama-exact": Look("#CC79A7", "p", "--"),
    "composed": Look("#666666", "8", "-"),
    "greedy": Look("#CC3311", (7, 1, 0), "-"),
    "finite-difference": Look("#225522", (3, 1, 180), "-."),
    "evolution": Look("#66AA55", (9, 1, 0), "-."),
    "plain": Look("#777777", (4, 1, 20), (0, (1, 3))),
    "direct": Look("#999999", (6, 1, 30), (0, (1, 1))),
    "random": Look("#BBBBBB", (5, 1, 36), (0, (1, 2))),
    "tartan": Look("#88CCEE", (5, 1, 0), "-"),
    "tartan-dot": Look("#6699CC", (7, 0, 0), "--"),
}

ARMS = [
    Look("#0072B2", "o", "-"),
    Look("#D55E00", "s", "--"),
    Look("#009E73", "^", "-."),
    Look("#AA3377", "D", (0, (1, 1))),
    Look("#E69F00", "v", (0, (5, 1, 1, 1))),
    Look("#000000", "P", "-"),
]
"""For the arms of a study, in the order in which it names them."""

SPARE = [
    Look("#332288", (3, 1, 90), "-"),
    Look("#117733", (4, 1, 0), "-"),
    Look("#882255", (3, 1, 0), "-"),
    Look("#999933", (6, 1, 0), "-"),
    Look("#661100", (4, 1, 45), "-"),
]
"""For estimators that this list does not know."""

LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
"""For one estimator with several values of a field: these share colour and marker, a label says which is which."""


OURS = "hypergradbench"

LIBRARIES: dict[str, Look] = {
    "torch.optim": Look("#000000", "*", "-"),
    "torchopt": Look("#E69F00", "s", "-"),
    "higher": Look("#D55E00", "^", "-"),
    "hypertorch": Look("#009E73", "v", "-"),
    "betty": Look("#AA3377", "D", "-"),
    OURS: Look("#0072B2", "o", "-"),
}
"""Other libraries beside this one, which comes last and so is drawn above them."""


def registered(name: str) -> str:
    """What the estimator of a label such as "cg(solver.steps=5)" is registered as."""
    return name.partition("(")[0]


def order(names: Iterable[str]) -> list[str]:
    """Known estimators by family, then the others; those of one name by the numbers in their fields."""
    rank = {name: i for i, name in enumerate(LOOKS)}
    return sorted(set(names), key=lambda n: (rank.get(registered(n), len(rank)), registered(n), _natural(n)))


def _natural(text: str) -> list[tuple[int, float, str]]:
    """A key by which 5 comes before 20."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts)]


def look(name: str, names: Iterable[str] = ()) -> Look:
    """How ``name`` looks: colour and marker by what it is registered as, whoever is drawn beside it.

    Args:
        name: of an estimator, with its fields if it has any.
        names: of all that are drawn; if several are registered alike their lines differ. Estimators that are not known
            here keep their look too, unless two in one figure would share it.
    """
    base, drawn = registered(name), {*names, name}
    style = LOOKS[base] if base in LOOKS else spare(base, {registered(n) for n in drawn} - LOOKS.keys())
    if name == base:
        return style
    alike = order(n for n in drawn if n != base and registered(n) == base)
    if base not in drawn and len(alike) == 1:
        return style
    lines = [line for line in LINES if line != style.line] if base in drawn else LINES
    return style._replace(line=lines[alike.index(name) % len(lines)])


def spare(name: str, names: Collection[str]) -> Look:
    """The look of something unknown: by its name, or the next free one if another of ``names`` has that."""
    taken: dict[int, str] = {}
    for one in sorted({*names, name}):
        start = zlib.crc32(one.encode()) % len(SPARE)
        free = [i % len(SPARE) for i in range(start, start + len(SPARE)) if i % len(SPARE) not in taken]
        place = free[0] if free else start
        if one == name:
            return SPARE[place]
        taken[place] = one
    raise AssertionError("unreachable: name is among them")


RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 220,
    "svg.hashsalt": "hypergradbench",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
}
"""Sizes in points, as printed: they are the same at either width."""

WIDTHS = {"page": 7.2, "column": 3.4}
"""Inches of the whole width of a paper, and of one of its two columns."""

WIDTH = WIDTHS["page"]

_WIDTH: ContextVar[str] = ContextVar("width", default="page")


@contextmanager
def at_width(name: str) -> Iterator[None]:
    """Within, figures are made for one of `WIDTHS`.

    Raises:
        ValueError: there is no such width.
    """
    if name not in WIDTHS:
        raise ValueError(f"no width {name!r}: {' or '.join(WIDTHS)}")
    token = _WIDTH.set(name)
    try:
        yield
    finally:
        _WIDTH.reset(token)


def in_column() -> bool:
    """Whether they are for one column of a paper."""
    return _WIDTH.get() == "column"


def width() -> float:
    """Inches of the figures that are made here and now."""
    return WIDTHS[_WIDTH.get()]
