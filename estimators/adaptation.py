"""The rule's own derivative: the pullback of an update, and the adaptation of the last one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import tree
from .errors import NotApplicableError
from .products import leaves
from .rules import Rule, Slots
from .stage import Record, Stage, State
from .tree import Tree

SlotCotangents = dict[str, Slots]


@dataclass(frozen=True, eq=False)
class RulePullback:
    """Cotangents that the updates of all leaves send back; what has no influence is missing."""

    grads: Tree
    params: Tree
    slots: SlotCotangents
    hparams: Tree = field(default_factory=dict)


def pull_rule(
    stage: Stage, state: State, hparams: Tree, grads: Tree, cotangent: Tree, slot_cotangents: SlotCotangents
) -> RulePullback:
    """Pull cotangents on (params, slots) after a step back through the rule alone.

    Args:
        stage, hparams: as run.
        state: before the step.
        grads: gradients that the step used; leaves without one were left alone by it.
        cotangent: on the parameters after the step.
        slot_cotangents: on the slots after it; missing ones are zero.

    Returns:
        Cotangents on the gradients, on the parameters *through the change alone* (decay), on the slots before
        the step, and on hyperparameters that sit in the rule.

    Raises:
        NotApplicableError: the rule says that it has no derivative.
    """
    with torch.enable_grad():
        lam = leaves(hparams, hparams if stage.rule_reads_hparams else ())
        rule = stage.bind(lam)
        check_differentiable(rule)
        g, theta = leaves(grads, grads), leaves(tree.select(state.params, grads), grads)
        before = {k: leaves(state.slots[k], state.slots[k]) for k in grads}
        outputs: list[Tensor] = []
        weights: list[Tensor] = []
        for k in grads:
            change, after = rule.update(g[k], before[k], state.update_number(k), theta[k])
            pairs = [(change, cotangent[k])]
            pairs += [(after[s], c) for s, c in slot_cotangents.get(k, {}).items() if s in after]
            for out, weight in pairs:
                if out.requires_grad:
                    outputs.append(out)
                    weights.append(weight)
        inputs = [*g.values(), *theta.values(), *(x for s in before.values() for x in s.values())]
        inputs += [x for x in lam.values() if x.requires_grad]
        pulled = torch.autograd.grad(outputs, inputs, weights, allow_unused=True) if outputs else [None] * len(inputs)
    found = iter(pulled)
    d_grads = {k: d for k in g if (d := next(found)) is not None}
    d_params = {k: d for k in theta if (d := next(found)) is not None}
    d_slots = {k: {s: d for s in slots if (d := next(found)) is not None} for k, slots in before.items()}
    d_hparams = {k: d for k, x in lam.items() if x.requires_grad and (d := next(found)) is not None}
    return RulePullback(d_grads, d_params, d_slots, d_hparams)


def adapt(stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Tree:
    """(du/dg)^T c of the last update u: SAMA's *adaptation*, exactly (Choe et al. 2023, sec. 3.2 and App. C).

    It is taken from the slots after the step and the last gradient, by rewinding the rule, so that no copy from
    before the step is needed; for a rule without ``rewind`` the recorded state is used. The paper prints it as a
    diagonal; as a pullback it also holds for rules that mix coordinates.

    Args:
        cotangent: on the end.

    Returns:
        For every leaf that had a gradient; with a descent rule it points against ``cotangent``.

    Raises:
        NotApplicableError: no step was taken, or the rule has no derivative.
    """
    if record.grad is None:
        raise NotApplicableError(
            "the adaptation is the derivative of the last update, and the stage took no step: give Stage(steps >= 1), "
            "or use SAMA(adapt=False) or an Implicit estimator"
        )
    rule, end = stage.bind(hparams), record.end
    rewind = getattr(rule, "rewind", None)
    before = end._replace(params=dict(end.params), slots=dict(end.slots), step=end.step - 1)
    with torch.no_grad():
        for k, g in record.grad.items():
            if rewind is None:
                earlier = record.states[end.step - 1]
                before.slots[k], before.params[k] = earlier.slots[k], earlier.params[k]
            else:
                t = before.update_number(k)
                before.slots[k], before.params[k] = rewind(g, end.slots[k], t, end.params[k])
    adapted = tree.fill(pull_rule(stage, before, hparams, record.grad, cotangent, {}).grads, record.grad)
    if not tree.any_nonzero(adapted) and tree.any_nonzero(record.grad):
        ones = tree.map_tree(torch.ones_like, end.params)
        if not tree.any_nonzero(pull_rule(stage, before, hparams, record.grad, ones, {}).grads):
            raise NotApplicableError(
                f"the update of {type(rule).__name__} has no derivative with respect to its gradient, or zero in every "
                "coordinate (a sign, a detached gradient; Adam's first step nearly is one): no estimator can "
                "differentiate through it; use an Implicit estimator or SAMA(adapt=False)"
            )
    return adapted


def check_derivative(stage: Stage, record: Record, hparams: Tree) -> None:
    """Refuse a rule whose last update has no derivative with respect to its gradient, declared or not.

    For estimators to which nothing came through the rule: that may be the right answer (a cotangent on leaves that the
    loss does not read), or a rule that cannot be differentiated, and then a silent zero.

    Raises:
        NotApplicableError: as `adapt`.
    """
    if record.grad is not None:
        adapt(stage, record, hparams, tree.zeros_like(record.end.params))


def check_differentiable(rule: Rule) -> None:
    """Refuse a rule that says it has no derivative.

    Raises:
        NotApplicableError: it does.
    """
    if not getattr(rule, "differentiable", True):
        raise NotApplicableError(
            f"{type(rule).__name__} declares differentiable=False (its derivative is zero almost everywhere): use "
            "an Implicit estimator or SAMA(adapt=False), which do not differentiate the rule"
        )


def rule_hparams(stage: Stage, state: State, hparams: Tree) -> list[str]:
    """The hyperparameters that sit in the rule: those on which an update of some leaf depends.

    Asked of autograd, for the first two updates (the first one ignores a momentum).
    """
    if not stage.rule_reads_hparams:
        return []
    with torch.enable_grad():
        lam = leaves(hparams, hparams)
        rule = stage.bind(lam)
        outputs: list[Tensor] = []
        for k in stage.trained(state.params):
            p = state.params[k].detach()
            for t in (1, 2):
                change, after = rule.update(torch.ones_like(p), rule.init(p), t, p)
                outputs += [x.sum() for x in (change, *after.values()) if x.requires_grad]
        if not outputs:
            return []
        found = torch.autograd.grad(outputs, list(lam.values()), allow_unused=True)
    return [k for k, d in zip(lam, found, strict=True) if d is not None]


def refuse_rule_hparams(stage: Stage, record: Record, hparams: Tree, who: str) -> None:
    """Refuse hyperparameters that sit in the rule, for estimators that cannot see them.

    Raises:
        NotApplicableError: an update depends on a hyperparameter.
    """
    names = rule_hparams(stage, record.end, hparams)
    if names:
        raise NotApplicableError(
            f"the hyperparameters {names} sit in {type(stage.bind(hparams)).__name__}, and {who} differentiates the loss "
            "alone: it would leave their influence out, silently. Use Unroll or Forward"
        )
