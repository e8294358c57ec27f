"""How far every registered estimator is from the exact hypergradient. A commit that makes one worse shows here."""

from __future__ import annotations

from abc import ABC, abstractmethod

from benchmarks.accuracy import compare
from benchmarks.problems import PROBLEMS
from estimators import estimate, registry

ROUNDING = 1e-12  # asv compares ratios, so that an error of 1e-15 that doubles would count as a regression


class _Against(ABC):
    """One hypergradient of biased regression after a converged run, and its closed form.

    Abstract, or asv would take it for a suite of its own.
    """

    param_names = ("estimator", "cond")

    @property
    @abstractmethod
    def params(self) -> tuple[list[str], list[float]]: ...

    def setup(self, estimator: str, cond: float) -> None:
        problem = PROBLEMS["biased_regression"].make(seed=0, cond=cond)
        refusal = registry[estimator].claim.refuses(problem)
        if refusal is not None:
            raise NotImplementedError(refusal)  # asv's word for "skip this cell"
        assert problem.exact is not None
        self.errors = compare(estimate(problem, estimator, throw=False).hparams, problem.exact(problem.hparams))


class Error(_Against):
    params = (list(registry), [10.0, 1000.0])

    def track_relative_error(self, estimator: str, cond: float) -> float:
        return max(self.errors["relative_error"], ROUNDING)

    track_relative_error.unit = "relative error"  # type: ignore[attr-defined]


class Direction(_Against):
    """Blind to a wrong scale, which some estimators have by definition."""

    params = (list(registry), [1000.0])

    def track_cosine_gap(self, estimator: str, cond: float) -> float:
        return max(1 - self.errors["cosine"], ROUNDING)

    track_cosine_gap.unit = "1 - cosine"  # type: ignore[attr-defined]
