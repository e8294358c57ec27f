"""Executors: the same rows from submitit and Ray, and jobs that are lost."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import cells, locks
from benchmarks.cells import Cell
from benchmarks.cli import main
from benchmarks.commands.show import Show, show
from benchmarks.executors import choose
from benchmarks.executors.base import lost
from benchmarks.grid import Grid, SweepError
from benchmarks.isolated import Orders

from .faulty_sweep import PLUGIN, Trial

FILE = """
about = "three cells, one of which dies"
estimators = ["steady", "segfault", "raise"]
problems = "weighted_ridge"
plugins = "{plugin}"
executor = "{executor}"
per_process = {per_process}
[effort]
budget = 0.001
least = 1
most = 1
"""


def run(folder: Path, executor: str, per_process: int, more: str = "", *flags: str) -> tuple[Trial, str]:
    file = folder / f"{executor}.toml"
    file.write_text(FILE.format(plugin=PLUGIN, executor=executor, per_process=per_process) + more)
    trial = Trial(folder)
    process = trial.start(file, *flags)
    said, _ = process.communicate()
    assert process.returncode == 1, said
    return trial, said


@pytest.mark.parametrize(
    ("executor", "per_process", "more", "flags"),
    [
        ("slurm", 3, '[slurm]\ncluster = "debug"\n', ()),
        ("slurm", 2, '[slurm]\ncluster = "local"\n', ("--jobs", "2", "--allow-disturbed-timing")),
        ("ray", 2, "", ("--jobs", "2", "--allow-disturbed-timing")),
    ],
)
def test_the_rows_are_the_same_whoever_runs_them(
    executor: str,
    per_process: int,
    more: str,
    flags: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trial, said = run(tmp_path, executor, per_process, more, *flags)
    rows = {r["config"]["estimator"]: r for r in trial.rows()}
    assert {n: (r["status"], r["failure"]) for n, r in rows.items()} == {
        "steady": ("ok", None),
        "segfault": ("failed", "crash"),
        "raise": ("failed", "error"),
    }, said
    where = rows["steady"]["environment"]
    assert where["executor"] == executor
    assert where["disturbed"] == bool(flags) == (where["jobs"] > 1)
    assert len(trial.measured()) == 3
    assert show(Show(trial.out)) == 0
    text = capsys.readouterr().out
    for words in (
        "three cells, one of which dies", "3 of 3 cells are there", f'executor = "{executor}"', "3 rows: 2 failed, 1 ok",
        "1 × crash: the process was killed by SIGSEGV (segfault)", "1 × error: RuntimeError: this estimator is broken (raise)",
        f"$ hypergradbench sweep {tmp_path / executor}.toml",
    ):  # fmt: skip
        assert words in text


def batch() -> list[Cell]:
    return [Cell(estimator="steady", problem="weighted_ridge", seed=seed) for seed in range(4)]


def test_a_lost_job_is_a_row_of_the_cell_that_it_was_at(tmp_path: Path) -> None:
    todo, events = batch(), list[tuple[str, int]]()
    cells.write(todo[0].file(tmp_path), cells.row(todo[0], "ok"))
    orders = Orders(out=tmp_path, executor="slurm")
    rest = lost(todo, "NodeFailure: gone", orders, lambda event, cell, _: events.append((event, cell.seed)))
    assert rest == todo[2:]
    assert events == [("done", 0), ("done", 1)]
    row = json.loads(todo[1].file(tmp_path).read_text())
    assert (row["status"], row["failure"]) == ("failed", "crash")
    assert row["reason"] == "the job was lost: NodeFailure: gone"
    assert row["environment"]["executor"] == "slurm"
    assert locks.claim(tmp_path, todo[1].id), "its claim was not given back"
    locks.release(tmp_path, todo[1].id)


def test_with_force_a_lost_job_is_not_settled_by_rows_of_before(tmp_path: Path) -> None:
    todo = batch()[:2]
    for c in todo:
        cells.write(c.file(tmp_path), cells.row(c, "ok"))
    orders = Orders(out=tmp_path, executor="slurm", force=True)
    os.utime(todo[1].file(tmp_path), (orders.began - 60, orders.began - 60))
    assert lost(todo, "NodeFailure: gone", orders, lambda *_: None) == []
    assert [json.loads(c.file(tmp_path).read_text())["status"] for c in todo] == ["ok", "failed"]


def test_a_missing_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for executor, module in (("slurm", "submitit"), ("ray", "ray")):
        monkeypatch.setitem(sys.modules, module, None)
        grid = Grid(name="x", estimators=("sama",), problems=("log_ridge",), executor=executor)  # type: ignore[arg-type]
        with pytest.raises(ImportError, match=rf"pip install -e '.\[{executor}\]'"):
            choose(grid, tmp_path, jobs=1, disturbed=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: {"executor": "slurm", "slurm": {"cluster": "cloud"}},
            "cluster: 'cloud' is none of: slurm, local, debug",
        ),
        (lambda: {"executor": "slurm", "slurm": {"cluster": "debug", "partitio": 1}}, "submitit refuses"),
        (lambda: {"executor": "slurm", "slurm": {"cluster": "local"}}, "--jobs 2"),
        (lambda: {"executor": "ray", "ray": {"gpus": 1}}, "unknown key 'gpus'; there are: address"),
        (lambda: {"executor": "ray", "ray": {"num_cpus": "two"}}, r"\[ray\] num_cpus: 'two' is no number"),
        (lambda: {"executor": "ray", "ray": {"num_gpus": -1}}, r"\[ray\] num_gpus: -1 is no number of at least 0"),
        (lambda: {"executor": "ray", "ray": {"resources": 3}}, r"\[ray\] resources: 3 is no table"),
        (lambda: {"executor": "ray", "devices": ("cuda:1",)}, "leave the index out"),
    ],
)
def test_wrong_settings_of_executors(make: Callable[[], dict], words: str, tmp_path: Path) -> None:
    grid = Grid(name="x", estimators=("sama",), problems=("log_ridge",), **make())
    with pytest.raises(SweepError, match=words):
        choose(grid, tmp_path, jobs=2, disturbed=False)


def test_a_cluster_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(**_: object) -> None:
        raise ConnectionError("nobody answers at 127.0.0.1:1")

    monkeypatch.setattr("ray.init", nobody)
    file = tmp_path / "far.toml"
    file.write_text('estimators = "cg"\nproblems = "weighted_ridge"\nexecutor = "ray"\nray.address = "127.0.0.1:1"\n')
    assert main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "[ray]: Ray cannot be reached or started: nobody answers" in capsys.readouterr().err


def test_show_refuses_folders_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(Show(tmp_path / "nothing")) == 2
    assert show(Show(tmp_path)) == 1
    assert "no sweep was saved" in capsys.readouterr().err
    (tmp_path / "sweeps").mkdir()
    for name, text in (("empty", "{}"), ("list", "[]"), ("half", '{"began": ')):  # nothing of ours, or damaged
        (tmp_path / "sweeps" / f"{name}.json").write_text(text)
    assert show(Show(tmp_path)) == 1
