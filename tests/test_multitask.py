"""`MultiTask`: its value, its derivatives, how it deals out batches, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from estimators import (
    SGD,
    CentralDifference,
    HypergradientError,
    MultiTask,
    Stage,
    Tree,
    reverse_over_forward,
    reverse_over_reverse,
    run,
)
from estimators.tree import flatten

from .toy import toy_tasks

F64 = torch.float64
TASKS = {
    "a": lambda p, b: (p["w"] * b).sum().sin(),
    "b": lambda p, b: (p["w"] - b).square().sum(),
}
W, X = torch.tensor([0.3, -1.2], dtype=F64), torch.tensor([0.7, 0.4], dtype=F64)


def logits(*values: float) -> Tree:
    return {"task_logits": torch.tensor(values, dtype=F64)}


def test_the_value_is_the_weighted_sum_and_the_penalty() -> None:
    w, x, s = W.numpy(), X.numpy(), np.exp([0.2, -0.5])
    weighted = (s[0] * np.sin((w * x).sum()) + s[1] * ((w - x) ** 2).sum()) / s.sum()
    assert float(MultiTask(TASKS)({"w": W}, logits(0.2, -0.5), X)) == pytest.approx(weighted, rel=1e-14)
    whole = MultiTask(TASKS, penalty=lambda p: 3 * p["w"].square().sum())
    assert float(whole({"w": W}, logits(0.2, -0.5), X)) == pytest.approx(weighted + 3 * (w**2).sum(), rel=1e-14)


@pytest.mark.parametrize("values", [(0.0, 0.0), (2.0, -1.0), (800.0, 799.0), (-1e4, 1e4)])
def test_weights_are_the_softmax(values: tuple[float, float]) -> None:
    found = MultiTask(TASKS).weights(logits(*values))
    assert torch.allclose(found, torch.softmax(torch.tensor(values, dtype=F64), 0), rtol=1e-14, atol=0)
    w = torch.tensor(values, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda v: MultiTask(TASKS).weights({"task_logits": v}), w)
    assert torch.allclose(jacobian, torch.diag(found) - torch.outer(found, found), rtol=1e-13, atol=1e-300)


def test_products_agree_through_the_weights() -> None:
    problem = toy_tasks()
    objective, start = problem.stages[0].objective(2), problem.start
    assert isinstance(start, dict)
    v = {k: x.cos() for k, x in start.items()}
    answers = [
        flatten(form(objective, start, problem.hparams, v, wrt_hparams=problem.hparams)[1])
        for form in (reverse_over_reverse, reverse_over_forward, CentralDifference(1e-5, relative=True))
    ]
    assert float((answers[1] - answers[0]).norm() / answers[0].norm()) < 1e-13
    assert float((answers[2] - answers[0]).norm() / answers[0].norm()) < 1e-7


def test_a_mapping_of_the_tasks_names_is_dealt_out_and_any_other_batch_goes_to_all() -> None:
    loss = MultiTask(TASKS)
    dealt = loss.losses({"w": W}, {"b": 2 * X, "a": X})
    assert list(dealt) == ["a", "b"]
    assert torch.equal(dealt["a"], TASKS["a"]({"w": W}, X))
    assert torch.equal(dealt["b"], TASKS["b"]({"w": W}, 2 * X))
    whole = MultiTask({"a": lambda p, b: (p["w"] * b["x"]).sum(), "b": lambda p, b: (p["w"] - b["x"]).sum()})
    assert torch.equal(whole.losses({"w": W}, {"x": X})["b"], (W - X).sum())


def test_training_with_fixed_weights_is_training_on_the_weighted_loss() -> None:
    """MT-TARTAN, against torch.optim on a loss written out."""
    problem = toy_tasks(SGD(lr=0.1), steps=20)
    (stage,) = problem.stages
    loss, start = stage.loss, problem.start
    assert isinstance(loss, MultiTask)
    assert isinstance(start, dict)
    theta = {k: x.clone().requires_grad_() for k, x in start.items()}
    optimizer, alpha = torch.optim.SGD(theta.values(), lr=0.1), torch.softmax(problem.hparams["task_logits"], 0)
    for t in range(20):
        rows = stage.stream(t)
        total: Tensor = 0.05 * sum(x.square().sum() for x in theta.values())  # type: ignore[assignment]
        for a, task in zip(alpha, loss.tasks.values(), strict=True):
            total = total + a * task(theta, rows)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    end = run(stage, start, problem.hparams).end.params
    assert max(float((end[k] - x.detach()).abs().max()) for k, x in theta.items()) < 1e-13


def test_later_changes_of_the_mapping_do_not_reach_the_loss() -> None:
    tasks = dict(TASKS)
    loss = MultiTask(tasks)
    del tasks["a"]
    assert list(loss.tasks) == ["a", "b"]


@pytest.mark.parametrize(
    ("hparams", "batch", "message"),
    [
        ({"weights": torch.zeros(2, dtype=F64)}, X, r"hparams\['task_logits'\].*hold \['weights'\].*logits="),
        (logits(0.0, 0.0, 0.0), X, r"shape \(3,\), but there are 2 tasks \['a', 'b'\].*\(2,\)"),
        (logits(0.0, 0.0), {"a": X}, r"keys \['a'\], but the tasks are \['a', 'b'\]"),
        (logits(0.0, 0.0), {"a": X, "b": X, "c": X}, r"keys \['a', 'b', 'c'\], but the tasks"),
    ],
)
def test_what_does_not_fit_is_refused(hparams: Tree, batch: object, message: str) -> None:
    stage = Stage(MultiTask(TASKS), SGD(lr=0.1), lambda t: batch, 1)
    with pytest.raises(HypergradientError, match=message):
        run(stage, {"w": W}, hparams)


def test_a_task_must_be_a_scalar_and_there_must_be_one() -> None:
    loss = MultiTask({"a": TASKS["a"], "wide": lambda p, b: p["w"]})
    with pytest.raises(HypergradientError, match=r"the loss of task 'wide' returned shape \(2,\)"):
        loss({"w": W}, logits(0.0, 0.0), X)
    with pytest.raises(HypergradientError, match="at least one task"):
        MultiTask({})
