"""The rule's own derivative: the pullback of an update, and the adaptation of the last one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from . import tree
from .errors import HypergradientError, NotApplicableError
from .products import leaves
from .rules import AnyRule, Slots, can_rewind, declares, init_tree, leaf_rules, rewind_tree, step_tree
from .solvers import Preconditioner
from .stage import Record, Stage
from .state import State
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
        check_differentiable(rule, grads, state.step)
        g, theta = leaves(grads, grads), leaves(tree.select(state.params, grads), grads)
        before = {k: leaves(state.slots[k], state.slots[k]) for k in grads}
        changes, after = step_tree(rule, g, state._replace(params={**state.params, **theta}, slots=before))
        outputs: list[Tensor] = []
        weights: list[Tensor] = []
        for k in grads:
            pairs = [(changes[k], cotangent[k])]
            pairs += [(after[k][s], c) for s, c in slot_cotangents.get(k, {}).items() if s in after[k]]
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


def recorded_before_last(record: Record) -> State:
    """The state before the last step, as recorded.

    Raises:
        HypergradientError: it was not.
    """
    before = record.states.get(record.end.step - 1)
    if before is None:
        raise HypergradientError(
            "the state before the last step was not recorded: run(..., tail=1), every=1; of a live torch optimizer, "
            "Live.record(before=...)"
        )
    return before


def state_before_last(stage: Stage, record: Record, hparams: Tree) -> State:
    """The state before the last step: as recorded, else the end with that step taken back.

    Only the leaves that had a gradient in that step are put back; the others did not move.

    Raises:
        NotApplicableError: no step was taken, or the state is neither recorded nor can the rule take the step back.
    """
    if record.grad is None:
        raise NotApplicableError(
            "the adaptation is the derivative of the last update, and the stage took no step: give Stage(steps >= 1), "
            "or use SAMA(adapt=False) or an Implicit estimator"
        )
    if record.end.step - 1 in record.states:
        return record.states[record.end.step - 1]
    rule = stage.bind(hparams)
    if not can_rewind(rule, record.grad, record.end.step - 1):
        raise NotApplicableError(
            f"{names_of(rule, record.grad, record.end.step - 1)} cannot take its last step back, and the state before it was "
            "not recorded: run(...) records it; for a live torch optimizer, give Live.record(before=...)"
        )
    with torch.no_grad():
        return rewind_tree(rule, record.grad, record.end)


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
    before = state_before_last(stage, record, hparams)
    grads = cast(Tree, record.grad)
    adapted = _pulled_gradients(stage, before, hparams, grads, cotangent)
    if not tree.any_nonzero(adapted) and tree.any_nonzero(grads):
        ones = tree.map_tree(torch.ones_like, record.end.params)
        if not tree.any_nonzero(_pulled_gradients(stage, before, hparams, grads, ones)):
            names = names_of(stage.bind(hparams), grads, before.step)
            raise NotApplicableError(
                f"the update of {names} has no derivative with respect to its gradient, or zero in every coordinate (a sign, "
                "a detached gradient, a learning rate of 0; Adam's first step nearly is one): no estimator can differentiate "
                "through it; use an Implicit estimator or SAMA(adapt=False)"
            )
    return adapted


def _pulled_gradients(stage: Stage, before: State, hparams: Tree, grads: Tree, cotangent: Tree) -> Tree:
    """(du/dg)^T c of the update that uses ``grads`` at ``before``, zero where nothing comes through."""
    return tree.fill(pull_rule(stage, before, hparams, grads, cotangent, {}).grads, grads)


def adaptation(stage: Stage, record: Record, hparams: Tree) -> Preconditioner:
    """D = -(du/dg)^T of the last update u, as a preconditioner: c -> -`adapt`(c).

    A diagonal one is computed once; that of a rule that mixes coordinates costs a pullback of the update each time, from
    a state before the step that is found once.

    Raises:
        NotApplicableError: as `adapt`.
    """
    ones = tree.map_tree(torch.ones_like, record.end.params)
    diagonal = tree.scale(adapt(stage, record, hparams, ones), -1.0)  # also asks whether there is a derivative at all
    rule = stage.bind(hparams)
    rules = leaf_rules(rule, diagonal, record.end.step - 1).values()
    if not getattr(rule, "transforms", False) and all(declares(r, "diagonal") for r in rules):
        return Preconditioner(lambda c: {k: diagonal[k] * x for k, x in c.items()}, symmetric=True)
    before, rest = state_before_last(stage, record, hparams), tree.zeros_like(record.end.params)
    grads = cast(Tree, record.grad)

    def apply(c: Tree) -> Tree:
        return tree.scale(_pulled_gradients(stage, before, hparams, grads, {**rest, **c}), -1.0)

    return Preconditioner(apply, symmetric=False)


def young(stage: Stage, record: Record, hparams: Tree) -> bool:
    """Whether the last update of some leaf was one of the first ones, whose derivative its rule calls unsound."""
    if record.grad is None:
        return False
    rules = leaf_rules(stage.bind(hparams), record.grad, record.end.step - 1)
    return any(record.end.update_number(k) - 1 <= getattr(r, "settles", 0) for k, r in rules.items())


def check_derivative(stage: Stage, record: Record, hparams: Tree) -> None:
    """Refuse a rule whose last update has no derivative with respect to its gradient, declared or not.

    For estimators to which nothing came through the rule: that may be the right answer (a cotangent on leaves that the
    loss does not read), or a rule that cannot be differentiated, and then a silent zero.

    Raises:
        NotApplicableError: as `adapt`.
    """
    if record.grad is not None:
        adapt(stage, record, hparams, tree.zeros_like(record.end.params))


def names_of(rule: AnyRule, leaves: Collection[str], step: int) -> str:
    """The names of the leaf rules that move ``leaves``, for messages."""
    return ", ".join(dict.fromkeys(type(r).__name__ for r in leaf_rules(rule, leaves, step).values()))


def check_differentiable(rule: AnyRule, leaves: Collection[str], step: int) -> None:
    """Refuse a rule that says it has no derivative.

    Raises:
        NotApplicableError: it does, for one of ``leaves``.
    """
    for leaf, r in leaf_rules(rule, leaves, step).items():
        if not getattr(r, "differentiable", True):
            raise NotApplicableError(
                f"{type(r).__name__}, which moves {leaf!r}, declares differentiable=False (its derivative is zero almost "
                "everywhere): use an Implicit estimator or SAMA(adapt=False), which do not differentiate the rule"
            )


def rule_hparams(stage: Stage, end: State, hparams: Tree) -> list[str]:
    """The hyperparameters that sit in the rule: those on which an update of some leaf depends.

    Asked of autograd, for the first two updates (the first one ignores a momentum), and for every step of a stage that
    ends at ``end`` if the rule changes with the step.
    """
    if not stage.rule_reads_hparams:
        return []
    with torch.enable_grad():
        lam = leaves(hparams, hparams)
        rule = stage.bind(lam)
        theta = {k: end.params[k].detach() for k in stage.trained(end.params)}
        ones = tree.map_tree(torch.ones_like, theta)
        first = max(end.step - stage.steps, 0)
        outputs: list[Tensor] = []
        for step in range(first, end.step) if getattr(rule, "varies", False) else (0,):
            fresh = init_tree(rule, theta, step)
            for t in (1, 2):  # the number of the update, whatever the step
                at = State(theta, fresh, step, dict.fromkeys(theta, step + 1 - t))
                changes, after = step_tree(rule, ones, at)
                found = [*changes.values(), *(x for slots in after.values() for x in slots.values())]
                outputs += [x.sum() for x in found if x.requires_grad]
        if not outputs:
            return []
        pulled = torch.autograd.grad(outputs, list(lam.values()), allow_unused=True)
    return [k for k, d in zip(lam, pulled, strict=True) if d is not None]


def refuse_rule_hparams(stage: Stage, record: Record, hparams: Tree, who: str) -> None:
    """Refuse hyperparameters that sit in the rule, for estimators that cannot see them.

    Raises:
        NotApplicableError: an update depends on a hyperparameter.
    """
    names = rule_hparams(stage, record.end, hparams)
    if names:
        rules = names_of(stage.bind(hparams), stage.trained(record.end.params), max(record.end.step - 1, 0))
        raise NotApplicableError(
            f"the hyperparameters {names} sit in {rules}, and {who} differentiates the loss "
            "alone: it would leave their influence out, silently. Use Unroll or Forward"
        )
