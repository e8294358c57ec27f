"""One product and no solve: T1-T2 and SAMA."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import tree
from .adaptation import adapt, recorded_before_last, refuse_rule_hparams, state_before_last, young
from .errors import HypergradientError, NotApplicableError
from .estimator import Cost, ExtraUpdate, Pullback
from .implicit import last_objectives, mean_product
from .products import CentralDifference, Product, reverse_over_reverse
from .rules import leaf_rules
from .solvers import Outcome
from .stage import Record, Stage
from .tree import Tree

Adaptation = Callable[[Stage, Record, Tree, Tree], Tree]
"""(stage, record, hparams, cotangent) -> what takes the place of (du/dg)^T c."""

PUBLISHED_DIFFERENCE = CentralDifference(alpha=1.0)
"""The product of the SAMA paper (Table 4: alpha = 1)."""


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
        refuse_rule_hparams(stage, record, hparams, "T1T2")
        if record.grad is None:
            raise NotApplicableError(
                "T1T2 differentiates the last step, and the stage took none: give Stage(steps >= 1), or use an "
                "Implicit estimator"
            )
        before = recorded_before_last(record)
        rules = leaf_rules(stage.bind(hparams), record.grad, before.step)
        tangent = {k: -r.lr * cotangent[k] for k, r in rules.items()}
        _, mixed = self.product(stage.objective(before.step), before.params, hparams, tangent, wrt_hparams=hparams)
        return Pullback(
            hparams=stage.reduce(mixed),
            start=None,
            outcome=Outcome.APPROXIMATE,
            cost=Cost(products=1, kept_bytes=tree.nbytes(before.params)),
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
        extra_update: alpha, the norm of the extra update that the pullback carries; None: none.

    Raises:
        HypergradientError: ``batches`` is below 1, or ``extra_update`` not positive.
    """

    adapt: bool | Adaptation = True
    product: Product = PUBLISHED_DIFFERENCE
    batches: int = 1
    extra_update: float | None = None

    def __post_init__(self) -> None:
        if self.batches < 1 or (self.extra_update is not None and not self.extra_update > 0):
            raise HypergradientError(f"{self}: batches must be at least 1, extra_update positive")

    @property
    def tail(self) -> int:
        return 0

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: no step was taken, the rule has no derivative, or hyperparameters sit in it.
        """
        refuse_rule_hparams(stage, record, hparams, "SAMA")
        if record.grad is None:
            raise NotApplicableError(
                "SAMA uses the last update, and the stage took no step: give Stage(steps >= 1), or use an Implicit "
                "estimator"
            )
        if self.adapt:
            adapted = adapt if self.adapt is True else self.adapt
            tangent = adapted(stage, record, hparams, cotangent)
        else:
            tangent = {k: -cotangent[k] for k in record.grad}
        losses = last_objectives(stage, record, self.batches)
        _, mixed = mean_product(self.product, losses, record.end.params, hparams, tangent, wrt_hparams=hparams)
        return Pullback(
            hparams=stage.reduce(mixed),
            start=None,
            outcome=Outcome.YOUNG if self.adapt and young(stage, record, hparams) else Outcome.APPROXIMATE,
            cost=Cost(products=len(losses)),
            extra_update=self._extra_update(stage, record, hparams, tangent),
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
