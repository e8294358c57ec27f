"""Every closed form against finite differences of a training loop in NumPy that shares no code with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from benchmarks.problems import PROBLEMS, reference, truth
from benchmarks.problems.digits_reweighting import make as make_digits
from benchmarks.problems.digits_tasks import accuracy, split
from estimators import (
    SAMA,
    T1T2,
    Dense,
    Estimator,
    Implicit,
    Problem,
    Solver,
    Unroll,
    estimate,
    registry,
    reverse_over_forward,
    run,
)
from estimators.tree import Tree, flatten, sub, unflatten

Array = np.ndarray
Values = dict[str, Array]


def start_of(problem: Problem) -> Tree:
    assert isinstance(problem.start, dict)
    return problem.start


def relative(a: Tree, b: Tree) -> float:
    return float(flatten(sub(a, b)).norm() / flatten(b).norm())


def cosine(a: Tree, b: Tree) -> float:
    x, y = flatten(a), flatten(b)
    return float(x @ y / (x.norm() * y.norm()))


# --- the training once more, in NumPy -------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def descend(gradient: Callable[[Array], Array], w: Array, lr: float, momentum: float, steps: int) -> Array:
    """Heavy ball in its two-point form: w + momentum (w - previous) - lr g."""
    previous = w
    for _ in range(steps):
        w, previous = w + momentum * (w - previous) - lr * gradient(w), w
    return w


def ridge(x: Array, y: Array, weights: Array, penalty: Array, towards: Array | float = 0.0) -> Array:
    """argmin sum_i weights_i (x_i w - y_i)^2 + sum_j penalty_j (w_j - towards)^2, by least squares on stacked rows."""
    left, right = np.sqrt(weights), np.sqrt(penalty)
    side = np.multiply.outer(right, np.zeros(y.shape[1:])) if y.ndim > 1 else right * towards
    stacked = np.concatenate([left[:, None] * x, np.diag(right)])
    return np.linalg.lstsq(stacked, np.concatenate([(left * y.T).T, side]), rcond=None)[0]


def batch(problem: Problem, stage: int) -> tuple[Array, Array]:
    x, y = problem.stages[stage].stream(0)
    return x.numpy(), y.numpy()


def train(problem: Problem, h: Values, converged: bool) -> Values:
    """Parameters at the end: of the steps that are run, or (pre-training or only stage) at the inner optimum."""
    s: Any = problem.settings
    if problem.name == "noisy_quadratic":
        return noisy(problem, h)
    x, y = batch(problem, 0)
    ones, zeros = np.ones(len(x)), np.zeros(x.shape[1])
    if problem.name == "one_step_rule":
        w, b = start_of(problem)["w"].numpy(), np.zeros(len(y))
        for _ in range(s["steps"]):
            b = sigmoid(h["raw_momentum"]) * b + x @ w - y if "raw_momentum" in h else x @ w - y
            w = w - s["base"] * np.exp(h["log_lr"]) * b
        return {"w": w}
    penalty, weights, towards = np.full(x.shape[1], s.get("beta", 0.0)), ones, zeros
    if problem.name == "biased_regression":
        towards = np.concatenate([h["lam0"], h["lam1"]]) if s["split"] else h["lam"]
    elif problem.name == "weighted_ridge":
        weights = sigmoid(h["lam"]) if s["weights"] == "sigmoid" else softmax(h["lam"])
    elif problem.name == "log_ridge":
        penalty = np.exp(h["phi"])
    else:
        weights = 2 * sigmoid(h["phi"])
    if converged:
        w = ridge(x, y, weights, penalty, towards)
    else:

        def gradient(w: Array) -> Array:
            shrunk = (penalty * (w.T - towards)).T
            return 2 * x.T @ (weights * (x @ w - y).T).T + 2 * shrunk

        start = np.zeros((x.shape[1], *y.shape[1:]))
        w = descend(gradient, start, s["lr"], s["momentum"], s["steps"])
    if problem.name == "biased_regression" and s["split"]:
        half = len(w) // 2
        return {"w0": w[:half], "w1": w[half:]}
    if len(problem.stages) == 1:
        return {"w": w}
    z, u = batch(problem, 1)
    if problem.name == "two_stage_quadratic":
        return {"theta": descend(lambda t: 2 * z.T @ (z @ t - u), w, s["lr_tune"], 0.0, s["k"])}
    head, f = start_of(problem)["head"].numpy(), z @ w
    return {"body": w, "head": descend(lambda t: 2 * f.T @ (f @ t - u), head, s["lr_tune"], 0.0, s["k"])}


def noisy(problem: Problem, h: Values) -> Values:
    """The noisy quadratic, its optimizers written out again."""
    s: Any = problem.settings
    w, m, v = start_of(problem)["w"].numpy(), np.zeros(s["dim"]), np.zeros(s["dim"])
    lr, beta = s["base"] * np.exp(h["log_lr"]), sigmoid(h["raw_momentum"])
    for t in range(s["steps"]):
        (centre,) = problem.stages[0].stream(t)
        g = (w - centre.numpy()) / np.arange(1, s["dim"] + 1) ** s["decay"]
        if s["rule"] == "momentum":
            m = beta * m + g
            w = w - lr * m
        elif s["rule"] == "averaged":
            m = beta * m + (1 - beta) * g if t else g
            w = w - lr * m
        else:
            m, v = beta * m + (1 - beta) * g, s["beta2"] * v + (1 - s["beta2"]) * g**2
            first, second = m / (1 - beta ** (t + 1)), v / (1 - s["beta2"] ** (t + 1))
            w = w - lr * first / (np.sqrt(second) + s["eps"])
    return {"w": w}


def outer_value(problem: Problem, hparams: Tree, converged: bool) -> float:
    end = train(problem, {k: v.numpy() for k, v in hparams.items()}, converged)
    return float(problem.outer({k: torch.from_numpy(np.asarray(v)) for k, v in end.items()}, hparams))


def directional_errors(value: Callable[[Tree], float], at: Tree, gradient: Tree, step: float = 1e-4) -> list[float]:
    """|<g, d> - fourth-order central difference along d|, relative to ||g|| ||d||, for three random d."""
    flat, g, errors = flatten(at), flatten(gradient), []
    for _ in range(3):
        d = torch.randn_like(flat)
        f = {c: value(unflatten(flat + c * step * d, at)) for c in (-2, -1, 1, 2)}
        slope = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * step)
        errors.append(abs(slope - float(g @ d)) / float(g.norm() * d.norm()))
    return errors


class Case(NamedTuple):
    name: str
    settings: dict[str, Any]


CLOSED = [
    Case("biased_regression", {}),
    Case("biased_regression", {"rule": "sgd", "split": True, "dim": 5}),
    Case("biased_regression", {"spectrum": [0.1, 0.3, 0.3, 4.0], "steps": 7, "seed": 1}),
    Case("weighted_ridge", {}),
    Case("weighted_ridge", {"weights": "softmax", "seed": 1}),
    Case("weighted_ridge", {"rule": "sgd", "steps": 4, "n_train": 9}),
    Case("log_ridge", {}),
    Case("log_ridge", {"rule": "sgd", "steps": 5, "seed": 2}),
    Case("two_stage_quadratic", {}),
    Case("two_stage_quadratic", {"k": 0, "rule": "sgd", "steps": 6}),
    Case("two_stage_quadratic", {"k": 3, "steps": 2, "seed": 1}),
    Case("two_stage_head_only", {}),
    Case("two_stage_head_only", {"k": 2, "steps": 3, "seed": 1, "features": 4}),
    Case("two_stage_quadratic", {"head_only": True, "k": 1}),
    Case("one_step_rule", {}),
    Case("one_step_rule", {"steps": 1}),
    Case("one_step_rule", {"steps": 20, "seed": 1, "cond": 100.0}),
    Case("noisy_quadratic", {}),
    Case("noisy_quadratic", {"rule": "averaged", "steps": 9, "momentum": 0.4}),
    Case("noisy_quadratic", {"rule": "adam", "steps": 12, "momentum": 0.7}),
    Case("noisy_quadratic", {"steps": 2, "seed": 1, "noise": 0.0, "decay": 0.5}),
]
IDS = [f"{c.name}-{i}" for i, c in enumerate(CLOSED)]
each_closed_form = pytest.mark.parametrize("case", CLOSED, ids=IDS)


def build(case: Case) -> Problem:
    return PROBLEMS[case.name].make(**case.settings)


def converged(problem: Problem) -> bool:
    """Whether `exact` and `exact_run` should agree: the run was as long as the tolerance asks."""
    return problem.settings.get("bound", 1.0) <= problem.settings.get("tolerance", 0.0)


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_every_closed_form_is_looked_at() -> None:
    assert {c.name for c in CLOSED} == {name for name, entry in PROBLEMS.items() if entry.make().exact is not None}


@each_closed_form
def test_exact_is_the_derivative_of_the_optimum(case: Case) -> None:
    problem = build(case)
    assert problem.exact is not None
    g = problem.exact(problem.hparams)
    assert max(directional_errors(lambda h: outer_value(problem, h, True), problem.hparams, g)) < 1e-7


@each_closed_form
def test_exact_run_is_the_derivative_of_the_run(case: Case) -> None:
    problem = build(case)
    assert problem.exact_run is not None
    g = problem.exact_run(problem.hparams)
    assert max(directional_errors(lambda h: outer_value(problem, h, False), problem.hparams, g)) < 1e-7


@each_closed_form
def test_closed_forms_hold_away_from_the_problem_s_own_hyperparameters(case: Case) -> None:
    problem = build(case)
    away = {k: v + 0.3 * torch.randn_like(v) for k, v in problem.hparams.items()}
    assert problem.exact is not None
    assert problem.exact_run is not None
    for answer, end in ((problem.exact, True), (problem.exact_run, False)):
        assert max(directional_errors(partial(outer_value, problem, converged=end), away, answer(away))) < 1e-7


@each_closed_form
def test_unroll_and_dense_agree_with_the_closed_forms(case: Case) -> None:
    problem = build(case)
    assert problem.exact is not None
    assert problem.exact_run is not None
    assert relative(estimate(problem, Unroll()).hparams, problem.exact_run(problem.hparams)) < 1e-10
    if not any(s.rule_reads_hparams for s in problem.stages) and converged(problem):
        chosen: list[Estimator | Solver | str] = [Implicit(Dense()), Unroll()]
        chosen = chosen[: len(problem.stages)]
        assert relative(estimate(problem, chosen).hparams, problem.exact(problem.hparams)) < 1e-8


@each_closed_form
def test_closed_forms_use_no_autograd_and_no_estimator(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = build(case)
    calls: list[str] = []
    for name in ("grad", "backward"):
        monkeypatch.setattr(torch.autograd, name, lambda *a, name=name, **k: calls.append(name))
    for part in ("loss", "stream"):
        for stage in problem.stages:
            object.__setattr__(stage, part, lambda *a, part=part: calls.append(part))
    assert problem.exact is not None
    assert problem.exact_run is not None
    tracked = {k: v.clone().requires_grad_() for k, v in problem.hparams.items()}
    answers = [*problem.exact(tracked).values(), *problem.exact_run(tracked).values()]
    assert calls == []
    assert not any(x.requires_grad for x in answers)


@each_closed_form
def test_the_default_run_is_as_near_as_its_bound_says(case: Case) -> None:
    problem = build(case)
    if "bound" not in problem.settings:
        assert problem.name in ("one_step_rule", "noisy_quadratic")
        return
    assert problem.exact is not None
    assert problem.exact_run is not None
    error = relative(problem.exact_run(problem.hparams), problem.exact(problem.hparams))
    if problem.name != "two_stage_head_only" or converged(problem):  # its figure bounds the body, not the hypergradient
        assert error <= problem.settings["bound"] + 1e-11
    assert not converged(problem) or error < 1e-9


@pytest.mark.parametrize("name", ["biased_regression", "weighted_ridge", "log_ridge", "two_stage_quadratic"])
@pytest.mark.parametrize("rule", ["momentum", "sgd"])
def test_the_bound_holds_for_every_number_of_steps(name: str, rule: str) -> None:
    for steps in (1, 2, 5, 10, 20, 40, 80):
        problem = PROBLEMS[name].make(rule=rule, steps=steps)
        assert problem.exact is not None
        assert problem.exact_run is not None
        error = relative(problem.exact_run(problem.hparams), problem.exact(problem.hparams))
        assert error <= problem.settings["bound"] + 1e-11


@pytest.mark.parametrize("cond", [1.0, 2.0, 10.0, 100.0, 1e3, 1e4])
def test_heavy_ball_reaches_the_optimum_in_the_fewest_steps_that_theory_gives(cond: float) -> None:
    problem = PROBLEMS["biased_regression"].make(cond=cond)
    s = problem.settings
    assert problem.exact is not None
    assert problem.exact_run is not None
    assert relative(problem.exact_run(problem.hparams), problem.exact(problem.hparams)) < 1e-9
    assert s["bound"] < 1e-10
    if s["steps"] > 1:
        assert PROBLEMS["biased_regression"].make(cond=cond, steps=s["steps"] - 1).settings["bound"] >= 1e-10
    assert s["rho"] == pytest.approx((cond**0.5 - 1) / (cond**0.5 + 1))


# --- biased regression ----------------------------------------------------------------------------------------------


def dense_hessian(problem: Problem) -> torch.Tensor:
    start = start_of(problem)
    objective = problem.stages[0].objective(0)
    return torch.autograd.functional.hessian(
        lambda w: objective(unflatten(w, start), problem.hparams), flatten(start)
    )  # fmt: skip


@pytest.mark.parametrize("cond", [1.0, 7.0, 1e4])
def test_the_condition_number_is_as_prescribed(cond: float) -> None:
    problem = PROBLEMS["biased_regression"].make(cond=cond, seed=3, dim=6)
    found = torch.linalg.eigvalsh(dense_hessian(problem)) / 2
    wanted = torch.tensor(problem.settings["spectrum"], dtype=torch.float64).flip(0)
    assert float((found / wanted - 1).abs().max()) < 1e-10
    assert float(found[-1] / found[0]) == pytest.approx(cond, rel=1e-10)
    ratios = wanted[1:] / wanted[:-1]
    assert torch.allclose(ratios, ratios[:1].expand_as(ratios), rtol=1e-12)


def test_the_spectrum_is_as_prescribed() -> None:
    spectrum = [3.0, 0.1, 0.5, 0.5]
    found = torch.linalg.eigvalsh(dense_hessian(PROBLEMS["biased_regression"].make(spectrum=spectrum))) / 2
    assert float((found - torch.tensor(sorted(spectrum), dtype=torch.float64)).abs().max()) < 1e-10


@pytest.mark.parametrize("name", [n for n, e in PROBLEMS.items() if e.make().hessian is not None])
def test_hessian_agrees_with_autograd(name: str) -> None:
    problem = PROBLEMS[name].make(seed=1)
    assert problem.hessian is not None
    assert torch.allclose(problem.hessian(start_of(problem)), dense_hessian(problem), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"cond": 1e4}, {"n_valid": 4}, {"split": True}])
def test_lambda_star_is_a_zero_of_the_hypergradient_and_a_minimum(settings: dict[str, Any]) -> None:
    problem = PROBLEMS["biased_regression"].make(**settings)
    best = problem.optimum
    assert best is not None
    assert problem.exact is not None
    scale = flatten(problem.exact(problem.hparams)).norm()
    assert float(flatten(problem.exact(best)).norm() / scale) < 1e-9
    lowest = outer_value(problem, best, True)
    for _ in range(5):
        moved = {k: v + 0.1 * torch.randn_like(v) for k, v in best.items()}
        assert outer_value(problem, moved, True) >= lowest - 1e-9


def test_split_changes_the_leaves_and_nothing_else() -> None:
    whole, parts = (PROBLEMS["biased_regression"].make(dim=5, split=split) for split in (False, True))
    assert list(start_of(parts)) == ["w0", "w1"]
    assert whole.exact is not None
    assert parts.exact is not None
    assert torch.equal(flatten(whole.hparams), flatten(parts.hparams))
    assert torch.equal(flatten(whole.exact(whole.hparams)), flatten(parts.exact(parts.hparams)))
    a, b = estimate(whole, T1T2()).hparams, estimate(parts, T1T2()).hparams
    assert torch.allclose(flatten(a), flatten(b), rtol=1e-12)


def test_identity_bias_shows_in_weighted_ridge_and_not_in_biased_regression() -> None:
    """Where the true gradient vanishes the identity approximation does too in one, and not in the other."""
    identity = SAMA(adapt=False, product=reverse_over_forward)
    biased = PROBLEMS["biased_regression"].make(cond=30.0)
    at_start = flatten(estimate(biased, identity).hparams).norm()
    assert float(flatten(estimate(biased, identity, biased.optimum).hparams).norm() / at_start) < 1e-7
    ridge_problem = PROBLEMS["weighted_ridge"].make()
    assert ridge_problem.exact is not None
    assert cosine(estimate(ridge_problem, identity).hparams, ridge_problem.exact(ridge_problem.hparams)) < 0.95


# --- all problems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_says_what_it_is(name: str) -> None:
    entry = PROBLEMS[name]
    problem = entry.make()
    assert problem.name == name
    assert problem.about == entry.about
    assert entry.citation in entry.about
    assert "\n" not in entry.about
    assert json.loads(json.dumps(dict(problem.settings), allow_nan=False)) == problem.settings
    assert problem.settings["steps"] == problem.stages[0].steps


def test_some_problem_has_several_leaves_on_each_side() -> None:
    several = [p.name for p in (e.make() for e in PROBLEMS.values()) if len(start_of(p)) > 1 and len(p.hparams) > 1]
    assert {"digits_mwn", "digits_wide"} <= set(several)


def parts(batch: Any) -> list[torch.Tensor]:
    return list(batch.values() if isinstance(batch, dict) else batch)


def fingerprint(problem: Problem) -> list[torch.Tensor]:
    batches = [x for s in problem.stages for t in (0, 1, 5) for x in parts(s.stream(t))]
    return [*batches, *start_of(problem).values(), *problem.hparams.values()]


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_seed_fixes_the_problem_and_another_changes_it(name: str) -> None:
    make = PROBLEMS[name].make
    before = torch.get_rng_state()
    first, again, other = make(seed=4), make(seed=4), make(seed=5)
    for a, b in zip(fingerprint(first), fingerprint(again), strict=True):
        assert torch.equal(a, b)
    assert sum(not torch.equal(a, b) for a, b in zip(fingerprint(first), fingerprint(other), strict=True)) >= 3
    assert torch.equal(torch.get_rng_state(), before), "the global generator was drawn from"


@pytest.mark.parametrize("name", PROBLEMS)
def test_streams_are_pure_functions_of_the_step(name: str) -> None:
    problem = PROBLEMS[name].make()
    for stage in problem.stages:
        first = [stage.stream(t) for t in (0, 3, 7)]
        torch.rand(3)
        for t, drawn in zip((7, 3, 0), reversed(first), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(parts(stage.stream(t)), parts(drawn), strict=True))


@pytest.mark.parametrize("name", PROBLEMS)
def test_float32_problems_answer_in_float32_and_have_a_float64_truth(name: str) -> None:
    small: dict[str, Any] = {"steps": 5, "n_train": 40} if name.startswith("digits") else {}
    problem = PROBLEMS[name].make(dtype=torch.float32, **small)
    assert all(x.dtype == torch.float32 for x in fingerprint(problem) if x.is_floating_point())
    right = truth(problem)
    assert all(x.dtype == torch.float64 for x in right.values())
    found = estimate(problem, Unroll()).hparams
    assert relative({k: v.double() for k, v in found.items()}, right) < 1e-3
    if problem.exact is not None:
        answer = problem.exact(problem.hparams)
        assert all(answer[k].dtype == torch.float32 and answer[k].shape == v.shape for k, v in problem.hparams.items())
        assert relative({k: v.double() for k, v in answer.items()}, right) < 1e-6


@pytest.mark.parametrize("rule", ["lamb", "adafactor"])
def test_the_noisy_quadratic_s_other_rules_agree_with_differences(rule: str) -> None:
    problem = PROBLEMS["noisy_quadratic"].make(rule=rule, steps=8)
    assert problem.exact is None
    found = estimate(problem, Unroll()).hparams
    assert relative(estimate(problem, "finite-difference").hparams, found) < 1e-7
    assert bool(found["raw_momentum"] != 0)


def test_the_noise_of_the_noisy_quadratic_is_as_described() -> None:
    problem = PROBLEMS["noisy_quadratic"].make(dim=5, noise=2.0)
    (stage,) = problem.stages
    w = torch.tensor([1.0, -1.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    h = 1 / torch.arange(1, 6, dtype=torch.float64)
    centres = torch.stack([stage.stream(t)[0] for t in range(4000)])
    gradients = h * (w - centres)
    torch.testing.assert_close(gradients.mean(0), h * w, rtol=0, atol=0.1)
    torch.testing.assert_close(gradients.var(0), 2.0 * h, rtol=0.1, atol=0)
    losses = torch.stack([stage.loss({"w": w}, problem.hparams, (c,)) for c in centres])
    assert float(losses.mean()) == pytest.approx(float(problem.outer({"w": w}, problem.hparams)), rel=0.05)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("noisy_quadratic", {"rule": "sgd"}, "momentum, averaged, adam, lamb, adafactor"),
    ("noisy_quadratic", {"steps": 1}, "steps=1"),
    ("noisy_quadratic", {"noise": -1.0}, "noise=-1.0"),
    ("noisy_quadratic", {"momentum": 1.0}, "momentum=1.0"),
    ("noisy_quadratic", {"base": 0.0}, "base=0.0"),
    ("biased_regression", {"spectrum": [1.0, 0.05]}, "at least beta"),
    ("biased_regression", {"spectrum": []}, "at least one eigenvalue"),
    ("biased_regression", {"cond": 0.5}, "cond=0.5"),
    ("biased_regression", {"dim": 1}, "one eigenvalue has condition number 1"),
    ("biased_regression", {"n_train": 3}, "n_train=3"),
    ("biased_regression", {"rule": "adam"}, "momentum, sgd"),
    ("biased_regression", {"beta": 0.0}, "beta=0.0"),
    ("biased_regression", {"tolerance": 0.0}, "tolerance=0.0"),
    ("biased_regression", {"steps": -1}, "steps=-1"),
    ("biased_regression", {"spectrum": [1.0], "split": True}, "dim of at least 2"),
    ("weighted_ridge", {"weights": "relu"}, "sigmoid, softmax"),
    ("weighted_ridge", {"beta": -1.0}, "beta=-1.0"),
    ("weighted_ridge", {"dim": 0}, "dim=0"),
    ("log_ridge", {"reach": 0.0}, "reach=0.0"),
    ("two_stage_quadratic", {"k": -1}, "k=-1"),
    ("two_stage_head_only", {"features": 0}, "features=0"),
    ("one_step_rule", {"steps": 0}, "steps=0"),
    ("one_step_rule", {"base": 2.5}, "base=2.5"),
    ("digits_label_noise", {"steps": 1}, "steps=1"),
    ("digits_label_noise", {"rule": "sgd"}, "momentum, averaged, adam, lamb, adafactor"),
    ("digits_label_noise", {"noise": 1.5}, "noise=1.5"),
    ("digits_wide", {"noise": 1.5}, "noise=1.5"),
    ("digits_wide", {"detach": True}, "only the weights of space='mwn'"),
    ("digits_wide", {"n_train": 1700}, "at most 1787 together"),
    ("digits_mwn", {"space": "narrow"}, "mwn, wide, example"),
    ("digits_mwn", {"weight_hidden": 0}, "weight_hidden=0"),
    ("digits_mwn", {"lr": 0.0}, "lr=0.0"),
    ("digits_tasks", {"head": "none"}, "same, ridge, steps"),
    ("digits_tasks", {"rule": "lion"}, "sgd, adam"),
    ("digits_tasks", {"n_aux": 800}, "at most 896 together"),
    ("digits_tasks", {"n_aux": 895, "auxiliary": "other"}, "n_aux=895: at most 891"),
    ("digits_tasks", {"n_train": 700, "auxiliary": "other"}, "at most 896 together, n_aux apart"),
    ("digits_tasks", {"auxiliary": "none"}, "renamed, other"),
    ("digits_tasks", {"head_penalty": 0.0}, "head_penalty=0.0"),
    ("digits_tasks", {"l2": -1.0}, "l2=-1.0"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD)
def test_bad_settings_are_refused_with_the_reason(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        PROBLEMS[name].make(**settings)


def test_a_reference_cannot_start_from_a_state() -> None:
    problem = PROBLEMS["log_ridge"].make()
    start = problem.stages[0].initial(start_of(problem), problem.hparams)
    object.__setattr__(problem, "start", start)
    with pytest.raises(ValueError, match="starts from a State"):
        reference(problem)


@pytest.mark.parametrize("name", ["biased_regression", "two_stage_head_only", "one_step_rule"])
def test_the_reference_is_the_derivative_of_the_run(name: str) -> None:
    problem = PROBLEMS[name].make()
    assert problem.exact_run is not None
    assert relative(reference(problem), problem.exact_run(problem.hparams)) < 1e-10


# --- digits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["mwn", "wide", "example"])
def test_the_digits_reference_is_the_derivative_of_training_with_torch_s_own_adam(space: str) -> None:
    problem = make_digits(space=space, steps=15, n_train=60, n_valid=40, batch=20, hidden=8)
    s = problem.settings
    start = start_of(problem)

    def net(p: Tree, name: str, x: torch.Tensor) -> torch.Tensor:
        x = x @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"]
        x = x.tanh() if name == "classifier" else x.relu()
        return x @ p[f"{name}.2.weight"].T + p[f"{name}.2.bias"]

    def value(h: Tree) -> float:
        theta = {k: v.clone().requires_grad_() for k, v in start.items()}
        optimizer = torch.optim.Adam(theta.values(), lr=s["lr"], weight_decay=s["l2"])
        for t in range(s["steps"]):
            x, y, index = problem.stages[0].stream(t)
            each = cross_entropy(net(theta, "classifier", x), y, reduction="none")
            if space == "example":
                w = h["logits"][index].sigmoid()
            elif space == "mwn":
                w = net(h, "weight", each[:, None])[:, 0].sigmoid()
            else:
                w = net(h, "weight", torch.cat([x, torch.eye(10, dtype=x.dtype)[y]], 1))[:, 0].sigmoid()
            optimizer.zero_grad()
            (w * each).mean().backward()
            optimizer.step()
        return float(problem.outer({k: v.detach() for k, v in theta.items()}, h))

    # a smaller step than above: the ReLUs of the weight nets have kinks
    assert max(directional_errors(value, problem.hparams, reference(problem), step=1e-6)) < 1e-5


@pytest.mark.parametrize("rule", ["momentum", "averaged", "adam"])
def test_digits_with_label_noise_are_trained_as_torch_would(rule: str) -> None:
    """Central differences over torch's own module and optimizer, on the problem's batches."""
    problem = PROBLEMS["digits_label_noise"].make(rule=rule, steps=10, hidden=6, momentum=0.7)
    (stage,), s, start = problem.stages, problem.settings, start_of(problem)

    def value(log_lr: float, raw_momentum: float) -> float:
        lr, beta = s["base"] * np.exp(log_lr), float(sigmoid(np.asarray(raw_momentum)))
        net = torch.nn.Sequential(torch.nn.Linear(64, 6), torch.nn.Tanh(), torch.nn.Linear(6, 10)).double()
        net.load_state_dict({k.removeprefix("classifier."): x for k, x in start.items()})
        optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(net.parameters(), lr=lr, betas=(beta, 0.99))
            if rule == "adam"
            else torch.optim.SGD(net.parameters(), lr=lr, momentum=beta, dampening=beta if rule == "averaged" else 0)
        )
        for t in range(s["steps"]):
            x, y, _ = stage.stream(t)
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        end = {f"classifier.{k}": v.detach() for k, v in net.named_parameters()}
        return float(problem.outer(end, problem.hparams))

    at, h = [float(x) for x in problem.hparams.values()], 1e-5
    slopes = [
        (value(at[0] + h, at[1]) - value(at[0] - h, at[1])) / (2 * h),
        (value(at[0], at[1] + h) - value(at[0], at[1] - h)) / (2 * h),
    ]
    found = estimate(problem, Unroll()).hparams
    assert [float(x) for x in found.values()] == pytest.approx(slopes, rel=1e-6)


def test_digits_are_split_evenly_and_their_noise_is_as_asked() -> None:
    clean, noisy, all_redrawn = (
        make_digits(noise=noise, n_train=500, batch=2000, seed=2) for noise in (0.0, 0.4, 1.0)
    )  # fmt: skip
    assert clean.settings["wrong_labels"] == 0
    assert 0.29 < noisy.settings["wrong_labels"] / 500 < 0.43  # 0.4 * 0.9 expected
    assert all_redrawn.settings["wrong_labels"] > 420
    x, y, index = clean.stages[0].stream(0)
    assert float(x.min()) == 0
    assert float(x.max()) == 1
    pixels, labels = load_digits(return_X_y=True)
    known = {(row / 16).tobytes(): label for row, label in zip(pixels, labels, strict=True)}
    assert all(known[a.numpy().tobytes()] == int(b) for a, b in zip(x, y, strict=True))
    seen = {int(i): int(b) for i, b in zip(index, y, strict=True)}
    counts = np.bincount(list(seen.values()), minlength=10) / len(seen)
    assert counts.min() > 0.085
    assert counts.max() < 0.115
    # the clean and the noisy problem differ in labels alone
    assert torch.equal(noisy.stages[0].stream(0)[0], x)


def test_the_outer_spaces_have_the_sizes_that_the_text_gives() -> None:
    sizes = {space: make_digits(space=space).settings["outer_dim"] for space in ("mwn", "wide", "example")}
    assert sizes == {"mwn": 301, "wide": 1217, "example": 500}


def test_the_meta_weight_net_flatters_and_the_wide_space_tells_estimators_apart() -> None:
    """The table of `digits_reweighting`, one seed: energy of the first singular vector, and cosines."""
    names = ["cg", "neumann", "t1t2", "sama-na", "sama-exact"]
    energy, cosines = {}, {}
    for space in ("mwn", "wide"):
        problem = make_digits(space=space)
        right = reference(problem)
        found = [estimate(problem, registry[n].estimator, throw=False).hparams for n in names]
        unit = torch.stack([flatten(g) / flatten(g).norm() for g in [right, *found]])
        energy[space] = float(torch.linalg.matrix_norm(unit, 2) ** 2 / len(unit))
        cosines[space] = [cosine(g, right) for g in found]
    assert energy["mwn"] > 0.99
    assert energy["wide"] < 0.75
    assert min(cosines["mwn"]) > 0.99
    assert max(cosines["wide"]) < 0.8
    assert max(cosines["wide"]) - min(cosines["wide"]) > 0.3


def test_detaching_the_loss_changes_the_problem() -> None:
    kept, cut = (make_digits(space="mwn", detach=detach, steps=10, n_train=60) for detach in (False, True))
    assert relative(reference(cut), reference(kept)) > 1e-2


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_the_tasks_reference_is_the_derivative_of_training_with_torch_s_own_optimizer(rule: str) -> None:
    sizes = {"n_train": 40, "n_valid": 40, "n_aux": 60}
    lr = {"sgd": 0.5, "adam": 1e-2}[rule]
    problem = PROBLEMS["digits_tasks"].make(rule=rule, lr=lr, steps=15, batch=20, hidden=6, seed=2, **sizes)
    examples, start, s = split(seed=2, **sizes), start_of(problem), problem.settings

    def logits(p: Tree, task: str, x: torch.Tensor) -> torch.Tensor:
        return (x @ p["body.weight"].T + p["body.bias"]).tanh() @ p[f"{task}.weight"].T + p[f"{task}.bias"]

    def value(h: Tree) -> float:
        theta = {k: v.clone().requires_grad_() for k, v in start.items()}
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule]
        optimizer: Any = kind(theta.values(), lr=lr, weight_decay=s["l2"])
        alpha = torch.softmax(h["task_logits"], 0)
        for t in range(15):
            drawn = problem.stages[0].stream(t)
            each = []
            for task, (x, y) in examples.train.items():
                each.append(cross_entropy(logits(theta, task, x[drawn[task]]), y[drawn[task]]))
            optimizer.zero_grad()
            (alpha * torch.stack(each)).sum().backward()
            optimizer.step()
        x, y = examples.valid
        with torch.no_grad():
            return float(cross_entropy(logits(theta, "end", x), y))

    away = {"task_logits": torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)}
    assert max(directional_errors(value, away, reference(problem, away))) < 1e-6


@pytest.mark.parametrize("auxiliary", ["renamed", "other"])
def test_the_tasks_examples_are_apart_and_labelled_as_said(auxiliary: str) -> None:
    sizes = {"n_train": 100, "n_valid": 200, "n_aux": 200}
    examples = split(seed=1, auxiliary=auxiliary, **sizes)
    pixels, labels = load_digits(return_X_y=True)
    known = {(row / 16).tobytes(): int(label) for row, label in zip(pixels, labels, strict=True)}

    def names(x: torch.Tensor) -> list[int]:
        return [known[row.numpy().tobytes()] for row in x]

    train = examples.train
    own = [train["end"], examples.valid, examples.test]
    for x, y in own:
        assert names(x) == y.tolist()
    x, y = train["useful"]
    assert [(n + 2) % 5 for n in names(x)] == y.tolist()
    assert min(names(x)) == (0 if auxiliary == "renamed" else 5)
    everything = [row.numpy().tobytes() for x, _ in [*own, train["useful"]] for row in x]
    assert len(set(everything)) == len(everything)
    assert len(everything) == (901 if auxiliary == "renamed" else 1101)
    wild, at_random = train["useless"]
    assert torch.equal(wild, x)
    assert 0.1 < float((at_random == y).double().mean()) < 0.3  # a fifth by chance
    assert torch.bincount(at_random).min() > 25


def test_the_end_task_is_learnt() -> None:
    problem = PROBLEMS["digits_tasks"].make(steps=100)
    test = split(seed=0, n_train=100, n_valid=200, n_aux=200).test
    end = run(problem.stages[0], problem.start, problem.hparams).end.params
    assert accuracy(start_of(problem), test) < 0.5
    assert accuracy(end, test) > 0.9
