"""Greedy learning of the optimizer's own hyperparameters: the last update alone, and first derivatives alone."""

from __future__ import annotations

from dataclasses import dataclass

from . import tree
from .adaptation import pull_rule, recorded_before_last, rule_hparams
from .errors import NotApplicableError
from .estimator import Cost, Pullback
from .influence import loss_hparams
from .solvers import Outcome
from .stage import Record, Stage
from .tree import Tree


@dataclass(frozen=True)
class Greedy:
    """(du/dlam)^T c of the last update u(g, slots, theta; lam), c the outer gradient at the end.

    Guided learning (Lichtarge et al. 2022, algorithm 1); for a learning rate of SGD hypergradient descent (Baydin et al.
    2018). The last gradient g does not depend on a hyperparameter that sits in the rule, so no second derivative is
    involved: with alpha = exp(a) in theta' = theta - alpha v it is -alpha <c, v>. What the hyperparameters did to all
    earlier steps is left out: exact for a run of one step, and short-sighted for longer ones. `Unroll` with ``last=K`` is
    the same with a longer horizon.

    A hyperparameter without influence on this very update (a momentum in the first one) has hypergradient 0.
    """

    @property
    def tail(self) -> int:
        return 1

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: no step was taken, no hyperparameter sits in the rule, the loss reads one, or the rule
                declares that it has no derivative.
            HypergradientError: the state before the last step was not recorded.
        """
        if record.grad is None:
            raise NotApplicableError(
                "Greedy differentiates the last update, and the stage took no step: give Stage(steps >= 1)"
            )
        if not stage.rule_reads_hparams:
            raise NotApplicableError(
                f"no hyperparameter sits in the rule, {type(stage.rule).__name__}, and Greedy sees no others: give "
                "Stage(rule=...) a function of hparams, or use Unroll"
            )
        # a step taken back loses the slots whose decay is 0: harmless to du/dg, not to the derivative for the decay
        before = recorded_before_last(record)
        read = loss_hparams(stage, before.params, hparams, before.step)
        if read:
            raise NotApplicableError(
                f"the loss reads the hyperparameters {read}, and Greedy differentiates the rule alone: it would leave "
                "out, silently, what they do through the gradient. Use Unroll(last=1), which costs one product more"
            )
        found = pull_rule(stage, before, hparams, record.grad, cotangent, {}).hparams
        if len(found) < len(hparams):
            found = {**tree.zeros_like(tree.select(hparams, rule_hparams(stage, record.end, hparams))), **found}
        return Pullback(
            hparams=stage.reduce(found),
            start=None,
            outcome=Outcome.APPROXIMATE,
            cost=Cost(gradients=1, kept_bytes=tree.nbytes(before.params)),  # the pass that asks what the loss reads
        )
