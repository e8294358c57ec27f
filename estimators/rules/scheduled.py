"""Learning-rate schedules. Arithmetic of `torch.optim.lr_scheduler.LambdaLR`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, cast

from ..errors import HypergradientError
from ..tree import Tree
from .base import Rule, Scalar
from .whole import AnyRule, Part, check_leaves, check_rule, parts, transform


@dataclass(frozen=True, eq=False)
class Scheduled:
    """A rule whose learning rate in step t is ``lr * factor(t)``.

        Scheduled(AdamW(lr=1e-3), lambda t: min(1.0, (t + 1) / 100))

    Args:
        rule: a rule with a field ``lr``, or a wrapper around such rules.
        factor: step (from 0, as ``Stage.stream`` and LambdaLR's epoch) -> number or 0-d tensor; hyperparameters may sit
            in it.

    Raises:
        HypergradientError: no rule or no function; when a leaf is asked for, a rule that is no dataclass with a field ``lr``.
    """

    rule: AnyRule
    factor: Callable[[int], Scalar]

    def __post_init__(self) -> None:
        check_rule(self.rule, "Scheduled")
        if not callable(self.factor):
            raise HypergradientError(f"Scheduled(factor={self.factor!r}): give a function of the step")

    @property
    def transforms(self) -> bool:
        return bool(getattr(self.rule, "transforms", False))

    @property
    def varies(self) -> bool:
        return True

    def parts(self, leaves: Collection[str], step: int) -> list[Part]:
        return [(self._at(rule, step), group) for rule, group in parts(self.rule, leaves, step)]

    def _at(self, rule: Rule, step: int) -> Rule:
        if not is_dataclass(rule) or not hasattr(rule, "lr"):
            raise HypergradientError(f"Scheduled: {type(rule).__name__} must be a dataclass with a field lr")
        return cast(Rule, replace(cast(Any, rule), lr=rule.lr * self.factor(step)))

    def check(self, leaves: Collection[str]) -> None:
        check_leaves(self.rule, leaves)

    def transform(self, grads: Tree) -> Tree:
        return transform(self.rule, grads)
