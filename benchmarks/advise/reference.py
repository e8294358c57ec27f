"""What the candidates are held against: the best that can be afforded, computed once a point and kept in a file."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch

from estimators import CG, Estimator, Implicit, NotApplicableError, Outcome, Tree, Unroll, hypergradient, run, tree
from estimators.estimator import recording

from ..cells import Cell
from . import place

Kind = Literal["exact", "unroll", "cg"]

KINDS: tuple[Kind, ...] = ("exact", "unroll", "cg")
"""The best first."""

NAME = "reference"
"""``estimator`` of its cells."""

SOLVED = CG(steps=2000, rtol=1e-10)
"""A tolerance at which the linear system leaves no error to speak of."""


def estimator_of(kind: Kind, steps: int) -> Estimator:
    """What answers, for a kind that is no closed form."""
    return Implicit(SOLVED) if kind == "cg" else Unroll(checkpoint=max(isqrt(steps), 1))


def content(cell: Cell, out: Path) -> dict[str, Any]:
    """The row of a reference; its tensors go to a file of their own.

    Raises:
        NotApplicableError: this problem has none of that kind.
        Exception: whatever computing it raises.
    """
    kind: Kind = cell.meta["of"]
    found, precision = place.in_float64(cell)
    problem, stage, hparams = found.workload.problem, found.workload.stage, found.hparams
    estimator = estimator_of(kind, stage.steps)
    record = run(stage, found.state, hparams, **({"tail": 0} if kind == "exact" else recording(estimator)))
    words = {"exact": "closed form", "unroll": f"full unroll in {precision}", "cg": f"CG to 1e-10 in {precision}"}
    if kind == "exact":
        if problem.exact is None:
            raise NotApplicableError("the problem has no closed form")
        answer = problem.exact(hparams)
    else:
        pulled = hypergradient(problem.outer, [stage], [estimator], [record], hparams)
        if kind == "cg" and pulled.outcomes != (Outcome.CONVERGED,):
            raise NotApplicableError(f"CG: {pulled.outcomes[0].value}")
        answer = pulled.hparams
    if not tree.all_finite(answer):
        raise NotApplicableError(f"the {words[kind]} is NaN or infinite")
    file = tensors(cell.id, out)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: x.cpu() for k, x in answer.items()}, file)
    return {"truth": words[kind], "gradient_ratio": place.gradient_ratio(found, record.end)}


def tensors(cell_id: str, out: Path) -> Path:
    """The file that holds the hypergradient of a reference."""
    return out / "references" / f"{cell_id}.pt"


def load(cell_id: str, out: Path) -> Tree:
    """That hypergradient, on the CPU."""
    loaded: Tree = torch.load(tensors(cell_id, out), weights_only=True)
    return loaded


def order(closed_form: bool, asked: Kind | None) -> tuple[Kind, ...]:
    """The kinds to be tried, the best first."""
    if asked is not None:
        return (asked,)
    return KINDS if closed_form else KINDS[1:]
