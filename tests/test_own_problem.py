"""What a command line may call a problem."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import own_problem
from benchmarks.plan import UnknownName
from benchmarks.workloads import Workload
from estimators import Problem

OWN = """
import torch
from estimators import SGD, Problem, Stage

def make(rate: float = 0.1, steps: int = 3):
    start = {"w": torch.ones(2)}
    hparams = {"shift": torch.zeros(2)}
    loss = lambda p, h, batch: (p["w"] - h["shift"]).square().sum()
    stage = Stage(loss=loss, rule=SGD(lr=rate), stream=lambda t: (), steps=steps)
    return Problem(name="mine", stages=[stage], outer=lambda p, h: p["w"].sum(), start=start, hparams=hparams)

def nothing():
    return 3

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_registered_ones_are_found_by_name() -> None:
    found = own_problem.find("log_ridge")
    assert isinstance(found.make(seed=1, dtype=torch.float32, steps=2), Problem)
    found = own_problem.find("mlp_decay")
    assert isinstance(found.make(**own_problem.settings(found, ["size=tiny", "unroll=2"])), Workload)
    assert found.default("dtype") is torch.float32


def test_an_own_function_gets_only_what_it_takes(file: Path) -> None:
    found = own_problem.find(f"{file}:make")
    problem = found.make(seed=3, **own_problem.settings(found, ["rate=1", "steps=4"]))
    assert problem.stages[0].steps == 4
    assert problem.stages[0].rule.lr == 1.0
    assert own_problem.find(str(file)).function is found.function


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("log_rigde", "no problem is called 'log_rigde'.*my_problem.py:make.*log_ridge"),
        ("absent.py:make", "no file absent.py"),
        ("FILE:other", "no function 'other'"),
        ("FILE:number", "no function 'number'"),
    ],
)
def test_what_is_not_there(file: Path, name: str, says: str) -> None:
    with pytest.raises(UnknownName, match=says):
        own_problem.find(name.replace("FILE", str(file)))


def test_a_file_that_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ImportError, match=r"broken.py fails: ZeroDivisionError"):
        own_problem.find(f"{tmp_path / 'broken.py'}:make")


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (["steps"], "'steps' is no setting: write NAME=VALUE"),
        (["setps=3"], "takes no setting 'setps'; it takes: rate, steps"),
        (["steps=many"], "takes int there, not 'many'"),
        (["steps=2.5"], "takes int there, not '2.5'"),
        (["steps=none"], "takes int there, not 'none'"),
        (["seed=3"], "takes no setting 'seed'"),
    ],
)
def test_wrong_settings(file: Path, pairs: list[str], says: str) -> None:
    with pytest.raises(UnknownName, match=says):
        own_problem.settings(own_problem.find(str(file)), pairs)


def test_settings_are_read_as_they_are_annotated() -> None:
    found = own_problem.find("log_ridge")
    assert own_problem.settings(found, ["steps=none", "reach=2", "rule=sgd"]) == {
        "steps": None,
        "reach": 2.0,
        "rule": "sgd",
    }
    with pytest.raises(UnknownName, match="tiny, base"):
        own_problem.settings(own_problem.find("mlp_decay"), ["size=huge"])


def test_what_is_made_is_looked_at(file: Path) -> None:
    with pytest.raises(UnknownName, match="returned int: return a Problem"):
        own_problem.find(f"{file}:nothing").make()
    with pytest.raises(UnknownName, match="made in torch.float32, not in torch.float64"):
        own_problem.find(str(file)).make(dtype=torch.float64)
