"""Estimators on a problem of the user's own, through the command line: checked, compared with a float64 unroll, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import own_reference, own_run
from benchmarks.cells import Cell, code_version
from benchmarks.cli import main
from benchmarks.double import in_float64, twin
from benchmarks.own_problem import find, is_own
from estimators import SGD, Problem, Stage, State, Unroll, estimate

HELPER = "def penalty(h, p):\n    return (h['log_penalty'].exp() * p['w'].square()).sum()\n"
OWN = """
import torch
from estimators import SGD, Problem, Stage
from helper import penalty

def make(seed: int = 0, steps: int = 20, rate: float = 0.1):
    g = torch.Generator().manual_seed(seed)
    x, y, xv, yv = (torch.randn(shape, generator=g) for shape in ((20, 3), (20,), (9, 3), (9,)))
    loss = lambda p, h, batch: (x @ p["w"] - y).square().mean() + penalty(h, p)
    return Problem(
        name="mine", stages=[Stage(loss, SGD(lr=rate), lambda t: None, steps)],
        outer=lambda p, h: (xv @ p["w"] - yv).square().mean(), start={"w": torch.zeros(3)},
        hparams={"log_penalty": torch.full((3,), -2.0)},
    )

def faulty():
    problem = make()
    problem.hparams["other"] = torch.zeros(2)
    return problem

def pulled(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    c = torch.randn(3, generator=g)
    loss = lambda p, h, batch: (p["w"] - h["lam"]).square().sum() / 2
    return Problem(
        name="pulled", stages=[Stage(loss, SGD(lr=0.5), lambda t: None, 40)], outer=lambda p, h: (c * p["w"]).sum(),
        start={"w": torch.zeros(3)}, hparams={"lam": torch.zeros(3)}, exact=lambda h: {"lam": c.to(h["lam"].dtype)},
    )
"""
ESTIMATORS = ("unroll", "cg", "sama", "composed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("of the user")
    (folder / "my_problem.py").write_text(OWN)
    (folder / "helper.py").write_text(HELPER)
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is otherwise done aside is done in this process."""
    monkeypatch.setattr("benchmarks.own_run.aside", lambda f, *args, seconds, on, **more: f(*args, **more))


def rows(out: str) -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted(Path(out, "cells").glob("*.json"))]


def test_a_run_its_table_and_its_resumption(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In fresh processes throughout: check, reference, measurement."""
    words = ["run", "my_problem.py:make", "--estimators", *ESTIMATORS, "--seeds", "0", "1", "--set", "steps=15"]
    assert main([*words, "--out", "results", "--figures", "False"]) == 0
    said = capfd.readouterr()
    assert "15 steps, 3 parameters, 3 hyperparameters (log_penalty 3), float32" in said.err
    assert "reference: full unroll in float64, at 2 points" in said.err
    assert "my_problem.py:make (steps=15), float32, 2 seeds" in said.out
    by_name = {n: [r for r in rows("results") if r["config"]["estimator"] == n] for n in ESTIMATORS}
    assert {n: {r["status"] for r in found} for n, found in by_name.items()} == {
        "unroll": {"ok"}, "cg": {"ok"}, "sama": {"ok"}, "composed": {"refused"},
    }  # fmt: skip
    assert all(len(found) == 2 for found in by_name.values())
    for row in by_name["unroll"]:
        assert row["truth"] == "full unroll in float64"
        assert 0 < row["accuracy"]["relative_error"] < 1e-5  # float32's rounding is all that is left
        assert row["config"]["dtype"] == "float32"
    monkeypatch.setattr("benchmarks.own_run.aside", None)  # nothing is looked at, nor computed, again
    assert main([*words, "--out", "results", "--figures", "False"]) == 0
    assert "8 kept" in capfd.readouterr().out


def test_a_faulty_problem_is_not_measured(capsys: pytest.CaptureFixture[str], here: None) -> None:
    assert main(["run", "my_problem.py:faulty", "--out", "faulty"]) == 1
    said = capsys.readouterr().err
    assert "no influence of 'other': neither a loss nor the rule reads it" in said
    assert (
        "my_problem.py:faulty is not measured: mend the errors above, or measure it all the same with --no-check"
        in said
    )
    assert not Path("faulty", "cells").exists()


def test_words_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, says in (
        (["my_problem.py:makes"], "no function 'makes'"),
        (["absent.py"], "no file absent.py"),
        (["my_problem.py:make", "--paths", "my_problem.py:make"], "paths are of registered problems"),
        (["log_ridge", "--paths", "digits_mwn"], "give --problems digits_mwn, too"),
        (["my_problem.py", "--set", "width=3"], "takes no setting 'width'; it takes: steps, rate"),
        (["--set", "width=3"], "--set is for a problem of your own"),
        (["--estimators", "all", "my_problem.py"], "name the problem before --estimators"),
    ):
        assert main(["run", *wrong, "--out", "wrong"]) == 2
        assert says in capsys.readouterr().err


def cell(name: str, **changes: object) -> Cell:
    return Cell(**({"estimator": "", "problem": name, "dtype": "float32"} | changes))  # type: ignore[arg-type]


def reference(name: str, out: Path, kind: str | None) -> tuple:
    one = cell(name, meta={} if kind is None else {"reference": kind})
    return own_reference.of(one, find(name).make(), out)  # type: ignore[arg-type]


def test_every_kind_of_reference(tmp_path: Path) -> None:
    """The run ends at its optimum, so that all answer alike; and what was computed is read again."""
    truth = find("my_problem.py:pulled").make().exact({"lam": torch.zeros(3, dtype=torch.float64)})["lam"]  # type: ignore[union-attr, misc]
    for kind, words in (
        ("exact", "closed form"), ("unroll", "full unroll in float64"), ("cg", "CG to 1e-10 in float64"), (None, "closed form"),
    ):  # fmt: skip
        found, how = reference("my_problem.py:pulled", tmp_path, kind)
        assert how == words
        assert found["lam"].dtype == torch.float64
        torch.testing.assert_close(found["lam"], truth, rtol=1e-9, atol=1e-12)
    assert reference("my_problem.py:pulled", tmp_path, "none") == (None, None)
    files = list((tmp_path / "references").iterdir())
    assert len(files) == 3
    for file in files:
        torch.save({"words": "read", "hypergradient": {"lam": torch.ones(3)}}, file)
    assert reference("my_problem.py:pulled", tmp_path, "cg")[1] == "read"


def test_what_cannot_be_afforded_is_not_tried(capsys: pytest.CaptureFixture[str], here: None) -> None:
    """The next best kind is taken; where there is none, errors are unknown and the rest is measured."""
    from benchmarks import own_run
    from benchmarks.check import Survey

    survey = Survey(
        dtype="float32",
        steps=(20,),
        params=3,
        hparams={"log_penalty": 3},
        run_seconds=100.0,
        references=("unroll", "cg"),
    )
    wanted = own_run.Wanted(
        estimators=("cg",), seeds=(0,), dtype=None, device="cpu", reference=None, timeout=600.0, check=False
    )
    points = [cell("my_problem.py:make")]
    assert own_run._affordable(points, survey, wanted, Path("affordable")) == "cg"
    said = capsys.readouterr().err
    assert "no full unroll in float64 as reference: it would take about 1200 s a seed, and --timeout is 600 s" in said
    assert "reference: CG to 1e-10 in float64, at 1 point" in said


def test_without_a_reference_errors_are_unknown(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "my_problem.py", "--reference", "none", "--no-check", "--estimators", "cg", "--seeds", "0"]
    assert main([*words, "--out", "unknown", "--figures", "False"]) == 0
    (row,) = rows("unknown")
    assert row["accuracy"] is None and row["truth"] is None
    assert row["cost"]["seconds"] > 0
    assert "truth: unknown" in capsys.readouterr().out


def test_what_a_file_imports_from_beside_it_makes_another_cell(folder: Path) -> None:
    make = find("my_problem.py").function
    before = code_version(Unroll(), make)
    (folder / "helper.py").write_text(HELPER + "# changed\n")
    from benchmarks import cells

    cells._imported.cache_clear()
    assert code_version(Unroll(), make) != before
    (folder / "helper.py").write_text(HELPER)
    cells._imported.cache_clear()
    assert code_version(Unroll(), make) == before


def test_cells_say_which_version_of_the_problem_they_are_of(folder: Path, tmp_path: Path, here: None) -> None:
    from benchmarks import cells

    wanted = own_run.Wanted(
        estimators=("cg", "sama"), seeds=(0,), dtype=None, device="cpu", reference="none", timeout=60, check=False
    )

    def versions() -> set[str]:
        cells._imported.cache_clear()
        return {c.meta["version"] for c in own_run.cells("my_problem.py:make", [], wanted, tmp_path)}

    before = versions()
    assert len(before) == 1  # whatever the estimator
    (folder / "helper.py").write_text(HELPER + "# changed\n")
    assert versions().isdisjoint(before)
    (folder / "helper.py").write_text(HELPER)
    assert versions() == before


def test_what_is_imported_from_beside_a_file(tmp_path: Path) -> None:
    from benchmarks.cells import _imported

    (tmp_path / "package").mkdir()
    for name in ("one.py", "two.py", "package/__init__.py", "package/part.py", "unused.py"):
        (tmp_path / name).write_text("")
    file = tmp_path / "main.py"
    file.write_text("import torch\nimport one, package\nfrom two import x\nfrom package.part import y\n")
    found = {f.relative_to(tmp_path).as_posix() for f in _imported(file)}
    assert found == {"main.py", "one.py", "two.py", "package/__init__.py", "package/part.py"}


def test_own_names() -> None:
    assert is_own("a.py") and is_own("a.py:make") and is_own("/b/a.py:make")
    assert not is_own("log_ridge") and not is_own("mlp_decay") and not is_own("nonsense")


def test_a_twin_in_float64_whatever_the_losses_hold() -> None:
    found = find("my_problem.py").make()
    assert isinstance(found, Problem)
    double = in_float64(found)
    assert double.hparams["log_penalty"].dtype == torch.float64
    one, two = (estimate(p, Unroll()).hparams["log_penalty"] for p in (found, double))
    assert two.dtype == torch.float64
    torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-7)
    state = found.stages[0].initial({"w": torch.zeros(3)}, found.hparams)
    assert isinstance(state, State)
    from dataclasses import replace

    started = in_float64(replace(found, start=state)).start
    assert isinstance(started, State) and started.params["w"].dtype == torch.float64


def test_losses_that_insist_on_their_dtype_have_no_twin() -> None:
    def loss(p, h, b):
        return (p["w"].float() - h["lam"].float()).square().sum().view(torch.float32)

    problem = Problem(
        "p", [Stage(loss, SGD(lr=0.1), lambda t: None, 2)], lambda p, h: p["w"].sum(), {"w": torch.zeros(2)},
        {"lam": torch.ones(2)},
    )  # fmt: skip
    assert twin(problem) == (problem, "float32, since the losses cannot be evaluated in float64")
