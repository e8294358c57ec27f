"""What a whole meta step costs: seconds, beside plain training of the same model, and bytes to the byte."""

from __future__ import annotations

from typing import Any

from torch.utils.benchmark.utils.timer import timer

ESTIMATORS = ("unroll", "unroll-checkpointed", "cg", "neumann", "t1t2", "sama")
SETTINGS = {"width": 128, "batch": 64, "unroll": 8}


def meta_step(estimator: str, onward: bool = False) -> tuple[Any, Any]:
    """(meta step, plain training), each called once; ``onward``: a step that keeps no start, as rows count memory.

    Imported late: a commit that has no meta steps skips them.
    """
    try:
        from benchmarks.meta_step import MetaStep, PlainTraining, copied, settled
        from benchmarks.workloads import WORKLOADS
        from estimators import per_stage, registry
    except ImportError as error:
        raise NotImplementedError(
            f"no meta steps at this commit: {error}"
        ) from error  # asv's word for "skip this cell"
    workload = WORKLOADS["mlp_decay"].make(**SETTINGS)
    (chosen,) = per_stage(registry[estimator].estimator, 1)
    state = settled(workload)
    step, plain = MetaStep(workload, chosen, copied(state), onward=onward), PlainTraining(workload, state)
    step()
    plain()
    return step, plain


class MetaStep:
    """Seconds a meta step of 8 steps and a hypergradient: the inverse of a throughput, since asv takes lower for better."""

    params = ESTIMATORS
    param_names = ("estimator",)
    timer = staticmethod(timer)
    rounds, repeat, warmup_time, timeout = 2, (3, 7, 3.0), 0.1, 300

    def setup(self, estimator: str) -> None:
        self.step, _ = meta_step(estimator)

    def time_meta_step(self, estimator: str) -> None:
        self.step()


class MetaStepCost:
    """Against plain training in the same minutes, and in memory."""

    params = ESTIMATORS
    param_names = ("estimator",)
    timeout = 300

    def setup(self, estimator: str) -> None:
        self.step, self.plain = meta_step(estimator)

    def track_slowdown(self, estimator: str) -> float:
        """Samples a second of plain training over those of the meta step, each taken in turn with the other."""
        from benchmarks.measure import paired_timing

        return float(paired_timing(self.step, self.plain, budget=2.0, least=7, most=25, patience=6.0).ratio)

    track_slowdown.unit = "throughput of plain training / of the meta step"  # type: ignore[attr-defined]

    def track_peak_bytes(self, estimator: str) -> int:
        try:
            from benchmarks.measure.of_meta_step import memory_of
        except ImportError as error:
            raise NotImplementedError(f"no memory of meta steps at this commit: {error}") from error
        step, _ = meta_step(estimator, onward=True)
        return memory_of(step).peak

    track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]
