"""How estimators look: one colour and one marker each, the same in every figure, told apart in grey as well."""

from __future__ import annotations

from collections.abc import Iterable
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
    "dense": Look("#000000", "D", "-"),
    "cg": Look("#D55E00", "X", "-"),
    "neumann": Look("#E69F00", "P", "--"),
    "adapted-neumann": Look("#F0C060", (8, 1, 0), "--"),
    "adapted-cg": Look("#FF8C42", (5, 0, 0), (0, (3, 1))),
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
    Look("#332288", "H", "-"),
    Look("#117733", (4, 1, 0), "-"),
    Look("#882255", (3, 1, 0), "-"),
    Look("#999933", (6, 1, 0), "-"),
    Look("#661100", (4, 1, 45), "-"),
]
"""For estimators that this list does not know, in alphabetical order."""


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


def order(names: Iterable[str]) -> list[str]:
    """Known estimators by family, then the others."""
    found = set(names)
    return [n for n in LOOKS if n in found] + sorted(found - LOOKS.keys())


def look(name: str, names: Iterable[str] = ()) -> Look:
    """How ``name`` looks among ``names``."""
    if name in LOOKS:
        return LOOKS[name]
    others = sorted({n for n in [*names, name] if n not in LOOKS})
    return SPARE[others.index(name) % len(SPARE)]


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
"""Enough for a column of a paper at 7.2 inches for the whole width."""

WIDTH = 7.2
