"""Iterative differentiation in reverse mode (Franceschi et al. 2017; truncated: Shaban et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from . import tree
from .adaptation import SlotCotangents, check_derivative, pull_rule
from .checkpointing import Plan, Schedule, Sizes, cheapest, in_bytes
from .errors import HypergradientError
from .estimator import Cost, Pullback
from .linear_rules import pull_linear
from .products import Product, gradients, reverse_over_reverse
from .rules import can_rewind, is_linear
from .saved import storage_bytes
from .solvers import Outcome
from .stage import Kept, Record, Stage, advance_by, advance_kept, keep_step, sizes_of
from .state import State
from .tree import Tree


@dataclass(frozen=True)
class Unroll:
    """Sweep backwards over the steps of the run, one product a step; no graph is longer than one step.

    A step is theta' = theta + u(g(theta, lam), slots). Its pullback of (c, c_slots): the rule's pullback gives
    c_g = (du/dg)^T c + ..., then one product gives (H c_g, M^T c_g).

    Each step's own graph, that of its gradient, is kept from the step to its product: that is fast, and memory grows with the
    number of steps. To hold less, fewer steps are kept at a time, and earlier ones are taken again from recorded states, which
    costs a gradient each.

    Args:
        last: differentiate only this many of the last steps (truncated backpropagation); None all of them.
        checkpoint: keep no more than this many steps at a time, and record a state for every so many. About sqrt(steps)
            balances the two kinds of memory; 1 records every state and keeps one graph at a time.
        budget: bytes, or a size such as "2GiB", for recorded states and kept steps together. How many of each, and how often
            steps are taken again, follows from it and from the bytes of the run's first step (Griewank & Walther 2000). On top
            come what a training step itself needs, the cotangents (parameters and slots) and one product's own memory.
        product: form of the second-order product. Only `reverse_over_reverse`, the default, has a graph to keep: with any other
            states are kept, and steps evaluated again.

    Raises:
        HypergradientError: ``last`` is negative, ``checkpoint`` below 1, ``budget`` no size, or both are given.
    """

    last: int | None = None
    checkpoint: int | None = None
    budget: int | str | None = None
    product: Product = reverse_over_reverse

    def __post_init__(self) -> None:
        if (self.last is not None and self.last < 0) or (self.checkpoint is not None and self.checkpoint < 1):
            raise HypergradientError(f"{self}: last must not be negative, checkpoint must be at least 1")
        if self.budget is not None:
            in_bytes(self.budget)
            if self.checkpoint is not None:
                raise HypergradientError(f"{self}: give checkpoint or budget; the budget chooses the checkpoints")

    @property
    def tail(self) -> int | None:
        return self.last

    @property
    def every(self) -> int:
        """For a record that is shared with others: all states, every ``checkpoint``-th, or for a budget the first alone."""
        return self.checkpoint or (1 if self.budget is None else 2**62)

    def keep(self, steps: range, sizes: Callable[[], Sizes]) -> Plan:
        """What `run` is to keep for this estimator alone (see `run`).

        Raises:
            HypergradientError: the budget is too small; the message says the least one.
        """
        if self.last is not None:
            steps = range(max(steps.start, steps.stop - self.last), steps.stop)
        if not steps:
            return Plan(frozenset(), range(0))
        schedule, found = self._schedule(len(steps), sizes)
        plan = schedule.plan(steps, found)
        return plan if self._keeps_graphs else Plan(plan.states.union(plan.steps), range(0), found)

    @property
    def _keeps_graphs(self) -> bool:
        return self.product is reverse_over_reverse

    def _schedule(self, steps: int, sizes: Callable[[], Sizes]) -> tuple[Schedule, Sizes | None]:
        if self.budget is None:
            stretch = self.checkpoint or max(steps, 1)
            return Schedule(stretch=stretch, snapshots=max(-(-steps // stretch) - 1, 0)), None
        found = sizes()
        each = found if self._keeps_graphs else Sizes(found.state, found.state)
        return cheapest(steps, in_bytes(self.budget), each, f"Unroll(budget={self.budget!r})"), found

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`. Kept steps are used up, and taken out of the record.

        Raises:
            NotApplicableError: the rule has no derivative.
            HypergradientError: the record does not reach back far enough, or the budget is too small.
        """
        steps = stage.steps if self.last is None else min(self.last, stage.steps)
        first, stop = record.end.step - steps, record.end.step
        whole = steps == stage.steps
        begin = max((t for t in record.states if t <= first), default=None)
        if steps and begin is None:
            raise HypergradientError(
                f"the record begins after step {first}: run(..., tail={self.tail}) records what Unroll needs"
            )
        sweep = _Sweep(stage, hparams, self.product, cotangent)
        del cotangent
        kept_bytes = 0
        if steps and begin is not None:
            kept_bytes = record.kept_bytes_from(begin)
            earliest = record.states[begin]
            found = record.sizes
            schedule, _ = self._schedule(steps, lambda: found or sizes_of(stage, earliest, hparams))
            held = [record.states[t] for t in sorted(record.states) if begin <= t < stop]
            kept, skipped, record = record.kept, record.skipped, _light(stage, record, hparams)
            del earliest  # what nobody else holds of the record is let go of on the way
            again = _Replay(stage, hparams, self._keeps_graphs)
            for one in again.backwards(held, kept, range(first, stop), schedule):
                sweep.pull(one, skipped.get(one.state.step, frozenset()), rows=whole or one.state.step > first)
                del one  # its room is the next one's
            sweep.gradients += again.gradients
        else:
            sweep.hparams.add(tree.zeros_like(hparams))
        if sweep.flowed is not None and not stage.rule_reads_hparams and not tree.holds(sweep.flowed):
            check_derivative(stage, record, hparams)
        return Pullback(
            hparams=stage.reduce(sweep.hparams.value),
            start=sweep.params.value if whole else None,
            outcome=Outcome.DONE if whole else Outcome.TRUNCATED,
            cost=Cost(gradients=sweep.gradients, products=steps, kept_bytes=kept_bytes),
        )


def _light(stage: Stage, record: Record, hparams: Tree) -> Record:
    """What `check_derivative` needs of a record, and no state more."""
    before, names = record.end.step - 1, stage.trained(record.end.params)
    if is_linear(stage.rule, names, before):  # it has a derivative: nobody will ask
        return replace(record, states={}, kept={}, grad=None)
    if can_rewind(stage.bind(hparams), names, before):
        return replace(record, states={}, kept={})
    return replace(record, states={t: s for t, s in record.states.items() if t == before}, kept={})


class _Sum:
    """A sum of trees over the union of their keys, written over where its tensors are its own."""

    def __init__(self, start: Tree) -> None:
        self.value = dict(start)
        self._own: set[str] = set()

    def add(self, terms: Tree, factor: float = 1.0, others: Iterable[Tensor] = ()) -> None:
        """Add ``factor * terms``, without changing the memory of ``others``. Terms may lie in the memory of the sum."""
        places = storage_bytes(self.value.values())
        shared = storage_bytes(others)
        terms = {k: x.clone() if x.untyped_storage()._cdata in places else x for k, x in terms.items()}
        for k, x in terms.items():
            mine = self.value.get(k)
            if mine is None:
                self.value[k] = x * factor
            elif k in self._own and mine.untyped_storage()._cdata not in shared:
                mine.add_(x, alpha=factor)
            else:
                self.value[k] = torch.add(mine, x, alpha=factor)
            self._own.add(k)


@dataclass(eq=False)
class _Sweep:
    """Cotangents on the way back.

    Attributes:
        params, slots, hparams: cotangents so far.
        gradients: passes beside the products.
        flowed: whether anything came through a nonlinear rule (0-d, not read back); None if there was no such step.
    """

    stage: Stage
    lam: Tree
    product: Product
    start: Tree
    slots: SlotCotangents = field(default_factory=dict)
    gradients: int = 0
    flowed: Tensor | None = None

    def __post_init__(self) -> None:
        self.params, self.hparams = _Sum(self.start), _Sum({})
        self.start = {}

    def pull(self, one: Kept, skipped: frozenset[str], *, rows: bool) -> None:
        """One step backwards; without ``rows`` nothing before it will be asked for."""
        stage, state, lam = self.stage, one.state, self.lam
        objective = stage.objective(state.step) if one.at is None else None
        names = [k for k in stage.trained(state.params) if k not in skipped]
        linear = is_linear(stage.rule, names, state.step)
        at_once = pull_linear(stage, state, names, self.params.value, self.slots)
        if at_once is not None:
            pulled, factor = at_once
        else:
            grads = one.grads
            if linear:
                grads = tree.select(state.params, names)  # only their shapes matter
            elif objective is not None:
                _, grads, _ = gradients(objective, state.params, lam, wrt_params=names)
                grads = stage.reduce(grads)
                self.gradients += 1
            pulled, factor = pull_rule(stage, state, lam, grads, self.params.value, self.slots), 1.0
        if not linear:
            through = torch.stack([x.any() for x in pulled.grads.values()]).any() if pulled.grads else None
            found = [x for x in (self.flowed, through) if x is not None]
            nothing = next(iter(self.params.value.values())).new_zeros((), dtype=torch.bool)
            self.flowed = torch.stack([nothing, *found]).any()
        wanted = state.params if rows else ()
        if one.at is not None:
            hessian, mixed = one.at.pull(pulled.grads, wrt_params=wanted, wrt_hparams=lam, last=True)
        else:
            assert objective is not None
            hessian, mixed = self.product(
                objective, state.params, lam, pulled.grads, wrt_params=wanted, wrt_hparams=lam
            )
        self.slots = {k: pulled.slots[k] if k in names else self.slots.get(k, {}) for k in state.slots}
        self.hparams.add(mixed, factor)  # before the cotangents change, whose memory a product's answer may share
        self.hparams.add(pulled.hparams)
        others = [*(x for s in self.slots.values() for x in s.values()), *pulled.params.values()]
        self.params.add(stage.reduce(hessian), factor, others)
        self.params.add(pulled.params, others=others[: len(others) - len(pulled.params)])


class _Replay:
    """Gives the steps of a run, last first: those that it kept, and the others taken again.

    Attributes:
        gradients: passes that this took beside those of the products.
    """

    def __init__(self, stage: Stage, hparams: Tree, graphs: bool) -> None:
        self.stage, self.hparams, self.graphs, self.gradients = stage, hparams, graphs, 0
        self.rule = stage.bind(hparams)

    def backwards(self, held: list[State], kept: dict[int, Kept], steps: range, schedule: Schedule) -> Iterator[Kept]:
        """The steps ``steps``.

        Args:
            held: recorded states, from one at or before the first of them on; emptied on the way.
            kept: steps that the run kept; emptied on the way.
            schedule: how far to go at a time.
        """
        stop = steps.stop
        while stop > steps.start:
            if self.graphs and stop - 1 in kept:
                stop -= 1
                yield kept.pop(stop)
                continue
            state = held.pop()
            left = replace(schedule, snapshots=max(schedule.snapshots - len(held), min(schedule.snapshots, 1)))
            if state.step < steps.start:
                held.append(self._ahead(state, steps.start - state.step))
            elif stop - state.step > left.stretch:
                held += [state, self._ahead(state, left.split(stop - state.step))]
            elif state.step < stop:
                yield from self._stretch(state, stop)
                stop = state.step
            del state

    def _ahead(self, state: State, steps: int) -> State:
        self.gradients += steps
        return advance_by(self.stage, self.rule, state, self.hparams, steps)

    def _stretch(self, state: State, stop: int) -> Iterator[Kept]:
        stretch: list[Kept] = []
        while state.step < stop - 1:
            if self.graphs:
                state, one = advance_kept(self.stage, self.rule, state, self.hparams)
                stretch.append(one)
                del one
            else:
                stretch.append(Kept(state, None, {}))
                state = self._ahead(state, 1)
        stretch.append(keep_step(self.stage, state, self.hparams) if self.graphs else Kept(state, None, {}))
        del state
        while stretch:
            yield stretch.pop()
