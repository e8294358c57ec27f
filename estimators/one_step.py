"""One product and no solve: T1-T2 and SAMA."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import tree
from .adaptation import (
    adapt,
    in_dicts_of_its_own,
    leaf_by_leaf,
    recorded_before_last,
    refuse_rule_hparams,
    state_before_last,
    young,
)
from .errors import HypergradientError, NotApplicableError
from .estimator import Cost, ExtraUpdate, Pullback
from .implicit import last_objectives, mean_product
from .products import Arrival, BoundLoss, CentralDifference, Product, reverse_over_reverse
from .rules import leaf_rules
from .solvers import Outcome
from .stage import Record, Stage
from .tree import Tree

Adaptation = Callable[[Stage, Record, Tree, Tree], Tree]
"""(stage, record, hparams, cotangent) -> what takes the place of (du/dg)^T c."""

PUBLISHED_DIFFERENCE = CentralDifference(alpha=1.0)
"""The product of the SAMA paper (Table 4: alpha = 1)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OneProduct:
    """One product with what is made of the cotangent leaf by leaf: the `Absorption` of T1T2 and SAMA.

    Args:
        leaves: those that the last step moved.
        leaf: makes the tangent's leaf of the cotangent's.
        product, losses, params, hparams: M^T at params, the mean of the losses', whose batches are made when they are needed.
        reduce: mean over data-parallel ranks.
        outcome: what to report.
        kept_bytes: what it needed recorded.
        check: told the tangent, before it is used.
    """

    leaves: list[str]
    leaf: Arrival
    product: Product
    losses: Callable[[], list[BoundLoss]]
    params: Tree
    hparams: Tree
    reduce: Callable[[Tree], Tree]
    outcome: Outcome
    kept_bytes: int = 0
    check: Callable[[Tree], None] = lambda tangent: None

    def absorb(self, leaf: str, cotangent: Tensor, overwrite: bool) -> Tensor:
        """See `Absorption`."""
        return self.leaf(leaf, cotangent, overwrite)

    def pullback(self, absorbed: Tree, *, own: bool = True) -> Pullback:
        """See `Absorption`.

        Args:
            own: ``absorbed`` may be written to.
        """
        self.check(absorbed)
        if not absorbed:  # the outer loss reads no leaf that the last step moved
            absorbed = {k: torch.zeros_like(self.params[k]) for k in self.leaves[:1]}
        losses = self.losses()
        if own and isinstance(self.product, CentralDifference) and len(losses) == 1:
            _, mixed = self.product.consuming(losses[0], self.params, self.hparams, absorbed, wrt_hparams=self.hparams)
        else:
            _, mixed = mean_product(self.product, losses, self.params, self.hparams, absorbed, wrt_hparams=self.hparams)
        return Pullback(
            hparams=self.reduce(mixed),
            start=None,
            outcome=self.outcome,
            cost=Cost(products=len(losses), kept_bytes=self.kept_bytes),
        )


def _of_whole(pulling: OneProduct, cotangent: Tree) -> Pullback:
    """The pullback of a cotangent that is there already, whose tensors others may hold."""
    left = dict(cotangent)
    del cotangent
    return pulling.pullback({k: pulling.absorb(k, left.pop(k), False) for k in pulling.leaves})


def _scaled(c: Tensor, by: float | Tensor, overwrite: bool) -> Tensor:
    return c.mul_(by) if overwrite else c * by


@dataclass(frozen=True)
class T1T2:
    """M^T (-lr c) with M at the state *before* the last step, c at the end (Luketina et al. 2016, eq. 5).

    The gradient-descent view of the last step: exact for that one step if the rule is SGD. DARTS (Liu et al. 2019,
    eq. 7) is this with ``product=CentralDifference(0.01)``. Its scale carries the inner learning rate.

    Args:
        product: form of the second-order product.
    """

    product: Product = reverse_over_reverse

    @property
    def tail(self) -> int:
        return 1

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: no step was taken, or hyperparameters sit in the rule.
        """
        return _of_whole(self.absorb(stage, record, hparams), cotangent)

    def absorb(self, stage: Stage, record: Record, hparams: Tree) -> OneProduct:
        """As `pullback`, of a cotangent that comes leaf by leaf (see `Absorption`)."""
        refuse_rule_hparams(stage, record, hparams, "T1T2")
        if record.grad is None:
            raise NotApplicableError(
                "T1T2 differentiates the last step, and the stage took none: give Stage(steps >= 1), or use an "
                "Implicit estimator"
            )
        before = recorded_before_last(record)
        at = before.step
        rates = {k: r.lr for k, r in leaf_rules(stage.bind(hparams), record.grad, at).items()}
        return OneProduct(
            leaves=list(rates),
            leaf=lambda k, c, overwrite: _scaled(c, -rates[k], overwrite),
            product=self.product,
            losses=lambda: [stage.objective(at)],
            params=before.params,  # the slots of that state are not needed
            hparams=hparams,
            reduce=stage.reduce,
            outcome=Outcome.APPROXIMATE,
            kept_bytes=tree.nbytes(before.params),
        )


@dataclass(frozen=True)
class SAMA:
    """M^T (du/dg)^T c, all at the end: identity for H^-1, the last update's own derivative as *adaptation*.

    Choe et al. 2023, *Making Scalable Meta Learning Practical*, eqs. 3 to 5. Where we depart: the adaptation is the
    exact derivative (bias correction included), not Appendix C's; the perturbation of the central difference moves
    a copy of theta.

    The published numbers include an *extra update*: after the hypergradient, theta is left at theta - eps v, v the adapted
    cotangent and eps = alpha / ||v||, so that it moves by exactly alpha whatever the learning rate (the released code
    leaves it out by default). It is no part of the hypergradient; ``extra_update`` asks for it, and whoever drives the
    training applies `Pullback.extra_update`.

    Args:
        adapt: False leaves the adaptation out (SAMA-NA): -M^T c, without a learning rate. A function with the arguments of
            `adapt` takes its place, for ablations.
        product: form of the second-order product; the paper's is a central difference with alpha = 1.
        batches: average M over this many of the stream's last batches.
        waiting: dtype in which the last gradient, as large as the parameters, waits for the outer gradient; its own if None.
            `torch.bfloat16` saves half of its memory (of float32) and rounds what goes through the rule's second moment.
        extra_update: alpha, the norm of the extra update that the pullback carries; None: none.

    Raises:
        HypergradientError: ``batches`` is below 1, ``extra_update`` not positive, or ``waiting`` no floating dtype.
    """

    adapt: bool | Adaptation = True
    product: Product = PUBLISHED_DIFFERENCE
    batches: int = 1
    waiting: torch.dtype | None = None
    extra_update: float | None = None

    def __post_init__(self) -> None:
        if self.batches < 1 or (self.extra_update is not None and not self.extra_update > 0):
            raise HypergradientError(f"{self}: batches must be at least 1, extra_update positive")
        if self.waiting is not None and not self.waiting.is_floating_point:
            raise HypergradientError(
                f"SAMA(waiting={self.waiting}): gradients wait in a floating dtype, as torch.bfloat16"
            )

    @property
    def tail(self) -> int:
        return 0

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: no step was taken, the rule has no derivative, or hyperparameters sit in it.
        """
        pulling = self.absorb(stage, in_dicts_of_its_own(record), hparams)
        if pulling is not None:
            return _of_whole(pulling, cotangent)
        assert record.grad is not None  # `absorb` has looked
        if self.adapt:
            tangent = (self.adapt if callable(self.adapt) else adapt)(stage, record, hparams, cotangent)
        else:
            tangent = {k: -cotangent[k] for k in record.grad}
        extra = self._extra_update(stage, record, hparams, tangent)
        found = self._pulling(stage, record, hparams).pullback(tangent, own=False)
        return replace(found, extra_update=extra)

    def absorb(self, stage: Stage, record: Record, hparams: Tree) -> OneProduct | None:
        """As `pullback`, of a cotangent that comes leaf by leaf (see `Absorption`); None if the rule mixes coordinates, if a
        function adapts, or for the extra update, which needs the last step as a whole."""
        refuse_rule_hparams(stage, record, hparams, "SAMA")
        if record.grad is None:
            raise NotApplicableError(
                "SAMA uses the last update, and the stage took no step: give Stage(steps >= 1), or use an Implicit "
                "estimator"
            )
        if self.extra_update is not None or callable(self.adapt):
            return None
        pulling = self._pulling(stage, record, hparams)
        if not self.adapt:
            record.grad.clear()  # only the names are needed
            return pulling
        by_leaf = leaf_by_leaf(stage, record, hparams, waiting=self.waiting)
        return None if by_leaf is None else replace(pulling, leaf=by_leaf, check=by_leaf.check)

    def _pulling(self, stage: Stage, record: Record, hparams: Tree) -> OneProduct:
        """Without an adaptation."""
        assert record.grad is not None
        end = replace(record, grad=None, states={})
        return OneProduct(
            leaves=list(record.grad),
            leaf=lambda k, c, overwrite: _scaled(c, -1.0, overwrite),
            product=self.product,
            losses=lambda: last_objectives(stage, end, self.batches),
            params=end.end.params,
            hparams=hparams,
            reduce=stage.reduce,
            outcome=Outcome.YOUNG if self.adapt and young(stage, record, hparams) else Outcome.APPROXIMATE,
        )

    def _extra_update(self, stage: Stage, record: Record, hparams: Tree, tangent: Tree) -> ExtraUpdate | None:
        """alpha v / ||v|| downhill, beside the size of the last step of the rule."""
        if self.extra_update is None:
            return None
        before, length = state_before_last(stage, record, hparams).params, tree.norm(tangent)
        step = tree.norm({k: x - before[k] for k, x in record.end.params.items()})
        scale = torch.where(length > 0, self.extra_update / length, 0.0).to(tree.dtype_of(tangent))
        change = tree.scale(tangent, scale)
        if not tree.has_values(length):
            return ExtraUpdate(change, math.nan)
        moved = self.extra_update if bool(length > 0) else 0.0
        return ExtraUpdate(change, moved / float(step) if bool(step > 0) else math.inf)
