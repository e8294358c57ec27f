"""The suite of whole meta steps, as asv calls it. That asv itself finds and runs it is recorded in docs/asv.md."""

from __future__ import annotations

import sys

import pytest

from benchmarks.asv_suite import meta_step
from benchmarks.throughput import Bench, Effort
from benchmarks.workloads import WORKLOADS
from estimators import registry


def test_a_meta_step_is_timed_and_counted() -> None:
    timed, cost = meta_step.MetaStep(), meta_step.MetaStepCost()
    timed.setup("t1t2")
    timed.time_meta_step("t1t2")
    cost.setup("t1t2")
    first = cost.track_peak_bytes("t1t2")
    assert first == cost.track_peak_bytes("t1t2") > 0
    # as in the rows of sweeps
    bench = Bench(WORKLOADS["mlp_decay"].make(**meta_step.SETTINGS), effort=Effort(budget=0.01, least=1, most=1))
    bench.enter("t1t2", registry["t1t2"].estimator)
    bench.time()
    assert first == bench.content("t1t2")["memory"]["peak_bytes"]
    cost.plain = cost.step
    assert 0.3 < cost.track_slowdown("t1t2") < 3  # of the same work twice: 1


def test_a_fatter_estimator_takes_more_bytes() -> None:
    found = {}
    for name in ("sama", "unroll"):
        cost = meta_step.MetaStepCost()
        cost.setup(name)
        found[name] = cost.track_peak_bytes(name)
    assert found["unroll"] > 1.1 * found["sama"]


def test_the_suite_is_small_and_its_names_are_registered() -> None:
    assert set(meta_step.ESTIMATORS) <= set(registry)
    methods = [
        name
        for suite in (meta_step.MetaStep, meta_step.MetaStepCost)
        for name in vars(suite)
        if name.startswith(("time_", "track_"))
    ]
    assert 3 == len(methods) <= 30 / len(meta_step.ESTIMATORS)


def test_a_commit_without_meta_steps_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.meta_step", None)
    with pytest.raises(NotImplementedError, match="no meta steps at this commit"):
        meta_step.MetaStep().setup("sama")
