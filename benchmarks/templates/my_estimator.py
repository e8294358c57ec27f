"""MyEstimator: the inverse Hessian replaced by the multiple of the identity that fits best.

Implicit differentiation needs x with H x = c, where c is the gradient of the outer loss by the parameters and H the Hessian of the
inner loss; the hypergradient is then direct - M^T x, with M the mixed derivative d2L / dtheta dlambda. Here

    x = a c,    a = c'Hc / |Hc|^2,    which makes |H (a c) - c| smallest

(one step of the minimal residual method). One second-order product gives both H c and M^T c.

    pytest test_my_estimator.py
    hypergradbench run --plugins my_estimator.py --estimators my-estimator cg sama unroll --problems log_ridge
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from estimators import (
    Claim,
    Cost,
    NotApplicableError,
    Outcome,
    Product,
    Pullback,
    Record,
    Stage,
    Tree,
    registry,
    reverse_over_reverse,
    tree,
)


@dataclass(frozen=True, kw_only=True)  # an estimator is a frozen dataclass: its fields are its settings
class MyEstimator:
    """CHANGE: what it answers, when it is exact, what it leaves out; and its paper."""

    product: Product = reverse_over_reverse
    tail: ClassVar[int] = 0  # how many of the last steps it needs recorded: 0 none, None all

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """Cotangent on the end of the run -> cotangent on the hyperparameters.

        Args:
            stage: the training run as a map: its loss, rule and stream.
            record: what was recorded of it; ``record.end.params`` is where it ended.
            hparams: lambda.
            cotangent: c, the outer gradient at the end.

        Raises:
            NotApplicableError: hyperparameters sit in the rule, where this cannot see them; or H c is zero.
        """
        if stage.rule_reads_hparams:
            raise NotApplicableError("MyEstimator cannot see hyperparameters that sit in the rule: use Unroll")
        params = record.end.params
        c = tree.select(cotangent, stage.trained(params))
        loss = stage.objective(max(record.end.step - 1, 0))  # the loss of the last step, its batch fixed
        hc, mc = self.product(loss, params, hparams, c, wrt_params=c, wrt_hparams=hparams)
        hc, mc = stage.reduce(tree.fill(hc, c)), stage.reduce(mc)  # the mean over data-parallel ranks
        square = tree.dot(hc, hc)
        if not bool(square > 0):
            raise NotApplicableError("MyEstimator divides by |Hc|, which is 0: is the inner loss flat there?")
        scale = tree.dot(c, hc) / square
        return Pullback(
            hparams=tree.scale(mc, -scale),  # the caller adds the direct term
            start=None,  # it gives no cotangent on the start, so it serves problems of one stage
            outcome=Outcome.APPROXIMATE,
            cost=Cost(products=1),
        )


# Registering is being listed, measured and drawn. The claims say where it applies and what may be expected of it.
registry.register(
    "my-estimator",
    MyEstimator(),
    Claim(
        of="inverse Hessian replaced by the best multiple of the identity",
        citation="CHANGE: its paper",
        target="direction",  # "run" or "optimum" if it is exact for that
        bias="curvature enters by one number only",
    ),
)
