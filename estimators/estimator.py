"""The protocol of an estimator, and the fold that turns pullbacks into a hypergradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from . import tree
from .errors import HypergradientError, NonFiniteError
from .products import BoundLoss, gradients, summed_gradients
from .solvers import Outcome
from .stage import Record, Stage, identity, run, scalar
from .state import State
from .tree import Tree

Outer = Callable[[Tree, Tree], Tensor]
"""(params, hparams) -> scalar: the outer (meta, validation) loss."""


@dataclass(frozen=True)
class MeanOf:
    """An outer loss that is the mean of parts, such as the micro-batches of a validation batch.

    `hypergradient` goes forward and backward through one part after the other, so that the activations of no two are there at
    once. What it costs is one sum of gradients as large as the parameters: worth it if the activations are larger.

    Args:
        parts: outer losses, at least one.

    Raises:
        HypergradientError: there is none, or ``parts`` is no list.
    """

    parts: Sequence[Outer]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Sequence) or not self.parts:
            raise HypergradientError(f"MeanOf({self.parts}): give a list of outer losses, at least one")

    def __call__(self, params: Tree, hparams: Tree) -> Tensor:
        def value(i: int, part: Outer) -> Tensor:
            return scalar(lambda: part(params, hparams), f"part {i} of the outer loss", params, hparams)

        return torch.stack([value(i, part) for i, part in enumerate(self.parts)]).mean()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a pullback spent, beside the run itself.

    Attributes:
        gradients: first-order passes (replayed steps included).
        products: second-order products.
        matvecs: those of them that a solver asked for.
        kept_bytes: recorded states that the pullback needed.
    """

    gradients: int = 0
    products: int = 0
    matvecs: int = 0
    kept_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            gradients=self.gradients + other.gradients,
            products=self.products + other.products,
            matvecs=self.matvecs + other.matvecs,
            kept_bytes=self.kept_bytes + other.kept_bytes,
        )


@dataclass(frozen=True, eq=False)
class ExtraUpdate:
    """A move of the parameters that an estimator's paper makes beside the hypergradient.

    Attributes:
        change: to be added to the parameters, for some or all leaves.
        relative: its norm relative to the last optimizer step's.
    """

    change: Tree
    relative: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Pullback:
    """Cotangents that a stage's end sends back.

    Attributes:
        hparams: cotangent on the hyperparameters; leaves without influence on this stage are missing.
        start: cotangent on the start; None means "the end forgets its start", or that the estimator gives none.
        outcome: what happened.
        cost: what it took.
        residual: ||b - Hx|| / ||b|| of the linear system, where there is one.
        curvature: smallest curvature met, where one was looked at.
        extra_update: see `ExtraUpdate`; None unless the estimator was asked for one.
    """

    hparams: Tree
    start: Tree | None
    outcome: Outcome
    cost: Cost
    residual: float | None = None
    curvature: float | None = None
    extra_update: ExtraUpdate | None = None


@runtime_checkable
class Estimator(Protocol):
    """An approximate pullback of a stage: frozen, keyword-built, pure.

    Optional: ``every``, the spacing of the states it wants recorded, or ``keep``, which decides about all that is (see `run`);
    ``without_direct``, True if at the last stage the direct outer gradient is left out, too (plain training);
    ``absorb(stage, record, hparams) -> Absorption | None``, what takes the cotangent's leaves as they arrive (None: it needs them
    all at once).
    """

    @property
    def tail(self) -> int | None:
        """How many of the last steps it needs recorded: 0 none, None all."""
        ...

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """Cotangent on ``record.end.params`` -> cotangents on hparams and start.

        The caller keeps no reference to cotangent and record, so that an estimator that copies their dicts (not the tensors)
        and drops what they hold as it goes frees it. It must not change the tensors: others may hold them.
        """
        ...


class Absorption(Protocol):
    """A pullback whose cotangent comes leaf by leaf, as the outer backward pass finds it: never is it there as a whole beside
    what is made of it.

    Over data-parallel ranks what it makes of the leaves is averaged, not the leaves: it must be linear in them, and the same on all
    ranks.

    Attributes:
        leaves: those whose cotangent it asks for.
    """

    leaves: Collection[str]

    def absorb(self, leaf: str, cotangent: Tensor, overwrite: bool) -> Tensor:
        """What takes the place of a leaf; the cotangent itself, written over, if ``overwrite`` allows it."""
        ...

    def pullback(self, absorbed: Tree) -> Pullback:
        """See `Estimator.pullback`.

        Args:
            absorbed: what `absorb` made of all ``leaves``, to be used up; those that the outer loss does not read may be missing.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Hypergradient:
    """dM/dlam, and how it came about.

    Attributes:
        hparams: the hypergradient, keyed as hparams: ``direct + indirect``.
        value: outer loss, a 0-d tensor.
        direct: dM/dlam at fixed parameters.
        indirect: what comes through the stages.
        pullbacks: one a stage, in the order of the stages.
    """

    hparams: Tree
    value: Tensor
    direct: Tree
    indirect: Tree
    pullbacks: tuple[Pullback, ...]

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(p.outcome for p in self.pullbacks)

    @property
    def cost(self) -> Cost:
        return sum((p.cost for p in self.pullbacks), Cost())


class FromTheStart:
    """What an estimator that goes over the whole run again wants recorded: its first state, and no other."""

    @property
    def tail(self) -> None:
        return None

    @property
    def every(self) -> int:
        return 2**62


def hypergradient(
    outer: Outer,
    stages: Sequence[Stage],
    estimators: Sequence[Estimator],
    records: Sequence[Record],
    hparams: Tree,
    *,
    throw: bool = True,
    consume: bool = False,
) -> Hypergradient:
    """Direct outer gradient + a reverse fold of pullbacks over the stages.

    Args:
        outer: (params, hparams) -> scalar, at the end of the last stage.
        stages, estimators, records: one of each a stage, in order.
        hparams: lam, shared by all stages.
        throw: raise on a diverged series and on a pullback that is not finite. False leaves both to the reader of
            ``outcomes``.
        consume: use the records up: last gradients and recorded states are let go of as soon as they have been used, if nobody
            else holds them. The records serve no second call then.

    Raises:
        HypergradientError: lengths differ, the outer loss is no scalar, a hyperparameter influences nothing, an
            estimator without a start cotangent has stages before it, a record was used up, or a series diverged.
        NonFiniteError: the outer loss, its gradient or a pullback is NaN or infinite.
    """
    if not all(isinstance(x, Sequence) for x in (stages, estimators, records)):
        raise HypergradientError(
            "stages, estimators and records are lists: hypergradient(outer, [stage], [SAMA()], ...)"
        )
    if not len(stages) == len(estimators) == len(records) or not stages:
        raise HypergradientError(
            f"{len(stages)} stages, {len(estimators)} estimators and {len(records)} records: give one of each a stage"
        )
    for estimator, record in zip(estimators, records, strict=True):
        if isinstance(estimator, type) or not isinstance(estimator, Estimator):
            raise HypergradientError(
                f"{estimator!r} is no estimator: give one such as SAMA(); `estimate` takes names too"
            )
        if not isinstance(record, Record):
            raise HypergradientError(
                f"{type(record).__name__} is no Record: give what run(...) or Live.record() returns"
            )
    tree.check(hparams, "hparams")
    hparams = tree.detach(hparams)
    handed = [_handed_over(record, consume=consume) for record in records]
    ends = [record.end for record in records]
    del records, record
    absorb = getattr(estimators[-1], "absorb", None)
    absorption: Absorption | None = None if absorb is None else absorb(stages[-1], handed[-1], hparams)
    if absorption is not None:
        handed.pop()
    value, cotangent, direct = _outer_gradients(outer, ends[-1].params, hparams, absorption)
    if not tree.holds(torch.isfinite(value)):
        raise NonFiniteError(f"the outer loss is {float(value)} at the end of the last stage")
    reduce = stages[-1].reduce
    value = reduce({"value": value})["value"]
    if absorption is None:
        cotangent = tree.fill(cotangent, ends[-1].params)
    elif reduce is not identity:
        cotangent = tree.fill(
            cotangent, {k: ends[-1].params[k] for k in absorption.leaves}
        )  # the same leaves on all ranks
    cotangent, direct = reduce(cotangent), reduce(direct)
    _finite(cotangent, "the outer gradient" if absorption is None else "the outer gradient, or the rule's derivative,")
    _finite(direct, "the direct outer gradient")
    held: list[Tree | None] = [cotangent]  # an estimator gets the only reference: it may let go of leaves as it goes
    del cotangent
    indirect: Tree = {}
    pullbacks: list[Pullback] = []
    for i in reversed(range(len(stages))):
        if held[0] is None:
            raise HypergradientError(
                f"{type(estimators[i + 1]).__name__} gives no cotangent for the start of stage {i + 1}, so stage {i} "
                "cannot be reached and its part would silently be zero: use Unroll() for the later stage"
            )
        if i > 0 and ends[i].step != stages[i].steps and any(ends[i].slots.values()):
            raise HypergradientError(
                f"stage {i} goes on from the optimizer state of stage {i - 1}, but only parameters carry a cotangent "
                "between stages: run both as one stage, or start the later one from params alone"
            )
        if absorption is not None:
            pulled, absorption = absorption.pullback(cast(Tree, held.pop())), None
        else:
            tree.check(held[0], f"cotangent on the end of stage {i}", ends[i].params)
            pulled = estimators[i].pullback(stages[i], handed.pop(), hparams, cast(Tree, held.pop()))
        if throw and pulled.outcome is Outcome.DIVERGED:
            raise HypergradientError(
                f"stage {i}, {estimators[i]}: {pulled.outcome.value} (residual {pulled.residual}, smallest "
                f"curvature met {pulled.curvature}). Pass throw=False to get the diverging sum all the same"
            )
        _finite(pulled.hparams, f"the pullback of stage {i} by {type(estimators[i]).__name__}", throw=throw)
        pullbacks.append(pulled)
        indirect = tree.union_add(indirect, pulled.hparams)
        held.append(pulled.start)
    idle = [k for k in hparams if k not in indirect and k not in direct]
    if idle:
        raise HypergradientError(
            f"the hyperparameters {idle} influence nothing that {_names(estimators)} can see: neither an inner "
            "loss (in a way that moves its gradient) nor the outer loss. Remove them, or, if they sit in the rule, use Unroll; "
            "and look for float() or .item() on their way"
        )
    indirect, direct = tree.fill(indirect, hparams), tree.fill(direct, hparams)
    if getattr(estimators[-1], "without_direct", False):
        direct = tree.zeros_like(direct)
    return Hypergradient(
        hparams=tree.add(direct, indirect),
        value=value,
        direct=direct,
        indirect=indirect,
        pullbacks=tuple(reversed(pullbacks)),
    )


def recording(estimator: Estimator) -> dict[str, Any]:
    """What `run` is to be asked for, so that it records what this estimator needs."""
    keep = getattr(estimator, "keep", None)
    return {"tail": estimator.tail, "every": getattr(estimator, "every", 1)} if keep is None else {"keep": keep}


def run_stages(
    stages: Sequence[Stage], start: Tree | State, hparams: Tree, estimators: Sequence[Estimator]
) -> list[Record]:
    """Run every stage from the end of the one before, recording what the estimators need.

    Args:
        stages, estimators: one of each a stage, in order.
        start: parameters or `State` before the first stage; the later ones start from parameters alone.
        hparams: lam.

    Raises:
        HypergradientError: the lengths differ; and as `run`.
        NonFiniteError: as `run`.
    """
    if len(stages) != len(estimators):
        raise HypergradientError(f"{len(stages)} stages and {len(estimators)} estimators: give one a stage")
    records: list[Record] = []
    for stage, estimator in zip(stages, estimators, strict=True):
        records.append(run(stage, start, hparams, **recording(estimator)))
        start = records[-1].end.params
    return records


def _handed_over(record: Record, *, consume: bool) -> Record:
    """The same in dicts of its own, which whoever gets them may empty.

    Raises:
        HypergradientError: nothing is left of it.
    """
    if record.grad is not None and not record.grad:
        raise HypergradientError(
            "the record was used up by hypergradient(..., consume=True): run the stage again, or leave consume out"
        )
    own = replace(record, grad=None if record.grad is None else dict(record.grad), states=dict(record.states))
    if consume and record.grad is not None:
        record.grad.clear()
        record.states.clear()
    return own


def _outer_gradients(
    outer: Outer, params: Tree, hparams: Tree, absorption: Absorption | None
) -> tuple[Tensor, Tree, Tree]:
    """Value, cotangent (or what was made of it) and direct gradient of the outer loss.

    Raises:
        HypergradientError: it depends on nothing, or is no scalar.
    """
    parts = outer.parts if isinstance(outer, MeanOf) else [outer]

    def bound(part: Outer) -> BoundLoss:
        def loss(p: Tree, h: Tree) -> Tensor:
            found = scalar(lambda: part(p, h), "the outer loss", p, h)
            return found / len(parts) if len(parts) > 1 else found

        return loss

    losses = [bound(part) for part in parts]
    if absorption is None and len(parts) == 1:
        value, cotangent, direct = gradients(losses[0], params, hparams, wrt_params=params, wrt_hparams=hparams)
    else:
        wanted = params if absorption is None else absorption.leaves
        arrival = None if absorption is None else absorption.absorb
        value, cotangent, direct = summed_gradients(
            losses, params, hparams, wrt_params=wanted, wrt_hparams=hparams, arrival=arrival
        )
    if cotangent or direct or (absorption is not None and _reads(losses, params, hparams)):
        return value, cotangent, direct
    raise HypergradientError(
        "the outer loss depends on neither params nor hparams: does it detach them, or read a closure?"
    )


def _reads(losses: Sequence[BoundLoss], params: Tree, hparams: Tree) -> bool:
    """Whether they depend on any leaf, those that nobody asks for included."""
    return any(gradients(loss, params, hparams, wrt_params=params)[1] for loss in losses)


def _finite(a: Tree, what: str, *, throw: bool = True) -> None:
    if throw and not tree.all_finite(a):
        names = [k for k, x in a.items() if not tree.all_finite({k: x})]
        raise NonFiniteError(f"{what} is NaN or infinite in {names}; it is not replaced by zero")


def _names(estimators: Sequence[Estimator]) -> str:
    return ", ".join(type(e).__name__ for e in estimators)
