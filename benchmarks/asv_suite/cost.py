"""What one hypergradient of a small network costs, for every registered estimator that takes it."""

from __future__ import annotations

from torch.utils.benchmark.utils.timer import timer

from benchmarks.measure import peak_bytes
from benchmarks.problems import PROBLEMS
from estimators import Problem, estimate, hypergradient, per_stage, registry, run_stages

from .network import network

OTHERS: dict[str, dict[str, int]] = {"two_stage_quadratic": {}, "one_step_rule": {}, "digits_tasks": {"hidden": 4}}
"""For estimators that the network is not for. asv compares an estimator with its own past, so problems may differ."""


def applicable(estimator: str) -> Problem:
    problems = [network(), *(PROBLEMS[name].make(**settings) for name, settings in OTHERS.items() if name in PROBLEMS)]
    refusals = [registry[estimator].claim.refuses(p) for p in problems]
    if None not in refusals:
        raise NotImplementedError(refusals[0])  # asv's word for "skip this cell"
    return problems[refusals.index(None)]


class Time:
    """The pullback alone: the run before it is the same for all, and belongs to none."""

    params = tuple(registry)
    param_names = ("estimator",)
    timer = staticmethod(timer)  # synchronises an accelerator, if there is one
    rounds, repeat, warmup_time, timeout = 2, (3, 5, 3.0), 0.1, 300

    def setup(self, estimator: str) -> None:
        self.problem = p = applicable(estimator)
        self.estimators = per_stage(estimator, len(p.stages))
        self.records = run_stages(p.stages, p.start, p.hparams, self.estimators)
        self.time_hypergradient(estimator)  # the first call pays for torch's lazy imports

    def time_hypergradient(self, estimator: str) -> None:
        p = self.problem
        hypergradient(p.outer, p.stages, self.estimators, self.records, p.hparams, throw=False)


class Memory:
    """Live tensor bytes at the peak of run and pullback together, since what the run records is part of the price.

    Not asv's ``peakmem_``: the size of the process is mostly torch itself, and ranks the estimators wrongly.
    """

    params = tuple(registry)
    param_names = ("estimator",)
    timeout = 300

    def setup(self, estimator: str) -> None:
        self.problem = applicable(estimator)

    def track_peak_bytes(self, estimator: str) -> int:
        return peak_bytes(lambda: estimate(self.problem, estimator, throw=False))

    track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]
