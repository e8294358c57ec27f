"""A problem in float64, whatever its losses hold: what references and checks are computed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from estimators import Problem, State

AGREE = 1e-2
"""Relative difference up to which two losses are those of one problem in two precisions."""

NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Promote(TorchFunctionMode):
    """Every operation takes its floating tensors in float64: batches and data that a loss holds in another dtype follow."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def promote(x: Tensor) -> Tensor:
            return x.double() if x.dtype in NARROW else x

        args, kwargs = tree_map_only(Tensor, promote, (args, kwargs or {}))
        return func(*args, **kwargs)


def promoted(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``loss`` in float64."""

    def evaluated(*args: Any) -> Tensor:
        with Promote():
            return loss(*args)

    return evaluated


def doubled(values: Any) -> Any:
    """The floating tensors of a tree in float64, cut from every graph."""
    return tree_map_only(Tensor, lambda x: x.detach().double() if x.is_floating_point() else x, values)


def in_float64(problem: Problem) -> Problem:
    """The same problem with its numbers converted and its losses promoted; whether it works only its evaluation shows."""
    start = problem.start
    return replace(
        problem,
        stages=[replace(stage, loss=promoted(stage.loss), first_order=None) for stage in problem.stages],
        outer=promoted(problem.outer),
        start=start._replace(params=doubled(start.params), slots=doubled(start.slots))
        if isinstance(start, State)
        else doubled(start),
        hparams=doubled(problem.hparams),
    )


def twin(problem: Problem, remake: Callable[[], Problem] | None = None) -> tuple[Problem, str]:
    """The problem in float64, and in which precision it really is.

    Args:
        problem: in any precision.
        remake: makes it in float64 by itself, if it can; asked where converting it does not do.

    Returns:
        (problem, "float64"); or, where neither works, the problem as it is and words that say so.
    """
    own = next(iter(problem.hparams.values())).dtype
    if own == torch.float64:
        return problem, "float64"
    for other_of in (lambda: in_float64(problem), remake):
        try:
            other = other_of() if other_of is not None else None
            if other is not None and _agree(problem, other):
                return other, "float64"
        except Exception:  # losses that cast to a dtype of their own, a function that makes none in float64
            continue
    return problem, f"{str(own).removeprefix('torch.')}, since the losses cannot be evaluated in float64"


def _agree(a: Problem, b: Problem) -> bool:
    return all(abs(x - y) <= AGREE * max(abs(x), abs(y)) for x, y in zip(_losses(a), _losses(b), strict=True))


def _losses(problem: Problem) -> list[float]:
    """Of every stage, and the outer one, at the start."""
    start = problem.start
    params, step = (start.params, start.step) if isinstance(start, State) else (start, 0)
    inner = [float(stage.objective(step)(params, problem.hparams)) for stage in problem.stages]
    return [*inner, float(problem.outer(params, problem.hparams))]
