"""Paths: what is recorded of the hyperparameters on the way, of the weights of examples, and where there is no closed form."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.path import ENTRIES, entries, follow
from benchmarks.plan import cells
from benchmarks.point import Instance
from benchmarks.problems import PROBLEMS, reference
from benchmarks.problems.digits_reweighting import classify, observe
from estimators import Unroll, registry

TINY = {"hidden": 2, "steps": 5, "n_train": 30, "n_valid": 20, "batch": 10}


def test_the_trajectory_is_that_of_adam_along_the_estimates() -> None:
    problem = PROBLEMS["biased_regression"].make(seed=1, cond=5.0)
    found = follow(Instance(problem), [registry["cg"].estimator], registry["cg"].claim, steps=4, lr=0.1)
    path = found["path"]
    names = entries(problem.hparams)
    assert len(names) == ENTRIES < problem.hparams["lam"].numel()
    assert names[0] == ("lam", 0) and names[-1] == ("lam", problem.hparams["lam"].numel() - 1)
    lam = problem.hparams["lam"].clone()
    optimizer = torch.optim.Adam([lam], lr=0.1)
    walked = [lam.clone()]
    for _ in range(4):
        lam.grad = problem.exact({"lam": lam})["lam"]
        optimizer.step()
        walked.append(lam.clone())
    for k, i in names:
        assert path["trajectory"][f"{k}[{i}]"] == pytest.approx([float(x[i]) for x in walked], abs=1e-6)
        assert path["optimum"][f"{k}[{i}]"] == float(problem.optimum[k][i])
    assert [len(path[k]) for k in ("cosine", "angle", "value", "distance")] == [4, 4, 4, 5]
    assert found["truth"] == "closed form" and path["observed"] is None


def test_a_path_without_a_closed_form_is_compared_with_an_unroll() -> None:
    problem = PROBLEMS["digits_example"].make(seed=2, **TINY)
    found = follow(Instance(problem), [Unroll()], registry["unroll"].claim, steps=2, lr=0.1, observe=observe(problem))
    path = found["path"]
    assert path["cosine"] == pytest.approx([1.0, 1.0], abs=1e-12)
    assert (path["optimum"], path["distance"]) == (None, [None] * 3)
    assert found["truth"] == "full unroll in float64"
    first, last = (path["observed"][k]["weights"] for k in ("first", "last"))
    assert len(first["wrong"]) == problem.settings["wrong_labels"]
    assert len(first["wrong"]) + len(first["right"]) == 30
    weights = problem.hparams["logits"].sigmoid()
    assert sorted(first["wrong"] + first["right"]) == pytest.approx(sorted(weights.tolist()))
    gradient = reference(problem)["logits"]
    moved = weights.logit() - 0.1 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
    one = follow(Instance(problem), [Unroll()], registry["unroll"].claim, steps=1, lr=0.1, observe=observe(problem))
    one_last = one["path"]["observed"]["last"]["weights"]
    assert sorted(one_last["wrong"] + one_last["right"]) == pytest.approx(sorted(moved.sigmoid().tolist()), abs=1e-6)
    assert last != first
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", ["digits_mwn", "digits_wide"])
def test_observed_weights_are_those_of_the_loss(name: str) -> None:
    """The weight net that is drawn again is the problem's: the mean of weight times loss is the inner loss on those examples."""
    problem = PROBLEMS[name].make(seed=3, noise=0.5, l2=0.0, **TINY)
    stage = problem.stages[0]
    images, labels, index = stage.stream(0)
    each = torch.nn.functional.cross_entropy(classify(problem.start, images), labels, reduction="none")
    seen = observe(problem)(problem.start, problem.hparams)["weights"]
    wrong, right = iter(seen["wrong"]), iter(seen["right"])
    clean = observe(PROBLEMS[name].make(seed=3, noise=0.0, **TINY))(problem.start, problem.hparams)["weights"]
    assert (clean["wrong"], len(clean["right"])) == ([], 30)
    mask = wrong_labels(problem, labels, index)
    weights = {i: next(wrong if bad else right) for i, bad in enumerate(mask)}
    mean = sum(weights[int(i)] * float(x) for i, x in zip(index, each, strict=True)) / len(index)
    assert mean == pytest.approx(float(stage.loss(problem.start, problem.hparams, (images, labels, index))), rel=1e-10)


def wrong_labels(problem: object, labels: torch.Tensor, index: torch.Tensor) -> list[bool]:
    """Of every training example: whether its label differs from that of the same problem without noise."""
    clean = PROBLEMS[problem.name].make(seed=3, noise=0.0, l2=0.0, **TINY)  # type: ignore[attr-defined]
    mask, t = [None] * 30, 0
    while None in mask:
        (_, noisy, where), (_, right, _) = problem.stages[0].stream(t), clean.stages[0].stream(t)  # type: ignore[attr-defined]
        for i, a, b in zip(where.tolist(), noisy.tolist(), right.tolist(), strict=True):
            mask[i] = a != b
        t += 1
    return mask  # type: ignore[return-value]


def test_the_plan_has_paths_where_they_are_asked_for() -> None:
    given = {"estimators": ("cg",), "seeds": (0, 1), "conds": (2.0,), "dtype": "float64", "meta_steps": 3}
    problems = ("biased_regression", "digits_example")
    of = lambda **more: [c.problem for c in cells(problems=problems, **given, **more) if c.kind == "path"]  # type: ignore[arg-type]  # noqa: E731
    assert of() == ["biased_regression"]
    assert of(paths=("digits_example",)) == ["digits_example"]
    assert of(paths=problems) == list(problems)
