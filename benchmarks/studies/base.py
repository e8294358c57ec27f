"""What a study is: a small experiment that regenerates one claim, of a paper or of ours, from one command."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

Row = dict[str, Any]
"""One measured point: flat, JSON scalars. What could not be measured is a row that says why."""


@dataclass(frozen=True)
class Claimed:
    """One claim and what was found.

    Attributes:
        text: the claim with its threshold, in words.
        measured: the numbers that decide it.
        holds: whether they meet the threshold.
    """

    text: str
    measured: str
    holds: bool

    def __post_init__(self) -> None:
        if not isinstance(self.holds, bool):  # numpy's and torch's booleans are no JSON
            object.__setattr__(self, "holds", bool(self.holds))


@dataclass(frozen=True, kw_only=True)
class Study:
    """One line of `STUDIES`.

    Attributes:
        run: keyword settings, all with defaults -> rows.
        claims: rows -> what they show.
        about: one line: what is shown.
        citation: whose claim it is.
        quick: settings under which it runs for seconds, for tests.
        method: what was done, for readers of the docs: Markdown.
        needs: setting -> what the claims cannot do without: the least value of a number (an integer whose default is
            positive must be so anyway), or values that a tuple must hold.
    """

    run: Callable[..., list[Row]]
    claims: Callable[[list[Row]], list[Claimed]]
    about: str
    citation: str
    quick: Mapping[str, Any]
    method: str = ""
    needs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings of `run` and their default values."""
        return {name: p.default for name, p in inspect.signature(self.run).parameters.items()}

    def settings(self, words: Sequence[str] = (), *, quick: bool = False) -> dict[str, Any]:
        """All settings of a run.

        Args:
            words: ``key=value``; numbers and tuples as Python writes them (``seeds=0,1``), all else is text.
            quick: start from the test's settings instead of the defaults.

        Raises:
            ValueError: a word is no setting of this study, its value is of another kind than the default, or it leaves
                nothing to measure, or not what the claims read.
        """
        chosen = {**self.defaults, **(self.quick if quick else {})}
        for word in words:
            key, equals, text = word.partition("=")
            if not equals or key not in self.defaults:
                known = ", ".join(f"{k}={v!r}" for k, v in self.defaults.items())
                raise ValueError(f"{word!r} is no setting: give key=value with one of {known}")
            chosen[key] = _value(key, text, self.defaults[key])
            self._check(key, chosen[key])
        return chosen

    def _check(self, key: str, value: Any) -> None:
        default, needed = self.defaults[key], self.needs.get(key)
        if isinstance(value, tuple):
            if not value:
                raise ValueError(f"{key}=(): give at least one, as {key}={','.join(map(str, default[:2]))}")
            if lost := [x for x in needed or () if x not in value]:
                raise ValueError(f"{key}={value}: the claims read {', '.join(map(str, lost))} too: add what is missing")
            return
        if needed is None and type(default) is int and default > 0:
            needed = 1
        if needed is not None and not value >= needed:
            raise ValueError(f"{key}={value!r}: must be at least {needed:g}, or there is nothing to measure")


def study(module: ModuleType) -> Study:
    """The study that a module holds: ABOUT, CITATION, QUICK, ``run``, ``claims``, NEEDS if there is one, and its docstring but
    for the first line."""
    _, _, method = (inspect.getdoc(module) or "").partition("\n")
    return Study(
        run=module.run, claims=module.claims, about=module.ABOUT, citation=module.CITATION, quick=module.QUICK,
        method=method.strip("\n"), needs=getattr(module, "NEEDS", {}),
    )  # fmt: skip


def _value(key: str, text: str, default: Any) -> Any:
    """``text`` as what ``default`` is: a number, a boolean, text, or a tuple of one of them."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, (tuple, list)):
        items = value if isinstance(value, (tuple, list)) else text.split(",") if isinstance(value, str) else (value,)
        return tuple(_scalar(key, item, default[0]) if default else item for item in items)
    return _scalar(key, value, default)


def _scalar(key: str, value: Any, default: Any) -> Any:
    if default is None:
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"{key}={value!r}: must be {type(default).__name__}, as the default {default!r}")
    return value
