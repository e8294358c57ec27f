"""Tests of my_problem.py: run them with ``pytest test_my_problem.py``."""

from pathlib import Path

import torch
from my_problem import make

from benchmarks.check.look import look
from estimators import Problem, estimate, run


def outer_at(problem: Problem, weights: torch.Tensor) -> float:
    """The outer loss after training with these hyperparameters."""
    hparams = {"weights": weights}
    (stage,) = problem.stages
    end = run(stage, problem.start, hparams).end.params
    return float(problem.outer(end, hparams))


def test_nothing_is_wrong_with_it() -> None:
    """What ``hypergradbench check my_problem.py:make`` says."""
    report = look(f"{Path(__file__).with_name('my_problem.py')}:make", {}, dtype=None, device="cpu", full=True)
    assert [f for f in report.findings if f.level in ("warning", "error")] == []


def test_the_hypergradient_is_that_of_training() -> None:
    """Unrolling, exact for the steps that are run, against a difference of two whole runs."""
    problem = make(steps=5, dtype=torch.float64)
    at = problem.hparams["weights"]
    direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(1), dtype=at.dtype)
    step = 1e-5
    difference = (outer_at(problem, at + step * direction) - outer_at(problem, at - step * direction)) / (2 * step)
    derivative = float(estimate(problem, "unroll").hparams["weights"] @ direction)
    assert abs(derivative - difference) < 1e-6 * abs(difference) + 1e-10


def test_wrong_labels_are_found() -> None:
    """CHANGE: what your hypergradient should show. Here: examples with a flipped label are to weigh less, the others more."""
    gradient = estimate(make(), "unroll").hparams["weights"]
    flipped = torch.arange(len(gradient)) < round(len(gradient) / 3)
    assert gradient[flipped].mean() > 0 > gradient[~flipped].mean()
