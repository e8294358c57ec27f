"""The rule's adaptation as a preconditioner: adapted series and adapted CG, in dense algebra; and SAMA's options."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from estimators import (
    CG,
    LAMB,
    SAMA,
    SGD,
    Adafactor,
    Adam,
    ClipNorm,
    Dense,
    FixedPoint,
    HypergradientError,
    Identity,
    Implicit,
    Lion,
    Neumann,
    NotApplicableError,
    Nystrom,
    Outcome,
    Problem,
    Rule,
    Unroll,
    adapt,
    adaptation,
    estimate,
    hypergradient,
    reverse_over_reverse,
    run,
)
from estimators.solvers import Preconditioner
from estimators.tree import flatten, norm, unflatten

from .oracle import dense
from .toy import toy

F64 = torch.float64


def spd(n: int = 8, seed: int = 0) -> Tensor:
    a = torch.randn(n, 2 * n, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T / n


H, C = spd(), {"a": torch.linspace(-1, 2, 3, dtype=F64), "b": torch.linspace(1, -3, 5, dtype=F64)}
DIAGONAL = torch.logspace(-2, 0, 8, dtype=F64)
MIXED = torch.diag(DIAGONAL) + 0.02 * torch.randn(8, 8, dtype=F64, generator=torch.Generator().manual_seed(1))


def product(matrix: Tensor) -> Any:
    return lambda v: unflatten(matrix @ flatten(v), C)


def given(matrix: Tensor) -> Preconditioner:
    return Preconditioner(product(matrix), symmetric=bool(torch.equal(matrix, matrix.T)))


@pytest.mark.parametrize("d", [torch.diag(DIAGONAL), MIXED], ids=["diagonal", "mixed"])
@pytest.mark.parametrize("steps", [0, 1, 5, 40])
def test_the_adapted_series_is_its_sum(d: Tensor, steps: int) -> None:
    lr = 0.7 / float(torch.linalg.eigvals(H @ d).abs().max())
    want, term = torch.zeros(8, dtype=F64), flatten(C)
    for _ in range(steps + 1):
        want, term = want + lr * d @ term, term - lr * H @ d @ term
    found = Neumann(steps=steps, lr=lr)(product(H), C, given(d))
    torch.testing.assert_close(flatten(found.value), want, rtol=1e-12, atol=0)
    fixed = FixedPoint(steps=steps + 1, lr=lr)(product(H), C, given(d))
    torch.testing.assert_close(flatten(fixed.value), want, rtol=1e-12, atol=0)


def test_the_adapted_series_leads_from_the_adaptation_to_the_exact_solve() -> None:
    d = torch.diag(DIAGONAL)
    lr = 1 / float(torch.linalg.eigvals(H @ d).abs().max())
    exact = torch.linalg.solve(H, flatten(C))
    errors = [
        float((flatten(Neumann(steps=k, lr=lr)(product(H), C, given(d)).value) - exact).norm() / exact.norm())
        for k in (0, 10, 100, 1000, 10000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10
    torch.testing.assert_close(flatten(Neumann(steps=0, lr=lr)(product(H), C, given(d)).value), lr * d @ flatten(C))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_adapted_cg_minimises_over_its_krylov_space(steps: int) -> None:
    """x = Q (Q'HQ)^-1 Q'c with Q spanning D c, DHD c, ...: CG's definition, without its recurrences."""
    d = torch.diag(DIAGONAL)
    powers = [torch.linalg.matrix_power(d @ H, k) @ d @ flatten(C) for k in range(steps)]
    q = torch.linalg.qr(torch.stack([p / p.norm() for p in powers], 1)).Q
    want = q @ torch.linalg.solve(q.T @ H @ q, q.T @ flatten(C))
    found = CG(steps=steps)(product(H), C, given(d))
    torch.testing.assert_close(flatten(found.value), want, rtol=1e-7, atol=1e-9)  # the powers are nearly parallel
    true = float((flatten(C) - H @ want).norm() / norm(C))
    assert found.residual == pytest.approx(true, rel=1e-5, abs=1e-8)


def test_adapted_cg_needs_fewer_steps_on_a_badly_scaled_matrix() -> None:
    scale = torch.logspace(0, 3, 8, dtype=F64)
    h = scale.sqrt()[:, None] * (H / 4 + torch.eye(8, dtype=F64)) * scale.sqrt()
    plain, adapted = (CG(steps=50, rtol=1e-10)(product(h), C, d) for d in (None, given(torch.diag(1 / scale))))
    assert plain.outcome is adapted.outcome is Outcome.CONVERGED
    assert adapted.matvecs < plain.matvecs
    torch.testing.assert_close(flatten(adapted.value), torch.linalg.solve(h, flatten(C)), rtol=1e-8, atol=0)


@pytest.mark.parametrize("solver", [CG(steps=5), Neumann(steps=5, lr=0.1)])
def test_a_negative_preconditioner_is_reported(solver: Any) -> None:
    d = DIAGONAL.clone()
    d[flatten(C).abs().argmax()] = -5.0
    assert solver(product(H), C, given(torch.diag(d))).outcome is Outcome.NOT_POSITIVE


def test_a_preconditioner_that_shows_as_negative_only_later_is_no_convergence() -> None:
    d, b = DIAGONAL.clone(), flatten(C)
    d[3], b[3] = -50.0, 0.0  # the first residual does not see it
    found = CG(steps=8)(product(H), unflatten(b, C), given(torch.diag(d)))
    assert found.outcome is Outcome.NOT_POSITIVE


@pytest.mark.parametrize("solver", [CG(steps=8), Neumann(steps=2000, lr=0.1)])
def test_where_the_preconditioner_is_zero_the_solution_stays_zero_and_the_rest_is_solved(solver: Any) -> None:
    d = torch.ones(8, dtype=F64)
    d[2] = d[6] = 0
    keep = d > 0
    found = flatten(solver(product(H), C, given(torch.diag(d))).value)
    assert found[~keep].eq(0).all()
    torch.testing.assert_close(
        found[keep], torch.linalg.solve(H[keep][:, keep], flatten(C)[keep]), rtol=1e-7, atol=1e-9
    )


def test_a_diverging_adapted_series_is_proven() -> None:
    d = torch.diag(DIAGONAL)
    lr = 2.2 / float(torch.linalg.eigvals(H @ d).abs().max())
    assert Neumann(steps=200, lr=lr)(product(H), C, given(d)).outcome is Outcome.DIVERGED


def test_an_overflow_is_a_divergence() -> None:
    d = torch.diag(DIAGONAL)
    assert Neumann(steps=400, lr=1e3)(product(H), C, given(d)).outcome is Outcome.DIVERGED
    assert Neumann(steps=400, lr=1e3)(product(H), C, given(MIXED)).outcome is Outcome.DIVERGED


def test_a_growing_series_of_a_rule_that_mixes_coordinates_is_a_divergence() -> None:
    lr = 2.5 / float(torch.linalg.eigvals(H @ MIXED).abs().max())
    assert Neumann(steps=60, lr=lr)(product(H), C, given(MIXED)).outcome is Outcome.DIVERGED
    assert Neumann(steps=60, lr=lr / 5)(product(H), C, given(MIXED)).outcome is Outcome.BUDGET
    with pytest.raises(HypergradientError, match="diverges"):
        estimate(toy(ClipNorm(Adam(lr=0.05), 1e3), steps=20), Implicit(Neumann(steps=60, lr=500.0), adapt=True))


class Normalised(Adam):
    """Mixes coordinates, whatever Adam says of itself."""

    def update(self, grad: Tensor, slots: Any, t: int, param: Tensor) -> Any:
        return super().update(grad / (1 + grad.norm()), slots, t, param)

    rewind = property()  # as good as none: `hasattr` is False


def test_a_subclass_does_not_inherit_the_promise_of_a_diagonal() -> None:
    problem = toy(Normalised(lr=0.05, betas=(0.7, 0.9)), steps=13)
    record = run(problem.stages[0], problem.start, problem.hparams)
    made = adaptation(problem.stages[0], record, problem.hparams)
    assert not made.symmetric
    c = {k: torch.ones_like(x) for k, x in problem.start.items()}  # type: ignore[union-attr]
    torch.testing.assert_close(
        made.apply(c), {k: -x for k, x in adapt(problem.stages[0], record, problem.hparams, c).items()}
    )


# -- inside Implicit ------------------------------------------------------------------------------------------------

ADAPTIVE: dict[str, Rule] = {
    "adam": Adam(lr=0.05, betas=(0.7, 0.9)),
    "lamb": LAMB(lr=0.05, betas=(0.7, 0.9)),
    "adafactor": Adafactor(lr=0.05),
}


def matrix_of_adaptation(problem: Problem) -> Tensor:
    """D' column by column, by finite differences of the last update itself (nothing is pulled back)."""
    (stage,) = problem.stages
    record = run(stage, problem.start, problem.hparams, tail=1)
    before, rule = record.states[record.end.step - 1], stage.rule
    assert record.grad is not None

    def change(g: Tensor) -> Tensor:
        grads = unflatten(g, record.grad)  # type: ignore[arg-type]
        moved = {
            k: rule.update(grads[k], before.slots[k], before.step + 1, before.params[k])[0]  # type: ignore[union-attr]
            for k in grads
        }
        return flatten(moved)

    g = flatten(record.grad)
    h = 1e-5 * float(g.abs().max())
    return -torch.stack([(change(g + h * e) - change(g - h * e)) / (2 * h) for e in torch.eye(len(g), dtype=F64)])


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_preconditioner_is_the_transposed_derivative_of_the_update(name: str) -> None:
    problem = toy(ADAPTIVE[name], steps=13)
    record = run(problem.stages[0], problem.start, problem.hparams)
    made = adaptation(problem.stages[0], record, problem.hparams)
    want = matrix_of_adaptation(problem)
    assert made.symmetric == (name == "adam")
    columns = torch.stack(
        [flatten(made.apply(unflatten(e, problem.start))) for e in torch.eye(len(want), dtype=F64)], 1
    )
    assert float((columns - want).norm() / want.norm()) < 1e-6


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("steps", [0, 3])
def test_implicit_takes_it_for_every_rule(name: str, steps: int) -> None:
    problem = toy(ADAPTIVE[name], steps=13)
    record = run(problem.stages[0], problem.start, problem.hparams)
    d = dense(problem, problem.hparams)
    want, term = torch.zeros_like(d.c), d.c
    for _ in range(steps + 1):
        adapted = -flatten(adapt(problem.stages[0], record, problem.hparams, unflatten(term, problem.start)))
        want, term = want + 0.5 * adapted, term - 0.5 * d.h @ adapted
    got = estimate(problem, Implicit(Neumann(steps=steps, lr=0.5), adapt=True))
    torch.testing.assert_close(flatten(got.hparams), flatten(d.answer(-d.m.T @ want)), rtol=1e-9, atol=1e-12)


def test_identity_with_adaptation_is_sama_and_cg_for_sgd_is_cg() -> None:
    problem = toy(Adam(lr=0.05), steps=13)
    sama = estimate(problem, SAMA(product=reverse_over_reverse)).hparams
    same = estimate(problem, Implicit(Identity(), adapt=True)).hparams
    torch.testing.assert_close(same, sama, rtol=1e-12, atol=1e-15)
    problem = toy(SGD(lr=0.1))
    plain, adapted = (estimate(problem, Implicit(CG(steps=6), adapt=a)).hparams for a in (False, True))
    torch.testing.assert_close(adapted, plain, rtol=1e-9, atol=1e-12)


def test_what_cannot_be_preconditioned_says_so() -> None:
    for solver in (Dense(), Nystrom()):
        with pytest.raises(HypergradientError, match="takes no preconditioner: use Identity, Neumann"):
            Implicit(solver, adapt=True)
    with pytest.raises(NotApplicableError, match="symmetric preconditioner, and the rule mixes coordinates"):
        estimate(toy(ADAPTIVE["lamb"]), Implicit(CG(), adapt=True))
    with pytest.raises(NotApplicableError, match="Lion.*differentiable=False"):
        estimate(toy(Lion(lr=0.01)), Implicit(Neumann(), adapt=True))
    with pytest.raises(NotApplicableError, match="took no step"):
        estimate(toy(Adam(lr=0.01), steps=0), Implicit(Neumann(), adapt=True))


# -- the first steps, and SAMA's options ----------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [SAMA(), Implicit(Identity(), adapt=True)])
def test_the_first_steps_after_a_reset_are_flagged(estimator: Any) -> None:
    for steps, outcome in ((1, Outcome.YOUNG), (10, Outcome.YOUNG), (11, Outcome.APPROXIMATE)):
        assert estimate(toy(Adam(lr=0.05), steps=steps), estimator).outcomes == (outcome,)
    assert estimate(toy(SGD(lr=0.05), steps=1), estimator).outcomes == (Outcome.APPROXIMATE,)
    assert estimate(toy(Adam(lr=0.05), steps=1), SAMA(adapt=False)).outcomes == (Outcome.APPROXIMATE,)


def test_a_state_that_was_trained_before_is_not_young() -> None:
    problem = toy(Adam(lr=0.05), steps=20)
    (stage,) = problem.stages
    middle = run(stage, problem.start, problem.hparams).end
    again = replace(stage, steps=1)
    for start, outcome in ((middle, Outcome.APPROXIMATE), (middle.params, Outcome.YOUNG)):
        record = run(again, start, problem.hparams)
        found = hypergradient(problem.outer, [again], [SAMA()], [record], problem.hparams)
        assert found.outcomes == (outcome,)


@pytest.mark.parametrize("adapts", [True, False])
@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_the_extra_update_goes_down_the_adapted_cotangent_by_alpha(adapts: bool, alpha: float) -> None:
    problem = toy(Adam(lr=0.05), steps=20)
    found = estimate(problem, SAMA(adapt=adapts, extra_update=alpha))
    without = estimate(problem, SAMA(adapt=adapts))
    assert torch.equal(flatten(found.hparams), flatten(without.hparams))
    assert without.pullbacks[0].extra_update is None
    extra = found.pullbacks[0].extra_update
    assert extra is not None
    assert float(norm(extra.change)) == pytest.approx(alpha, rel=1e-12)
    d = dense(problem, problem.hparams)
    v = d.adaptation * d.c if adapts else d.c
    torch.testing.assert_close(flatten(extra.change), -alpha * v / v.norm(), rtol=1e-7, atol=1e-10)
    record = run(problem.stages[0], problem.start, problem.hparams, tail=1)
    step = flatten(record.end.params) - flatten(record.states[19].params)
    assert extra.relative == pytest.approx(alpha / float(step.norm()), rel=1e-6)


def test_the_extra_update_of_a_step_of_no_length_and_of_no_cotangent() -> None:
    problem = toy(SGD(lr=0.0), steps=2)
    extra = estimate(problem, SAMA(adapt=False, extra_update=1.0)).pullbacks[0].extra_update
    assert extra is not None
    assert extra.relative == math.inf
    flat = replace(
        problem, outer=lambda p, h: (0 * p["b"]).sum() + h["shift"].sum() + 0 * h["decay"] + 0 * h["mix"].sum()
    )
    extra = estimate(flat, SAMA(adapt=False, extra_update=1.0, product=reverse_over_reverse)).pullbacks[0].extra_update
    assert extra is not None
    assert float(norm(extra.change)) == 0.0
    with pytest.raises(HypergradientError, match="extra_update positive"):
        SAMA(extra_update=0.0)


def test_another_function_can_take_the_place_of_the_adaptation() -> None:
    problem = toy(Adam(lr=0.05), steps=20)
    doubled = SAMA(
        adapt=lambda stage, record, hparams, c: {k: 2 * x for k, x in adapt(stage, record, hparams, c).items()},
        product=reverse_over_reverse,
    )
    once, twice = (estimate(problem, e).indirect for e in (SAMA(product=reverse_over_reverse), doubled))
    torch.testing.assert_close(twice, {k: 2 * x for k, x in once.items()}, rtol=1e-12, atol=0)


def test_a_rule_that_cannot_step_back_is_adapted_from_the_recorded_state() -> None:
    problem = toy(ADAPTIVE["adafactor"], steps=13)
    got = flatten(estimate(problem, SAMA(product=reverse_over_reverse)).hparams)
    d = dense(problem, problem.hparams)
    want = flatten(d.answer(-d.m.T @ (matrix_of_adaptation(problem) @ d.c)))
    assert float((got - want).norm() / want.norm()) < 1e-6
    assert not torch.allclose(got, flatten(estimate(problem, Unroll()).hparams), rtol=1e-2)
