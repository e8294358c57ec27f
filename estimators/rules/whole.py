"""A rule applied to all leaves at once: the only place that knows leaf rules from wrappers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol, TypeGuard, cast

from torch import Tensor

from ..errors import HypergradientError
from ..state import State
from ..tree import Tree
from .base import Rule, Slots, declares


class Wrapper(Protocol):
    """Rules around rules: which one moves a leaf (`Groups`, `Scheduled`), and what the gradients go through first
    (`ClipNorm`). It has no ``update`` of its own.

    Wrappers hold leaf rules or wrappers, in any order.
    """

    @property
    def transforms(self) -> bool:
        """Whether ``transform`` does anything: then a step is not linear in the gradients."""
        ...

    @property
    def varies(self) -> bool:
        """Whether ``parts`` depends on the step."""
        ...

    def parts(self, leaves: Collection[str], step: int) -> list[Part]:
        """The leaf rules that move ``leaves`` in step ``step`` (from 0, as ``Stage.stream``), each with those that it moves."""
        ...

    def transform(self, grads: Tree) -> Tree:
        """What the leaf rules get for the gradients of a step, same keys; differentiable."""
        ...

    def check(self, leaves: Collection[str]) -> None:
        """Refuse, with a `HypergradientError`, leaves that it cannot serve."""
        ...


AnyRule = Rule | Wrapper
Part = tuple[Rule, list[str]]
"""A leaf rule and leaves that it moves."""


def is_rule(thing: object) -> bool:
    """Whether it is a leaf rule or a wrapper (and not a function that makes one)."""
    return not isinstance(thing, type) and (is_wrapper(thing) or (hasattr(thing, "update") and hasattr(thing, "init")))


def check_rule(thing: object, where: str) -> None:
    """Refuse what is no rule.

    Raises:
        HypergradientError: it is a class, or has neither init and update nor parts and transform.
    """
    if isinstance(thing, type):
        raise HypergradientError(f"{where}: {thing.__name__} is a class: pass a rule, {thing.__name__}(...)")
    if not is_rule(thing):
        raise HypergradientError(
            f"{where}: {thing!r} is no rule: give one such as SGD(lr=0.1), or a wrapper around rules"
        )


def is_wrapper(thing: object) -> TypeGuard[Wrapper]:
    """Whether it is a wrapper. Asked for every leaf in every step: `isinstance` with a protocol takes 30 times as long."""
    return hasattr(thing, "parts")


def parts(rule: AnyRule, leaves: Collection[str], step: int) -> list[Part]:
    """The leaf rules that move ``leaves`` in step ``step``, each with those that it moves."""
    return rule.parts(leaves, step) if is_wrapper(rule) else [(cast(Rule, rule), list(leaves))]


def leaf_rules(rule: AnyRule, leaves: Collection[str], step: int) -> dict[str, Rule]:
    """The same by leaf."""
    found = {k: one for one, group in parts(rule, leaves, step) for k in group}
    return {k: found[k] for k in leaves}


def leaf_rule(rule: AnyRule, leaf: str, step: int) -> Rule:
    """The leaf rule that moves ``leaf`` in step ``step``."""
    return leaf_rules(rule, [leaf], step)[leaf]


def transform(rule: AnyRule, grads: Tree) -> Tree:
    """What the leaf rules get for ``grads``."""
    return rule.transform(grads) if is_wrapper(rule) else grads


def check_leaves(rule: AnyRule, leaves: Collection[str]) -> None:
    """Ask a wrapper whether it can serve these leaves, all of a stage's."""
    if is_wrapper(rule):
        rule.check(leaves)


def init_tree(rule: AnyRule, params: Mapping[str, Tensor], step: int) -> dict[str, Slots]:
    """Fresh slots of all leaves of ``params``."""
    return {k: one.init(params[k]) for k, one in leaf_rules(rule, params, step).items()}


def step_tree(rule: AnyRule, grads: Tree, state: State) -> tuple[Tree, dict[str, Slots]]:
    """One step of the leaves in ``grads``; pure, and differentiable in all arguments.

    Args:
        grads: gradients at ``state.params``; other leaves are left alone.
        state: before the step.

    Returns:
        (changes, slots after the step), both keyed as ``grads``.
    """
    changes: Tree = {}
    slots: dict[str, Slots] = {}
    for k, change, moved in leaf_steps(rule, grads, state):
        changes[k], slots[k] = change, moved
    return changes, slots


def leaf_steps(rule: AnyRule, grads: Tree, state: State) -> Iterator[tuple[str, Tensor, Slots]]:
    """The same leaf by leaf: (name, change, slots after the step). Each is computed when it is asked for.

    A leaf of ``state`` may be replaced once it was given.
    """
    rules = leaf_rules(rule, grads, state.step)
    for k, g in transform(rule, grads).items():
        change, moved = rules[k].update(g, state.slots[k], state.update_number(k), state.params[k])
        yield k, change, moved
        del change, moved


def can_rewind(rule: AnyRule, leaves: Collection[str], step: int) -> bool:
    """Whether the step ``step`` of all ``leaves`` can be taken back."""
    return all(hasattr(r, "rewind") for r in leaf_rules(rule, leaves, step).values())


def rewind_tree(rule: AnyRule, grads: Tree, state: State) -> State:
    """The state before the last step, which used ``grads``; for rules of which `can_rewind` holds."""
    step = state.step - 1
    before = state._replace(params=dict(state.params), slots=dict(state.slots), step=step)
    rules = leaf_rules(rule, grads, step)
    for k, g in transform(rule, grads).items():
        rewind = cast("Rewinds", rules[k]).rewind
        before.slots[k], before.params[k] = rewind(g, state.slots[k], before.update_number(k), state.params[k])
    return before


class Rewinds(Protocol):
    """A leaf rule that can take a step back (see `Rule`)."""

    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]: ...


def is_linear(rule: object, leaves: Collection[str], step: int) -> bool:
    """Whether every change is linear in (gradient, slots, leaf), as the leaf rules' own classes say."""
    if not is_rule(rule):
        return False
    if is_wrapper(rule):
        return not rule.transforms and all(is_linear(r, (), step) for r in leaf_rules(rule, leaves, step).values())
    return declares(rule, "linear")
