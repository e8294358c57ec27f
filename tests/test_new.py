"""`hypergradbench new`: what it writes passes its own tests as it is, under any name, and is measured like anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.commands.new import TEMPLATES
from benchmarks.grid import SweepError, read

ROOT = Path(__file__).resolve().parent.parent


def new(*words: str, out: Path) -> int:
    return main(["new", *words, "--out", str(out)])


def test_both_pass_their_tests_and_run_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a newcomer goes on: own problem, own estimator, one table of both."""
    assert new("problem", "blobs", out=tmp_path) == 0
    assert "Next: pytest" in capsys.readouterr().out
    assert new("estimator", "best_multiple", out=tmp_path) == 0
    assert "--estimators best-multiple cg sama unroll" in capsys.readouterr().out
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."], cwd=tmp_path, env=env, capture_output=True, text=True
    )  # fmt: skip
    assert "6 passed" in tests.stdout, tests.stdout + tests.stderr
    words = [
        "run",
        "blobs.py:make",
        "--set",
        "steps=4",
        "--plugins",
        "best_multiple.py",
        "--estimators",
        "best-multiple",
        "unroll",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, "--seeds", "0", "--no-check", "--reference", "none", "--figures", "False", "--out", "both"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(f.read_text()) for f in (tmp_path / "both" / "cells").glob("*.json")]
    assert {r["config"]["estimator"]: r["status"] for r in rows} == {"best-multiple": "ok", "unroll": "ok"}
    assert "best-multiple" in ran.stdout


@pytest.mark.parametrize("kind", ["problem", "estimator"])
def test_no_trace_of_the_template_s_name(kind: str, tmp_path: Path) -> None:
    assert new(kind, "some_thing", out=tmp_path / "folder") == 0
    files = sorted(p.name for p in (tmp_path / "folder").iterdir())
    assert files == ["some_thing.py", "test_some_thing.py"]
    for file in files:
        text = (tmp_path / "folder" / file).read_text()
        assert not {"my_problem", "my_estimator", "my-estimator", "MyEstimator"} & set(text.split())
        assert "my_" not in text
    assert "CHANGE" in (tmp_path / "folder" / "some_thing.py").read_text()


def test_names_that_cannot_be_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert new("problem", "begun_here", out=tmp_path) == 0
    before = (tmp_path / "begun_here.py").read_text()
    (tmp_path / "begun_here.py").write_text("# my work\n")
    for kind, name, says in (
        ("problem", "begun_here", "are there already: choose another name, or --force"),
        ("problem", "my-problem", "is no name for a module"),
        ("problem", "class", "is no name for a module"),
        ("problem", "torch", "is the name of a module that is installed"),
        ("estimator", "cg", "an estimator called 'cg' is registered already"),
    ):
        assert new(kind, name, out=tmp_path) == 2
        assert says in capsys.readouterr().err
    assert (tmp_path / "begun_here.py").read_text() == "# my work\n"
    assert new("problem", "begun_here", "--force", out=tmp_path) == 0
    assert (tmp_path / "begun_here.py").read_text() == before
    (tmp_path / "file").write_text("")
    assert new("problem", "other_here", out=tmp_path / "file") == 2
    assert "nothing can be written" in capsys.readouterr().err


def test_the_templates_are_what_is_shipped() -> None:
    assert sorted(p.name for p in TEMPLATES.glob("*.py")) == [
        "__init__.py", "my_estimator.py", "my_problem.py", "test_my_estimator.py", "test_my_problem.py",
    ]  # fmt: skip


def test_a_sweep_takes_problems_of_the_user_s(tmp_path: Path) -> None:
    assert new("problem", "swept_here", out=tmp_path) == 0
    name = f"{tmp_path / 'swept_here.py'}:make"
    (tmp_path / "s.toml").write_text(
        f'estimators = ["cg"]\nproblems = ["{name}", "log_ridge"]\n[settings."{name}"]\nsteps = [3, 4]\n'
    )
    grid = read(tmp_path / "s.toml")
    assert [(c.problem, c.settings) for c in grid.cells()] == [
        (name, {"steps": 3}), (name, {"steps": 4}), ("log_ridge", {}),
    ]  # fmt: skip
    with pytest.raises(SweepError, match="no function 'makes'"):
        read(None, {"estimators": ("cg",), "problems": (f"{tmp_path / 'swept_here.py'}:makes",)})
