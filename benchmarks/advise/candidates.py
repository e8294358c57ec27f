"""What is tried: every registered estimator, some with several settings, and the code that makes each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from math import isqrt
from typing import Any

Fields = dict[str, Any]

KIB = 2**10


def candidates(names: Sequence[str], steps: int, spare: int | None = None) -> list[tuple[str, Fields]]:
    """(registered name, fields in place of what is registered), those that tell most first, so that a budget is well spent.

    Args:
        names: registered names.
        steps: of the run, by which truncation and checkpoints are chosen.
        spare: bytes for what an unroll keeps, see `spare_of`; None if no limit was given.
    """
    settings = variants(steps, spare)
    order = [name for name in FIRST if name in names]
    return [(n, f) for n in [*order, *(n for n in names if n not in order)] for f in settings.get(n, [{}])]


FIRST = (
    "sama", "t1t2", "neumann", "cg", "unroll-truncated", "unroll-checkpointed", "unroll", "direct", "sama-exact", "adapted-neumann",
)  # fmt: skip
"""What tells most for its time; the others come last."""


def variants(steps: int, spare: int | None = None) -> dict[str, list[Fields]]:
    """name -> the settings that are tried, where those that are registered do not say enough."""
    some = [{"solver.steps": 5}, {"solver.steps": 20}]
    fixed = [{**f, "solver.rtol": 0.0} for f in some]
    budget: Fields = {} if spare is None or spare < KIB else {"budget": f"{spare // KIB}KiB"}
    last = sorted({max(steps // 10, 1), max(steps // 2, 1)})
    return {
        "cg": fixed + [{**fixed[1], "graph": "rebuilt"}] * bool(budget),
        "adapted-cg": fixed[1:],
        "neumann": some + [{**some[1], "graph": "rebuilt"}] * bool(budget),
        "adapted-neumann": some[:1],
        "unroll": [{}, *([budget] if budget else [])],
        "unroll-truncated": [{"last": n, **budget} for n in last],
        "unroll-checkpointed": [{"checkpoint": max(isqrt(steps), 1)}],
    }


def spare_of(memory: int | None, plain: int) -> int | None:
    """Bytes that a limit leaves to an unroll for recorded states and kept steps: a training step, the cotangents and one product
    take up to three times a plain run's peak beside."""
    return None if memory is None else memory - 3 * plain


def as_code(thing: Any) -> str:
    """The call that makes an estimator, with what is not the default.

    >>> from estimators import CG, Implicit
    >>> as_code(Implicit(CG(steps=5)))
    'Implicit(solver=CG(steps=5))'
    """
    if is_dataclass(thing) and not isinstance(thing, type):
        given = []
        for f in fields(thing):
            value = getattr(thing, f.name)
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if f.init and (default is MISSING or value != default):
                given.append(f"{f.name}={as_code(value)}")
        return f"{type(thing).__name__}({', '.join(given)})"
    if isinstance(thing, tuple):
        return "(" + ", ".join(map(as_code, thing)) + ("," if len(thing) == 1 else "") + ")"
    return getattr(thing, "__name__", None) or repr(thing)


def call(name: str, fields_: Fields, estimator: Any) -> str:
    """The line of code that uses a candidate."""
    return f"estimate(problem, {as_code(estimator)})" if fields_ else f'estimate(problem, "{name}")'
