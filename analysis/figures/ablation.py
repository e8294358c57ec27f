"""Implicit estimators taken apart: approximate inverse by adaptation by form of the product, as a heat map of cosines."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from .common import not_shown, note_below, one_place
from .heatmap import heat_maps
from .tradeoff import one_case_a_problem, short_title

ABOUT = "Cosine to the true hypergradient by approximate inverse, adaptation and form of the product: the estimators taken apart."
PANELS = 3
EXACT = "exact"
FILLED = 0.6
"""A matrix of which less is measured is none."""


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: its inverse, whether it is adapted, its product, and the cosine."""
    return _points(frame)[0][
        ["id", "estimator", "case", "seed", "dtype", "inverse", "adapted", "product", "cosine", "status"]
    ]


def draw(frame: pd.DataFrame) -> Figure | None:
    """Of several problems those on which most of the cells are known."""
    points, others = _points(frame)
    if points.empty:
        return None
    order = points.drop_duplicates("inverse").sort_values(["rank", "inverse"])["inverse"]
    found = {(i, a) for i, a in zip(points["inverse"], points["adapted"], strict=True)}
    rows = [_row(i, a) for i in order for a in (False, True) if (i, a) in found]
    columns = sorted(points["product"].unique(), key=lambda p: (p != EXACT, p))
    points = points.assign(
        row=[_row(i, a) for i, a in zip(points["inverse"], points["adapted"], strict=True)], column=points["product"],
        value=points["cosine"], why=points["status"].replace("ok", "undefined"),
    )  # fmt: skip
    figure = heat_maps(
        points,
        {short_title(c): points["case"] == c for c in dict.fromkeys(points["case"])},
        rows,
        columns,
        "cosine to the true hypergradient",
    )
    notes = ["median over the seeds, and their whole range; SAMA is: identity, adapted; SAMA-NA: identity"]
    note_below(figure, [*notes, *not_shown(others)])
    return figure


def _row(inverse: str, adapted: bool) -> str:
    return f"{inverse}, adapted" if adapted else inverse


def _points(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """(cells that are one inverse with one product, of the dtype and the problems with most, what is left out); none if they are no
    matrix: of one inverse or of one product only, or with more holes than `FILLED` allows."""
    cells, _, others = one_place(frame[(frame["kind"] == "point") & (frame["status"] != "refused")])
    found = [(i, part) for i, built in cells["built"].items() if (part := taken_apart(built)) is not None]
    parts = pd.DataFrame(
        [p for _, p in found], index=[i for i, _ in found], columns=["inverse", "adapted", "product", "rank", "rest"]
    )
    rows = cells.join(parts, how="inner")
    keys = ["case", "inverse", "adapted", "product"]
    rest = rows.groupby(keys)["rest"].transform("first")
    others += [
        f"{e} (another setting of the same cell)" for e in dict.fromkeys(rows.loc[rows["rest"] != rest, "estimator"])
    ]
    rows = rows[rows["rest"] == rest]
    rows = rows[rows["case"].isin(one_case_a_problem(rows))]
    fine = rows[rows["status"] == "ok"]
    sizes = {
        case: len(mine[keys].drop_duplicates()) for case, mine in fine.groupby("case", sort=False) if _is_matrix(mine)
    }
    best = sorted(sizes, key=lambda case: -sizes[case])[:PANELS]
    others += [f"{case} (fewer cells)" for case in sizes if case not in best]
    return rows[rows["case"].isin(best)], others


def _is_matrix(rows: pd.DataFrame) -> bool:
    lines, columns = rows[["inverse", "adapted"]].drop_duplicates(), rows["product"].nunique()
    filled = len(rows[["inverse", "adapted", "product"]].drop_duplicates())
    return rows["inverse"].nunique() > 1 and columns > 1 and filled >= FILLED * len(lines) * columns


def taken_apart(built: Any) -> Mapping[str, Any] | None:
    """``inverse``, ``adapted``, ``product``, ``rank`` (identity first, dense last) and ``rest`` (what else is set) of an estimator as
    text; None if it is not one inverse with one product."""
    try:
        call = ast.parse(str(built), mode="eval").body
    except SyntaxError:
        return None
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or call.func.id not in ("Implicit", "SAMA")
    ):
        return None
    fields = {word.arg: word.value for word in call.keywords}
    if not {"product", "adapt"} <= fields.keys():  # of an older version
        return None
    solver = fields.get("solver")
    inverse, rank = ("identity", 0) if solver is None else _inverse(solver)
    rest = [ast.unparse(v) for k, v in fields.items() if k not in ("solver", "product", "adapt")]
    return {
        "inverse": inverse, "rank": rank, "adapted": ast.unparse(fields["adapt"]) == "True", "product": _product(fields["product"]),
        "rest": " ".join([*rest[:1], ast.unparse(solver) if solver is not None and inverse != "identity" else ""]),
    }  # fmt: skip


def _inverse(solver: ast.expr) -> tuple[str, int]:
    """(name with its budget, where it stands)."""
    if not isinstance(solver, ast.Call):
        return ast.unparse(solver), 2
    name = ast.unparse(solver.func)
    budget = [ast.unparse(word.value) for word in solver.keywords if word.arg in ("steps", "rank")]
    rank = {"Identity": 0, "Neumann": 1, "Dense": 3}.get(name, 2)
    shown = {"Identity": "identity", "Dense": "dense", "FixedPoint": "fixed point", "Nystrom": "Nyström"}.get(
        name, name
    )
    return ", ".join([shown, *budget]), rank


def _product(product: ast.expr) -> str:
    if not isinstance(product, ast.Call):
        return EXACT  # reverse over reverse or over forward: to rounding the same
    fields = {word.arg: ast.unparse(word.value) for word in product.keywords}
    length = r"$\,\|\theta\|$" if fields.get("relative") == "True" else ""
    return rf"difference, $\alpha$ = {float(fields.get('alpha', 'nan')):g}{length}"
