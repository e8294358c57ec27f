"""Training that tunes its hyperparameters on the way: the model's own steps serve as the lookahead of the meta step.

Baydin et al. 2018 (hypergradient descent, horizon 1), Lichtarge et al. 2022 (guided learning), Choe et al. 2023 (SAMA,
horizon = "unroll steps"). One block is

    theta, slots  <-  ``horizon`` steps of the stage at lam, going on from (theta, slots)
    g             <-  the estimator's hypergradient of the outer loss at the block's end
    lam           <-  meta optimizer(lam, g)

and the next block goes on from the *same* end: nothing is run twice. What happened before the block is a constant to the
hypergradient, however long the training: that is the short-horizon bias (Wu et al. 2018), and ``horizon`` its remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from estimators import (
    Cost,
    Estimator,
    Hypergradient,
    HypergradientError,
    MultiTask,
    Problem,
    Stage,
    State,
    Tree,
    hypergradient,
    per_stage,
    run,
)
from estimators.estimate import Choice
from estimators.estimator import ExtraUpdate, Outer, recording
from estimators.tree import detach, norm, select

Meta = Callable[[Sequence[Tensor]], torch.optim.Optimizer]
"""Leaves of lam -> meta optimizer, as ``lambda leaves: torch.optim.Adam(leaves, lr=1e-2)``."""

Observe = Callable[[State, Tree], Mapping[str, Any]]
"""(state after a block, lam of that block) -> JSON scalars to record, such as a test accuracy."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One block of steps and the meta step at its end.

    Attributes:
        step: steps taken in all, this block included.
        hparams: lam that the block's steps were taken with.
        inner_loss: mean over the block's steps.
        outer_loss: at the block's end, before the meta step.
        hypergradient: what the meta optimizer was given; None if nothing was asked for.
        cost: what the hypergradient took beside the steps.
        extra_norm: length of the extra move of the parameters, 0 if none was made.
        extra_relative: that relative to the last optimizer step.
        observed: what ``observe`` answered.
    """

    step: int
    hparams: Tree
    inner_loss: float
    outer_loss: float
    hypergradient: Tree | None = None
    cost: Cost = field(default_factory=Cost)
    extra_norm: float = 0.0
    extra_relative: float = 0.0
    observed: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Flat JSON scalars; of the hyperparameters (and their hypergradient) those leaves that hold one number."""
        scalars = {k: float(x) for k, x in self.hparams.items() if x.numel() == 1}
        slopes = {f"d_{k}": float(x) for k, x in (self.hypergradient or {}).items() if x.numel() == 1}
        return {
            "step": self.step, "inner_loss": self.inner_loss, "outer_loss": self.outer_loss, **scalars, **slopes,
            "extra_norm": self.extra_norm, "extra_relative": self.extra_relative, **self.observed,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Online:
    """What `train_online` did.

    Attributes:
        end: state after the last step.
        hparams: lam after the last meta step.
        blocks: one a block, in order.
    """

    end: State
    hparams: Tree
    blocks: list[Block]

    def rows(self) -> list[dict[str, Any]]:
        """`Block.row` of every block."""
        return [block.row() for block in self.blocks]


def train_online(
    problem: Problem,
    estimator: Choice | Sequence[Choice],
    meta: Meta | None = None,
    *,
    steps: int,
    horizon: int = 1,
    update_hparams: bool = True,
    apply_extra: bool = False,
    warmup: int = 0,
    outer_at: Callable[[int], Outer] | None = None,
    observe: Observe | None = None,
) -> Online:
    """Train for ``steps`` steps, with one meta step after every ``horizon`` of them.

    Args:
        problem: of one stage, whose own number of steps is ignored; its stream is asked for the *global* step.
        estimator: pullback of a block, or what `per_stage` takes for one stage, such as a registered name. `Unroll` with
            ``last=None`` differentiates the whole block.
        meta: makes the meta optimizer; its state lives through the whole training. None only if nothing is updated.
        steps: in all; the last block is shorter if the horizon does not divide them.
        horizon: steps a block.
        update_hparams: False is plain training at ``problem.hparams`` (with ``apply_extra``: the extra move alone).
        apply_extra: move the parameters by the pullback's `ExtraUpdate` (SAMA's published numbers include it).
        warmup: blocks that end before or at this step make no meta step (and no extra move). The derivative of Adam's
            first steps is mostly the sign of noise, and a momentum has no influence on the first step of all.
        outer_at: step at a block's end -> outer loss there (a guidance batch that changes); ``problem.outer`` if None.
        observe: called after every block, before the meta step.

    Raises:
        HypergradientError: a setting is out of range, the problem has several stages, ``meta`` is missing,
            ``apply_extra`` of an estimator that proposes no extra move; and as `per_stage`, `run` and `hypergradient`.
        KeyError: as `per_stage`.
        NonFiniteError: as `run` and `hypergradient`.
    """
    if len(problem.stages) != 1:
        raise HypergradientError(f"{problem.name} has {len(problem.stages)} stages: train_online takes problems of one")
    if min(steps, horizon) < 1 or warmup < 0:
        raise HypergradientError(f"steps={steps}, horizon={horizon}, warmup={warmup}: at least 1, 1 and 0")
    if update_hparams and meta is None:
        raise HypergradientError("meta=None: give a meta optimizer, such as lambda x: torch.optim.Adam(x, lr=1e-2)")
    (stage,), (estimator,) = problem.stages, per_stage(estimator, 1)
    hparams = {k: x.detach().clone() for k, x in problem.hparams.items()}
    optimizer = meta(list(hparams.values())) if meta is not None and update_hparams else None
    state = problem.start if isinstance(problem.start, State) else stage.initial(problem.start, hparams)
    first, blocks = state.step, list[Block]()
    while (left := first + steps - state.step) > 0:
        block = replace(stage, steps=min(horizon, left))
        lam = {k: x.clone() for k, x in hparams.items()}  # the meta optimizer steps in place
        asked = (optimizer is not None or apply_extra) and state.step + block.steps - first > warmup
        record = run(block, state, lam, **recording(estimator) if asked else {"tail": 0})
        outer = outer_at(record.end.step) if outer_at is not None else problem.outer
        found = hypergradient(outer, [block], [estimator], [record], lam) if asked else None
        value = found.value if found is not None else outer(record.end.params, lam)
        extra = _extra(found, estimator) if found is not None and apply_extra else None
        change = extra.change if extra is not None else {}
        blocks.append(
            Block(
                step=record.end.step - first,
                hparams=lam,
                inner_loss=float(record.losses.mean()),
                outer_loss=float(value),
                hypergradient=found.hparams if found is not None else None,
                cost=found.cost if found is not None else Cost(),
                extra_norm=float(norm(change)) if change else 0.0,
                extra_relative=extra.relative if extra is not None else 0.0,
                observed=observe(record.end, lam) if observe is not None else {},
            )
        )
        state = record.end._replace(
            params={k: x + change[k] if k in change else x for k, x in record.end.params.items()}
        )
        if found is not None and optimizer is not None:
            for k, x in hparams.items():
                x.grad = found.hparams[k].clone()
            optimizer.step()
    return Online(end=state, hparams=detach(hparams), blocks=blocks)


def hold(problem: Problem, names: str | Collection[str]) -> Problem:
    """The same problem with the hyperparameters ``names`` (or the one of that name) as constants, at the values that they
    have. A `MultiTask` loss stays one, unless it is its own weights that are held.

    Raises:
        HypergradientError: one of them is no hyperparameter of the problem, or none is left.
    """
    names = [names] if isinstance(names, str) else names
    held, free = select(problem.hparams, names), {k: x for k, x in problem.hparams.items() if k not in names}
    if len(held) < len(set(names)) or not free:
        raise HypergradientError(
            f"hold({sorted(names)}) of {problem.name}, whose hyperparameters are {sorted(problem.hparams)}"
        )

    def fixed(stage: Stage) -> Stage:
        rule = (lambda h: stage.bind({**held, **h})) if stage.rule_reads_hparams else stage.rule
        if isinstance(stage.loss, MultiTask) and stage.loss.logits not in held:  # it reads no other
            return replace(stage, rule=rule)
        return replace(stage, loss=lambda p, h, batch: stage.loss(p, {**held, **h}, batch), rule=rule)

    return Problem(
        name=problem.name, stages=[fixed(s) for s in problem.stages], outer=lambda p, h: problem.outer(p, {**held, **h}),
        start=problem.start, hparams=free, about=problem.about, settings=problem.settings,
    )  # fmt: skip


def _extra(found: Hypergradient, estimator: Estimator) -> ExtraUpdate:
    extra = found.pullbacks[-1].extra_update
    if extra is None:
        raise HypergradientError(
            f"apply_extra=True, but {estimator} proposes no extra update of the parameters: use one that does, such as "
            "SAMA(extra_update=1.0), or apply_extra=False"
        )
    return extra
