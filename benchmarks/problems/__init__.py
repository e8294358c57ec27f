"""Problems to judge estimators on: one problem a file, one line each in `PROBLEMS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from estimators import Problem, Tree

from . import (
    biased_regression,
    digits_label_noise,
    digits_reweighting,
    digits_tasks,
    log_ridge,
    noisy_quadratic,
    one_step_rule,
    two_stage_head_only,
    two_stage_quadratic,
    weighted_ridge,
)
from .reference import reference, truth

__all__ = ["PROBLEMS", "ProblemEntry", "reference", "truth"]


@dataclass(frozen=True)
class ProblemEntry:
    """One line of `PROBLEMS`.

    Attributes:
        make: keyword settings -> `Problem`. All take ``seed``, ``dtype`` and ``device``, and have defaults.
        about: one line: what it is.
        citation: its source.
        observe: problem -> function of (parameters at the end of a run, hparams), whose JSON object a path records.
    """

    make: Callable[..., Problem]
    about: str
    citation: str
    observe: Callable[[Problem], Callable[[Tree, Tree], Mapping[str, Any]]] | None = None


def _entry(module: ModuleType, **settings: object) -> ProblemEntry:
    make = partial(module.make, **settings) if settings else module.make
    return ProblemEntry(make, module.ABOUT, module.CITATION, getattr(module, "observe", None))


PROBLEMS: dict[str, ProblemEntry] = {
    "biased_regression": _entry(biased_regression),
    "weighted_ridge": _entry(weighted_ridge),
    "log_ridge": _entry(log_ridge),
    "two_stage_quadratic": _entry(two_stage_quadratic),
    "two_stage_head_only": _entry(two_stage_head_only),
    "one_step_rule": _entry(one_step_rule),
    "noisy_quadratic": _entry(noisy_quadratic),
    "digits_label_noise": _entry(digits_label_noise),
    "digits_mwn": _entry(digits_reweighting, space="mwn"),
    "digits_wide": _entry(digits_reweighting, space="wide"),
    "digits_example": _entry(digits_reweighting, space="example"),
    "digits_tasks": _entry(digits_tasks),
}
"""name -> how to make it. The key is ``Problem.name``."""
