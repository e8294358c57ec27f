"""Iterative differentiation in reverse mode (Franceschi et al. 2017; truncated: Shaban et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import tree
from .adaptation import SlotCotangents, check_derivative, pull_rule
from .errors import HypergradientError
from .estimator import Cost, Pullback
from .products import Product, gradients, reverse_over_reverse
from .rules import is_linear
from .solvers import Outcome
from .stage import Record, Stage, advance
from .state import State
from .tree import Tree


@dataclass(frozen=True)
class Unroll:
    """Sweep backwards over the recorded steps, one product a step; no graph is longer than one step.

    A step is theta' = theta + u(g(theta, lam), slots). Its pullback of (c, c_slots): the rule's pullback gives
    c_g = (du/dg)^T c + ..., then one product gives (H c_g, M^T c_g).

    Args:
        last: differentiate only this many of the last steps (truncated backpropagation); None all of them.
        checkpoint: have only every ``checkpoint``-th state recorded, and replay the steps between. About
            sqrt(steps) balances the two kinds of memory. None records every state.
        product: form of the second-order product.

    Raises:
        HypergradientError: ``last`` is negative or ``checkpoint`` below 1.
    """

    last: int | None = None
    checkpoint: int | None = None
    product: Product = reverse_over_reverse

    def __post_init__(self) -> None:
        if (self.last is not None and self.last < 0) or (self.checkpoint is not None and self.checkpoint < 1):
            raise HypergradientError(f"{self}: last must not be negative, checkpoint must be at least 1")

    @property
    def tail(self) -> int | None:
        return self.last

    @property
    def every(self) -> int:
        return self.checkpoint or 1

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: the rule has no derivative.
            HypergradientError: the record does not reach back far enough.
        """
        steps = stage.steps if self.last is None else min(self.last, stage.steps)
        stop, first = record.end.step, record.end.step - steps
        whole = steps == stage.steps
        begins = [t for t in sorted(record.states, reverse=True) if t < stop]
        while len(begins) > 1 and begins[-2] <= first:
            begins.pop()  # further back than needed
        if steps and (not begins or begins[-1] > first):
            raise HypergradientError(
                f"the record begins after step {first}: run(..., tail={self.tail}) records what Unroll needs"
            )
        cost = Cost(kept_bytes=record.kept_bytes_from(begins[-1]) if steps else 0)
        at = _Sweep(cotangent, {}, {} if steps else tree.zeros_like(hparams), [])
        for begin in begins if steps else ():
            states = _replay(stage, record.states[begin], hparams, stop)
            cost += Cost(gradients=len(states) - 1)
            del states[: max(first - begin, 0)]
            while states:  # a replayed state goes once it was used: the next stretch needs its room
                needs_rows = whole or states[-1].step > first
                at, spent = self._step(stage, record, states.pop(), hparams, at, needs_rows=needs_rows)
                cost += spent
            stop = begin
        if at.flowed and not stage.rule_reads_hparams and not tree.holds(torch.stack(at.flowed).any()):
            check_derivative(stage, record, hparams)
        return Pullback(
            hparams=stage.reduce(at.hparams),
            start=at.params if whole else None,
            outcome=Outcome.DONE if whole else Outcome.TRUNCATED,
            cost=cost,
        )

    def _step(
        self, stage: Stage, record: Record, state: State, hparams: Tree, at: _Sweep, *, needs_rows: bool
    ) -> tuple[_Sweep, Cost]:
        """One step backwards; without ``needs_rows`` nothing before it will be asked for."""
        objective = stage.objective(state.step)
        skipped = record.skipped.get(state.step, frozenset())
        names = [k for k in stage.trained(state.params) if k not in skipped]
        spent, flowed = Cost(products=1), at.flowed
        linear = is_linear(stage.rule, names, state.step)
        if linear:
            grads = tree.select(state.params, names)  # only their shapes matter
        else:
            _, grads, _ = gradients(objective, state.params, hparams, wrt_params=names)
            grads = stage.reduce(grads)
            spent += Cost(gradients=1)
        pulled = pull_rule(stage, state, hparams, grads, at.params, at.slots)
        if not linear:
            through = [x.any() for x in pulled.grads.values()]
            nothing = next(iter(at.params.values())).new_zeros((), dtype=torch.bool)
            flowed = [*flowed, torch.stack([nothing, *through]).any()]
        hessian, mixed = self.product(
            objective, state.params, hparams, pulled.grads, wrt_params=state.params if needs_rows else (),
            wrt_hparams=hparams,
        )  # fmt: skip
        back = tree.union_add(stage.reduce(hessian), pulled.params)
        slots = {k: pulled.slots[k] if k in names else at.slots.get(k, {}) for k in state.slots}
        on_hparams = tree.union_add(at.hparams, tree.union_add(mixed, pulled.hparams))
        return _Sweep(tree.union_add(at.params, back), slots, on_hparams, flowed), spent


class _Sweep(NamedTuple):
    """Where a backward sweep is.

    Attributes:
        params, slots, hparams: cotangents so far.
        flowed: for each step of a nonlinear rule, whether anything came through the rule (0-d, not read back).
    """

    params: Tree
    slots: SlotCotangents
    hparams: Tree
    flowed: list[Tensor]


def _replay(stage: Stage, state: State, hparams: Tree, stop: int) -> list[State]:
    """The states before the steps ``state.step``, ..., ``stop - 1``."""
    rule, states = stage.bind(hparams), [state]
    while states[-1].step < stop - 1:
        states.append(advance(stage, rule, states[-1], hparams)[0])
    return states
