"""The rule's own derivative: the pullback of an update, and the adaptation of the last one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from . import tree
from .errors import HypergradientError, NotApplicableError
from .products import grad_trees, leaves
from .rules import (
    AnyRule,
    Rule,
    Slots,
    can_rewind,
    declares,
    in_pieces,
    init_tree,
    leaf_rule,
    leaf_rules,
    leaf_steps,
    rewind_tree,
    step_tree,
)
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
            if (
                not asked
                and not gradients_only
                and _in_closed_form(stage, state, group, grads, cotangent, slot_cotangents, found)
            ):
                continue
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


def _in_closed_form(
    stage: Stage,
    state: State,
    group: list[str],
    grads: Tree,
    cotangent: Tree,
    on_slots: SlotCotangents,
    found: RulePullback,
) -> bool:
    """Whether the rule of a leaf pulled it back itself, piece by piece, into ``found``."""
    k, slots = group[0], state.slots[group[0]]
    rule = leaf_rule(stage.bind({}), k, state.step)
    if len(group) > 1 or "pull" not in vars(type(rule)) or not of_numbers(rule) or not grads[k].numel():
        return False
    given = {s: c for s, c in on_slots.get(k, {}).items() if s in slots}
    pulled: list[Tensor] = []
    names: list[str] = []
    done = 0
    with torch.no_grad():
        whole = tree.pieces(grads[k], state.params[k], cotangent[k], *slots.values(), *given.values())
        for g, x, c, *rest in whole:
            before, after = dict(zip(slots, rest, strict=False)), dict(zip(given, rest[len(slots) :], strict=True))
            part = cast(Any, rule).pull(g, before, state.update_number(k), x, c, after)
            if part is None:
                return False
            on_grad, on_before, on_param = part
            answers = [on_grad, *on_before.values(), *([] if on_param is None else [on_param])]
            if not pulled:
                names = list(on_before)
                pulled = [torch.empty_like(grads[k], memory_format=torch.contiguous_format) for _ in answers]
            for out, answer in zip(pulled, answers, strict=True):
                out.view(-1)[done : done + g.numel()] = answer
            done += g.numel()
    found.grads[k], *rest = pulled
    found.slots[k] = dict(zip(names, rest, strict=False))
    if len(rest) > len(names):
        found.params[k] = rest[-1]
    return True


def of_numbers(rule: Rule) -> bool:
    """Whether all its fields are numbers: a tensor might differ from coordinate to coordinate."""
    fields = [y for x in vars(rule).values() for y in (x if isinstance(x, tuple) else (x,))]
    return all(isinstance(x, (int, float)) for x in fields)


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

    It is taken from the slots after the step and the last gradient: by the rule's own ``derivative``, else by rewinding the
    rule, so that no copy from before the step is needed; for a rule without ``rewind`` the recorded state is used. The paper
    prints it as a diagonal; as a pullback it also holds for rules that mix coordinates.

    Args:
        cotangent: on the end.

    Returns:
        For every leaf that had a gradient; with a descent rule it points against ``cotangent``.

    Raises:
        NotApplicableError: no step was taken, or the rule has no derivative.
    """
    by_leaf = leaf_by_leaf(stage, in_dicts_of_its_own(record), hparams)
    if by_leaf is not None:
        found = {k: by_leaf(k, cotangent[k]) for k in by_leaf.leaves}
        by_leaf.check(found)
        return found
    adapted, grads = _adapted(stage, record, hparams, cotangent), cast(Tree, record.grad)
    if tree.any_nonzero(adapted) or not tree.any_nonzero(grads):
        return adapted
    if not tree.any_nonzero(_adapted(stage, record, hparams, tree.map_tree(torch.ones_like, record.end.params))):
        _refuse(stage, record, hparams, grads)
    return adapted


def leaf_by_leaf(stage: Stage, record: Record, hparams: Tree, *, waiting: torch.dtype | None = None) -> Leafwise | None:
    """`adapt` for one leaf after the other, if the rule mixes no coordinates; else None.

    Args:
        record: whose ``grad`` it takes over: the dict is emptied.
        waiting: dtype in which the last gradient waits for its cotangent; its own if None. Half of it saves half of its bytes,
            and rounds the part of the derivative that goes through a second moment.

    Raises:
        NotApplicableError: as `adapt`, but for a rule that only turns out to have no derivative.
    """
    if record.grad is None:
        state_before_last(stage, record, hparams)  # which says that there is none
    grads, rule, last = cast(Tree, record.grad), stage.bind(hparams), record.end.step - 1
    rules = leaf_rules(rule, grads, last)
    if getattr(rule, "transforms", False) or not all(declares(r, "diagonal") for r in rules.values()):
        return None
    check_differentiable(rule, grads, last)
    before = None if all(map(_has_derivative, rules.values())) else record.states.get(last)
    if before is None and not all(_has_derivative(r) or hasattr(r, "rewind") for r in rules.values()):
        state_before_last(stage, record, hparams)  # which says what is missing
    taken = {k: grads.pop(k) if waiting is None else grads.pop(k).to(waiting) for k in rules}
    return Leafwise(stage, replace(record, states={}, grad=taken), hparams, rules, before)


def in_dicts_of_its_own(record: Record) -> Record:
    """The same tensors in dicts that whoever gets the record may empty."""
    return replace(record, grad=None if record.grad is None else dict(record.grad), states=dict(record.states))


class Leafwise:
    """The adaptation of a rule that mixes no coordinates; see `leaf_by_leaf`.

    It lets go of a leaf's last gradient as it answers, so that of cotangent, gradient and answer no more than one leaf is
    there twice, if nobody else holds them.

    Attributes:
        leaves: those that had a gradient in the last step.
    """

    def __init__(
        self,
        stage: Stage,
        record: Record,
        hparams: Tree,
        rules: Mapping[str, Rule],
        before: State | None,
    ) -> None:
        self.leaves = list(rules)
        self._blame = (stage, replace(record, grad=None), hparams)
        self._end, self._before, self._rules, self._grads = record.end, before, rules, cast(Tree, record.grad)
        self._moved = False  # whether it is known that something came through
        self._seen: list[
            tuple[Tensor, Tensor]
        ] = []  # of every piece: its gradient's and its derivative's largest entries

    def __call__(self, leaf: str, cotangent: Tensor, overwrite: bool = False) -> Tensor:
        """(du/dg)^T c of one leaf.

        Args:
            overwrite: write it over the cotangent, if that lies in memory as it should.
        """
        grad, end, rule = self._grads.pop(leaf), self._end, self._rules[leaf]
        before = None if _has_derivative(rule) else self._before
        at = end if before is None else before
        t = end.update_number(leaf) - 1
        param, slots = at.params[leaf], at.slots[leaf]
        out = (
            cotangent
            if overwrite and cotangent.is_contiguous()
            else cotangent.clone(memory_format=torch.contiguous_format)
        )
        with torch.no_grad():
            if not in_pieces(rule, slots, param):
                self._multiply(out, rule, grad, slots, t, param, before is not None)
                return out
            own = {name: x for name, x in slots.items() if x.shape == param.shape}
            rest = {name: x for name, x in slots.items() if name not in own}
            for o, g, p, *parts in tree.pieces(out, grad, param, *own.values()):
                self._multiply(o, rule, g, {**rest, **dict(zip(own, parts, strict=True))}, t, p, before is not None)
        return out

    def _multiply(self, c: Tensor, rule: Rule, grad: Tensor, slots: Slots, t: int, param: Tensor, before: bool) -> None:
        grad = grad.to(c.dtype)
        if _has_derivative(rule):
            slope = cast(Any, rule).derivative(grad, slots, t, param)
        else:
            if not before:
                slots, param = cast(Any, rule).rewind(grad, slots, t, param)
            slope = _slope(rule, grad, slots, t, param)
        c.mul_(slope)
        if self._moved:
            return
        self._seen.append((_size(grad), _size(torch.as_tensor(slope, dtype=c.dtype, device=c.device))))
        # a look at the values costs nothing on a CPU; elsewhere it would be a wait
        self._moved = c.device.type == "cpu" and tree.any_nonzero({"": c})

    def check(self, adapted: Tree) -> None:
        """Refuse a rule through which nothing came, and nothing could have.

        Args:
            adapted: all answers.

        Raises:
            NotApplicableError: all of them are zero, and so is the derivative, although there was a gradient.
        """
        if self._moved or tree.any_nonzero(adapted) or not self._seen:
            return
        gradient, slope = (torch.stack(list(x)).ne(0).any() for x in zip(*self._seen, strict=True))
        if tree.holds(gradient) and not tree.holds(slope):
            _refuse(*self._blame, self.leaves)


def _has_derivative(rule: Rule) -> bool:
    """In closed form; a subclass may have another update, and does not inherit it."""
    return "derivative" in vars(type(rule))


def _slope(rule: Rule, grad: Tensor, slots: Slots, t: int, param: Tensor) -> Tensor:
    """The diagonal of du/dg by autograd, at the state before the step."""
    with torch.enable_grad():
        leaf = grad.detach().requires_grad_()
        change, _ = rule.update(leaf, slots, t, param)
    if not change.requires_grad:
        return torch.zeros_like(grad)
    (found,) = torch.autograd.grad(change, leaf, torch.ones_like(change), allow_unused=True)
    return torch.zeros_like(grad) if found is None else found


def _size(x: Tensor) -> Tensor:
    """Nothing but a zero tensor has 0; without a look at the values."""
    return torch.maximum(x.amax(), -x.amin()) if x.numel() else x.new_zeros(())


def _refuse(stage: Stage, record: Record, hparams: Tree, leaves: Collection[str]) -> NoReturn:
    names = names_of(stage.bind(hparams), leaves, record.end.step - 1)
    raise NotApplicableError(
        f"the update of {names} has no derivative with respect to its gradient, or zero in every coordinate (a sign, "
        "a detached gradient, a learning rate of 0; Adam's first step nearly is one): no estimator can differentiate "
        "through it; use an Implicit estimator or SAMA(adapt=False)"
    )


def _adapted(stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Tree:
    """(du/dg)^T c of the last update, one part of the step after the other: no more than one is taken back at a time."""
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
    if leaf_by_leaf(stage, in_dicts_of_its_own(record), hparams) is not None:
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
