"""Data-parallel cells: two processes give the figures of one, and one that dies takes the other along."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import plugins
from benchmarks.cells import Cell
from benchmarks.ranks import BUCKET, RankError, buckets, measured
from benchmarks.throughput import Bench, Effort
from benchmarks.workloads.mlp_decay import make
from estimators import T1T2, registry

QUICK = {"budget": 0.02, "least": 1, "most": 2}
PARAMS = 3 * (32 * 32 + 32) + 32 * 10 + 10


def cell(estimator: str, workers: int = 2, **settings: int) -> Cell:
    return Cell(
        estimator=estimator, problem="mlp_decay", settings={"size": "tiny", "unroll": 2} | settings, dtype="float64",
        kind="meta", workers=workers,
    )  # fmt: skip


def test_two_ranks_find_what_one_process_finds() -> None:
    row = measured(cell("t1t2"), QUICK)
    one = Bench(make(size="tiny", unroll=2, dtype=torch.float64), effort=Effort(**QUICK))
    one.enter("t1t2", T1T2())
    one.time()
    whole = one.content("t1t2")
    assert row["workload"]["samples"] == whole["workload"]["samples"] == 16  # the same global batch
    assert row["value"] == pytest.approx(whole["value"], rel=1e-13)
    for k, x in whole["hypergradient"].items():  # each leaf is one number
        assert row["hypergradient"][k]["mean"] == pytest.approx(x["mean"], rel=1e-9)
    counters = row["counters"]
    # a step averages its gradient in one bucket; the meta step too the outer loss, its gradient, and the product's 8 scalars
    assert counters["plain_collectives"] == 2
    assert counters["plain_collective_bytes"] == 2 * PARAMS * 8
    assert counters["collectives"] == 2 + 3
    assert counters["collective_bytes"] == (2 + 1) * PARAMS * 8 + 8 + 8 * 8
    assert counters["plain_flops"] == whole["counters"]["plain_flops"] / 2
    # the exchange: a buffer, and the averages beside the gradients
    state = 3 * PARAMS * 8 + 8 * 4
    assert row["memory"]["plain_peak_bytes"] == state + 3 * PARAMS * 8
    assert row["memory"]["plain_split"]["buffers"] == 2 * PARAMS * 8
    assert row["throughput"]["samples_per_second"] > 0
    assert row["overhead"]["clock"] == "perf_counter"  # waiting for the other counts


PLUGIN = """
import os, signal
from dataclasses import replace
import torch.distributed as dist
from estimators import Claim, Direct, registry

class Doomed(Direct):
    def pullback(self, *args):
        if dist.is_initialized() and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pullback(*args)

registry.register("doomed", Doomed(), Claim(of="nothing", citation="a test", target="direction", control=True))
"""


def test_a_rank_that_dies_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "doomed.py"
    plugin.write_text(PLUGIN)
    monkeypatch.setattr(plugins, "LOADED", [])
    plugins.load([str(plugin)])
    try:
        monkeypatch.setattr("benchmarks.ranks.LOADED", plugins.LOADED)
        with pytest.raises(RankError, match="rank 1 of 2 was killed by SIGKILL"):
            measured(cell("doomed"), QUICK)
    finally:
        del registry._entries["doomed"]


THREADS = """
import os, torch
from estimators import Claim, Direct, registry

class Counting(Direct):
    def pullback(self, *args):
        raise RuntimeError(f"{torch.get_num_threads()} threads, told {os.environ['OMP_NUM_THREADS']}")

registry.register("counting", Counting(), Claim(of="nothing", citation="a test", target="direction", control=True))
"""


def test_ranks_have_as_many_threads_as_the_row_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "counting.py"
    plugin.write_text(THREADS)
    monkeypatch.setattr("benchmarks.ranks.LOADED", [str(plugin)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(RankError, match="2 threads, told 2"):
            measured(cell("counting", workers=1), QUICK)
    finally:
        torch.set_num_threads(before)


def test_an_uneven_share_is_refused() -> None:
    with pytest.raises(RankError, match="cannot be dealt out"):
        measured(cell("sama", workers=2, batch=15), QUICK)


def test_buckets_hold_whole_leaves_of_one_dtype_in_order() -> None:
    whole = torch.empty(BUCKET // 8, dtype=torch.float64, device="meta")
    half = torch.empty(BUCKET // 16, dtype=torch.float64, device="meta")
    other = torch.empty(3, dtype=torch.float32, device="meta")
    assert buckets({"a": half, "b": half, "c": half, "d": other, "e": whole}) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert buckets({}) == []
