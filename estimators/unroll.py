"""Iterative differentiation in reverse mode (Franceschi et al. 2017; truncated: Shaban et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from . import tree
from .adaptation import SlotCotangents, check_derivative, pull_rule
from .errors import HypergradientError
from .estimator import Cost, Pullback
from .products import Product, gradients, reverse_over_reverse
from .rules import is_linear
from .solvers import Outcome
from .stage import Record, Stage, State, advance
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
        steps = stage.steps if self.last is None else min(self.last, stage.steps)
        stop, first = record.end.step, record.end.step - steps
        check_derivative(stage, record, hparams)
        cost = Cost(kept_bytes=record.kept_bytes)
        slots: SlotCotangents = {}
        total: Tree = {} if steps else tree.zeros_like(hparams)
        while stop > first:
            begin = max((t for t in record.states if t < stop), default=None)
            if begin is None:
                raise HypergradientError(
                    f"the record begins after step {first}: run(..., tail={self.tail}) records what Unroll needs"
                )
            states = _replay(stage, record.states[begin], hparams, stop)
            cost += Cost(gradients=len(states) - 1)
            for state in reversed(states[max(first - begin, 0) :]):
                cotangent, slots, on_hparams, spent = self._step(stage, record, state, hparams, cotangent, slots)
                total = tree.union_add(total, on_hparams)
                cost += spent
            stop = begin
        whole = steps == stage.steps
        return Pullback(
            hparams=stage.reduce(total),
            start=cotangent if whole else None,
            outcome=Outcome.DONE if whole else Outcome.TRUNCATED,
            cost=cost,
        )

    def _step(
        self, stage: Stage, record: Record, state: State, hparams: Tree, cotangent: Tree, slots: SlotCotangents
    ) -> tuple[Tree, SlotCotangents, Tree, Cost]:
        objective = stage.objective(state.step)
        skipped = record.skipped.get(state.step, frozenset())
        names = [k for k in stage.trained(state.params) if k not in skipped]
        spent = Cost(products=1)
        if is_linear(stage.rule):
            grads = tree.select(state.params, names)  # only their shapes matter
        else:
            _, grads, _ = gradients(objective, state.params, hparams, wrt_params=names)
            grads = stage.reduce(grads)
            spent += Cost(gradients=1)
        pulled = pull_rule(stage, state, hparams, grads, cotangent, slots)
        hessian, mixed = self.product(
            objective, state.params, hparams, pulled.grads, wrt_params=state.params, wrt_hparams=hparams
        )
        through = tree.union_add(stage.reduce(hessian), pulled.params)
        before = {k: pulled.slots[k] if k in names else slots.get(k, {}) for k in state.slots}
        return tree.union_add(cotangent, through), before, tree.union_add(mixed, pulled.hparams), spent


def _replay(stage: Stage, state: State, hparams: Tree, stop: int) -> list[State]:
    """The states before the steps ``state.step``, ..., ``stop - 1``."""
    rule, states = stage.bind(hparams), [state]
    while states[-1].step < stop - 1:
        states.append(advance(stage, rule, states[-1], hparams)[0])
    return states
