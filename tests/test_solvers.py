"""Solvers against scipy, numpy and dense formulas, on spectra that are no multiple of the identity; and the cases
in which public libraries answer wrongly: A = cI, two eigenvalues, b = 0, early convergence, negative curvature,
scaled right-hand sides, several leaves."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators import CG, SOLVERS, Dense, FixedPoint, HypergradientError, Identity, Neumann, Nystrom, Outcome

F64 = torch.float64
CHECKED = settings(derandomize=True, deadline=None, max_examples=60)


def spd(spectrum, seed: int = 0) -> np.ndarray:
    n = len(spectrum)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    a = q @ np.diag(spectrum) @ q.T
    return (a + a.T) / 2


def rhs(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n)


class Operator:
    """A dense matrix as a counting matvec on trees of any leaf shapes."""

    def __init__(self, a: np.ndarray, like: dict[str, torch.Tensor]):
        self.a = torch.tensor(a, dtype=next(iter(like.values())).dtype)
        self.like, self.calls = like, 0

    def __call__(self, v):
        assert list(v) == list(self.like)
        assert all(x.shape == self.like[k].shape for k, x in v.items())
        self.calls += 1
        out = self.a @ torch.cat([x.reshape(-1) for x in v.values()])
        parts = out.split([x.numel() for x in self.like.values()])
        return {k: p.reshape(x.shape) for (k, x), p in zip(self.like.items(), parts, strict=True)}


def solve(solver, a: np.ndarray, b: np.ndarray, dtype=F64):
    """(solution, x as numpy in float64, operator)."""
    tree = {"x": torch.tensor(b, dtype=dtype)}
    operator = Operator(a, tree)
    solution = solver(operator, tree)
    assert solution.matvecs == operator.calls, "the count of products is wrong"
    assert solution.value["x"].dtype == dtype
    assert torch.equal(tree["x"], torch.tensor(b, dtype=dtype)), "b was changed"
    return solution, solution.value["x"].double().numpy(), operator


def krylov_minimiser(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """argmin x'Ax/2 - b'x over span(b, Ab, ..., A^(k-1) b), from an orthonormal basis built with full reorthogonalisation."""
    basis = []
    v = b
    for _ in range(k):
        for _ in range(2):
            for q in basis:
                v = v - q * (q @ v)
        size = np.linalg.norm(v)
        if size < 1e-12 * np.linalg.norm(b):
            break
        basis.append(v / size)
        v = a @ basis[-1]
    q = np.stack(basis, axis=1)
    return q @ np.linalg.solve(q.T @ a @ q, q.T @ b)


def true_residual(a, x, b) -> float:
    return float(np.linalg.norm(b - a @ x) / np.linalg.norm(b))


# Condition 20: at 100, CG loses conjugacy within 12 steps, and two correct implementations differ by 1e-6 (scipy's too).
SPECTRUM = np.geomspace(0.5, 10, 12)


# ---------------------------------------------------------------- CG


@pytest.mark.parametrize("k", range(1, 13))
def test_cg_at_every_k_is_scipys_and_the_krylov_minimiser(k):
    a, b = spd(SPECTRUM), rhs(12)
    solution, x, _ = solve(CG(steps=k), a, b)
    theirs, _ = scipy.sparse.linalg.cg(a, b, rtol=0.0, atol=0.0, maxiter=k)
    np.testing.assert_allclose(x, theirs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(x, krylov_minimiser(a, b, k), rtol=0, atol=1e-10)
    assert solution.matvecs == k
    assert solution.residual == pytest.approx(true_residual(a, x, b), rel=1e-6, abs=1e-13)


def test_cg_solves_and_says_so():
    a, b = spd(SPECTRUM), rhs(12)
    solution, x, _ = solve(CG(steps=100, rtol=1e-12), a, b)
    np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-10)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.residual <= 1e-12
    assert solution.matvecs < 30


@pytest.mark.parametrize("c", [1.0, 3.0, 0.1, 7e-5, 1e8, 1 / 3])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_cg_on_a_multiple_of_the_identity(c, steps):
    """hypertorch answers 0 here."""
    b = rhs(7)
    solution, x, _ = solve(CG(steps=steps), c * np.eye(7), b)
    np.testing.assert_allclose(x, b / c, rtol=1e-14)
    assert solution.outcome is Outcome.CONVERGED or solution.residual < 1e-14
    assert solution.curvature == pytest.approx(c, rel=1e-12)


@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (1e-3, 1e3), (5.0, 5.0001)])
def test_cg_with_two_distinct_eigenvalues_is_exact_after_two_products(low, high):
    a, b = spd([low] * 3 + [high] * 4), rhs(7)
    _solution, x, _ = solve(CG(steps=2), a, b)
    np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-7, atol=1e-10 / low)
    more, y, _ = solve(CG(steps=40), a, b)  # further steps must not spoil it
    np.testing.assert_allclose(y, np.linalg.solve(a, b), rtol=1e-8, atol=1e-10 / low)
    assert more.outcome is Outcome.CONVERGED
    assert more.matvecs < 12


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_zero_right_hand_side_gives_zero(name, dtype):
    """betty and hypertorch: 0/0 = NaN."""
    solver = SOLVERS[name](lr=0.1) if name in ("neumann", "fixed-point") else SOLVERS[name]()
    solution, x, _ = solve(solver, spd(SPECTRUM), np.zeros(12), dtype)
    assert not x.any()
    assert np.isfinite(x).all()
    assert solution.residual in (0.0, None)
    assert solution.outcome not in (Outcome.INDEFINITE, Outcome.DIVERGED, Outcome.SINGULAR, Outcome.MISSED)


def test_cg_solved_exactly_early_stops_and_stays():
    b = np.zeros(12)
    b[3] = 2.0
    a = np.diag(SPECTRUM)  # b is an eigenvector
    solution, x, _ = solve(CG(steps=50), a, b)
    np.testing.assert_allclose(x, b / SPECTRUM[3], rtol=1e-14)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.matvecs <= 2


def test_cg_singular_but_consistent():
    """Least-norm solution: the Krylov space never leaves the range."""
    a = spd([0.0, 0.0, 0.0, 1.0, 2.0, 3.5, 4.0])
    b = a @ rhs(7)
    solution, x, _ = solve(CG(steps=30), a, b)
    np.testing.assert_allclose(x, np.linalg.pinv(a) @ b, atol=1e-10)
    assert solution.outcome is Outcome.CONVERGED


def test_cg_zero_curvature_is_no_solution():
    """b in the null space of H: there is nothing to solve, and no division by zero."""
    a = np.diag([0.0, 1.0, 2.0])
    solution, x, _ = solve(CG(steps=5), a, np.array([1.0, 0.0, 0.0]))
    assert np.isfinite(x).all()
    assert solution.outcome in (Outcome.INDEFINITE, Outcome.SINGULAR)
    assert solution.curvature == 0.0
    assert solution.residual == 1.0


@pytest.mark.parametrize("negative", [-1e-3, -0.5, -20.0])
@pytest.mark.parametrize("seed", range(4))
def test_cg_indefinite_is_reported_with_true_figures(negative, seed):
    a, b = spd([negative, *SPECTRUM], seed), rhs(13, seed + 1)
    solution, x, operator = solve(CG(steps=100), a, b)
    assert solution.outcome is Outcome.INDEFINITE
    # Recompute: exact CG, step by step, until the first direction of non-positive curvature.
    r = p = b
    y, lowest, used = np.zeros(13), np.inf, 0
    while True:
        used += 1
        lowest = min(lowest, p @ a @ p / (p @ p))
        if p @ a @ p <= 0:
            break
        alpha = (r @ r) / (p @ a @ p)
        y = y + alpha * p
        r_new = b - a @ y
        p = r_new + (r_new @ r_new) / (r @ r) * p
        r = r_new
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8 * np.abs(y).max())  # a pole: |y| may be large
    assert solution.matvecs == used == operator.calls
    assert solution.curvature == pytest.approx(lowest, rel=1e-4)
    assert solution.curvature < 0
    assert solution.curvature >= negative * (1 + 1e-12)
    assert solution.residual == pytest.approx(true_residual(a, x, b), rel=1e-6)


def test_cg_negative_curvature_at_the_first_step():
    a, b = np.diag([-2.0, -1.0, 3.0]), np.array([1.0, 1.0, 0.1])
    solution, x, _ = solve(CG(steps=10), a, b)
    assert solution.outcome is Outcome.INDEFINITE
    assert not x.any()
    assert solution.residual == pytest.approx(1.0, rel=1e-12)
    assert solution.matvecs == 1
    assert solution.curvature == pytest.approx(b @ a @ b / (b @ b), rel=1e-12)


def test_cg_damping_of_minus_the_reported_curvature_is_what_helps():
    a, b = spd([-0.5, *SPECTRUM]), rhs(13)
    solution, x, _ = solve(CG(steps=100, rtol=1e-12, damping=0.6), a, b)
    assert solution.outcome is Outcome.CONVERGED
    np.testing.assert_allclose(x, np.linalg.solve(a + 0.6 * np.eye(13), b), rtol=1e-9, atol=1e-12)
    assert solution.residual == pytest.approx(true_residual(a + 0.6 * np.eye(13), x, b), abs=1e-12)


@pytest.mark.parametrize("rtol", [1e-1, 1e-4, 1e-9])
def test_cg_stops_at_its_tolerance_and_not_earlier(rtol):
    a, b = spd(np.geomspace(1e-2, 10, 40)), rhs(40)
    solution, x, _ = solve(CG(steps=400, rtol=rtol), a, b)
    assert solution.outcome is Outcome.CONVERGED
    assert true_residual(a, x, b) <= rtol * (1 + 1e-6)
    _, before, _ = solve(CG(steps=solution.matvecs - 1), a, b)
    assert true_residual(a, before, b) > rtol


def test_cg_says_that_it_missed_its_tolerance():
    a, b = spd(np.geomspace(1e-2, 10, 40)), rhs(40)
    assert solve(CG(steps=5, rtol=1e-9), a, b)[0].outcome is Outcome.MISSED
    assert solve(CG(steps=5), a, b)[0].outcome is Outcome.BUDGET


@pytest.mark.parametrize("condition", [1e4, 1e8, 1e12])
def test_cg_reports_the_true_residual_of_ill_conditioned_systems(condition):
    """The recurrence for r goes to 0 whatever x does; the true residual stays at about eps * condition."""
    a, b = spd(np.geomspace(1 / condition, 1, 20)), rhs(20)
    solution, x, _ = solve(CG(steps=500), a, b)
    true = true_residual(a, x, b)
    assert solution.residual >= 0.05 * true - 1e-15
    assert solution.residual <= 100 * true + 1e-13


# ---------------------------------------------------------------- all solvers: scales, leaves, layouts

EXERCISED = {
    "cg": CG(steps=6),
    "cg-rtol": CG(steps=40, rtol=2e-2),  # ends in mid-iteration, where rounding decides nothing
    "cg-damped": CG(steps=6, damping=0.3),
    "neumann": Neumann(steps=9, lr=0.15),
    "fixed-point": FixedPoint(steps=9, lr=0.15),
    "fixed-point-rtol": FixedPoint(steps=300, lr=0.15, rtol=1e-3),
    "nystrom": Nystrom(rank=5, rho=0.1),
    "nystrom-full": Nystrom(rank=50, rho=1e-3),
    "dense": Dense(),
    "identity": Identity(),
}


def test_every_registered_solver_is_exercised():
    assert {type(s) for s in EXERCISED.values()} == set(SOLVERS.values())


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", EXERCISED)
def test_solutions_are_homogeneous(name, dtype, scale):
    """hypertorch's absolute tolerance: 26 % error at 1e-12."""
    a, b = spd(SPECTRUM), rhs(12)
    one, x, _ = solve(EXERCISED[name], a, b, dtype)
    other, y, _ = solve(EXERCISED[name], a, scale * b, dtype)
    tolerance = 1e-9 if dtype == F64 else 1e-3  # 1e2 (condition) and the sketch's 1e4, times a few roundings
    np.testing.assert_allclose(y / scale, x, rtol=0, atol=tolerance * np.abs(x).max())
    assert other.outcome is one.outcome
    assert other.matvecs == one.matvecs
    if one.residual is not None:
        assert other.residual == pytest.approx(one.residual, rel=1e-3, abs=1e-6 if dtype == torch.float32 else 1e-12)
    if one.curvature is not None:
        assert other.curvature == pytest.approx(one.curvature, rel=1e-3)


@pytest.mark.parametrize("name", EXERCISED)
def test_float32_is_as_accurate_as_float32_allows(name):
    a, b = spd(SPECTRUM), rhs(12)
    _, x, _ = solve(EXERCISED[name], a, b)
    _, y, _ = solve(EXERCISED[name], a, b, torch.float32)
    np.testing.assert_allclose(y, x, rtol=0, atol=2e-3 * np.abs(x).max())


def leaves_of(b: np.ndarray, layout: str) -> dict[str, torch.Tensor]:
    """The 12 numbers of b as several leaves, in one order."""
    t = torch.tensor(b, dtype=F64)
    if layout == "one":
        return {"x": t}
    if layout == "many":
        return {"s": t[0], "v": t[1:4], "m": t[4:10].reshape(2, 3), "e": t[10:].reshape(1, 2, 1)}
    if layout == "empty":
        return {"a": t[:5], "none": t[:0], "b": t[5:]}
    if layout == "transposed":  # same values, other strides
        return {"m": t.reshape(3, 4).T.contiguous().T}
    if layout == "strided":
        wide = torch.zeros(24, dtype=F64)
        wide[::2] = t
        return {"x": wide[::2]}
    raise AssertionError(layout)


@pytest.mark.parametrize("layout", ["many", "empty", "transposed", "strided"])
@pytest.mark.parametrize("name", EXERCISED)
def test_leaves_are_only_a_way_to_write_one_vector(name, layout):
    """torchopt drops the off-diagonal blocks; hypertorch fails on transposed parameters."""
    a, b = spd(SPECTRUM), rhs(12)
    solution, x, _ = solve(EXERCISED[name], a, b)
    tree = leaves_of(b, layout)
    operator = Operator(a, tree)
    split = EXERCISED[name](operator, tree)
    y = torch.cat([v.reshape(-1) for v in split.value.values()]).numpy()
    assert {k: v.shape for k, v in split.value.items()} == {k: v.shape for k, v in tree.items()}
    np.testing.assert_allclose(y, x, rtol=1e-9, atol=1e-12)
    assert (split.outcome, split.matvecs) == (solution.outcome, solution.matvecs)
    if solution.residual is not None:
        assert split.residual == pytest.approx(solution.residual, rel=1e-6, abs=1e-12)


def test_a_single_scalar_unknown():
    """torchopt: maxiter = 10 * size = 0, answers 0."""
    tree = {"x": torch.tensor(3.0, dtype=F64)}
    for name, solver in EXERCISED.items():
        if name in ("identity", "cg-damped") or name.startswith(("neumann", "fixed-point", "nystrom")):
            continue
        solution = solver(lambda v: {"x": 2.0 * v["x"]}, tree)
        assert float(solution.value["x"]) == pytest.approx(1.5, rel=1e-14), name
        assert solution.value["x"].shape == ()


@pytest.mark.parametrize("name", [n for n in EXERCISED if n != "identity"])
def test_a_nan_product_is_no_answer(name):
    """A finite value with a remark about curvature would hide it."""
    tree = {"x": torch.ones(3, dtype=F64)}
    try:
        solution = EXERCISED[name](lambda v: {"x": torch.full_like(v["x"], torch.nan)}, tree)
    except (HypergradientError, torch.linalg.LinAlgError):
        return
    assert not torch.isfinite(solution.value["x"]).all()


@pytest.mark.parametrize("name", EXERCISED)
def test_solutions_repeat_bitwise(name):
    a, b = spd(SPECTRUM), rhs(12)
    state = torch.get_rng_state()
    _, x, _ = solve(EXERCISED[name], a, b)
    _, y, _ = solve(EXERCISED[name], a, b)
    assert np.array_equal(x, y)
    assert torch.equal(torch.get_rng_state(), state), "a solver moved the global generator"


# ---------------------------------------------------------------- Neumann and fixed point


@pytest.mark.parametrize("k", [0, 1, 2, 7, 50])
@pytest.mark.parametrize("lr", [0.01, 0.15, torch.tensor(0.15, dtype=F64)])
def test_neumann_closed_form(k, lr):
    a, b = spd(SPECTRUM), rhs(12)
    solution, x, _ = solve(Neumann(steps=k, lr=lr), a, b)
    m = np.eye(12) - float(lr) * a
    expected = (np.eye(12) - np.linalg.matrix_power(m, k + 1)) @ np.linalg.solve(a, b)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert solution.matvecs == k
    assert solution.outcome is Outcome.BUDGET
    # documented: the residual of the sum without its last term
    assert solution.residual == pytest.approx(
        np.linalg.norm(np.linalg.matrix_power(m, k) @ b) / np.linalg.norm(b), rel=1e-10
    )
    if k == 0:
        np.testing.assert_array_equal(x, float(lr) * b)
        assert solution.curvature is None
    else:
        quotients = [v @ a @ v / (v @ v) for v in (np.linalg.matrix_power(m, j) @ b for j in range(k))]
        assert solution.curvature == pytest.approx(min(quotients), rel=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 10, 60])
def test_fixed_point_is_neumann_with_one_product_less(steps):
    a, b = spd(SPECTRUM), rhs(12)
    fixed, x, _ = solve(FixedPoint(steps=steps, lr=0.12), a, b)
    _, y, _ = solve(Neumann(steps=steps - 1, lr=0.12), a, b)
    np.testing.assert_array_equal(x, y)
    q = np.zeros(12)
    for _ in range(steps):
        q = q - 0.12 * (a @ q) + 0.12 * b
    np.testing.assert_allclose(x, q, rtol=1e-12, atol=1e-13)
    assert fixed.matvecs == steps - 1


def test_fixed_point_of_no_steps_is_zero():
    solution, x, _ = solve(FixedPoint(steps=0, lr=0.1), spd(SPECTRUM), rhs(12))
    assert not x.any()
    assert solution.residual == 1.0


@pytest.mark.parametrize("rtol", [1e-2, 1e-6, 1e-10])
def test_fixed_point_stops_once_it_moves_little(rtol):
    a, b = spd(SPECTRUM), rhs(12)
    solution, _x, _ = solve(FixedPoint(steps=10_000, lr=0.15, rtol=rtol), a, b)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.residual <= rtol
    m = np.eye(12) - 0.15 * a
    k = solution.matvecs
    assert np.linalg.norm(np.linalg.matrix_power(m, k) @ b) <= rtol * np.linalg.norm(b) * (1 + 1e-8)
    assert np.linalg.norm(np.linalg.matrix_power(m, k - 1) @ b) > rtol * np.linalg.norm(b)
    assert solve(FixedPoint(steps=5, lr=0.15, rtol=rtol), a, b)[0].outcome is Outcome.MISSED


@pytest.mark.parametrize("series", [Neumann(steps=30), FixedPoint(steps=31)])
@pytest.mark.parametrize("factor", [0.1, 1.0, 1.9, 1.99, 1.9999, 2.0001, 2.01, 2.5, 10.0, 1e3])
def test_the_series_diverges_if_lr_times_lambda_max_reaches_two(series, factor):
    """b has a part in every direction. lambda_max dominates the sum for b along it, so that 30 terms suffice."""
    a = spd(SPECTRUM)
    values, vectors = np.linalg.eigh(a)
    b = vectors[:, -1] + 1e-2 * vectors[:, 0]
    solver = type(series)(steps=series.steps, lr=factor / values[-1])
    solution, _, _ = solve(solver, a, b)
    assert (solution.outcome is Outcome.DIVERGED) == (factor >= 2)


@pytest.mark.parametrize("factor", [2.05, 2.5, 4.0, 100.0])
def test_a_diverging_part_hidden_in_b_is_found_within_its_growth(factor):
    """Even if b hardly looks along lambda_max: 1 % of b, after enough terms."""
    a = spd(SPECTRUM)
    values, vectors = np.linalg.eigh(a)
    b = vectors[:, 2] + 1e-2 * vectors[:, -1]
    solution, _, _ = solve(Neumann(steps=200, lr=factor / values[-1]), a, b)
    assert solution.outcome is Outcome.DIVERGED


@pytest.mark.parametrize("negative", [-1e-2, -1.0, -30.0])
def test_a_negative_eigenvalue_makes_the_series_diverge(negative):
    a, b = spd([negative, *SPECTRUM]), rhs(13)
    solution, _, _ = solve(Neumann(steps=400, lr=0.05), a, b)
    assert solution.outcome in (Outcome.DIVERGED, Outcome.INDEFINITE)
    assert negative * (1 + 1e-12) <= solution.curvature < 0


def test_a_null_direction_in_b_makes_the_series_diverge_linearly():
    a = np.diag([0.0, 1.0, 2.0])
    solution, _, _ = solve(Neumann(steps=5, lr=0.3), a, np.array([1.0, 0.0, 0.0]))
    assert solution.outcome in (Outcome.DIVERGED, Outcome.SINGULAR)
    late, _, _ = solve(Neumann(steps=300, lr=0.3), a, np.array([1.0, 1.0, 0.0]))
    assert late.outcome in (Outcome.DIVERGED, Outcome.SINGULAR)


def test_a_series_that_ends_exactly_keeps_its_figures():
    """lr lambda = 1: the second term is exactly 0, and a zero vector has no curvature."""
    solution, x, _ = solve(Neumann(steps=5, lr=0.5), 2 * np.eye(3), np.array([1.0, -2.0, 0.5]))
    np.testing.assert_array_equal(x, np.array([0.5, -1.0, 0.25]))
    assert solution.outcome is Outcome.CONVERGED
    assert solution.residual == 0.0
    assert solution.curvature == 2.0


def test_an_overflowing_series_is_diverged_not_nan_outcome():
    solution, _, _ = solve(Neumann(steps=2000, lr=10.0), spd(SPECTRUM), rhs(12))
    assert solution.outcome is Outcome.DIVERGED


@CHECKED
@given(
    st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=8),
    st.floats(1e-3, 1 - 1e-6),
    st.integers(0, 200),
    st.integers(0, 10**6),
    st.sampled_from([F64, torch.float32]),
)
def test_a_convergent_series_is_never_called_diverging(spectrum, fraction, steps, seed, dtype):
    """lr lambda_max = 2 fraction < 2 (1 - 1e-6), H positive definite. Below the smallest contraction that the number
    format can show (lr lambda_min of a few eps) no series shrinks visibly: the spectra here stay above."""
    a = np.diag(spectrum) if seed % 2 else spd(spectrum, seed)
    b = rhs(len(spectrum), seed)
    lr = 2 * fraction / max(spectrum)
    slowest = min(lr * min(spectrum), 2 - 2 * fraction)
    if slowest < 1e3 * torch.finfo(dtype).eps:
        return
    solution, _, _ = solve(Neumann(steps=steps, lr=lr), a, b, dtype)
    assert solution.outcome in (Outcome.BUDGET, Outcome.CONVERGED)


@CHECKED
@given(
    st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=8),
    st.floats(1 + 1e-6, 3),
    st.integers(0, 10**6),
)
def test_a_series_dominated_by_a_growing_direction_is_always_called_diverging(spectrum, fraction, seed):
    a = spd(spectrum, seed)
    values, vectors = np.linalg.eigh(a)
    solution, _, _ = solve(Neumann(steps=3, lr=2 * fraction / values[-1]), a, vectors[:, -1])
    assert solution.outcome is Outcome.DIVERGED


def test_a_long_convergent_series_in_float32_ends_converged():
    """Terms fall into the subnormal numbers; figures must stay figures."""
    a, b = spd(np.linspace(0.5, 1, 12)), rhs(12)
    solution, x, _ = solve(Neumann(steps=400, lr=1.0), a, 1e-30 * b, torch.float32)
    assert solution.outcome is Outcome.CONVERGED
    np.testing.assert_allclose(x * 1e30, np.linalg.solve(a, b), rtol=1e-4, atol=1e-5)
    assert np.isfinite(solution.curvature)
    assert 0.4 < solution.curvature < 1.1


# ---------------------------------------------------------------- Nystrom


def chosen_columns(n: int, rank: int, seed: int = 0) -> list[int]:
    """Documented nowhere but in the code: the first `rank` of a seeded permutation."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:rank].tolist()


def nystrom_formula(a: np.ndarray, b: np.ndarray, rank: int, rho: float) -> np.ndarray:
    index = chosen_columns(len(b), rank)
    c, w = a[index, :], a[np.ix_(index, index)]
    return np.linalg.solve(c.T @ np.linalg.pinv(w, hermitian=True) @ c + rho * np.eye(len(b)), b)


@pytest.mark.parametrize("rank", [1, 3, 6, 11])
@pytest.mark.parametrize("rho", [10.0, 0.1, 1e-4])
def test_nystrom_is_the_dense_formula(rank, rho):
    a, b = spd(SPECTRUM), rhs(12)
    solution, x, _ = solve(Nystrom(rank=rank, rho=rho), a, b)
    expected = nystrom_formula(a, b, rank, rho)
    # both sides lose eps * condition of (C'W^+C + rho I), which is up to 10 / rho
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-11 * max(1, 1 / rho) * np.abs(expected).max())
    assert solution.matvecs == rank + 1
    assert solution.residual == pytest.approx(true_residual(a, x, b), rel=1e-8)


@pytest.mark.parametrize("rank", [12, 13, 100])
@pytest.mark.parametrize("rho", [0.1, 1e-6, 1e-12])
def test_nystrom_of_full_rank_is_the_damped_inverse(rank, rho):
    a, b = spd(SPECTRUM), rhs(12)
    solution, x, _ = solve(Nystrom(rank=rank, rho=rho), a, b)
    np.testing.assert_allclose(x, np.linalg.solve(a + rho * np.eye(12), b), rtol=1e-8, atol=1e-10)
    assert solution.matvecs == 13


@pytest.mark.parametrize("rho", [1e-2, 1e-6, 1e-10, 1e-14])
def test_nystrom_with_a_tiny_rho_on_a_low_rank_matrix(rho):
    """H of rank 4 seen through 6 columns is exact, and b in its range has the solution pinv(H) b as rho -> 0. The
    paper's Woodbury form loses all digits here (1/rho^2)."""
    a = spd([0.0] * 8 + [1.0, 2.0, 3.0, 5.0])
    b = a @ rhs(12)
    _, x, _ = solve(Nystrom(rank=6, rho=rho), a, b)
    values, vectors = np.linalg.eigh(a)
    top = vectors[:, -4:]
    expected = top @ ((top.T @ b) / (values[-4:] + rho))
    # outside the range b is zero to 1e-16 only, which 1/rho magnifies: nothing can know better than that
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-9 + 2e-14 / rho)


def test_nystrom_of_the_zero_matrix_and_of_an_indefinite_one():
    b = rhs(5)
    _, x, _ = solve(Nystrom(rank=3, rho=0.5), np.zeros((5, 5)), b)
    np.testing.assert_allclose(x, b / 0.5, rtol=1e-14)
    solution, _, _ = solve(Nystrom(rank=5, rho=0.1), spd([-3.0, 1.0, 2.0, 3.0, 4.0]), b)
    assert solution.outcome is Outcome.INDEFINITE
    assert solution.curvature < 0


def test_nystrom_seed_chooses_other_columns():
    a, b = spd(SPECTRUM), rhs(12)
    _, x, _ = solve(Nystrom(rank=3, seed=0), a, b)
    _, y, _ = solve(Nystrom(rank=3, seed=1), a, b)
    assert np.abs(x - y).max() > 1e-6


# ---------------------------------------------------------------- Dense, Identity


@pytest.mark.parametrize("negative", [False, True])
def test_dense_is_numpys_solve(negative):
    a, b = spd([-0.7 if negative else 0.7, *SPECTRUM]), rhs(13)
    solution, x, _ = solve(Dense(), a, b)
    np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-11)
    assert solution.outcome is (Outcome.INDEFINITE if negative else Outcome.CONVERGED)
    assert solution.curvature == pytest.approx(np.linalg.eigvalsh(a)[0], rel=1e-10)
    assert solution.matvecs == 13
    assert solution.residual < 1e-12


def test_dense_damping():
    a, b = spd(SPECTRUM), rhs(12)
    _, x, _ = solve(Dense(damping=0.3), a, b)
    np.testing.assert_allclose(x, np.linalg.solve(a + 0.3 * np.eye(12), b), rtol=1e-11)


@pytest.mark.parametrize("consistent", [True, False])
def test_dense_singular_gives_the_solution_of_least_norm_and_says_so(consistent):
    a = spd([0.0, 0.0, 1.0, 2.0, 5.0])
    b = a @ rhs(5) if consistent else rhs(5)
    solution, x, _ = solve(Dense(), a, b)
    np.testing.assert_allclose(x, np.linalg.lstsq(a, b, rcond=1e-10)[0], atol=1e-11)
    assert solution.outcome is Outcome.SINGULAR
    assert solution.residual == pytest.approx(true_residual(a, x, b), abs=1e-12)


def test_dense_zero_matrix():
    solution, x, _ = solve(Dense(), np.zeros((3, 3)), rhs(3))
    assert not x.any()
    assert solution.outcome is Outcome.SINGULAR
    assert solution.residual == pytest.approx(1.0)


def test_identity_is_b_and_shares_no_dictionary():
    tree = {"x": torch.ones(3, dtype=F64)}
    solution = Identity()(None, tree)
    assert torch.equal(solution.value["x"], tree["x"])
    assert solution.value is not tree
    assert (solution.matvecs, solution.residual, solution.outcome) == (0, None, Outcome.APPROXIMATE)


# ---------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CG(steps=0), "steps=0.*steps must be at least 1"),
        (lambda: CG(rtol=-1.0), "rtol=-1.0.*not negative"),
        (lambda: CG(damping=-1.0), "damping=-1.0.*not negative"),
        (lambda: Neumann(steps=-1), "steps=-1.*not be negative"),
        (lambda: Neumann(lr=0.0), "lr=0.0.*positive"),
        (lambda: Neumann(lr=-0.1), "lr=-0.1.*positive"),
        (lambda: Neumann(lr=float("nan")), "lr=nan.*positive"),
        (lambda: FixedPoint(steps=-1), "steps=-1.*not be negative"),
        (lambda: FixedPoint(rtol=-1.0), "rtol=-1.0.*not be negative"),
        (lambda: FixedPoint(lr=0.0), "lr=0.0.*positive"),
        (lambda: Nystrom(rank=0), "rank=0.*at least 1"),
        (lambda: Nystrom(rho=0.0), "rho=0.0.*positive"),
        (lambda: Dense(damping=-1.0), "damping=-1.0.*negative"),
        (lambda: Dense(limit=0), "limit=0.*at least 1"),
    ],
)
def test_fields_out_of_range_are_refused(build, message):
    with pytest.raises(HypergradientError, match=message):
        build()


def test_dense_refuses_what_would_not_fit():
    with pytest.raises(HypergradientError, match=r"5 parameters exceed limit=4.*Use CG"):
        solve(Dense(limit=4), np.eye(5), rhs(5))


@pytest.mark.parametrize("solver", [Neumann(), FixedPoint()])
def test_a_series_on_its_own_needs_a_step(solver):
    with pytest.raises(HypergradientError, match=r"\(lr=None\).*Implicit.*lambda_max"):
        solve(solver, np.eye(3), rhs(3))


# ---------------------------------------------------------------- CG as on an accelerator


MASKED = {
    "4 I": (4 * np.eye(6), 1.0),
    "two eigenvalues": (np.diag([1.0] * 3 + [7.0] * 3), 1.0),
    "generic": (spd(np.linspace(0.5, 6, 6)), 1.0),
    "zero right-hand side": (spd(np.linspace(0.5, 6, 6)), 0.0),
    "indefinite": (np.diag([-1.0, 2, 3, 4, 5, 6]), 1.0),
    "tiny": (spd(np.linspace(0.5, 6, 6)), 1e-200),
}


@pytest.mark.parametrize("name", MASKED)
def test_without_reading_back_finished_iterations_change_nothing(monkeypatch, name):
    """A fixed budget must not synchronise each iteration: what is done is masked, and must stay what it was."""
    a, size = MASKED[name]
    b = size * rhs(6)
    early, x, _ = solve(CG(steps=40), a, b)
    module = sys.modules[CG.__module__]
    monkeypatch.setattr(module, "reads_are_free", lambda device: False)
    late, y, _ = solve(CG(steps=40), a, b)
    np.testing.assert_array_equal(x, y)
    assert late.outcome is early.outcome
    assert late.residual == early.residual
    assert late.matvecs == 40
    if name != "zero right-hand side":
        assert late.curvature == early.curvature
