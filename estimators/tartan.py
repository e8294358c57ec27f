"""META-TARTAN: the weights of tasks, from how their gradients agree with the outer one.

Dery et al. 2022, *Should We Be Pre-training? An Argument for End-task Aware Training as an Alternative*, eqs. 6 and 7
and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import tree
from .adaptation import recorded_before_last, refuse_rule_hparams
from .errors import HypergradientError, NotApplicableError
from .estimator import Cost, Pullback
from .multitask import MultiTask
from .products import leaves
from .rules import leaf_rules
from .solvers import Outcome
from .stage import Record, Stage
from .state import State
from .tree import Tree


@dataclass(frozen=True, kw_only=True)
class Tartan:
    """Of every task's gradient g_i and the outer gradient c: -cos(g_i, c), or -lr g_i . c; first-order passes only.

    For one step of gradient descent, theta' = theta - lr sum_i alpha_i g_i(theta), the outer loss M has

        dM/dalpha_i = -lr g_i(theta) . c,      c = dM/dtheta at theta'                                      (eq. 6)

    exactly. The paper takes c at theta too, an error of order lr, and so does ``at_end``, which takes both at theta'.
    A minus stands here as it is derived and as Algorithm 1 uses it (it *adds* eta cos, a descent step); eqs. 7 to 9 as
    printed have lost it. The end task's own head in the outer loss is eq. 6; for eq. 7 let the outer loss be a
    `MetaHead`.

    Args:
        cosine: -cos(g_i, c), as in Algorithm 1, which moves no weight by more than eta a step and does not see the
            length of a gradient. 0 if either gradient is. False: -lr g_i . c, the derivative itself.
        through_softmax: False takes the derivative for alpha as the one for the logits w (straight through), as the paper
            does: the logits then drift on where the weights no longer move. True goes through the softmax,
            alpha_j (G_j - sum_k alpha_k G_k); without cosine, over all leaves, it is `T1T2` without a second-order pass.
        body: leaves over which dot product and norms are taken. "shared": those that every task reads, the paper's
            theta_body. "all": heads too; released code does that, and its heads, which no other task's gradient
            overlaps with, make cosines small. Or names of leaves or of modules: "body" is "body.weight" and "body.bias".
        at_end: take the g_i at the end, on the last step's batch, instead of before the last step.

    Raises:
        HypergradientError: ``body`` is another word or empty.
    """

    cosine: bool = True
    through_softmax: bool = False
    body: str | Collection[str] = "shared"
    at_end: bool = False

    def __post_init__(self) -> None:
        if self.body not in ("shared", "all") if isinstance(self.body, str) else not self.body:
            raise HypergradientError(
                f"Tartan(body={self.body!r}): give 'shared', 'all', or a collection of leaves' or modules' names"
            )

    @property
    def tail(self) -> int:
        return 0 if self.at_end else 1

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: the loss is no `MultiTask`, no step was taken, or hyperparameters sit in the rule.
            HypergradientError: no leaf belongs to ``body``.
        """
        multitask = stage.loss
        if not isinstance(multitask, MultiTask):
            raise NotApplicableError(
                f"Tartan weighs tasks, and the stage's loss is {_called(multitask)}: give Stage(loss=MultiTask({{name: "
                "loss, ...})), with the logits of the weights among the hyperparameters, or use T1T2"
            )
        refuse_rule_hparams(stage, record, hparams, "Tartan")
        if record.grad is None:
            raise NotApplicableError(
                "Tartan asks what each task's gradient did in the last step, and the stage took none: give Stage(steps >= 1)"
            )
        at, last = self._state(record), record.end.step - 1
        grads = [stage.reduce(g) for g in task_gradients(stage, multitask, last, at.params, hparams)]
        c = tree.select(cotangent, self._body(grads, record.grad))
        if not self.cosine:
            c = {k: rule.lr * c[k] for k, rule in leaf_rules(stage.bind(hparams), c, last).items()}
        # a leaf that a task does not read: no gradient there, but the length of c counts it all the same
        agreement = torch.stack([_agreement(tree.fill(tree.select(g, c), c), c, cosine=self.cosine) for g in grads])
        slopes = -agreement.to(hparams[multitask.logits].dtype)
        if self.through_softmax:
            alpha = multitask.weights(hparams)
            slopes = alpha * (slopes - (alpha * slopes).sum())
        return Pullback(
            hparams={multitask.logits: slopes},
            start=None,
            outcome=Outcome.APPROXIMATE,
            cost=Cost(gradients=len(grads), kept_bytes=0 if self.at_end else tree.nbytes(at.params)),
        )

    def _state(self, record: Record) -> State:
        if self.at_end:
            return record.end
        return recorded_before_last(record)

    def _body(self, grads: list[Tree], moved: Collection[str]) -> list[str]:
        if self.body == "all":
            return list(moved)
        if self.body == "shared":
            found = [k for k in moved if all(k in g for g in grads)]
            if not found:
                raise HypergradientError(
                    "no leaf is read by every task, so Tartan(body='shared') has nothing to compare their gradients on: "
                    "name the body's leaves, or give body='all'"
                )
            return found
        for name in self.body:
            if not any(_within(k, name) for k in moved):
                raise HypergradientError(
                    f"Tartan(body={list(self.body)}): no leaf with a gradient is called {name!r}; there are {sorted(moved)}"
                )
        return [k for k in moved if any(_within(k, name) for name in self.body)]


def task_gradients(stage: Stage, multitask: MultiTask, step: int, params: Tree, hparams: Tree) -> list[Tree]:
    """g_i = dL_i/dtheta by task, each holding the trained leaves that the task reads.

    One forward pass of all tasks, as the step itself makes it, so that random draws inside the losses are the step's own;
    then one backward pass a task.

    Args:
        stage: whose batch and randomness of ``step`` are used.
        multitask: the stage's loss.
        step: whose batch.
        params: theta, where.
        hparams: lam.
    """
    found: list[Tensor] = []

    def total(p: Tree, h: Tree, batch: object) -> Tensor:
        found.extend(multitask.losses(p, batch).values())
        return torch.stack(found).sum()

    with torch.enable_grad():
        theta = leaves(params, stage.trained(params))
        replace(stage, loss=total).objective(step)(theta, tree.detach(hparams))
    wanted = {k: x for k, x in theta.items() if x.requires_grad}
    grads: list[Tree] = []
    for loss in found:
        parts: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, retain_graph=True)
        grads.append({k: g for k, g in zip(wanted, parts, strict=True) if g is not None})
    return grads


def _agreement(g: Tree, c: Tree, *, cosine: bool) -> Tensor:
    return tree.dot(_unit(g), _unit(c)) if cosine else tree.dot(g, c)


def _unit(a: Tree) -> Tree:
    """a / ||a||, and 0 for a zero tree."""
    length = tree.norm(a)
    length = torch.where(length > 0, length, torch.ones_like(length))
    return tree.map_tree(lambda x: x / length, a)


def _called(thing: object) -> str:
    return str(getattr(thing, "__name__", type(thing).__name__))


def _within(leaf: str, name: str) -> bool:
    return leaf == name or leaf.startswith(f"{name}.")
