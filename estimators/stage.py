"""Training as a map: a `Stage` takes (start, hparams) to an end, and `run` records what estimators need of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import tree
from .checkpointing import Plan, Sizes
from .errors import HypergradientError, NonFiniteError
from .products import BoundLoss, Linearized, gradients, leaves, linearize
from .rules import (
    AnyRule,
    Owned,
    can_rewind,
    check_leaves,
    init_tree,
    is_linear,
    is_rule,
    leaf_rule,
    step_in_place,
    unshared,
)
from .saved import freed_with, saved_tensors, storage_bytes
from .state import State
from .tree import Tree

Batch = Any


def identity(a: Tree) -> Tree:
    """The default of ``Stage.reduce``: one process, nothing to average."""
    return a


@dataclass(frozen=True, eq=False)
class Stage:
    """A training run seen as a map (start, hparams) -> end.

    Args:
        loss: (params, hparams, batch) -> scalar, a mean over the batch if `reduce` averages over ranks.
        rule: the inner optimizer (a rule or a wrapper around rules), or a function hparams -> optimizer if hyperparameters sit in it.
        stream: step number -> batch, a pure function of the step: replay and solvers call it again.
        steps: number of steps, >= 0. A stage of no steps ends where it starts and uses ``stream(0)``.
        reduce: mean over data-parallel ranks, applied to gradients and to both halves of every product.
        frozen: leaves that the loss reads and the stage leaves as they are (head-only fine-tuning).
        seed: makes random draws inside ``loss`` and ``stream`` a function of the step, so that every evaluation
            of a step sees the same ones. Needed by losses that draw (dropout); `run` says so.
        first_order: ``loss`` again, in a form that is faster and has no second derivative (`torch.compile` of it): taken for
            the steps of `run` whose graph is not kept. What pulls back uses ``loss``. Nothing checks that the two agree.

    Raises:
        HypergradientError: ``steps`` is negative.
    """

    loss: Callable[[Tree, Tree, Batch], Tensor]
    rule: AnyRule | Callable[[Tree], AnyRule]
    stream: Callable[[int], Batch]
    steps: int
    reduce: Callable[[Tree], Tree] = identity
    frozen: frozenset[str] = field(default_factory=frozenset)
    seed: int | None = None
    first_order: Callable[[Tree, Tree, Batch], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise HypergradientError(f"Stage(steps={self.steps}): must not be negative")
        if isinstance(self.rule, type):
            raise HypergradientError(
                f"Stage(rule={self.rule.__name__}) is a class: pass a rule, {self.rule.__name__}(...)"
            )
        if not is_rule(self.rule) and not callable(self.rule):
            raise HypergradientError(
                f"Stage(rule={self.rule!r}) is no rule: pass one such as SGD(lr=0.1), Groups({{pattern: rule}}), or a function "
                "hparams -> rule"
            )
        object.__setattr__(self, "frozen", frozenset(self.frozen))

    @property
    def rule_reads_hparams(self) -> bool:
        """Whether the rule is built from the hyperparameters."""
        return not is_rule(self.rule)

    def bind(self, hparams: Tree) -> AnyRule:
        """The rule at these hyperparameters."""
        if not self.rule_reads_hparams:
            return cast(AnyRule, self.rule)
        try:
            rule = cast(Callable[[Tree], AnyRule], self.rule)(hparams)
        except KeyError as error:
            raise HypergradientError(
                f"Stage.rule reads {error.args[0]!r}, but hparams hold {sorted(hparams)}: rename one of them"
            ) from error
        if not is_rule(rule):
            raise HypergradientError(
                f"Stage.rule returned {rule!r}: return a rule such as SGD(lr=...), or pass the rule itself"
            )
        return rule

    def trained(self, params: Mapping[str, Tensor]) -> list[str]:
        """The leaves that this stage moves."""
        unknown = self.frozen - params.keys()
        if unknown:
            raise HypergradientError(f"Stage.frozen names {sorted(unknown)}, but the start holds {sorted(params)}")
        return [k for k in params if k not in self.frozen]

    def initial(self, params: Tree, hparams: Tree) -> State:
        """The state before the first step, with fresh slots."""
        with torch.enable_grad():
            rule = self.bind(leaves(hparams, hparams))
            check_leaves(rule, params)
            slots = init_tree(rule, {k: params[k].detach().requires_grad_() for k in self.trained(params)}, 0)
        for k, s in slots.items():
            if any(x.requires_grad for x in s.values()):
                raise HypergradientError(
                    f"{type(leaf_rule(rule, k, 0)).__name__}.init makes slots of {k!r} that depend on the parameters or on a "
                    "hyperparameter; estimators take first slots for constants: build them from shapes, or detach them"
                )
        return State(params, slots, 0)

    def objective(self, step: int, *, first_order: bool = False) -> BoundLoss:
        """The loss of one step as a function of (params, hparams) alone: batch and random draws are fixed.

        Args:
            first_order: only its first derivative is wanted.

        Raises (when called):
            HypergradientError: the loss reads a leaf that is not there, or is no scalar.
        """
        with self._seeded(2 * step):
            batch = self.stream(step)
        loss = self.first_order if first_order and self.first_order is not None else self.loss

        def bound(params: Tree, hparams: Tree) -> Tensor:
            with self._seeded(2 * step + 1):  # not the numbers that the stream drew
                return scalar(lambda: loss(params, hparams, batch), f"Stage.loss of step {step}", params, hparams)

        return bound

    @contextmanager
    def _seeded(self, number: int) -> Iterator[None]:
        if self.seed is None:
            yield
        else:
            used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            current = [torch.cuda.current_device()] if used else []
            with torch.random.fork_rng(devices=current):
                torch.manual_seed(self.seed * 1_000_003 + number)
                yield


def scalar(loss: Callable[[], Any], what: str, params: Tree, hparams: Tree) -> Tensor:
    """``loss()`` if it is a 0-d tensor.

    Raises:
        HypergradientError: it is not, or a key is missing. Other errors get a note that says where they arose.
    """
    try:
        value = loss()
    except KeyError as error:
        raise HypergradientError(
            f"{what} reads {error.args[0]!r}, but params hold {sorted(params)} and hparams {sorted(hparams)}: rename the "
            "start or the loss so that they agree, look at the order of its arguments (params, hparams, batch), or, if it is "
            "a key of the batch, mend the stream"
        ) from error
    except Exception as error:
        error.add_note(f"(in {what})")
        raise
    if not isinstance(value, Tensor) or value.dim() != 0:
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        advice = "end it with .mean() or .sum()" if isinstance(value, Tensor) else "leave out .item() or float()"
        raise HypergradientError(f"{what} returned {shape}, not a scalar: {advice}")
    return value


class Kept(NamedTuple):
    """A step that is ready to be pulled back.

    Attributes:
        state: before it.
        at: its loss, linearised there; None if the product is to evaluate it again.
        grads: that it used, averaged over ranks; {} if nobody will ask for them.
    """

    state: State
    at: Linearized | None
    grads: Tree


Keep = Callable[[range, Callable[[], Sizes]], Plan]
"""(the steps of a run, what gives the bytes of the first of them) -> what `run` is to keep."""


@dataclass(frozen=True, eq=False)
class Record:
    """What `run` keeps. One record serves every estimator.

    Attributes:
        end: state after the last step.
        states: state before step t, for the recorded t.
        grad: gradient that the last step used (leaves that the loss reads); None if there was no step.
        losses: (steps,) loss of every step.
        skipped: step -> trained leaves that had no gradient then and were left alone, as torch.optim does.
        kept: steps that were linearised when they were taken. Whoever pulls one back uses it up and takes it out; who finds
            none takes the step again from a recorded state.
        sizes: bytes of the first step, if they were asked for.
    """

    end: State
    states: dict[int, State]
    grad: Tree | None
    losses: Tensor
    skipped: dict[int, frozenset[str]]
    kept: dict[int, Kept] = field(default_factory=dict)
    sizes: Sizes | None = None

    @property
    def kept_bytes(self) -> int:
        """Bytes of the recorded states, those of kept steps included (shared tensors counted once). Graphs are not states: they
        count in a peak."""
        return self.kept_bytes_from(0)

    def kept_bytes_from(self, step: int) -> int:
        """The same from before ``step`` on."""
        states = self.states | {t: one.state for t, one in self.kept.items()}
        return sum(storage_bytes(x for t, state in states.items() if t >= step for x in state.tensors()).values())


def advance(stage: Stage, rule: AnyRule, state: State, hparams: Tree) -> tuple[State, Tensor, Tree]:
    """One step: (next state, loss, gradient of the leaves that the loss reads). ``state`` is not changed."""
    return _step(stage, rule, _in_own_dicts(state), hparams, Owned())[:3]


def advance_kept(stage: Stage, rule: AnyRule, state: State, hparams: Tree) -> tuple[State, Kept]:
    """One step, kept: (next state, what the product of this step needs)."""
    following, _, _, kept = _step(stage, rule, _in_own_dicts(state), hparams, Owned(), keep=True)
    return following, cast(Kept, kept)


def advance_by(stage: Stage, rule: AnyRule, state: State, hparams: Tree, steps: int) -> State:
    """The state ``steps`` steps later; ``state`` is not changed."""
    state, owned = _in_own_dicts(state), Owned()
    for _ in range(steps):
        state = _step(stage, rule, state, hparams, owned)[0]
    return state


def keep_step(stage: Stage, state: State, hparams: Tree) -> Kept:
    """The step after ``state``, linearised and not taken."""
    return _linearized(stage, state, hparams)[0]


def sizes_of(stage: Stage, state: State, hparams: Tree) -> Sizes:
    """Bytes of ``state``, and of the step after it when it is kept: what is freed when that is dropped."""
    kept = keep_step(stage, state, hparams)
    dropped = freed_with(_held_by(kept))
    del kept
    own = sum(storage_bytes(state.tensors()).values())
    return Sizes(own, own + dropped())


def _held_by(kept: Kept) -> list[Tensor]:
    graph = saved_tensors(kept.at.nodes) if kept.at is not None else []
    return [*kept.state.tensors(), *kept.grads.values(), *graph]


def _linearized(stage: Stage, state: State, hparams: Tree) -> tuple[Kept, Tree, Tensor]:
    """(the step after ``state``, kept; the gradient that it uses; its loss)."""
    names = stage.trained(state.params)
    at = linearize(
        stage.objective(state.step), state.params, hparams, tangents=names, wrt_params=state.params, wrt_hparams=hparams
    )
    grads = stage.reduce(at.take())
    needed = {} if is_linear(stage.rule, names, state.step) else dict(grads)
    return Kept(_in_own_dicts(state), at, needed), grads, at.value


def _in_own_dicts(state: State) -> State:
    return state._replace(params=dict(state.params), slots=dict(state.slots))


def _step(
    stage: Stage, rule: AnyRule, state: State, hparams: Tree, owned: Owned, *, keep: bool = False
) -> tuple[State, Tensor, Tree, Kept | None]:
    """As `advance`, taking the dicts of ``state`` over, and of its tensors those that are ``owned``: see `step_in_place`. With
    ``keep`` the step is kept, which holds them all."""
    names = stage.trained(state.params)
    kept: Kept | None = None
    if keep:
        kept, grads, loss = _linearized(stage, state, hparams)
        owned.clear()
    else:
        loss, grads, _ = gradients(
            stage.objective(state.step, first_order=True), state.params, hparams, wrt_params=names
        )
        grads = stage.reduce(grads)
    with torch.no_grad():
        step_in_place(rule, grads, state, owned)
    missed = {**state.missed, **{k: state.missed.get(k, 0) + 1 for k in names if k not in grads}}
    return state._replace(step=state.step + 1, missed=missed), loss, grads, kept


def run(
    stage: Stage,
    start: Tree | State,
    hparams: Tree,
    *,
    tail: int | None = None,
    every: int = 1,
    keep: Keep | None = None,
    watch: Callable[[State], None] | None = None,
    donate: bool = False,
) -> Record:
    """Train, and record the last ``tail`` steps.

    Args:
        stage: what to run.
        start: parameters (fresh optimizer slots, step 0) or a `State` to go on from.
        hparams: lam.
        tail: how many of the last steps to record: 0 none, None all. (One is recorded anyway for a rule without
            ``rewind``, whose adaptation needs it.)
        every: keep every ``every``-th state of the tail; `Unroll` replays those between.
        keep: what to keep, states and graphs, instead of ``tail`` and ``every``; `Unroll.keep` is one. A step whose graph is kept
            may differ from one that is not by rounding (see `Record.kept`).
        watch: called with the state before the first step and with the one after each step: to log, to evaluate, to count
            what memory holds. It must not change the state, and must copy what it keeps: later steps write over it, unless it
            is recorded.
        donate: the start is given away: steps may write over its tensors, which nobody may read again, the loss included.
            Otherwise what they write over is a copy.

    Raises:
        HypergradientError: a malformed start or hparams, a loss that is no scalar, reads other keys, draws random
            numbers without ``Stage.seed``, or depends on no trained leaf.
        NonFiniteError: a loss or a parameter became NaN or infinite; the message names the step.
    """
    if (tail is not None and tail < 0) or every < 1:
        raise HypergradientError(f"run(tail={tail}, every={every}): tail must be None or >= 0, every >= 1")
    _check_start(stage, start, hparams)
    hparams = tree.detach(hparams)
    state = start if isinstance(start, State) else stage.initial(start, hparams)
    state = state._replace(params=tree.detach(state.params), slots={k: tree.detach(s) for k, s in state.slots.items()})
    owned = unshared(state, hparams.values())
    if not donate:
        owned = Owned(slots=set() if isinstance(start, State) else owned.slots)
    del start  # it may be held by nobody else, and then need not outlive the first step
    rule = stage.bind(hparams)
    last = state.step + stage.steps
    kept: dict[int, Kept] = {}
    if keep is None:
        plan = Plan(frozenset(recorded_steps(stage, hparams, state.params, last, tail, every)), range(0))
    else:
        plan = keep(range(state.step, last), functools.partial(sizes_of, stage, state, hparams))
        extra = recorded_steps(stage, hparams, state.params, last, 0, 1)
        plan = plan._replace(states=plan.states | extra)
    states: dict[int, State] = {}
    losses: list[Tensor] = []
    skipped: dict[int, frozenset[str]] = {}
    grad: Tree | None = None
    names = set(stage.trained(state.params))
    readable = all(map(tree.has_values, state.params.values()))  # else no kernel runs, and none draws
    cuda = sorted({x.device.index or 0 for x in state.params.values() if x.device.type == "cuda"})
    drawn = _generator_states(cuda) if stage.seed is None and readable else None
    if watch is not None:
        watch(state)
    for t in range(state.step, last):
        if t in plan.states:
            states[t] = state
            state = _in_own_dicts(state)
            owned.clear()
        grad = None  # the previous gradient must not outlive this step's activations
        state, loss, grad, one = _step(stage, rule, state, hparams, owned, keep=t in plan.steps)
        if one is not None:
            kept[t] = one
        del one
        losses.append(loss)
        if len(grad) < len(names):
            skipped[t] = frozenset(names - grad.keys())
        if drawn is not None:
            _check_no_draws(drawn, cuda, t)
        if watch is not None:
            watch(state)
    if grad is not None:
        check_reads(grad, names)
    record = Record(state, states, grad, torch.stack(losses) if losses else torch.empty(0), skipped, kept, plan.sizes)
    _check_finite(record)
    return record


def recorded_steps(stage: Stage, hparams: Tree, params: Tree, last: int, tail: int | None, every: int) -> set[int]:
    """The steps before which `run` keeps the state, for a run that ends after ``last`` steps.

    The last of them is among them if the rule cannot take it back.
    """
    kept = stage.steps if tail is None else min(tail, stage.steps)
    steps = set(range(last - kept, last, every))
    if not stage.steps or can_rewind(stage.bind(hparams), stage.trained(params), last - 1):
        return steps
    return steps | {last - 1}


def check_reads(grad: Tree, names: Collection[str]) -> None:
    """Refuse a loss whose gradient has no leaf at all.

    Raises:
        HypergradientError: ``grad`` is empty.
    """
    if not grad:
        raise HypergradientError(
            f"the loss depends on none of the trained leaves {sorted(names)}: does it read params, or a closure?"
        )


def _check_start(stage: Stage, start: Tree | State, hparams: Tree) -> None:
    params = start.params if isinstance(start, State) else start
    tree.check(params, "start")
    tree.check(hparams, "hparams")
    p, h = next(iter(params.values())), next(iter(hparams.values()))
    if (p.dtype, p.device) != (h.dtype, h.device):
        raise HypergradientError(
            f"start is {p.dtype} on {p.device} but hparams are {h.dtype} on {h.device}: convert one with .to(...)"
        )
    if isinstance(start, State):
        missing = set(stage.trained(params)) - start.slots.keys()
        if missing:
            raise HypergradientError(f"State.slots lacks {sorted(missing)}: start from a dict of params instead")
        rule = stage.bind(hparams)
        check_leaves(rule, params)
        for k in stage.trained(params):  # one at a time: all fresh slots together are as large as the state
            tree.check_slots(start.slots[k], f"State.slots[{k!r}]", init_tree(rule, {k: params[k]}, start.step)[k])


def _generator_states(cuda: Collection[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, cuda)]


def _check_no_draws(before: list[Tensor], cuda: Collection[int], step: int) -> None:
    if not all(map(torch.equal, before, _generator_states(cuda))):
        raise HypergradientError(
            f"in step {step} the loss or the stream draws from torch's global generator (dropout, sampling, shuffling), "
            "so that no second evaluation of the step would agree with the first: give Stage(seed=0)"
        )


def _check_finite(record: Record) -> None:
    if not tree.all_finite({"losses": record.losses}):
        i, end = int((~torch.isfinite(record.losses)).nonzero()[0]), record.end.step
        raise NonFiniteError(
            f"the inner loss became {float(record.losses[i])} at step {end - len(record.losses) + i} of {end}: lower the "
            "learning rate, or look at the batch of that step"
        )
    if not tree.all_finite(record.end.params):
        names = [k for k, x in record.end.params.items() if not tree.all_finite({k: x})]
        raise NonFiniteError(
            f"the parameters {names} are not finite after {len(record.losses)} steps, although every loss was: "
            "the last gradient was NaN or infinite; look for sqrt, log or division at 0"
        )
