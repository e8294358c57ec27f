"""One product and no solve: T1-T2 and SAMA."""

from __future__ import annotations

from dataclasses import dataclass

from . import tree
from .adaptation import adapt, refuse_rule_hparams
from .errors import HypergradientError, NotApplicableError
from .estimator import Cost, Pullback
from .implicit import last_objectives, mean_product
from .products import CentralDifference, Product, reverse_over_reverse
from .solvers import Outcome
from .stage import Record, Stage
from .tree import Tree

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
        before = record.states.get(record.end.step - 1)
        if before is None:
            raise HypergradientError("the state before the last step was not recorded: run(..., tail=1), every=1")
        lr = stage.bind(hparams).lr
        tangent = {k: -lr * cotangent[k] for k in record.grad}
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
    a copy of theta. The paper's extra move of theta along -eps v is not part of the hypergradient and is not made.

    Args:
        adapt: False leaves the adaptation out (SAMA-NA): -M^T c, without a learning rate.
        product: form of the second-order product; the paper's is a central difference with alpha = 1.
        batches: average M over this many of the stream's last batches.

    Raises:
        HypergradientError: ``batches`` is below 1.
    """

    adapt: bool = True
    product: Product = PUBLISHED_DIFFERENCE
    batches: int = 1

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise HypergradientError(f"{self}: batches must be at least 1")

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
            tangent = adapt(stage, record, hparams, cotangent)
        else:
            tangent = {k: -cotangent[k] for k in record.grad}
        losses = last_objectives(stage, record, self.batches)
        _, mixed = mean_product(self.product, losses, record.end.params, hparams, tangent, wrt_hparams=hparams)
        return Pullback(
            hparams=stage.reduce(mixed),
            start=None,
            outcome=Outcome.APPROXIMATE,
            cost=Cost(products=len(losses)),
        )
