"""Tests of my_estimator.py, against its definition in dense linear algebra: run them with ``pytest test_my_estimator.py``."""

import pytest
import torch
from my_estimator import MyEstimator

from estimators import SGD, NotApplicableError, Problem, Stage, Tree, estimate, registry, run

STEPS = 8


def problem() -> Problem:
    """Small, in float64, and no special case: the Hessian depends on the parameters, the batch on the step, M on both."""
    source = torch.Generator().manual_seed(0)
    a, b, start, lam, target = (
        torch.randn(*shape, generator=source, dtype=torch.float64) for shape in ((5, 5), (STEPS, 5), (5,), (5,), (5,))
    )

    def loss(params: Tree, hparams: Tree, batch: torch.Tensor) -> torch.Tensor:
        w = params["w"]
        return (a @ w).square().sum() / 10 + (hparams["lam"].exp() * w**2).sum() / 2 + (w**4).sum() / 4 - batch @ w

    def outer(params: Tree, hparams: Tree) -> torch.Tensor:
        return (params["w"] - target).square().sum() / 2 + 0.1 * hparams["lam"].square().sum()

    return Problem("small", [Stage(loss, SGD(lr=0.05), lambda t: b[t], STEPS)], outer, {"w": start}, {"lam": lam})


def definition(p: Problem) -> torch.Tensor:
    """CHANGE: your formula, written out with whole matrices."""
    (stage,) = p.stages
    end, lam = run(stage, p.start, p.hparams).end.params["w"], p.hparams["lam"]

    def loss(w: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        return stage.loss({"w": w}, {"lam": lam}, stage.stream(STEPS - 1))

    (h, m), _ = torch.autograd.functional.hessian(loss, (end, lam))
    c, direct = torch.autograd.functional.jacobian(lambda w, x: p.outer({"w": w}, {"lam": x}), (end, lam))
    scale = (c @ h @ c) / (h @ c).square().sum()
    return direct - m.T @ (scale * c)


def test_it_is_its_definition() -> None:
    p = problem()
    found = estimate(p, MyEstimator())
    torch.testing.assert_close(found.hparams["lam"], definition(p), rtol=1e-10, atol=1e-12)
    assert found.cost.products == 1


def test_it_is_exact_where_the_hessian_is_a_multiple_of_the_identity() -> None:
    """CHANGE: where yours is exact; or delete this."""
    source = torch.Generator().manual_seed(1)
    target = torch.randn(4, generator=source, dtype=torch.float64)
    zeros = torch.zeros(4, dtype=torch.float64)
    p = Problem(
        "pulled",
        [Stage(lambda q, h, batch: 3 * (q["w"] - h["lam"]).square().sum(), SGD(lr=0.1), lambda t: None, 60)],
        lambda q, h: (q["w"] - target).square().sum(),
        {"w": zeros},
        {"lam": zeros},
    )
    torch.testing.assert_close(estimate(p, MyEstimator()).hparams["lam"], -2 * target, rtol=1e-10, atol=1e-12)


def test_it_is_registered_and_refuses_what_it_cannot_see() -> None:
    entry = registry["my-estimator"]
    assert entry.estimator == MyEstimator()
    p = problem()
    (stage,) = p.stages
    in_the_rule = Stage(stage.loss, lambda hparams: SGD(lr=0.05 * hparams["lam"][0].exp()), stage.stream, STEPS)
    q = Problem("rate", [in_the_rule], p.outer, p.start, p.hparams)
    assert entry.claim.refuses(q) is not None
    with pytest.raises(NotApplicableError, match="use Unroll"):
        estimate(q, MyEstimator())
