"""What a workload is: a problem at the size of real use, with the plain training that its cost is measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from estimators import MeanOf, Problem, Stage, State, Tree
from estimators.estimator import Outer
from estimators.stage import Batch

from ..problems.common import require, require_positive

Optimizer = Callable[[Sequence[Tensor]], torch.optim.Optimizer]
"""Leaves -> optimizer, as ``lambda leaves: torch.optim.Adam(leaves, lr=1e-3)``."""

GENERATED = "generated"
"""How ``Workload.data`` begins where no data of the user's were read."""


def unchanged(state: State) -> State:
    """The default of ``Workload.between``."""
    return state


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """A problem of one stage whose ``steps`` are the unroll length, and what plain training of its model is.

    Args:
        problem: its stream gives tuples of tensors whose first dimension is ``samples``.
        samples: training examples a step.
        plain: (params, batch) -> the loss that training without hyperparameters would have (nothing is weighted).
        optimizer: the stage's rule as `torch.optim` has it, for plain training.
        meta: the meta optimizer.
        data: what the numbers are: "generated: ..." or the name of the set that was read. Every output says it.
        between: what happens to the state between meta steps (an average of the weights follows them).
        left_out: leaves that plain training neither has nor pays for.
        settings: size, and whatever else decides what is measured.
    """

    problem: Problem
    samples: int
    plain: Callable[[Tree, Batch], Tensor]
    optimizer: Optimizer
    meta: Optimizer
    data: str
    between: Callable[[State], State] = unchanged
    left_out: frozenset[str] = frozenset()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> Stage:
        (stage,) = self.problem.stages
        return stage


def in_micro_batches(loss: Callable[[Tree, Batch], Tensor], batch: Batch, parts: int) -> Outer:
    """The outer loss of a validation batch, as the mean of ``parts`` equal shares of it that are evaluated one after another.

    Args:
        loss: a mean over the examples of its batch.
        batch: tensors whose first dimension is the examples'.

    Raises:
        ValueError: the examples cannot be dealt out evenly.
    """
    number = len(batch[0])
    require_positive(outer_micro=parts)
    require(number % parts == 0, f"outer_micro={parts}: {number} validation examples cannot be dealt out evenly")

    def of(share: Batch) -> Outer:
        return lambda params, _: loss(params, share)

    shares = zip(*(x.chunk(parts) for x in batch), strict=True)
    return of(batch) if parts == 1 else MeanOf([of(share) for share in shares])


def with_autocast(workload: Workload, dtype: torch.dtype = torch.bfloat16) -> Workload:
    """The same with every loss under `torch.autocast`: parameters and optimizer stay as they are, products of matrices are
    made in ``dtype``."""
    kind = next(iter(workload.problem.hparams.values())).device.type

    def cast(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if isinstance(loss, MeanOf):
            return MeanOf([cast(part) for part in loss.parts])

        def under(*args: Any) -> Tensor:
            # its cache of cast weights would tie a product's evaluations together, and hold them beyond one
            with torch.autocast(kind, dtype=dtype, cache_enabled=False):
                return loss(*args)

        return under

    problem, stage = workload.problem, workload.stage
    return replace(
        workload,
        problem=replace(problem, stages=[replace(stage, loss=cast(stage.loss))], outer=cast(problem.outer)),
        plain=cast(workload.plain),
    )


def of_rank(workload: Workload, rank: int, world: int, reduce: Callable[[Tree], Tree]) -> Workload:
    """The share of one of ``world`` data-parallel ranks: every ``world``-th example of each batch.

    Args:
        reduce: mean over the ranks; see `Stage`.

    Raises:
        ValueError: the examples of a step cannot be dealt out evenly.
    """
    if workload.samples % world:
        raise ValueError(f"{workload.samples} examples a step cannot be dealt out to {world} workers evenly")
    stage = workload.stage

    def stream(t: int) -> Batch:
        return tuple(x[rank::world] for x in stage.stream(t))

    return replace(
        workload,
        samples=workload.samples // world,
        problem=replace(workload.problem, stages=[replace(stage, stream=stream, reduce=reduce)]),
    )
