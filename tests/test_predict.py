"""What is counted over fake tensors is what a measurement gives, to the byte."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import meta_cells, plan
from benchmarks.cells import AUTOCAST, Cell
from benchmarks.cli import main
from benchmarks.commands.prediction import size
from benchmarks.measure.of_meta_step import memory_of
from benchmarks.measure.predict import Count, count, extended, predict, without_values
from benchmarks.measure.split import CATEGORIES, Memory
from benchmarks.meta_step import MetaStep, PlainTraining, copied, settled
from benchmarks.workloads import WORKLOADS, Workload, with_autocast
from estimators import CG, FixedPoint, Implicit, Outcome, Unroll, estimate, per_stage, registry, tree

SMALL = {"mlp_decay": {"width": 8}}
FEWER = {"cg": {"solver.steps": 5}, "adapted-cg": {"solver.steps": 5}, "neumann": {"solver.steps": 5}, "fixed-point": {"solver.steps": 5},
         "nystrom": {"solver.rank": 3}}  # fmt: skip
"""Products of solvers, so that a test does not take long."""


@functools.cache
def made(name: str, unroll: int, values: bool) -> Workload:
    return WORKLOADS[name].make(unroll=unroll, **SMALL.get(name, {}))


def measured(workload: Workload, estimator: object) -> Memory:
    step = MetaStep(workload, estimator, copied(settled(workload)), onward=True)  # type: ignore[arg-type]
    step()
    return memory_of(step)


@pytest.mark.parametrize(
    "name", [n for n in registry if n not in ("dense", "composed", "greedy", "tartan", "tartan-dot")]
)
def test_of_every_estimator(name: str) -> None:
    (estimator,) = per_stage(plan.with_fields(registry[name].estimator, FEWER.get(name, {})), 1)
    real = measured(made("mlp_decay", 3, values=True), estimator)
    with without_values():
        found = count(made("mlp_decay", 3, values=False), estimator)
    assert found.split == real.split
    assert found.peak == real.peak
    assert found.at_most == (name in ("cg", "adapted-cg"))


@pytest.mark.parametrize("name", WORKLOADS)
def test_of_every_workload(name: str) -> None:
    for module in WORKLOADS[name].needs:
        pytest.importorskip(module)
    (estimator,) = per_stage(registry["sama-na" if "resnet" in name else "t1t2"].estimator, 1)
    real = measured(made(name, 1, values=True), estimator)
    with without_values():
        assert count(made(name, 1, values=False), estimator).split == real.split


@pytest.mark.parametrize("dtype", ["float64", AUTOCAST])
@pytest.mark.parametrize("name", ["unroll", "sama"])
def test_of_a_cell(name: str, dtype: str) -> None:
    settings = {"unroll": 9, "width": 8}
    workload = WORKLOADS["mlp_decay"].make(dtype=torch.float64 if dtype == "float64" else torch.float32, **settings)
    workload = with_autocast(workload) if dtype == AUTOCAST else workload
    plain = PlainTraining(workload, settled(workload))
    plain()
    (estimator,) = per_stage(registry[name].estimator, 1)
    found = predict(Cell(kind="meta", estimator=name, problem="mlp_decay", dtype=dtype, settings=settings))
    assert (found.status, found.reason) == ("exact", None)
    assert found.peak_bytes == measured(workload, estimator).peak
    assert found.plain_peak_bytes == memory_of(plain).peak
    assert found.parameters == tree.size(workload.problem.start)  # type: ignore[arg-type]
    assert found.counted


@pytest.mark.parametrize("name", ["sama", "unroll", "cg"])
def test_of_leaves_that_are_worked_on_in_pieces(name: str) -> None:
    """360 000 entries are eleven pieces, of which three are counted (`tree.pieces`)."""
    workload = WORKLOADS["mlp_decay"].make(unroll=2, width=600)
    (estimator,) = per_stage(plan.with_fields(registry[name].estimator, FEWER.get(name, {})), 1)
    real = measured(workload, estimator)
    with without_values():
        assert count(WORKLOADS["mlp_decay"].make(unroll=2, width=600), estimator).split == real.split


@pytest.mark.parametrize("name", ["sama", "neumann", "t1t2", "unroll-truncated"])
def test_a_row_says_what_was_predicted(name: str) -> None:
    """The very figures of the row that a sweep writes of the cell."""
    cell = Cell(
        kind="meta", estimator=name, problem="mlp_decay", dtype="float32", settings={"unroll": 4, "width": 8},
        fields=FEWER.get(name, {}),
    )  # fmt: skip
    bench = meta_cells.bench_of(cell, meta_cells.workload_of(cell), {"budget": 0.01, "least": 1, "most": 1})
    meta_cells.enter(bench, cell)
    bench.time()
    row = meta_cells.content(bench, cell)["memory"]
    found = predict(cell)
    assert (found.peak_bytes, found.plain_peak_bytes) == (row["peak_bytes"], row["plain_peak_bytes"])
    assert dict(found.split) == row["split"]


@pytest.mark.parametrize("estimator", [Unroll(checkpoint=3), Unroll(last=2), Implicit(FixedPoint(steps=20, lr=0.01))])
def test_what_is_not_counted_follows(estimator: object) -> None:
    """17 steps, of which at most 11 are counted."""
    from benchmarks.measure import predict as module

    cell = Cell(
        kind="meta", estimator="unroll", problem="mlp_decay", dtype="float32", settings={"unroll": 17, "width": 8}
    )
    entry = registry["unroll"]
    swapped = {"unroll": entry._replace(estimator=estimator)}  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "registry", swapped)
        found = predict(cell)
    assert found.counted
    assert max(found.counted["steps"]) <= 11
    real = measured(made("mlp_decay", 17, values=True), estimator)
    assert (found.peak_bytes, dict(found.split)) == (real.peak, real.split)


def test_far_beyond_the_machine() -> None:
    cell = Cell(
        kind="meta", estimator="unroll", problem="mlp_decay", dtype="float32",
        settings={"size": "large", "width": 65536, "unroll": 512}, fields={"checkpoint": 1},
    )  # fmt: skip
    found = predict(cell)
    n = 3 * (65536**2 + 65536) + 65536 * 10 + 10
    assert found.parameters == n
    assert found.peak_bytes is not None
    states = (
        510 * 3 * 4 * n
    )  # theta and both slots before each step; the first is the start, the last but one's is shown above
    assert states < found.peak_bytes < 1.05 * states
    assert found.fits(2**40) is False
    assert found.fits(2**60) is True


def test_a_tolerance_gives_an_upper_bound() -> None:
    workload = made("mlp_decay", 3, values=True)
    with without_values():
        found = count(made("mlp_decay", 3, values=False), Implicit(CG(steps=9, rtol=0.5)))
    assert found.at_most
    assert found.peak >= measured(workload, Implicit(CG(steps=9, rtol=0.5))).peak
    assert found.peak == measured(workload, Implicit(CG(steps=9))).peak


def test_what_depends_on_data_says_so() -> None:
    cell = Cell(kind="meta", estimator="dense", problem="mlp_decay", dtype="float32", settings={"width": 1})
    found = predict(cell)
    assert found.status == "depends on data"
    assert found.peak_bytes is None
    assert found.fits(2**60) is None
    assert found.reason is not None
    for words in ("dense reads a value back", "dense.py", "measure"):
        assert words in found.reason


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"estimator": "composed"}, "refused", "2 stage(s)"),
        ({"estimator": "dense"}, "refused", "at most 4096 parameters"),
        ({"kind": "point", "problem": "biased_regression"}, "refused", "measure them"),
        ({"settings": {"size": "huge"}}, "failed", "size='huge'"),
    ],
)
def test_without_a_number_there_is_a_reason(change: dict, status: str, words: str) -> None:
    cell = Cell(
        kind="meta", estimator="sama", problem="mlp_decay", dtype="float32", settings={"size": "base", "unroll": 1}
    )
    found = predict(replace(cell, **change))
    assert found.status == status
    assert words in (found.reason or "")


def test_a_device_that_is_not_there_is_counted_as_a_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    cell = Cell(kind="meta", estimator="sama-na", problem="mlp_decay", dtype="float32", settings={"unroll": 1})
    here, there = predict(cell), predict(replace(cell, device="cuda"))
    assert here.note == ""
    assert "no cuda" in there.note
    assert there.peak_bytes == here.peak_bytes


def split(recorded: int, buffers: int, graph: int = 0) -> Count:
    return Count({**dict.fromkeys(CATEGORIES, 0), "recorded": recorded, "buffers": buffers, "graph": graph})


def test_extension_by_hand() -> None:
    found, lengths = extended(lambda n: split(100 * n, 4 * n), 50, 2, state=100)
    assert (found.peak, lengths) == (5200, (2, 3))
    found, lengths = extended(lambda n: split(100 * (n // 5), 4 * n), 52, 1, every=5, state=100)
    assert (found.peak, lengths) == (1000 + 4 * 52, (2, 7))
    found, lengths = extended(lambda n: split(0, 1000 * n), 50, 1)  # unexplained, but the same twice
    assert (found.peak, lengths) == (50_000, (1, 2, 3))
    found, lengths = extended(lambda n: split(0, 1000 * n * n), 6, 1)  # never the same
    assert (found.peak, lengths) == (36_000, ())
    found, lengths = extended(lambda n: split(100 * n, 5 * n + (n == 3), 20 * (n < 3) - 20 * (n > 2)), 10, 2, state=100)
    assert found.split["recorded"] == 1000


def test_estimates_of_fake_tensors_have_the_shapes_and_no_values() -> None:
    with without_values():
        problem = WORKLOADS["mlp_decay"].make(unroll=2, width=4).problem
        found = estimate(problem, Implicit(CG(steps=5, rtol=1e-3)))
        assert found.outcomes == (Outcome.UNREAD,)
        assert not tree.has_values(found.hparams["log_decay.0.weight"])
        with pytest.raises(Exception, match="_local_scalar_dense"):
            bool(found.value > 0)
    assert tree.has_values(torch.zeros(()))
    assert not tree.has_values(torch.zeros((), device="meta"))
    assert tree.holds(torch.zeros((), dtype=torch.bool, device="meta"))
    assert not tree.holds(torch.zeros((), dtype=torch.bool))


def test_a_sweep_is_predicted_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "sweep",
        "--kind",
        "meta",
        "--estimators",
        "sama-na",
        "tartan",
        "--problems",
        "mlp_decay",
        "--dtypes",
        "float32",
    ]
    words += ["--sizes", "large", "--unroll", "1", "--out", str(tmp_path / "out"), "--predict", "--limit-memory"]
    assert main([*words, "64GiB"]) == 0
    said = capsys.readouterr().out
    assert "50.4 M" in said
    assert "1 fit, 0 do not, 1 unknown" in said
    assert "no MultiTask" in said
    assert main([*words, "600MiB"]) == 0
    assert "0 fit, 1 do not, 1 unknown" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_sizes_in_words() -> None:
    assert [size(n) for n in (0, 4, 999, 1000, 3 * 2**30, 1234 * 2**40)] == [
        "0",
        "4 B",
        "999 B",
        "0.977 KiB",
        "3 GiB",
        "1.21 PiB",
    ]
