"""`hypergradbench compare`: a gate that closes on what was planted, and on nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import comparison, load, measures
from analysis.comparison import Thresholds
from benchmarks import cells
from benchmarks.cells import Cell
from benchmarks.cli import main

Change = Callable[[dict[str, Any]], Any]

LEFT_OUT = "left out"

OLD, NEW = "a" * 40, "b" * 40


def content(cell: Cell, commit: str = OLD) -> dict[str, Any]:
    """A result of which errors depend on estimator and seed, and times scatter by about 5 %."""
    rng = np.random.default_rng(
        [sum(map(ord, cell.estimator)), cell.seed, int(cell.settings["cond"]), len(commit) + ord(commit[0])]
    )
    error = {"cg": 1e-6, "sama": 0.3, "unroll": 1e-3}[cell.estimator] * (1 + cell.seed)
    scale = "lr" if cell.estimator == "sama" else "true"
    row = cells.row(
        cell, "ok",
        claim={"of": "something", "citation": "someone", "target": "run" if cell.estimator == "unroll" else "direction", "exact": False, "scale": scale, "control": False},
        accuracy={
            "cosine": 1 - error**2 / 2, "relative_error": 1.0 if scale == "lr" else error, "direction_error": error,
            "angle": float(np.degrees(np.arcsin(min(1, error)))), "norm_ratio": 1.0,
        },
        truth="closed form", accuracy_on_run={"relative_error": 1e-8},
        cost={
            "seconds": 1e-3, "time_ratio": 10 * float(np.exp(0.05 * rng.standard_normal())), "peak_bytes": 1000, "kept_bytes": 0,
            "products": 3, "gradients": 1, "matvecs": 2,
        },
        pullbacks=[], environment={"jobs": 1, "busy": False, "cpu": "a", "torch": "2", "threads": 1, "commit": commit, "dirty": False},
        finished="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return json.loads(json.dumps(row))


def write(
    out: Path,
    change: Change = lambda row: row,
    *,
    commit: str = OLD,
    seeds: int = 3,
    names: tuple[str, ...] = ("cg", "sama", "unroll"),
) -> Path:
    """A folder of every estimator at two condition numbers; ``change`` may alter a row, or say `LEFT_OUT`."""
    for name in names:
        for cond in (2.0, 10.0):
            for seed in range(seeds):
                cell = Cell(
                    estimator=name, problem="biased_regression", settings={"cond": cond}, seed=seed, built=f"{name}()", code=commit[:3]
                )  # fmt: skip
                row = content(cell, commit)
                if change(row) != LEFT_OUT:
                    file = cell.file(out)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(row))
    return out


def at(row: dict[str, Any], estimator: str, cond: float | None = None, seed: int | None = None) -> bool:
    c = row["config"]
    return c["estimator"] == estimator and cond in (None, c["settings"]["cond"]) and seed in (None, c["seed"])


def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, *flags: str, seeds: int = 3
) -> tuple[int, str]:
    """Exit status and what was printed, of an old run against a changed new one."""
    write(tmp_path / "old", seeds=seeds)
    write(tmp_path / "new", change, commit=NEW, seeds=seeds)
    status = main(["compare", str(tmp_path / "old"), str(tmp_path / "new"), *flags])
    return status, capsys.readouterr().out


def test_noise_alone_is_no_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(tmp_path, capsys, lambda row: None)
    assert status == 0 and "No regression beyond the thresholds" in text and "in 18 pairs of cells" in text
    assert "8 within the threshold (8 equal)" in text


PLANTED: dict[str, tuple[Change, str]] = {
    "an error of one estimator at one case": (
        lambda row: at(row, "cg", 10) and row["accuracy"].update(relative_error=1e-3),
        "error of cg on biased_regression (cond=10)",
    ),
    "an error at one seed of three, by much": (
        lambda row: at(row, "cg", 10, 1) and row["accuracy"].update(relative_error=0.5),
        "error of cg on biased_regression (cond=10)",
    ),
    "the sign, which the sine of the angle does not see": (
        lambda row: at(row, "sama") and row["accuracy"].update(angle=180 - row["accuracy"]["angle"]),
        "error of sama on biased_regression (cond=2)",
    ),
    "the error against the steps taken, of one that is after these": (
        lambda row: row["accuracy_on_run"].update(relative_error=1e-4),
        "error on the run of unroll on biased_regression (cond=2)",
    ),
    "times of one estimator": (
        lambda row: at(row, "sama") and row["cost"].update(time_ratio=1.6 * row["cost"]["time_ratio"]),
        "time of sama on all its cases",
    ),
    "two percent more bytes in one cell": (
        lambda row: at(row, "unroll", 2, 0) and row["cost"].update(peak_bytes=1020),
        "peak bytes of unroll on biased_regression (cond=2)",
    ),
    "bytes kept where none were": (
        lambda row: at(row, "unroll", 2, 0) and row["cost"].update(kept_bytes=8),
        "kept bytes of unroll on biased_regression (cond=2)",
    ),
    "a cell that fails": (
        lambda row: at(row, "cg", 2, 0) and row.update(status="failed", reason="RuntimeError: [no]", failure="error", accuracy=None, cost=None),
        "1 cell newly failing",
    ),
    "cells that are refused": (
        lambda row: at(row, "cg", 2) and row.update(status="refused", reason="does not apply", accuracy=None, cost=None),
        "3 cells newly failing",
    ),
    "an error that is no number any more": (
        lambda row: at(row, "unroll", 2, 0) and row["accuracy"].update(relative_error=None),
        "1 cell without a number that was there",
    ),
    "errors that nothing is known of any more, for want of a truth": (
        lambda row: at(row, "cg", 2) and row.update(truth=None, accuracy=None),
        "3 cells without a number that was there",
    ),
    "times and bytes that are not recorded any more": (
        lambda row: at(row, "sama") and row["cost"].update(time_ratio=None, peak_bytes=None),
        "6 cells without a number that was there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_the_gate_closes_on(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, said = PLANTED[what]
    status, text = run(tmp_path, capsys, change)
    assert status == 1 and said in text
    both_cases = "the sign" in what or "the steps taken" in what
    assert f"Regressions: {1 + both_cases}\n" in text  # and on nothing else


@pytest.mark.parametrize("what", PLANTED)
def test_the_way_back_is_no_regression(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "old", PLANTED[what][0])
    write(tmp_path / "new", commit=NEW)
    assert main(["compare", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    text = capsys.readouterr().out
    assert "better" in text or "works now" in text or "any more" in what


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        (
            lambda row: (
                at(row, "cg") and row["accuracy"].update(relative_error=1.05 * row["accuracy"]["relative_error"])
            ),
            (),
        ),
        (lambda row: at(row, "cg") and row["accuracy"].update(relative_error=1e-3), ("--floor", "0.01")),
        (lambda row: at(row, "cg") and row["accuracy"].update(relative_error=1e-3), ("--error", "2000")),
        (
            lambda row: at(row, "sama") and row["cost"].update(time_ratio=1.6 * row["cost"]["time_ratio"]),
            ("--time", "1"),
        ),
        (lambda row: at(row, "sama") and row["cost"].update(time_ratio=1.1 * row["cost"]["time_ratio"]), ()),
        (lambda row: row["cost"].update(peak_bytes=1009), ()),
        (lambda row: row["cost"].update(peak_bytes=1020), ("--bytes", "0.02")),
    ],
)
def test_what_is_within_a_threshold_is_no_regression(
    change: Change, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = run(tmp_path, capsys, change, *flags)
    assert status == 0 and "No regression" in text and "in 18 pairs of cells" in text


def test_rounding_is_no_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "old", lambda row: row["accuracy"].update(relative_error=1e-15))
    write(tmp_path / "new", lambda row: row["accuracy"].update(relative_error=9e-12), commit=NEW)
    assert main(["compare", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert main(["compare", str(tmp_path / "old"), str(tmp_path / "new"), "--floor", "1e-13"]) == 1


def test_other_random_numbers_are_no_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors that are redrawn grow at some seeds, fall at others; and no seed more makes that a regression."""

    def redrawn(row: dict[str, Any]) -> None:
        row["accuracy"]["relative_error"] *= [2.0, 0.7, 1.5, 0.6, 1.9, 0.8][row["config"]["seed"]]

    status, text = run(tmp_path, capsys, redrawn, seeds=6)
    assert status == 0 and "not decided" in text


def test_a_consistent_growth_is_found_though_one_seed_says_the_opposite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def grown(row: dict[str, Any]) -> None:
        if at(row, "cg"):
            row["accuracy"]["relative_error"] *= 0.8 if row["config"]["seed"] == 0 else 3.0 + row["config"]["seed"] / 10

    status, text = run(tmp_path, capsys, grown, seeds=10)
    assert status == 1 and "error of cg" in text


def test_few_pairs_of_times_decide_nothing_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = lambda row: row["cost"].update(time_ratio=30.0 + row["config"]["seed"])  # noqa: E731
    status, text = run(tmp_path, capsys, slower, seeds=1)  # two cases of one seed
    assert status == 0 and "3 too few pairs" in text and "more seeds decide it" in text
    status, text = run(tmp_path, capsys, slower, seeds=2)
    assert status == 1 and "time of cg on all its cases" in text


def test_times_of_each_case_need_seeds_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = lambda row: at(row, "cg", 2) and row["cost"].update(time_ratio=25 * row["cost"]["time_ratio"] / 10)  # noqa: E731
    status, text = run(tmp_path, capsys, slower, "--each-case", seeds=5)
    assert status == 1 and "time of cg on biased_regression (cond=2)" in text and "Regressions: 1\n" in text


def test_false_alarms_over_many_comparisons_of_times_are_rare() -> None:
    """Heavy tails, 20 estimators, 9 pairs, no change: less than alpha of the gates may close, even with no threshold."""
    rng = np.random.default_rng(0)
    closed = 0
    for _ in range(40):
        rows = [
            {
                "a": np.exp(0.2 * rng.standard_t(3)),
                "b": np.exp(0.2 * rng.standard_t(3)),
                "name": f"e{i}",
                "case": "c",
                "seed": seed,
            }
            for i in range(20)
            for seed in range(9)
        ]
        found = comparison._compared(pd.DataFrame(rows), "time", ["name"])
        assert len(found) == 20
        closed += any(c.verdict == "worse" for c in comparison._judged(found, Thresholds(time=0.0)))
    assert closed <= 4


def test_what_came_and_went_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "old", lambda row: at(row, "sama") and LEFT_OUT)
    write(tmp_path / "new", lambda row: at(row, "cg", 2) and LEFT_OUT, commit=NEW)
    folders = [str(tmp_path / "old"), str(tmp_path / "new")]
    assert main(["compare", *folders]) == 0
    text = capsys.readouterr().out
    assert "only before: 3 cells" in text and "cg on biased_regression (cond=2), seeds 0, 1, 2" in text
    assert "only after: 6 cells" in text
    assert "in 9 pairs of cells. 3 cells are only before (--complete" in text.splitlines()[-1]
    assert main(["compare", *folders, "--complete"]) == 1
    assert "3 cells are missing" in capsys.readouterr().out


def test_an_estimator_built_otherwise_is_compared_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(tmp_path, capsys, lambda row: at(row, "cg") and row["config"].update(built="cg(steps=3)"))
    assert status == 0 and "built otherwise: 6 cells" in text and "cg() became cg(steps=3)" in text


def test_errors_to_different_truths_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(row: dict[str, Any]) -> None:
        if at(row, "cg", 2):
            row["truth"] = "CG to 1e-10 in float64"
            row["accuracy"]["relative_error"] = None if row["config"]["seed"] else 0.9

    status, text = run(tmp_path, capsys, change)
    assert status == 0 and "3 pairs have errors to different truths" in text


def test_other_machines_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(tmp_path, capsys, lambda row: row["environment"].update(cpu="b", busy=True))
    assert status == 0 and "processors differ (a before, b after)" in text
    assert "18 of 18 cells after were timed while the machine was busy" in text


def test_a_change_outside_the_commit_is_not_called_luck(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edited(row: dict[str, Any]) -> None:
        row["config"]["code"] = "another"

    before = write(tmp_path / "a")
    main(["compare", str(before), str(write(tmp_path / "b"))])
    assert "what differs between them is chance" in capsys.readouterr().out
    main(["compare", str(before), str(write(tmp_path / "c", edited))])
    said = capsys.readouterr().out
    assert "what differs between them" not in said
    assert "same commit, but files that do not belong to it changed: those of biased_regression" in said


def test_two_commits_of_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "run")
    worse = lambda row: at(row, "cg") and row["accuracy"].update(relative_error=0.9)  # noqa: E731
    write(tmp_path / "run", worse, commit=NEW)
    assert len(load(tmp_path / "run")) == 18  # the newest of each
    assert main(["compare", str(tmp_path / "run"), "--commits", "aa", "bb"]) == 1
    text = capsys.readouterr().out
    assert "commit aaaaaaaaaa: 18 cells" in text and "Regressions: 2\n" in text
    assert main(["compare", str(tmp_path / "run"), "--commits", "bb", "aa"]) == 0


def test_a_path_is_judged_by_where_it_ends() -> None:
    frame = pd.DataFrame({
        "kind": ["path", "path", "point"], "path_distance": [[3.0, 2.0, 0.5], None, None], "path_value": [[9.0], [7.0, 4.0], None],
        "angle": [np.nan, np.nan, 60.0], "relative_error": [np.nan, np.nan, 0.9], "scale": ["true", "lr", "lr"], "target": ["run"] * 3,
        "run_error": np.nan, "time_ratio": np.nan, "run_ratio": [np.nan, np.nan, 3.0], "throughput_ratio": np.nan, "to_first": np.nan,
        "peak_bytes": np.nan, "meta_peak": [np.nan, np.nan, 8.0], "kept_bytes": np.nan,
    })  # fmt: skip
    found = measures.measured(frame)
    assert found["error"].tolist() == pytest.approx([0.5, 4.0, 1.0])  # 2 sin(30 degrees)
    assert found["time"].tolist()[2] == 3 and found["peak"].tolist()[2] == 8


def test_peers_are_timed_by_the_other_libraries() -> None:
    """Relative to the first contestant, ours, a slower one of ours would look like faster others."""

    def frame(ours: float) -> pd.DataFrame:
        rows = [
            {
                "kind": "peers",
                "name": name,
                "task": "cg",
                "seed": seed,
                "case": "c",
                "a": 1.0,
                "b": seconds / ours * (1 + seed / 100),
            }
            for seed in range(4)
            for name, seconds in (("hypergradbench: CG", ours), ("betty: cg", 1.5), ("torchopt: cg", 1.2))
        ]
        return (
            pd.DataFrame(rows)
            .reindex(columns=[*measures.INSTANCE, "seed", "a", "b"])
            .astype(object)
            .fillna("")
            .astype({"a": float, "b": float})
        )

    timed = measures.by_the_others(frame(ours=2.0))
    assert timed.loc[timed["name"] == "betty: cg", "b"].isna().all()
    mine = timed[timed["name"] == "hypergradbench: CG"]
    assert mine["a"].tolist() == pytest.approx([1] * 4) and mine["b"].tolist() == pytest.approx([2 / 1.8**0.5] * 4)


def test_every_comparison_can_be_had_as_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "all.csv"
    run(tmp_path, capsys, lambda row: None, "--csv", str(file))
    frame = pd.read_csv(file)
    assert set(frame["measure"]) == {"error", "error on the run", "time", "peak bytes", "kept bytes"}
    times = frame[frame["measure"] == "time"]
    assert (
        (times["pairs"] == 6).all() and (times["low"] < times["ratio"]).all() and (times["ratio"] < times["high"]).all()
    )


def test_misuse_is_status_2_and_says_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write(tmp_path / "old", names=("cg",)), write(tmp_path / "new", names=("sama",))
    (tmp_path / "empty").mkdir()
    for words, said in (
        ([str(old)], "give two folders: compare BEFORE AFTER"),
        ([str(old), str(old)], "both folders are the same one"),
        ([str(old), str(tmp_path / "nowhere")], "there is no folder"),
        ([str(old), str(tmp_path / "empty")], "no results of cells in"),
        ([str(old), str(new)], "no cell is in both"),
        ([str(old), str(new), "--time", "-0.1"], "--time -0.1: give a fraction"),
        ([str(old), str(new), "--alpha", "5"], "--alpha 5: give a probability"),
        ([str(old), "--commits", "aa"], "--commits takes two commits of one folder"),
        ([str(old), "--commits", "aa", "cc"], "no result is of commit 'cc'; there are aaaaaaaaaa (2026-01-01)"),
        ([str(old), "--commits", "aa", "a"], "both are the same one"),
    ):
        assert main(["compare", *words]) == 2, words
        assert said in capsys.readouterr().err
