"""Parameter groups: different rules, or the same with different fields, for different leaves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from ..errors import HypergradientError
from ..tree import Tree
from .whole import AnyRule, Part, check_leaves, check_rule, parts, transform


@dataclass(frozen=True, eq=False)
class Groups:
    """One rule for each group of leaves, as the parameter groups of `torch.optim`.

        Groups({"head.*": Momentum(lr=0.1), "*.bias": AdamW(weight_decay=0.0), "*": AdamW()})

    Args:
        rules: pattern -> rule or wrapper. A leaf belongs to the pattern that is its very name, else to the first that
            matches it (`fnmatch.fnmatchcase`: ``*``, ``?``, ``[ab]``). A `ClipNorm` inside clips its group alone.

    Raises:
        HypergradientError: there is no rule; or, when leaves are known, a leaf that no pattern matches, a name that
            is no leaf's, or a pattern whose leaves all belong to patterns before it.
    """

    rules: Mapping[str, AnyRule]

    def __post_init__(self) -> None:
        if not isinstance(self.rules, Mapping) or not self.rules:
            raise HypergradientError(
                f'Groups({self.rules}): give patterns and at least one rule, as in Groups({{"*": SGD(lr=0.1)}})'
            )
        for pattern, rule in self.rules.items():
            check_rule(rule, f"Groups[{pattern!r}]")

    @property
    def transforms(self) -> bool:
        return any(getattr(r, "transforms", False) for r in self.rules.values())

    @property
    def varies(self) -> bool:
        return any(getattr(r, "varies", False) for r in self.rules.values())

    def pattern(self, leaf: str) -> str:
        """The pattern whose group ``leaf`` belongs to."""
        pattern = self._first(leaf)
        if pattern is None:
            raise HypergradientError(
                f'Groups: no pattern of {list(self.rules)} matches the leaf {leaf!r}; add one, for instance "*" as the last'
            )
        return pattern

    def _first(self, leaf: str) -> str | None:
        if leaf in self.rules:
            return leaf
        return next((pattern for pattern in self.rules if fnmatchcase(leaf, pattern)), None)

    def parts(self, leaves: Collection[str], step: int) -> list[Part]:
        members = self._members(leaves).items()
        return [part for pattern, group in members for part in parts(self.rules[pattern], group, step)]

    def _members(self, leaves: Collection[str]) -> dict[str, list[str]]:
        """The leaves of every pattern that has any."""
        members: dict[str, list[str]] = {}
        for k in leaves:
            if k not in self._known:
                self._known[k] = self.pattern(k)
            members.setdefault(self._known[k], []).append(k)
        return members

    @cached_property
    def _known(self) -> dict[str, str]:
        """Patterns by leaf, of those that were asked for: matching anew in every step takes longer than a small step."""
        return {}

    def check(self, leaves: Collection[str]) -> None:
        members: dict[str, list[str]] = {pattern: [] for pattern in self.rules}
        for leaf in leaves:
            if (first := self._first(leaf)) is not None:  # frozen leaves need no rule
                members[first].append(leaf)
        for pattern, group in members.items():
            if not group and not any(c in pattern for c in "*?["):
                raise HypergradientError(f"Groups: there is no leaf {pattern!r}; there are {sorted(leaves)}")
            if not group and any(fnmatchcase(leaf, pattern) for leaf in leaves):
                raise HypergradientError(
                    f"Groups: all leaves that {pattern!r} matches belong to patterns before it: put it first"
                )
            check_leaves(self.rules[pattern], group)

    def transform(self, grads: Tree) -> Tree:
        changed: Tree = {}
        for pattern, group in self._members(grads).items():
            changed |= transform(self.rules[pattern], {k: grads[k] for k in group})
        return {k: changed[k] for k in grads}
