"""The rule's own derivative: the pullback of an update, and the adaptation of the last one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from . import tree
from .errors import HypergradientError, NotApplicableError
from .products import grad_trees, leaves
from .rules import AnyRule, Slots, can_rewind, declares, init_tree, leaf_rules, leaf_steps, rewind_tree, step_tree
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
    stage: Stage,
    state: State,
    hparams: Tree,
    grads: Tree,
    cotangent: Tree,
    slot_cotangents: SlotCotangents,
    *,
    gradients_only: bool = False,
) -> RulePullback:
    """Pull cotangents on (params, slots) after a step back through the rule alone.

    Args:
        stage, hparams: as run.
        state: before the step.
        grads: gradients that the step used; leaves without one were left alone by it.
        cotangent: on the parameters after the step.
        slot_cotangents: on the slots after it; missing ones are zero.
        gradients_only: leave out all cotangents but those on the gradients.

    Returns:
        Cotangents on the gradients, on the parameters *through the change alone* (decay), on the slots before
        the step, and on hyperparameters that sit in the rule.

    Raises:
        NotApplicableError: the rule says that it has no derivative.
    """
    found = RulePullback({}, {}, {})
    with torch.enable_grad():
        asked = hparams if stage.rule_reads_hparams and not gradients_only else ()
        check_differentiable(stage.bind(hparams), grads, state.step)
        for group in parts_of_a_step(stage.bind(hparams), grads):  # no graph is larger than it must be
            lam = leaves(hparams, asked)
            rule = stage.bind(lam)
            names = () if gradients_only else group
            g, theta = leaves(tree.select(grads, group), group), leaves(tree.select(state.params, group), names)
            before = {k: leaves(state.slots[k], state.slots[k] if names else ()) for k in group}
            outputs: list[Tensor] = []
            weights: list[Tensor] = []
            for k, change, after in leaf_steps(rule, g, state._replace(params=theta, slots=before)):
                pairs = [(change, cotangent[k])]
                pairs += [(after[s], c) for s, c in slot_cotangents.get(k, {}).items() if s in after]
                for out, weight in pairs:
                    if out.requires_grad:
                        outputs.append(out)
                        weights.append(weight)
            if not outputs:
                found.slots.update({k: {} for k in group})
                continue
            parts = [g, theta, lam, *before.values()]
            on_g, on_theta, on_lam, *on_slots = grad_trees(outputs, parts, grad_outputs=weights)
            found.grads.update(on_g)
            found.params.update(on_theta)
            found.slots.update(zip(before, on_slots, strict=True))
            found = replace(found, hparams=tree.union_add(found.hparams, on_lam))
    return found


def parts_of_a_step(rule: AnyRule, grads: Tree) -> list[list[str]]:
    """The leaves of a step in groups that do not depend on one another: all in one if a wrapper mixes their gradients."""
    if not grads:
        return []
    return [list(grads)] if getattr(rule, "transforms", False) else [[k] for k in grads]


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


def state_before_last(stage: Stage, record: Record, hparams: Tree, names: Collection[str] | None = None) -> State:
    """The state before the last step: as recorded, else the end with that step taken back.

    Only the leaves that had a gradient in that step are put back; the others did not move.

    Args:
        names: leaves to be put back, all of one of the `parts_of_a_step`; None: all.

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
        return rewind_tree(rule, record.grad if names is None else tree.select(record.grad, names), record.end)


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
    adapted, grads = _adapted(stage, record, hparams, cotangent), cast(Tree, record.grad)
    if tree.any_nonzero(adapted) or not tree.any_nonzero(grads):
        return adapted
    if not tree.any_nonzero(_adapted(stage, record, hparams, tree.map_tree(torch.ones_like, record.end.params))):
        names = names_of(stage.bind(hparams), grads, record.end.step - 1)
        raise NotApplicableError(
            f"the update of {names} has no derivative with respect to its gradient, or zero in every coordinate (a sign, "
            "a detached gradient, a learning rate of 0; Adam's first step nearly is one): no estimator can differentiate "
            "through it; use an Implicit estimator or SAMA(adapt=False)"
        )
    return adapted


def _adapted(stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Tree:
    """(du/dg)^T c of the last update, one part of the step after the other: no more than one is taken back at a time."""
    if record.grad is None:
        state_before_last(stage, record, hparams)  # which says that there is none
    grads, adapted = cast(Tree, record.grad), dict[str, Tensor]()
    for group in parts_of_a_step(stage.bind(hparams), grads):
        before = state_before_last(stage, record, hparams, group)
        adapted.update(_pulled_gradients(stage, before, hparams, tree.select(grads, group), cotangent))
    return adapted


def _pulled_gradients(stage: Stage, before: State, hparams: Tree, grads: Tree, cotangent: Tree) -> Tree:
    """(du/dg)^T c of the update that uses ``grads`` at ``before``, zero where nothing comes through."""
    pulled = pull_rule(stage, before, hparams, grads, cotangent, {}, gradients_only=True)
    return tree.fill(pulled.grads, grads)


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
