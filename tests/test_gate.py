"""The gate that would have caught nearly every wrong number found in public libraries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from estimators import (
    CG,
    SAMA,
    SGD,
    Adam,
    AdamW,
    Dense,
    FixedPoint,
    Implicit,
    Neumann,
    Nystrom,
    Outcome,
    Problem,
    Solver,
    Stage,
    Tree,
    Unroll,
    estimate,
    registry,
    reverse_over_reverse,
)
from estimators.tree import flatten

from .oracle import dense, train
from .toy import toy

D = torch.float64
SOLVERS: dict[str, Solver] = {
    "cg": CG(steps=30),
    "cg to a tolerance": CG(steps=30, rtol=1e-12),
    "dense": Dense(),
    "neumann": Neumann(steps=400),
    "fixed point": FixedPoint(steps=400),
    "nystrom, full rank": Nystrom(rank=8, rho=1e-12),
}


def quadratic(spectrum: list[float], steps: int = 0, lr: float | None = None, seed: int = 0) -> Problem:
    """0.5 (w-a)'H(w-a) + lam'C w with prescribed eigenvalues of H, from its own optimum if there are no steps."""
    g = torch.Generator().manual_seed(seed)
    n = len(spectrum)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=D))
    h = q @ torch.diag(torch.tensor(spectrum, dtype=D)) @ q.T
    cross, a, goal = (torch.randn(s, generator=g, dtype=D) for s in ((3, n), (n,), (n,)))
    lam = torch.randn(3, generator=g, dtype=D)

    def loss(p: Tree, hp: Tree, batch: None) -> Tensor:
        r = p["w"] - a
        return 0.5 * r @ h @ r + hp["lam"] @ cross @ p["w"]

    optimum = a - torch.linalg.solve(h, cross.T @ lam)

    def exact(hp: Tree) -> Tree:
        w = a - torch.linalg.solve(h, cross.T @ hp["lam"])
        return {"lam": -cross @ torch.linalg.solve(h, 2 * (w - goal))}

    start = {"w": torch.zeros(n, dtype=D) if steps else optimum}
    rule = SGD(lr=lr or 1 / max(map(abs, spectrum)))
    stage = Stage(loss, rule, lambda t: None, steps)
    return Problem("quadratic", [stage], lambda p, hp: (p["w"] - goal).square().sum(), start, {"lam": lam}, exact,
                   hessian=lambda p: h)  # fmt: skip


def error(problem: Problem, solver: Solver) -> float:
    got, want = estimate(problem, solver).hparams["lam"], problem.exact(problem.hparams)["lam"]  # type: ignore[misc]
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "spectrum",
    [[3.0] * 8, [1.0] * 8, [1.0] * 4 + [7.0] * 4, [2.0] + [5.0] * 7, [1, 2, 3, 4, 5, 6, 7, 8], [0.4, 1, 1, 1, 1, 1, 1, 4]],
    ids=["3I", "I", "two eigenvalues", "one and seven", "all distinct", "outliers"],
)  # fmt: skip
def test_simple_spectra(name: str, spectrum: list[float]) -> None:
    """Libraries that return the iterate before the last answer 0 for H = cI."""
    assert error(quadratic(spectrum), SOLVERS[name]) < 1e-8


@pytest.mark.parametrize("name", SOLVERS)
def test_scale_of_the_outer_loss_does_not_matter(name: str) -> None:
    """An absolute tolerance answers 26 % wrong once the loss is scaled by 1e-12."""
    problem = quadratic([1, 2, 3, 4, 5, 6, 7, 8])
    small = Problem("small", problem.stages, lambda p, h: 1e-12 * problem.outer(p, h), problem.start, problem.hparams)
    a, b = (estimate(x, SOLVERS[name]).hparams["lam"] for x in (small, problem))
    assert float((a * 1e12 - b).norm() / b.norm()) < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_fixed_point_at_the_end_equals_the_unroll(steps: int) -> None:
    """On a quadratic: recurrent backpropagation for T iterations at w_T is the T-step unroll."""
    problem = quadratic([0.5, 1, 2, 3, 4, 5, 6, 7], steps=steps)
    a = estimate(problem, FixedPoint(steps=steps)).hparams["lam"]
    b = estimate(problem, Unroll()).hparams["lam"]
    assert float((a - b).norm() / b.norm()) < 1e-13


@pytest.mark.parametrize("last", [1, 3, 9])
def test_truncated_unroll_equals_neumann(last: int) -> None:
    """The last K gradient steps are a Neumann series of K terms, K - 1 products."""
    problem = quadratic([0.5, 1, 2, 3, 4, 5, 6, 7], steps=20)
    a = estimate(problem, Unroll(last=last)).hparams["lam"]
    b = estimate(problem, Neumann(steps=last - 1)).hparams["lam"]
    assert float((a - b).norm() / b.norm()) < 1e-12


@pytest.mark.parametrize("name", ["cg", "cg to a tolerance", "dense", "neumann", "fixed point", "nystrom, full rank"])
def test_indefinite_hessian_is_reported(name: str) -> None:
    """With its curvature and its residual; never a silent number."""
    problem = quadratic([-0.7, 1, 2, 3, 4, 5, 6, 7])
    (pulled,) = estimate(problem, SOLVERS[name], throw=False).pullbacks
    assert pulled.outcome is Outcome.INDEFINITE
    assert pulled.curvature is not None
    assert -0.7 - 1e-9 <= pulled.curvature < 0
    assert pulled.residual is not None
    if name.startswith("cg"):
        assert pulled.residual > 1e-3
    if name == "dense":
        assert pulled.curvature == pytest.approx(-0.7)
        assert pulled.residual < 1e-12


@pytest.mark.parametrize("lr", [2.05, 2.5, 10.0, 1e3])
def test_a_neumann_step_too_large_is_an_error(lr: float) -> None:
    problem = quadratic([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0])
    with pytest.raises(ValueError, match="lr \\* lambda_max >= 2: lower lr"):
        estimate(problem, Neumann(steps=60, lr=lr))
    (pulled,) = estimate(problem, Neumann(steps=60, lr=lr), throw=False).pullbacks
    assert pulled.outcome is Outcome.DIVERGED


def test_decay_of_the_rule_is_part_of_the_implicit_system() -> None:
    """With coupled decay the run ends where dL/dw + decay w = 0, so the system is H + decay I."""
    problem = quadratic([1, 2, 3, 4, 5, 6, 7, 8])
    (stage,) = problem.stages
    h = problem.hessian(None) + 0.5 * torch.eye(8, dtype=D)  # type: ignore[misc, arg-type]
    w = _minimum(problem, h)
    decayed = Stage(stage.loss, Adam(lr=1e-2, weight_decay=0.5), stage.stream, 0)
    got = estimate(Problem("decayed", [decayed], problem.outer, {"w": w}, problem.hparams), Dense()).hparams["lam"]
    probe = torch.zeros(8, dtype=D, requires_grad=True)
    cross = [
        torch.autograd.grad(stage.loss({"w": probe}, {"lam": e}, None) - stage.loss({"w": probe}, {"lam": 0 * e}, None), probe)[0]
        for e in torch.eye(3, dtype=D)
    ]  # fmt: skip
    want = -torch.stack(cross) @ torch.linalg.solve(h, _outer_gradient(problem, w))
    assert float((got - want).norm() / want.norm()) < 1e-10


def _minimum(problem: Problem, h: Tensor) -> Tensor:
    w = torch.zeros(8, dtype=D, requires_grad=True)
    (stage,) = problem.stages
    slope = torch.autograd.grad(stage.loss({"w": w}, problem.hparams, None), w)[0]
    return -torch.linalg.solve(h, slope)


def _outer_gradient(problem: Problem, w: Tensor) -> Tensor:
    w = w.clone().requires_grad_()
    return torch.autograd.grad(problem.outer({"w": w}, problem.hparams), w)[0]


def test_decoupled_decay_is_reported_as_not_stationary() -> None:
    problem = quadratic([1, 2, 3, 4, 5, 6, 7, 8], steps=5)
    (stage,) = problem.stages
    other = Problem("w", [Stage(stage.loss, AdamW(lr=1e-2), stage.stream, 5)], problem.outer, problem.start,
                    problem.hparams)  # fmt: skip
    assert estimate(other, CG()).outcomes == (Outcome.NOT_STATIONARY,)
    assert estimate(other, Unroll()).outcomes == (Outcome.DONE,)


def test_direct_and_indirect_terms() -> None:
    problem = quadratic([1, 2, 3, 4, 5, 6, 7, 8])
    tilted = Problem("tilted", problem.stages, lambda p, h: problem.outer(p, h) + 5 * h["lam"].sum(), problem.start,
                     problem.hparams)  # fmt: skip
    plain, both = estimate(problem, Dense()), estimate(tilted, Dense())
    assert torch.equal(both.direct["lam"], torch.full((3,), 5.0, dtype=D))
    assert torch.equal(both.indirect["lam"], plain.hparams["lam"])
    assert torch.equal(plain.direct["lam"], torch.zeros(3, dtype=D))


@pytest.mark.parametrize("name", registry)
def test_claims_are_complete(name: str) -> None:
    claim = registry[name].claim
    assert claim.of
    assert claim.citation
    assert claim.exact or claim.bias, "an estimator that is not exact says how it is biased"
    assert not (claim.exact and claim.target == "direction")


def test_batches_average_the_operator() -> None:
    """k batches: H and M are the means over the last k batches of the stream."""
    problem = toy(SGD(lr=0.1), steps=12)
    (stage,) = problem.stages
    got = estimate(problem, Implicit(Dense(), batches=3)).indirect
    systems = []
    d = dense(problem, problem.hparams)
    end = _end(problem)
    for t in (9, 10, 11):
        shifted = Stage(stage.loss, stage.rule, lambda _, t=t: stage.stream(t), 0)
        systems.append(dense(Problem("t", [shifted], problem.outer, end, problem.hparams), problem.hparams))
    h, m = (sum((getattr(s, x) for s in systems), 0 * getattr(d, x)) / 3 for x in ("h", "m"))
    want = -m.T @ torch.linalg.solve(h, d.c)
    assert float((flatten(got) - want).norm() / want.norm()) < 1e-10
    # without an inverse a sum would not cancel against a sum
    got = estimate(problem, SAMA(adapt=False, product=reverse_over_reverse, batches=3)).indirect
    assert float((flatten(got) + m.T @ d.c).norm() / (m.T @ d.c).norm()) < 1e-10


def _end(problem: Problem) -> Tree:
    with torch.enable_grad():
        end, _ = train(problem.stages[0], problem.start, problem.hparams)  # type: ignore[arg-type]
    return {k: x.detach() for k, x in end.items()}
