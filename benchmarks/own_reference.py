"""What estimates on a user's own problem are held against: the best that can be had, computed once a point and kept in a file.

exact     the problem's own closed form
unroll    a full unroll in float64: the derivative of the steps that are run
cg        conjugate gradient to 1e-10 at the end of the run: the derivative of the optimum of the last batch's loss
none      nothing is known of the errors
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Literal

import torch

from estimators import CG, Implicit, NotApplicableError, Outcome, Problem, Tree, Unroll, hypergradient, run_stages, tree

from .cells import Cell, code_version
from .double import doubled, twin
from .own_problem import Found, find, problem_of
from .plugins import load

Kind = Literal["exact", "unroll", "cg", "none"]

SOLVED = CG(steps=2000, rtol=1e-10)
"""A tolerance at which the linear system leaves no error to speak of."""


def order(problem: Problem) -> tuple[Kind, ...]:
    """The kinds to be tried, the best first."""
    rest: tuple[Kind, ...] = ("unroll", "cg") if len(problem.stages) == 1 else ("unroll",)
    return ("exact", *rest) if problem.exact is not None else rest


def of(cell: Cell, problem: Problem, out: Path) -> tuple[Tree | None, str | None]:
    """The reference of a cell, and how it is known; (None, None) for "none".

    Args:
        cell: whose ``meta`` names the kind under "reference"; if it does not, the best kind is taken.
        problem: the cell's.
        out: folder of the results; the reference is kept below it.

    Raises:
        Exception: as `compute`.
    """
    kind: Kind = cell.meta.get("reference", order(problem)[0])
    if kind == "none":
        return None, None
    found = find(cell.problem)
    file = file_of(cell, found, kind, out)
    if not file.is_file():
        answer, words = compute(cell, found, problem, kind)
        _save(file, answer, words)
    loaded = torch.load(file, weights_only=True)
    device = next(iter(problem.hparams.values())).device
    return {k: x.to(device) for k, x in loaded["hypergradient"].items()}, loaded["words"]


def file_of(cell: Cell, found: Found, kind: Kind, out: Path) -> Path:
    """Where the reference of a cell is kept; another one once the problem's file or the library changes."""
    code = code_version(Unroll(), found.function, "point")
    key = [cell.problem, cell.settings, cell.seed, cell.dtype, cell.device, kind, code]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return out / "references" / f"{name}.pt"


def compute(cell: Cell, found: Found, problem: Problem, kind: Kind) -> tuple[Tree, str]:
    """(hypergradient, how it is known).

    Raises:
        NotApplicableError: the problem has none of that kind.
        Exception: whatever the problem raises.
    """
    if kind == "exact":
        if problem.exact is None:
            raise NotApplicableError("the problem has no closed form")
        return problem.exact(doubled(problem.hparams)), "closed form"

    def remade() -> Problem:
        return problem_of(found.make(seed=cell.seed, dtype=torch.float64, device=cell.device, **cell.settings))

    double, precision = twin(problem, remade if found.takes("dtype") else None)
    if kind == "cg" and len(problem.stages) > 1:
        raise NotApplicableError("CG answers for problems of one stage")
    chosen = [Implicit(SOLVED) if kind == "cg" else Unroll(checkpoint=max(isqrt(s.steps), 1)) for s in double.stages]
    records = run_stages(double.stages, double.start, double.hparams, chosen)
    pulled = hypergradient(double.outer, double.stages, chosen, records, double.hparams)
    if kind == "cg" and pulled.outcomes != (Outcome.CONVERGED,):
        raise NotApplicableError(f"CG: {pulled.outcomes[0].value}")
    if not tree.all_finite(pulled.hparams):
        raise NotApplicableError("it is NaN or infinite")
    return pulled.hparams, f"CG to 1e-10 in {precision}" if kind == "cg" else f"full unroll in {precision}"


def _save(file: Path, answer: Tree, words: str) -> None:
    """As a whole or not at all: several processes may want it at a time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as f:
            torch.save({"words": words, "hypergradient": {k: x.detach().cpu() for k, x in answer.items()}}, f)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def prepare(cells: Sequence[Cell], out: Path, plugins: Sequence[str] = ()) -> str:
    """Compute the references of ``cells`` that are not there, and say how they are known; ``plugins`` are loaded first.

    Raises:
        Exception: as `compute`.
    """
    load(plugins)
    words = ""
    for cell in cells:
        dtype = getattr(torch, cell.dtype)
        made = find(cell.problem).make(seed=cell.seed, dtype=dtype, device=cell.device, **cell.settings)
        words = str(of(cell, problem_of(made), out)[1])
    return words
