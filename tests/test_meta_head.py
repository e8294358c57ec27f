"""`MetaHead`: the heads against NumPy and torch, the outer gradient at a fixed head, and what fixing it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from benchmarks.problems import PROBLEMS
from estimators import AdamW, HypergradientError, MetaHead, MultiTask, RidgeFit, StepsFit, Tartan, Tree, estimate
from estimators.tree import dot, flatten, norm

F64 = torch.float64


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


BODY = {"body": 0.5 * draw(0, 4, 6), "other": draw(1, 3)}
TRAIN, VALID = (draw(2, 30, 6), draw(3, 30, 2)), (draw(4, 20, 6), draw(5, 20, 2))


def features(params: Tree, x: Tensor) -> Tensor:
    return torch.tanh(x.to(params["body"].dtype) @ params["body"].mT)


def squared(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().sum()


def ridge(penalty: float = 0.7, **changes: tuple[Tensor, Tensor]) -> MetaHead:
    made = MetaHead(features=features, fit=RidgeFit(penalty=penalty), loss=squared, train=TRAIN, valid=VALID)
    return replace(made, **changes)  # type: ignore[arg-type]


def slope(f: Callable[[Tree], Tensor], params: Tree = BODY) -> Tensor:
    theta = params["body"].clone().requires_grad_()
    return torch.autograd.grad(f({**params, "body": theta}), theta)[0]


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def solved(params: Tree, penalty: float) -> Tensor:
    """phi* as a differentiable function of the body."""
    f = features(params, TRAIN[0])
    return torch.linalg.solve(f.mT @ f + penalty * torch.eye(4, dtype=F64), f.mT @ TRAIN[1])


def test_the_ridge_head_is_the_least_squares_solution() -> None:
    f, y = features(BODY, TRAIN[0]).numpy(), TRAIN[1].numpy()
    rows = np.concatenate([f, np.sqrt(0.7) * np.eye(4)])
    want = np.linalg.lstsq(rows, np.concatenate([y, np.zeros((4, 2))]), rcond=None)[0]
    head = ridge().head(BODY)
    assert set(head) == {"weight"}
    assert np.abs(head["weight"].numpy().T - want).max() < 1e-13
    assert not head["weight"].requires_grad


def test_the_outer_gradient_is_the_body_s_at_a_fixed_head() -> None:
    outer = ridge()
    fixed = solved(BODY, 0.7)
    assert gap(slope(lambda p: outer(p, {})), slope(lambda p: squared(features(p, VALID[0]) @ fixed, VALID[1]))) < 1e-13
    theta = {k: x.clone().requires_grad_() for k, x in BODY.items()}
    assert torch.autograd.grad(outer(theta, {}), theta["other"], allow_unused=True)[0] is None


def test_fixing_the_head_leaves_a_part_of_the_derivative_out() -> None:
    """Finite differences of the value go through phi*; the outer gradient, as in the paper, does not."""
    outer, d, h = ridge(), draw(9, 4, 6), 1e-5
    through = slope(lambda p: squared(features(p, VALID[0]) @ solved(p, 0.7), VALID[1]))
    ends = [float(outer({**BODY, "body": BODY["body"] + s * h * d}, {})) for s in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float((through * d).sum()), rel=1e-7)
    assert gap(slope(lambda p: outer(p, {})), through) > 0.1
    # where phi* is a minimum of the loss that is evaluated, nothing is left out: the part vanishes with the penalty
    gaps = []
    for penalty in (1e-2, 1e-4, 1e-6):
        same = ridge(penalty, valid=TRAIN)
        whole = slope(lambda p, c=penalty: squared(features(p, TRAIN[0]) @ solved(p, c), TRAIN[1]))
        gaps.append(gap(slope(lambda p, o=same: o(p, {})), whole))
    assert gaps[2] < 1e-5
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05)
    assert gaps[1] / gaps[2] == pytest.approx(100, rel=0.05)


def classes(seed: int, count: int) -> Tensor:
    return torch.randint(3, (count,), generator=torch.Generator().manual_seed(seed))


def stepped(seed: int = 0) -> MetaHead:
    fit = StepsFit(outputs=3, loss=cross_entropy, steps=10, rule=AdamW(lr=1e-2, weight_decay=0.1), seed=seed)
    return MetaHead(
        features=features,
        fit=fit,
        loss=cross_entropy,
        train=(TRAIN[0], classes(0, 30)),
        valid=(VALID[0], classes(1, 20)),
    )


def test_the_stepped_head_is_trained_as_torch_trains_it() -> None:
    f, source = features(BODY, TRAIN[0]), torch.Generator().manual_seed(0)
    weight, bias = ((torch.rand(shape, generator=source, dtype=F64) * 2 - 1) / 2 for shape in ((3, 4), (3,)))
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        cross_entropy(linear(f, weight, bias), classes(0, 30)).backward()
        optimizer.step()
    head = stepped().head(BODY)
    assert float((head["weight"] - weight.detach()).abs().max()) < 1e-14
    assert float((head["bias"] - bias.detach()).abs().max()) < 1e-14
    assert gap(stepped(seed=1).head(BODY)["weight"], head["weight"]) > 0.1


@pytest.mark.parametrize("outer", [ridge(), stepped()])
def test_it_is_a_pure_function_of_the_body(outer: MetaHead) -> None:
    drawn = torch.get_rng_state()
    first, losses = outer(BODY, {}), outer.losses(BODY)
    assert torch.equal(first, outer(BODY, {}))
    assert torch.equal(drawn, torch.get_rng_state())
    assert float(first) == losses[1]
    head = outer.head(BODY)
    fitted = outer.loss(linear(features(BODY, outer.train[0]), head["weight"], head.get("bias")), outer.train[1])
    assert losses[0] == pytest.approx(float(fitted), rel=1e-14)


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_must_be_positive(penalty: float) -> None:
    with pytest.raises(HypergradientError, match=f"penalty={penalty}"):
        RidgeFit(penalty=penalty)


@pytest.mark.parametrize("targets", [classes(0, 30), draw(3, 30), draw(3, 29, 2), draw(3, 30, 2, 1)])
def test_ridge_targets_must_be_a_matrix(targets: Tensor) -> None:
    outer = ridge(train=(TRAIN[0], targets))
    with pytest.raises(HypergradientError, match=r"give a matrix \(m, outputs\); class indices as .*one_hot"):
        outer(BODY, {})


@pytest.mark.parametrize("head", ["ridge", "steps"])
def test_task_weights_see_the_body_s_gradient_alone(head: str) -> None:
    """Eq. 7 on digits: cosines over the body, with the head of the problem solved or stepped once more here."""
    problem = PROBLEMS["digits_tasks"].make(head=head, steps=1, hidden=4)
    (stage,), start, outer = problem.stages, problem.start, problem.outer
    assert isinstance(start, dict)
    assert isinstance(outer, MetaHead)
    assert isinstance(stage.loss, MultiTask)

    def gradient(f: Callable[[Tree], Tensor], at: Tree) -> Tree:
        theta = {k: x.clone().requires_grad_() for k, x in at.items()}
        found = torch.autograd.grad(f(theta), list(theta.values()), allow_unused=True)
        return {k: g for k, g in zip(theta, found, strict=True) if g is not None}

    total = gradient(lambda p: stage.loss(p, problem.hparams, stage.stream(0)), start)
    end = {k: x - 0.5 * total[k] for k, x in start.items()}
    c = gradient(lambda p: outer(p, {}), end)
    assert set(c) == {"body.weight", "body.bias"}
    want = []
    for name, task in stage.loss.tasks.items():
        g = gradient(lambda p, f=task, n=name: f(p, stage.stream(0)[n]), start)
        want.append(-dot(c, g) / norm(c) / norm({k: g[k] for k in c}))
    found = estimate(problem, Tartan())
    assert gap(flatten(found.hparams), torch.stack(want)) < 1e-12
