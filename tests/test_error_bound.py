"""The bound holds, is tight where the spectrum is known, and is refused where there is none. Oracle: dense eigenvalues."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.point import Effort, Instance, measure
from benchmarks.problems import PROBLEMS, truth
from estimators import (
    CG,
    SAMA,
    SGD,
    T1T2,
    Adam,
    AdamW,
    CentralDifference,
    Certificate,
    ErrorBound,
    FixedPoint,
    Implicit,
    Momentum,
    Neumann,
    NoBound,
    Nystrom,
    Problem,
    Stage,
    Tree,
    Unroll,
    certify,
    error_bound,
    gradients,
    hypergradient,
    per_stage,
    registry,
    run,
)
from estimators.error_bound import linear_rule
from estimators.lanczos import lanczos, random_start
from estimators.tree import flatten, sub, unflatten

from .oracle import dense
from .toy import toy

ESTIMATORS: dict[str, Any] = {
    "unroll": Unroll(),
    "truncated": Unroll(last=4),
    "cg": Implicit(CG(steps=60, rtol=1e-12)),
    "cg-3": Implicit(CG(steps=3)),
    "cg-damped": Implicit(CG(steps=60, rtol=1e-12, damping=0.5)),
    "neumann": Implicit(Neumann(steps=5)),
    "fixed-point": Implicit(FixedPoint(steps=30)),
    "nystrom": Implicit(Nystrom(rank=5, rho=0.1)),
    "t1t2": T1T2(),
    "sama-na": SAMA(adapt=False),
}
CASES = [
    ("biased_regression", {"cond": 1.5}), ("biased_regression", {"cond": 30.0, "split": True}),
    ("biased_regression", {"cond": 1e3, "dim": 20, "rule": "sgd"}), ("biased_regression", {"cond": 1e4}),
    ("weighted_ridge", {}), ("weighted_ridge", {"weights": "softmax"}), ("log_ridge", {}), ("log_ridge", {"rule": "sgd"}),
]  # fmt: skip


def solved(problem: Problem, estimator: Any, **options: Any) -> tuple[Tree, ErrorBound, Certificate]:
    (stage,) = problem.stages
    record = run(stage, problem.start, problem.hparams)
    found = certify(problem.outer, stage, record, problem.hparams, **options)
    assert isinstance(found, Certificate), found
    answer = hypergradient(problem.outer, problem.stages, [estimator], [record], problem.hparams, throw=False)
    return answer.hparams, found.bound(answer, estimator), found


def norm(a: Tree) -> float:
    return float(flatten(a).norm())


def angle(a: Tree, b: Tree) -> float:
    u, v = flatten(a), flatten(b)
    u, v = u / u.norm(), v / v.norm()
    return math.degrees(2 * math.asin(min(1.0, float((u - v).norm()) / 2)))


@pytest.mark.parametrize("steps", [3, 40, None])
@pytest.mark.parametrize(("problem", "settings"), CASES)
def test_the_bound_holds_and_is_tight_where_it_is_rigorous(
    problem: str, settings: dict[str, Any], steps: int | None
) -> None:
    for seed in range(2):
        made = PROBLEMS[problem].make(seed=seed, steps=steps, **settings)
        (stage,) = made.stages
        if stage.steps > 1000:
            continue
        record = run(stage, made.start, made.hparams)
        certificate = certify(made.outer, stage, record, made.hparams)
        assert isinstance(certificate, Certificate)
        true = truth(made)
        size = norm(true)
        for name, estimator in ESTIMATORS.items():
            answer = hypergradient(made.outer, made.stages, [estimator], [record], made.hparams, throw=False)
            bound = certificate.bound(answer, estimator)
            error = norm(sub(answer.hparams, true))
            assert bound.rigorous and bound.doubt == 0
            assert error <= bound.total <= bound.solve + bound.gap, name
            assert error <= bound.relative * size, name
            assert angle(answer.hparams, true) <= bound.angle + 1e-6, name
            assert bound.total <= 1.01 * error + 1e-9 * size, name  # products reach all curvatures: it is the error


@pytest.mark.parametrize("products", [6, 12, 25])
@pytest.mark.parametrize(
    ("problem", "settings"),
    [("biased_regression", {"cond": c, "dim": 60, "n_train": 70}) for c in (2.0, 20.0, 300.0)]
    + [("weighted_ridge", {"dim": 40, "n_train": 80}), ("log_ridge", {"dim": 40, "n_train": 60})],
)
def test_with_few_products_it_holds_or_is_refused(problem: str, settings: dict[str, Any], products: int) -> None:
    bounded = 0
    for seed in range(3):
        for steps in (10, 100):
            made = PROBLEMS[problem].make(seed=seed, steps=steps, **settings)
            (stage,) = made.stages
            record = run(stage, made.start, made.hparams)
            found = certify(made.outer, stage, record, made.hparams, products=products)
            if isinstance(found, NoBound):
                assert found.reason
                continue
            bounded += 1
            assert not found.rigorous and found.doubt > 0
            smallest = float(torch.linalg.eigvalsh(made.hessian(record.end.params))[0])  # type: ignore[misc]
            assert found.mu <= 2 * smallest or found.doubt > 0.5
            true = truth(made)
            for name, estimator in ESTIMATORS.items():
                answer = hypergradient(made.outer, made.stages, [estimator], [record], made.hparams, throw=False)
                assert norm(sub(answer.hparams, true)) <= found.bound(answer, estimator).total, name
    assert bounded or products < 25 or settings.get("cond", 0) > 100


@pytest.mark.parametrize("name", ["cg-3", "cg-damped", "neumann", "nystrom", "fixed-point"])
@pytest.mark.parametrize("problem", ["biased_regression", "weighted_ridge", "log_ridge"])
def test_what_a_solver_knows_bounds_its_error(problem: str, name: str) -> None:
    """||M|| ||r|| / mu against H^-1 by dense algebra, at the end of the run."""
    made = PROBLEMS[problem].make(steps=15)
    found, bound, certificate = solved(made, ESTIMATORS[name])
    d = dense(made, made.hparams)
    eigenvalues = torch.linalg.eigvalsh(d.h)
    assert certificate.mu == pytest.approx(float(eigenvalues[0]), rel=1e-9) and certificate.mu <= float(eigenvalues[0])
    assert certificate.top == pytest.approx(float(eigenvalues[-1]), rel=1e-9) and certificate.top >= float(
        eigenvalues[-1]
    )
    assert certificate.cotangent == pytest.approx(float(d.c.norm()), rel=1e-12)
    exact = d.direct - d.m.T @ torch.linalg.solve(d.h, d.c)
    error = float((flatten(found) - exact).norm())
    assert bound.own is not None
    assert error <= bound.solve <= bound.own
    assert bound.own <= 20 * max(error, 1e-12) * float(eigenvalues[-1] / eigenvalues[0])


def test_the_norm_of_the_mixed_derivative_is_taken_at_the_optimum() -> None:
    made = PROBLEMS["log_ridge"].make()  # the run converges
    _, _, certificate = solved(made, Unroll())
    assert certificate.mixed == pytest.approx(float(torch.linalg.matrix_norm(dense(made, made.hparams).m, 2)), rel=1e-6)


@pytest.mark.parametrize("rule", ["sgd", "momentum"])
@pytest.mark.parametrize("last", [1, 5, 30])
def test_truncated_steps_are_bounded_by_the_rate_of_contraction(rule: str, last: int) -> None:
    """H and M are constant here: what is left out is -M^T H^-1 c_k, and ||c_k|| <= max |p_k| ||c||."""
    made = PROBLEMS["biased_regression"].make(cond=20.0, rule=rule, steps=30)
    found, bound, _ = solved(made, Unroll(last=last))
    d = dense(made, made.hparams)
    exact = d.direct - d.m.T @ torch.linalg.solve(d.h, d.c)
    error = float((flatten(found) - exact).norm())
    assert bound.own is not None and error <= bound.own
    if rule == "sgd":
        lr = made.settings["lr"]
        eigenvalues = torch.linalg.eigvalsh(d.h)
        rate = float((1 - lr * eigenvalues).abs().max()) ** last
        coarse = rate * float(torch.linalg.matrix_norm(d.m, 2) * d.c.norm() / eigenvalues[0])
        assert bound.own == pytest.approx(coarse, rel=1e-6)
    assert bound.own <= 40 * error


def quadratic(rule: Any, steps: int, seed: int = 0, n: int = 6) -> tuple[Problem, Tensor, Tensor]:
    """(problem, H, exact hypergradient): (w - lam) H (w - lam) / 2 with outer loss c w."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    h = basis @ torch.diag(torch.linspace(1, 5, n, dtype=torch.float64)) @ basis.T
    c, lam, w = (torch.randn(n, generator=g, dtype=torch.float64) for _ in range(3))

    def loss(params: Tree, hparams: Tree, batch: None) -> Tensor:
        away = params["w"] - hparams["lam"]
        return away @ h @ away / 2

    stage = Stage(loss, rule, lambda t: None, steps)
    return Problem("q", [stage], lambda p, _: c @ p["w"], {"w": w}, {"lam": lam}), h, c


def test_an_adaptive_rule_is_bounded_by_what_arrives_at_the_cut() -> None:
    """A step of any rule adds to x what it takes, times H, off the cotangent: the cotangent at the cut is the residual."""
    made, _, c = quadratic(Adam(lr=0.1), 20)
    for last in (1, 5, 20):
        found, bound, _ = solved(made, Unroll(last=last))
        # M = -H, so the answer is H x and the residual c - H x
        assert bound.own == pytest.approx(float((c - flatten(found)).norm() * 5 / 1), rel=1e-6)
        assert float((flatten(found) - c).norm()) <= bound.own
    record = run(made.stages[0], made.start, made.hparams, tail=0)
    certificate = certify(made.outer, made.stages[0], record, made.hparams)
    assert isinstance(certificate, Certificate) and certificate.arrives(Unroll(last=5)) is None  # nothing was recorded


def test_coupled_decay_belongs_to_the_system() -> None:
    made, h, c = quadratic(Momentum(lr=0.1, momentum=0.5, weight_decay=0.7), 40)
    found, bound, certificate = solved(made, Implicit(CG(steps=20, rtol=1e-13)))
    n = len(c)
    exact = h @ torch.linalg.solve(h + 0.7 * torch.eye(n, dtype=c.dtype), c)
    assert certificate.mu == pytest.approx(1.7, rel=1e-9)
    assert float((flatten(found) - exact).norm()) <= bound.total <= 1e-9
    assert bound.rigorous
    truncated = solved(made, Unroll(last=5))
    assert float((flatten(truncated[0]) - exact).norm()) <= truncated[1].total


def test_frozen_leaves_are_no_unknowns() -> None:
    made = PROBLEMS["biased_regression"].make(cond=5.0, split=True, steps=10)
    (stage,) = made.stages
    stage = replace(stage, frozen=frozenset({"w0"}))
    record = run(stage, made.start, made.hparams)
    answer = hypergradient(made.outer, [stage], [Implicit(CG(steps=3))], [record], made.hparams)
    found = error_bound(made.outer, stage, record, made.hparams, answer)
    assert isinstance(found, ErrorBound)
    d = dense(replace(made, stages=[stage]), made.hparams)
    free = len(record.end.params["w0"])
    h, m = d.h[free:, free:], d.m[free:]
    theta = {k: x.clone().requires_grad_() for k, x in record.end.params.items()}
    grad = torch.autograd.grad(stage.objective(0)(theta, made.hparams), theta["w1"])[0]
    best = {**record.end.params, "w1": record.end.params["w1"] - torch.linalg.solve(h, grad)}
    _, c, direct = gradients(made.outer, best, made.hparams, wrt_params=["w1"], wrt_hparams=made.hparams)
    assert not direct
    exact = -m.T @ torch.linalg.solve(h, c["w1"])
    error = float((flatten(answer.hparams) - exact).norm())
    assert found.rigorous and error <= found.total <= 1.01 * error


def optimum_of(problem: Problem, start: Tree) -> tuple[Tree, Tensor]:
    """(theta*, exact hypergradient) by Newton's method in dense algebra."""
    (stage,) = problem.stages
    n = flatten(start).numel()

    def joint(z: Tensor) -> Tensor:
        return stage.loss(unflatten(z[:n], start), unflatten(z[n:], problem.hparams), stage.stream(0))

    z = torch.cat([flatten(start), flatten(problem.hparams)])
    for _ in range(20):
        full = torch.autograd.functional.hessian(joint, z)
        at = z.clone().requires_grad_()
        slope = torch.autograd.grad(joint(at), at)[0][:n]
        z = torch.cat([z[:n] - torch.linalg.solve(full[:n, :n], slope), z[n:]])
    assert float(slope.norm()) < 1e-13
    full = torch.autograd.functional.hessian(joint, z)
    best = unflatten(z[:n], start)
    _, c, direct = gradients(problem.outer, best, problem.hparams, wrt_params=best, wrt_hparams=problem.hparams)
    like = problem.hparams
    straight = flatten({k: direct.get(k, torch.zeros_like(x)) for k, x in like.items()})
    return best, straight - full[:n, n:].T @ torch.linalg.solve(full[:n, :n], flatten(c))


@pytest.mark.parametrize("steps", [20, 200])
@pytest.mark.parametrize("name", ["unroll", "truncated", "cg", "neumann", "sama-na"])
def test_it_holds_where_nothing_is_quadratic(name: str, steps: int) -> None:
    made = toy(SGD(lr=0.2), steps=steps)
    stage = replace(made.stages[0], stream=lambda t: torch.arange(10))
    made = replace(made, stages=[stage])
    found, bound, _ = solved(made, ESTIMATORS[name])
    _, exact = optimum_of(made, run(stage, made.start, made.hparams, tail=0).end.params)
    error = float((flatten(found) - exact).norm())
    assert error <= bound.total <= 1.05 * error + 1e-8
    assert bound.rigorous


def test_batches_are_averaged_as_in_implicit() -> None:
    made = toy(SGD(lr=0.1), steps=60)  # batches change by step
    (stage,) = made.stages
    record = run(stage, made.start, made.hparams)
    estimator = Implicit(CG(steps=60, rtol=1e-12), batches=6)
    answer = hypergradient(made.outer, made.stages, [estimator], [record], made.hparams)
    found = certify(made.outer, stage, record, made.hparams, batches=6)
    assert isinstance(found, Certificate)
    assert norm(sub(answer.hparams, found.end)) <= 1e-9 * norm(found.end)


@pytest.mark.parametrize("other", [{"batches": 5}, {"product": CentralDifference(alpha=1.0)}, {"adapt": True}])
def test_the_residual_of_another_system_is_not_taken(other: dict[str, Any]) -> None:
    """It says that the solve is exact, which it is for its own system."""
    made = toy(SGD(lr=0.1), steps=60)
    found, bound, certificate = solved(made, Implicit(CG(steps=60, rtol=1e-12), **({"batches": 6} | other)), batches=6)
    assert bound.own is None
    distance = norm(sub(found, certificate.end))
    assert bound.solve >= distance
    if "adapt" not in other:
        assert distance > 1e-3 * norm(certificate.end)


def test_float32_knows_its_rounding() -> None:
    for seed in range(4):
        made = PROBLEMS["biased_regression"].make(cond=30.0, seed=seed, dtype=torch.float32, tolerance=1e-4)
        found, bound, _ = solved(made, Implicit(CG(steps=30)))
        true = truth(made)
        error = norm(sub({k: x.double() for k, x in found.items()}, true))
        assert error <= bound.total <= 0.05 * norm(true)


def indefinite(params: Tree, hparams: Tree, batch: None) -> Tensor:
    w = params["w"]
    return w[0] ** 2 - 0.5 * w[1] ** 2 + (hparams["lam"] * w).sum()


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (Stage(indefinite, SGD(lr=0.1), lambda t: None, 3), "curvature -1"),
        (Stage(lambda p, h, b: (p["w"] - h["lam"]).square().sum(), AdamW(lr=0.1, weight_decay=0.1), lambda t: None, 3), "AdamW"),
        (Stage(lambda p, h, b: p["w"].square().sum(), lambda h: SGD(lr=h["lam"].sum()), lambda t: None, 3), "sit in the rule"),
        (Stage(lambda p, h, b: (p["w"] - h["lam"])[0].square(), SGD(lr=0.1), lambda t: None, 3), "curvature"),
    ],
)  # fmt: skip
def test_there_is_none_without_a_strict_minimum(stage: Stage, words: str) -> None:
    start, lam = {"w": torch.tensor([1.0, 2.0]).double()}, {"lam": torch.tensor([0.1, 0.05]).double()}
    record = run(stage, start, lam)
    found = certify(lambda p, h: p["w"].sum(), stage, record, lam)
    assert isinstance(found, NoBound) and words in found.reason


def test_rows_carry_it_and_say_why_not() -> None:
    effort = Effort(budget=0.0, least=1, most=1)
    for dtype in (torch.float64, torch.float32):
        made = PROBLEMS["log_ridge"].make(dtype=dtype, tolerance=1e-4)
        for name in ("cg", "unroll-truncated", "sama"):
            entry = registry[name]
            row = measure(Instance(made), per_stage(entry.estimator, 1), entry.claim, effort)
            found = row["error_bound"]
            assert row["accuracy"]["relative_error"] <= found["relative"], (dtype, name)
            assert found["relative"] <= 1.01 * row["accuracy"]["relative_error"] + 1e-6
            assert found["rigorous"] and found["products"] <= 7 * 30
    for problem, words in (
        ("noisy_quadratic", "in the rule"),
        ("digits_label_noise", "of the run"),
        ("two_stage_quadratic", "stages"),
    ):
        instance = Instance(PROBLEMS[problem].make(steps=3) if "two" not in problem else PROBLEMS[problem].make())
        row = measure(instance, per_stage("unroll", len(instance.problem.stages)), registry["unroll"].claim, effort)
        assert words in row["error_bound"]["reason"]


def test_the_example_in_the_docs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "error_bound.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)
    exec(compile(example, "error_bound.md", "exec"), {})
    assert capsys.readouterr().out.count("ErrorBound(") == 2
    assert {f.name for f in fields(ErrorBound)} <= set(re.findall(r"`([a-z_]+)`", text)) | {"mu"}


def test_lanczos_is_the_dense_eigenproblem() -> None:
    h = quadratic(SGD(lr=0.1), 1)[1]
    space = lanczos(lambda v: h @ v, random_start(6, 0, h), 10)
    assert space.exhausted and space.doubt == 0
    assert torch.allclose(space.ritz[0], torch.linalg.eigvalsh(h), rtol=1e-12)
    b = torch.arange(1.0, 7.0).double()
    found = lanczos(lambda v: h @ v, b, 3).solve()
    assert found is not None
    x, residual = found
    assert residual == pytest.approx(float((b - h @ x).norm()), rel=1e-9)


def test_a_ritz_value_is_off_by_its_residual_and_doubt_is_the_theorem() -> None:
    n, k = 50, 7
    h = torch.diag(torch.linspace(1, 30, n, dtype=torch.float64))
    space = lanczos(lambda v: h @ v, random_start(n, 0, h), k)
    values, vectors = space.ritz
    ends = []
    for i in (0, -1):
        x = vectors[:, i] @ space.basis
        ends.append(float((h @ x - values[i] * x).norm()))
    assert float(values[0]) - space.lowest == pytest.approx(ends[0], rel=1e-9)
    assert space.highest - float(values[-1]) == pytest.approx(ends[1], rel=1e-9)
    flat = lanczos(lambda v: 100 * v + h @ v, random_start(n, 0, h), k)
    room, spread = float(flat.ritz[0][0]) - flat.lowest / 2, float(flat.ritz[0][-1] - flat.ritz[0][0])
    eps = (math.log(2 * 1.648 * n**0.5 / flat.doubt) / (2 * k - 1)) ** 2
    assert 0 < flat.doubt < 0.1
    assert eps * spread / (1 - 2 * eps) == pytest.approx(room, rel=1e-9)  # 2 eps of the true spread are missing


def test_doubt_is_no_smaller_than_the_share_of_failures() -> None:
    """A curvature that few starts show: 1 among many of 100, in 400 dimensions."""
    n, k = 400, 8
    spectrum = torch.full((n,), 100.0, dtype=torch.float64) + torch.linspace(0, 50, n, dtype=torch.float64)
    spectrum[0] = 10.0
    spaces = [lanczos(lambda v: spectrum * v, random_start(n, seed, spectrum), k) for seed in range(300)]
    failures = sum(s.lowest / 2 > 10.0 for s in spaces) / len(spaces)
    assert failures <= sum(s.doubt for s in spaces) / len(spaces)
    tops = [lanczos(lambda v: (160 - spectrum) * v, random_start(n, seed, spectrum), k).top for seed in range(300)]
    assert sum(t < 150.0 for t in tops) <= 0.02 * len(tops)


def test_a_subclass_with_another_update_has_no_residual_polynomial() -> None:
    class Sign(SGD):
        def update(self, grad: Tensor, slots: Tree, t: int, param: Tensor) -> tuple[Tensor, Tree]:
            return -self.lr * grad.sign(), {}

    assert linear_rule(SGD(lr=0.1))
    assert not linear_rule(Sign(lr=0.1))
