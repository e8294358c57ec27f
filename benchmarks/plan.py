"""Which cells a sweep consists of."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any, Literal

from estimators import PRODUCTS, SOLVERS, registry

from .cells import Cell, Kind, built_as, code_version

MAIN_JOB = ("biased_regression", "two_stage_quadratic", "digits_mwn", "digits_wide", "noisy_quadratic", "digits_tasks")
"""Problems of the main job."""

SMALL: dict[str, dict[str, Any]] = {
    "digits_mwn": {"hidden": 10, "steps": 30, "weight_hidden": 30, "l2": 2e-2},
    "digits_wide": {"hidden": 10, "steps": 30, "l2": 2e-2},
    "digits_example": {"hidden": 10, "steps": 30, "l2": 2e-2, "lr": 0.05},
    "digits_tasks": {"hidden": 4, "steps": 12},
}
"""Sizes at which the costly references, the whole Hessian and forward mode, take part on a laptop; and enough decay for
the Meta-Weight-Net to show its nearly rank-one face. With less decay the Hessian's negative curvature decides, and the
signs of the implicit estimators are a matter of luck: see `problems.digits_reweighting`."""

PATH = {"cond": 10.0, "tolerance": 1e-3}
"""Biased regression of Figure 5: the identity's direction is visibly off, and a run short enough to be made 100 times
an estimator. The tolerance bounds what stopping the run early costs: invisible in a cosine."""

META_LR = 0.1
"""Adam's learning rate along a path, as in Figure 5 of SAMA."""


class UnknownName(ValueError):
    """A name that nothing is registered under."""


def known(names: Iterable[str], among: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """``names``, or every known one if there are none.

    Raises:
        UnknownName: one of them is not known; the message lists those that are.
    """
    names = tuple(names) or tuple(among)
    for name in names:
        if name not in among and (name.endswith(".py") or ".py:" in name):
            raise UnknownName(f"{name} is no {what}: name the problem before --{what}s")
    for name in names:
        if name not in among:
            raise UnknownName(f"no {what} is called {name!r}; there are: {', '.join(among)}")
    return tuple(dict.fromkeys(names))


def cells(
    *,
    estimators: Sequence[str],
    problems: Sequence[str],
    seeds: Sequence[int],
    conds: Sequence[float],
    dtype: str,
    meta_steps: int,
    device: str = "cpu",
    paths: Sequence[str] = ("biased_regression",),
) -> list[Cell]:
    """Points: problems x settings x seeds x estimators, in the order in which runs are shared. Then the paths, of the first seed, on
    those of ``problems`` that ``paths`` names."""
    found = [
        Cell(estimator=e, problem=p, settings=settings, seed=seed, dtype=dtype, device=device, **made(e, p, "point"))
        for p in problems
        for settings in settings_of(p, conds)
        for seed in seeds
        for e in estimators
    ]
    if meta_steps:
        found += [
            Cell(
                estimator=e, problem=p, settings=dict(PATH if p == "biased_regression" else SMALL.get(p, {})), seed=seeds[0],
                dtype=dtype, device=device, kind="path", meta={"steps": meta_steps, "lr": META_LR}, **made(e, p, "path"),
            )
            for p in problems
            if p in paths
            for e in estimators
        ]  # fmt: skip
    return found


def own_cells(estimators: Sequence[str], points: Sequence[Cell]) -> list[Cell]:
    """Estimators on a problem of the user's.

    Args:
        estimators: registered names.
        points: cells that say all but the estimator: one a seed, with the kind of reference that estimates are held against.
    """
    return [replace(p, estimator=e, **made(e, p.problem, "point")) for p in points for e in estimators]


def settings_of(problem: str, conds: Sequence[float]) -> list[dict[str, Any]]:
    """What a problem is swept over."""
    if problem == "biased_regression":
        return [{"cond": float(c)} for c in conds]
    return [dict(SMALL.get(problem, {}))]


@cache
def _made(estimator: str, problem: str, kind: Kind, fields: str) -> tuple[str, str]:
    from .own_problem import find

    thing = with_fields(registry[estimator].estimator, json.loads(fields))
    make = find(problem).function
    return built_as(thing), code_version(thing, make, kind)


def made(estimator: str, problem: str, kind: Kind, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``built`` and ``code`` of a cell: what it is measured with, so that a change makes another cell.

    Args:
        estimator: registered name.
        problem: registered name, of a workload for "meta"; or the user's own.
        kind: of the cell.
        fields: as `with_fields` takes them.
    """
    built, code = _made(estimator, problem, kind, json.dumps(fields or {}))
    return {"built": built, "code": code}


NONE = "none"
"""How a sweep file writes None, for which TOML has no word."""


def with_fields(estimator: Any, fields: Mapping[str, Any]) -> Any:
    """``estimator`` with other values in some fields; the registered one is not changed.

    Args:
        estimator: one, or a tuple of one a stage.
        fields: dotted path -> value: ``{"solver.steps": 5}``; of a tuple, the index first: ``{"0.solver.steps": 5}``. A product
            or a solver is given by its name ("central-difference", "neumann"), None as "none". A solver comes before its own
            fields, whichever is written first.

    Raises:
        UnknownName: there is no such field, or it cannot hold the value; the message says what there is.
    """
    for path in sorted(fields, key=lambda p: p.count(".")):  # a solver is exchanged before its fields are set
        estimator = _with(estimator, path.split("."), fields[path], path)
    return estimator


def _with(thing: Any, path: Sequence[str], value: Any, where: str) -> Any:
    """``thing`` with ``value`` at ``path``; ``where`` is the whole path, for messages."""
    head, rest = path[0], path[1:]
    if isinstance(thing, tuple):
        if not head.isdecimal() or int(head) >= len(thing) or not rest:
            raise UnknownName(
                f"field {where!r}: {head!r} is no stage of this estimator, which has one part for each of {len(thing)} stages: "
                f"begin with 0 to {len(thing) - 1}, as in '0.solver.steps'"
            )
        i = int(head)
        return (*thing[:i], _with(thing[i], rest, value, where), *thing[i + 1 :])
    name = type(thing).__name__
    if not is_dataclass(thing) or isinstance(thing, type):
        what = getattr(thing, "__name__", name)
        raise UnknownName(f"field {where!r}: {what} has no fields")
    known_fields = [f.name for f in fields_of(thing) if f.init]
    if head not in known_fields:
        raise UnknownName(f"field {where!r}: {name} has no field {head!r}; it has: {', '.join(known_fields) or 'none'}")
    try:
        new = _with(getattr(thing, head), rest, value, where) if rest else _fitting(thing, head, value, where)
        return replace(thing, **{head: new})
    except UnknownName:
        raise
    except Exception as error:  # its own check of what it was given
        raise UnknownName(f"field {where!r}: {name} refuses {value!r}: {error}") from error


def _fitting(thing: Any, name: str, value: Any, where: str) -> Any:
    """``value`` as the field ``name`` of ``thing`` wants it."""
    current = getattr(thing, name)
    if name in ("product", "solver"):
        among: Mapping[str, Any] = PRODUCTS if name == "product" else SOLVERS
        if not isinstance(value, str) or value not in among:
            raise UnknownName(f"field {where!r}: no {name} is called {value!r}; there are: {', '.join(among)}")
        return among[value]() if name == "solver" else among[value]
    try:
        hint = typing.get_type_hints(type(thing))[name]
    except (NameError, TypeError, KeyError):  # an annotation that cannot be read here: by what it holds
        hint = type(current) if current is not None else Any
    new = fitted(hint, value)
    if not takes(hint, new):
        words = hint.__name__ if isinstance(hint, type) else str(hint)
        raise UnknownName(
            f"field {where!r} of {type(thing).__name__} takes {words}, not {value!r} (it is {current!r} as registered)"
        )
    return new


def fitted(hint: Any, value: Any) -> Any:
    """``value`` of a sweep file as a place annotated with ``hint`` holds it: None for "none", 2.0 for 2, a tuple for a list."""
    if value == NONE and takes(hint, None):
        return None
    if isinstance(value, list):
        return tuple(value)
    parts = typing.get_args(hint) or (hint,)
    return float(value) if type(value) is int and float in parts and int not in parts else value


def takes(hint: Any, value: Any) -> bool:
    """Whether a field annotated with ``hint`` can hold ``value``; True where it cannot be told."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(takes(a, value) for a in arguments)
    if origin is Literal:
        return value in arguments
    plain = hint if origin is None else origin
    if plain is None or plain is type(None):
        return value is None
    if plain in (int, float):
        return isinstance(value, (int, plain)) and not isinstance(value, bool)
    if isinstance(value, str):
        return plain in (str, Any)
    try:
        return isinstance(value, plain)
    except TypeError:  # a protocol, a type variable
        return True
