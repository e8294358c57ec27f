"""The command line from outside: one small sweep with an estimator that raises and one that kills its process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.cells import SCHEMA, Cell
from benchmarks.cli import main
from benchmarks.plan import cells
from benchmarks.plugins import LOADED, load
from benchmarks.problems import PROBLEMS
from benchmarks.studies import STUDIES
from benchmarks.sweep import Orders, split, sweep
from benchmarks.workloads import WORKLOADS
from estimators import RULES, SOLVERS, registry

ROOT = Path(__file__).resolve().parent.parent

PLUGIN = '''
"""Estimators that go wrong, each in its own way."""
import os, signal
from dataclasses import dataclass
from estimators import Claim, registry

@dataclass(frozen=True)
class Broken:
    tail = 0
    def pullback(self, stage, record, hparams, cotangent):
        raise RuntimeError("this estimator is broken")

@dataclass(frozen=True)
class Killer:
    tail = 0
    def pullback(self, stage, record, hparams, cotangent):
        print("noise on standard output")
        os.kill(os.getpid(), signal.SIGKILL)

claim = Claim(of="nothing", citation="nobody", target="direction")
registry.register("broken", Broken(), claim)
registry.register("killer", Killer(), claim)
'''
NAMES = ("killer", "cg", "broken", "sama")


@dataclass
class Sweep:
    out: Path
    arguments: list[str]
    done: subprocess.CompletedProcess[str]

    @property
    def rows(self) -> list[dict]:
        return [json.loads(p.read_text()) for p in sorted((self.out / "cells").glob("*.json"))]


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parent.parent
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from benchmarks.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("a folder with spaces")
    (folder / "wrong.py").write_text(PLUGIN)
    arguments = [
        "run", "--plugins", "wrong.py", "--estimators", *NAMES, "--problems", "biased_regression", "--conds", "2", "5",
        "--seeds", "3", "--meta-steps", "2", "--out", "results",
    ]  # fmt: skip
    return Sweep(folder / "results", arguments, call(*arguments, cwd=folder))


def test_every_cell_has_a_file_and_failures_say_why(ran: Sweep) -> None:
    assert ran.done.returncode == 1, ran.done.stderr  # something failed, and the exit status says so
    assert len(ran.rows) == 4 * 2 + 4
    by_name = {n: [r for r in ran.rows if r["config"]["estimator"] == n] for n in NAMES}
    assert {r["status"] for n in ("cg", "sama") for r in by_name[n]} == {"ok"}
    assert {r["reason"] for r in by_name["broken"]} == {"RuntimeError: this estimator is broken"}
    assert all("SIGKILL" in r["reason"] for r in by_name["killer"])
    for row in ran.rows:
        assert row["schema"] == SCHEMA
        assert row["id"] == Cell(**row["config"]).id
        assert row["config"]["seed"] == 3


def test_a_result_holds_what_the_table_needs(ran: Sweep) -> None:
    row = next(r for r in ran.rows if r["config"]["estimator"] == "cg" and r["config"]["kind"] == "point")
    assert row["truth"] == "closed form"
    assert row["accuracy"]["relative_error"] < 1e-8
    assert row["bound"]["relative_error"] > row["accuracy"]["relative_error"]
    assert row["cost"]["products"] > 1
    assert row["cost"]["peak_bytes"] > row["cost"]["gradient_peak_bytes"] > 0
    assert row["pullbacks"][0]["outcome"] == "CONVERGED"
    assert row["environment"]["jobs"] == 1
    assert row["environment"]["torch"]
    path = next(r for r in ran.rows if r["config"]["estimator"] == "sama" and r["config"]["kind"] == "path")
    assert len(path["path"]["cosine"]) == 2
    assert len(path["path"]["distance"]) == 3


def test_table_and_figures_are_made(ran: Sweep) -> None:
    assert "biased_regression (cond=5)" in ran.done.stdout
    assert "this estimator is broken" in ran.done.stdout
    text = (ran.out / "table.txt").read_text()
    assert "cg" in text
    assert "SIGKILL" in text
    for name in ("figure5", "error_condition", "error_cost"):
        assert (ran.out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (ran.out / "figures" / f"{name}.svg").read_text()


def test_progress_is_plain_lines_when_piped(ran: Sweep) -> None:
    lines = [line for line in ran.done.stderr.splitlines() if line.startswith("[")]
    assert len(lines) == 12
    assert lines[-1].startswith("[12/12]")
    assert "\r" not in ran.done.stderr


def test_a_second_run_keeps_what_is_there(ran: Sweep) -> None:
    before = {p: p.stat().st_mtime_ns for p in (ran.out / "cells").iterdir()}
    again = call(*ran.arguments, "--figures", "False", cwd=ran.out.parent)
    assert "12 kept" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (ran.out / "cells").iterdir()}


def test_unknown_names_list_the_known_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for flag, known in (("--estimators", "sama-na"), ("--problems", "weighted_ridge")):
        assert main(["run", flag, "nonsense", "--out", str(tmp_path / "x")]) == 2
        error = capsys.readouterr().err
        assert "'nonsense'" in error
        assert known in error
    assert main(["run", "--plugins", "no_such_module", "--out", str(tmp_path / "x")]) == 2
    assert "no_such_module" in capsys.readouterr().err
    for wrong in (["--jobs", "0"], ["--conds", "0.5"], ["--device", "gpu"], ["--device", "cuda:97"]):
        assert main(["run", *wrong, "--out", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


def test_a_wrong_command_line_exits_with_2() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--no-such-flag"])
    assert stopped.value.code == 2


def test_help_names_every_command_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([], ("run", "sweep", "show", "study", "claims", "list", "table", "figures")),
        (["sweep", "--help"], ("--shard", "--limit-memory", "--executor", "--retry-failed", "--together", "--data")),
        (["study", "--help"], ("--all", "--quick", "--set", "--out")),
        (["claims", "--help"], ("--docs",)),
        (
            ["run", "--help"],
            ("--estimators", "--problems", "--seeds", "--conds", "--out", "--jobs", "--force", "--dtype"),
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        for word in words:
            assert word in text


def test_list_shows_everything_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in (*registry, *PROBLEMS, *WORKLOADS, *RULES, *SOLVERS, *STUDIES):
        assert name in text
    for entry in registry.values():
        assert entry.claim.citation.split("; ")[0].split(",")[0][:20] in text


def test_table_and_figures_refuse_folders_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(tmp_path / "nothing")]) == 2
    assert main(["figures", str(tmp_path)]) == 1
    assert "no results" in capsys.readouterr().err


def plan(**changes: object) -> list[Cell]:
    chosen = {
        "estimators": ("cg", "sama"), "problems": ("biased_regression", "digits_mwn"), "seeds": (0, 1),
        "conds": (2.0, 10.0), "dtype": "float64", "meta_steps": 5,
    }  # fmt: skip
    return cells(**(chosen | changes))  # type: ignore[arg-type]


def test_the_plan_is_a_product_and_its_cells_differ() -> None:
    todo = plan()
    assert len(todo) == 2 * (2 * 2 + 2) + 2
    assert len({c.id for c in todo}) == len(todo)
    assert not [c for c in plan(meta_steps=0) if c.kind == "path"]


def test_batches_keep_an_instance_together() -> None:
    points = [c for c in plan() if c.kind == "point"]
    for jobs in (1, 2, 5):
        batches = split(points, jobs)
        assert sorted(c.id for b in batches for c in b) == sorted(c.id for c in points)
        places = [{c.instance for c in b} for b in batches]
        assert sum(map(len, places)) == len(set().union(*places))


def test_a_cell_that_takes_too_long_is_a_row(tmp_path: Path) -> None:
    cell = plan(estimators=("cg",), seeds=(0,), conds=(2.0,), problems=("biased_regression",), meta_steps=0)[0]
    said: list[tuple[str, dict]] = []
    counts = sweep([cell], Orders(out=tmp_path, timeout=0.05), lambda event, _, details: said.append((event, details)))
    assert counts == {"failed": 1}
    assert "timeout" in json.loads(cell.file(tmp_path).read_text())["reason"]


def test_ctrl_c_stops_everything_and_blames_no_cell(tmp_path: Path) -> None:
    """The terminal sends it to the whole group; a cell that was at work is not there, rather than there as failed."""
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "run",
        "--estimators",
        "cg",
        "dense",
        "--problems",
        "biased_regression",
    ]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cells/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; what is finished is kept" in said
    rows = [json.loads(f.read_text()) for f in tmp_path.glob("cells/*.json")]
    assert 0 < len(rows) < 26
    assert {r["status"] for r in rows} == {"ok"}


@pytest.mark.parametrize("command", [["run"], ["sweep", "--estimators", "cg"]])
def test_a_folder_that_cannot_be_written_to_is_said(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    words = [*command, "--problems", "weighted_ridge", "--out", str(tmp_path / "file" / "below")]
    assert main(words) == 2
    assert f"--out: nothing can be written to {tmp_path / 'file' / 'below'}: Not a directory" in capsys.readouterr().err


def test_a_full_disk_is_said_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("benchmarks.saved.save", full)
    words = ["sweep", "--estimators", "cg", "--problems", "weighted_ridge", "--out", str(tmp_path)]
    assert main(words) == 1
    assert "No space left on device; what is finished is kept" in capsys.readouterr().err


def test_plugins_of_one_name_in_two_folders_are_both_loaded(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same_name.py").write_text(
            f"import sys\nsys.modules.setdefault('loaded_by_test', []).append({name!r})\n"
        )
    files = [str(tmp_path / name / "same_name.py") for name in ("a", "b", "a")]
    try:
        load(files)
        assert sys.modules["loaded_by_test"] == ["a", "b"]  # type: ignore[comparison-overlap]
    finally:
        for name in ("loaded_by_test", "hypergradbench_plugin_same_name", "hypergradbench_plugin_same_name_"):
            sys.modules.pop(name, None)
        LOADED[:] = [x for x in LOADED if x not in files]
