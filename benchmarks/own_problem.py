"""What a command line calls a problem: a registered problem or workload, or the user's own ``my_problem.py:make``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from estimators import Problem, tree

from .grid import settings_of
from .plan import UnknownName, fitted, takes
from .plugins import load_file
from .problems import PROBLEMS
from .workloads import WORKLOADS, Workload

COMMON = ("seed", "dtype", "device")
"""What every registered ``make`` takes beside its settings; one of the user's own need not."""


@dataclass(frozen=True)
class Found:
    """Where a problem comes from.

    Attributes:
        name: as it was asked for.
        function: keyword settings -> `Problem` or `Workload`.
        sizes: what the setting ``size`` can be; empty if nothing is said.
    """

    name: str
    function: Callable[..., Any]
    sizes: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Whether ``name`` can be said to ``function``."""
        parameters = inspect.signature(self.function).parameters
        return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def default(self, name: str) -> Any:
        """What ``function`` takes for ``name`` if nothing is said; None if it does not take it, or has no default."""
        parameter = inspect.signature(self.function).parameters.get(name)
        return None if parameter is None or parameter.default is parameter.empty else parameter.default

    def make(
        self, *, seed: int = 0, dtype: torch.dtype | None = None, device: str = "cpu", **settings: Any
    ) -> Problem | Workload:
        """Make it. Of seed, dtype (None: its own) and device only what ``function`` takes is handed over.

        Raises:
            UnknownName: an own function makes neither a problem nor a workload, or in another dtype or on another device than
                was asked for.
            HypergradientError: its hyperparameters are no dict of tensors.
            Exception: whatever ``function`` raises.
        """
        common = {"seed": seed, "dtype": dtype, "device": device}
        given = {k: x for k, x in common.items() if x is not None and self.takes(k)}
        made = self.function(**given, **settings)
        if not isinstance(made, (Problem, Workload)):
            raise UnknownName(f"{self.name} returned {type(made).__name__}: return a Problem, or a Workload")
        hparams = problem_of(made).hparams
        tree.check(hparams, "hparams")
        leaf = next(iter(hparams.values()))
        if dtype is not None and leaf.dtype != dtype:
            raise UnknownName(
                f"{self.name} is made in {leaf.dtype}, not in {dtype}: give it the parameter dtype, or leave --dtype out"
            )
        if leaf.device.type != torch.device(device).type:
            raise UnknownName(f"{self.name} is made on {leaf.device}, not on {device}: give it the parameter device")
        return made


def problem_of(made: Problem | Workload) -> Problem:
    """The problem of what a ``make`` returned."""
    return made.problem if isinstance(made, Workload) else made


def is_own(name: str) -> bool:
    """Whether ``name`` is that of a file, not of something registered."""
    return name not in PROBLEMS and name not in WORKLOADS and (name.endswith(".py") or ".py:" in name)


def find(name: str) -> Found:
    """The problem that is called ``name``.

    Args:
        name: of a registered problem or workload, or ``file.py:function``; ``file.py`` alone means its ``make``.

    Raises:
        UnknownName: there is none; the message lists what there is.
        ImportError: the file fails.
    """
    if name in PROBLEMS:
        return Found(name, PROBLEMS[name].make)
    if name in WORKLOADS:
        return Found(name, WORKLOADS[name].make, WORKLOADS[name].sizes)
    path, _, function = name.rpartition(":") if ".py:" in name else (name, "", "make")
    if not path.endswith(".py"):
        raise UnknownName(
            f"no problem is called {name!r}: write my_problem.py:make, or one of {', '.join([*PROBLEMS, *WORKLOADS])}"
        )
    try:
        module = load_file(Path(path).resolve())
    except ModuleNotFoundError as error:
        raise UnknownName(f"{name}: {error}") from error
    except Exception as error:
        raise ImportError(f"{path} fails: {type(error).__name__}: {error}") from error
    made = getattr(module, function, None)
    if not callable(made):
        raise UnknownName(
            f"{path} has no function {function!r}: write FILE.py:FUNCTION, with one that returns a Problem"
        )
    return Found(name if ".py:" in name else f"{name}:{function}", made)


def settings(found: Found, pairs: Sequence[str]) -> dict[str, Any]:
    """Settings from words such as ``["size=base", "unroll=4"]``, as ``found`` takes them.

    Raises:
        UnknownName: no such setting, or a value that does not fit; the message says what there is.
    """
    known = settings_of(found.function)
    chosen: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UnknownName(f"{pair!r} is no setting: write NAME=VALUE, such as {next(iter(known), 'size')}=...")
        if name not in known and not (found.takes(name) and name not in COMMON):
            raise UnknownName(f"{found.name} takes no setting {name!r}; it takes: {', '.join(known) or 'none'}")
        hint = known.get(name, Any)
        fitting = [x for v in _read(text) if takes(hint, x := fitted(hint, v))]
        if not fitting:
            words = hint.__name__ if isinstance(hint, type) else str(hint)
            raise UnknownName(f"setting {name}: {found.name} takes {words} there, not {text!r}")
        if name == "size" and found.sizes and fitting[0] not in found.sizes:
            raise UnknownName(f"setting size: {found.name} has {', '.join(found.sizes)}, not {text!r}")
        chosen[name] = fitting[0]
    return chosen


def _read(text: str) -> list[Any]:
    """What ``text`` may mean, the narrowest first."""
    found: list[Any] = [{"true": True, "false": False}[text.lower()]] if text.lower() in ("true", "false") else []
    for kind in (int, float):
        try:
            found.append(kind(text))
        except ValueError:
            continue
    return [*found, text]
