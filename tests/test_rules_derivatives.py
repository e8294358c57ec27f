"""Every rule's derivatives: against finite differences, between modes, against closed forms, where no gradient ever
came, and against finite differences of the real optimizers' training. Parametrised over `RULES`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jvp, vjp, vmap

from benchmarks.rule_references import InFloat64
from estimators import (
    LAMB,
    RULES,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AMSGrad,
    Forward,
    HypergradientError,
    Lion,
    Momentum,
    Muon,
    NAdam,
    NotApplicableError,
    Problem,
    RAdam,
    RMSprop,
    Rule,
    Stage,
    Unroll,
    estimate,
    run,
)
from estimators.rules import is_linear
from estimators.tree import flatten

from .rule_references import F64, warm

SHAPE = (4, 3)
SETTINGS: dict[str, Any] = {
    "sgd": [SGD(lr=0.1), SGD(lr=0.1, weight_decay=0.2)],
    "momentum": [
        Momentum(lr=0.1, momentum=0.8, dampening=0.4, weight_decay=0.2),
        Momentum(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.2),
    ],
    "adam": [Adam(lr=0.1, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.2)],
    "adamw": [AdamW(lr=0.1, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.2)],
    "amsgrad": [AMSGrad(lr=0.1, betas=(0.8, 0.6), eps=1e-2, weight_decay=0.2)],
    "nadam": [
        NAdam(lr=0.1, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.2, momentum_decay=0.1, decoupled_weight_decay=d)
        for d in (False, True)
    ],
    "radam": [
        RAdam(lr=0.1, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.2, decoupled_weight_decay=d) for d in (False, True)
    ],
    "adamax": [Adamax(lr=0.1, betas=(0.8, 0.5), eps=1e-2, weight_decay=0.2)],
    "rmsprop": [
        RMSprop(lr=0.1, alpha=0.8, eps=1e-2, weight_decay=0.2),
        RMSprop(lr=0.1, alpha=0.8, eps=1e-2, weight_decay=0.2, centered=True),
        RMSprop(lr=0.1, alpha=0.8, eps=1e-2, momentum=0.7, centered=True),
    ],
    "adagrad": [Adagrad(lr=0.1, lr_decay=0.2, weight_decay=0.2, eps=1e-2)],
    "adadelta": [Adadelta(lr=1.0, rho=0.8, eps=1e-2, weight_decay=0.2)],
    "adafactor": [
        Adafactor(lr=0.05, weight_decay=0.2),
        Adafactor(lr=0.9, d=2.5, eps=(1e-3, 1e-3)),  # nothing is clipped; the step is 1/sqrt(t)
        Adafactor(lr=0.05, eps=(1e-2, 1e-3), eps_inside=True, relative_step=False, momentum=0.6, weight_decay=0.2),
    ],
    "lamb": [LAMB(lr=0.1, betas=(0.8, 0.9), eps=1e-2), LAMB(lr=0.1, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.2)],
    "lion": [Lion(lr=0.1, betas=(0.8, 0.9), weight_decay=0.2)],
    "muon": [
        Muon(lr=0.1, momentum=0.8, weight_decay=0.2),
        Muon(lr=0.1, momentum=0.8, nesterov=False, ns_steps=2, adjust_lr_fn="match_rms_adamw"),
    ],
}
"""Settings at which derivatives are of ordinary size: eps is no rounding, averages are not nearly constant."""
CONSTANT = {"initial_accumulator_value", "ns_coefficients"}
ALL = [pytest.param(rule, id=f"{name}-{i}") for name, rules in SETTINGS.items() for i, rule in enumerate(rules)]
SMOOTH = [p for p in ALL if not isinstance(p.values[0], Lion)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_every_rule_is_covered() -> None:
    assert set(SETTINGS) == set(RULES)
    for name, rules in SETTINGS.items():
        assert {type(r) for r in rules} == {RULES[name]}


def scalar_fields(rule: Rule) -> dict[str, float]:
    """Every number that may be a hyperparameter: "lr", "betas.0", ..."""
    found = {}
    for f in fields(rule):  # type: ignore[arg-type]
        value = getattr(rule, f.name)
        kept_out = f.name == "momentum" and value == 0.0  # the number 0 means that there is no buffer
        if f.name in CONSTANT or not f.init or kept_out:
            continue
        if isinstance(value, float) and not isinstance(value, bool):
            found[f.name] = value
        if isinstance(value, tuple):
            found |= {f"{f.name}.{i}": x for i, x in enumerate(value) if x is not None}
    return found


def with_fields(rule: Rule, values: dict[str, Tensor]) -> Rule:
    changed: dict[str, Any] = {}
    for name, value in values.items():
        stem, _, index = name.partition(".")
        if index:
            old = changed.get(stem, getattr(rule, stem))
            changed[stem] = tuple(value if i == int(index) else x for i, x in enumerate(old))
        else:
            changed[stem] = value
    return replace(rule, **changed)  # type: ignore[type-var]


Point = dict[str, Tensor]


def point_of(rule: Rule, t: int, shape: tuple[int, ...] = SHAPE) -> tuple[Point, Callable[[Point], Point]]:
    """(everything an update depends on, the update as a function of it), away from kinks and zeros."""
    theta, slots = warm(rule, shape, seed=t)
    numbers = {k: torch.tensor(x, dtype=F64) for k, x in scalar_fields(rule).items()}
    point = {"grad": 0.3 + randn(*shape, seed=t + 1).abs(), "param": theta, **slots, **numbers}
    point["grad"] = point["grad"] * torch.sign(randn(*shape, seed=t + 2))

    def update(p: Point) -> Point:
        bound = with_fields(rule, {k: p[k] for k in numbers})
        change, after = bound.update(p["grad"], {k: p[k] for k in slots}, t, p["param"])
        return {"change": change, **after}

    return point, update


def weights_for(out: Point) -> Point:
    return {k: randn(*x.shape, seed=50 + i) for i, (k, x) in enumerate(out.items())}


def pulled(update: Callable[[Point], Point], point: Point, weights: Point) -> Point:
    inputs = {k: x.clone().requires_grad_() for k, x in point.items()}
    out = update(inputs)
    pairs = [(out[k], w) for k, w in weights.items() if out[k].requires_grad]
    found = torch.autograd.grad([o for o, _ in pairs], list(inputs.values()), [w for _, w in pairs], allow_unused=True)
    return {k: torch.zeros_like(x) if d is None else d for (k, x), d in zip(inputs.items(), found, strict=True)}


@pytest.mark.parametrize("t", [1, 2, 10, 100])
@pytest.mark.parametrize("rule", SMOOTH)
def test_derivative_of_everything_is_that_of_finite_differences(rule: Rule, t: int) -> None:
    point, update = point_of(rule, t)
    weights = weights_for(update(point))
    slopes = pulled(update, point, weights)
    for k, ours in slopes.items():
        direction = randn(*point[k].shape, seed=7)
        direction = direction / direction.norm()
        # a fraction of what there is to move in: of a decay rate's distance from 1, of a small eps
        at = float(point[k]) if point[k].dim() == 0 else 0.0
        h = 1e-3 * min([0.3, *(x for x in (at, 1 - at) if x > 0)])
        values = []
        for c in (-2, -1, 1, 2):
            out = update({**point, k: point[k] + c * h * direction})
            values.append(float(torch.stack([(w * out[n]).sum() for n, w in weights.items()]).sum()))
        difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
        # Fourth order: truncation h^4 times a fifth derivative; rounding 1e-15 / h.
        assert float((ours * direction).sum()) == pytest.approx(difference, rel=1e-6, abs=1e-8 + 1e-14 / h), k


@pytest.mark.parametrize("t", [1, 2, 10])
@pytest.mark.parametrize("rule", SMOOTH)
def test_forward_mode_is_the_transpose_of_reverse_mode(rule: Rule, t: int) -> None:
    """Under vmap, as `Forward` uses it, and with rows that never received a gradient."""
    point, update = point_of(rule, t)
    dead = point["grad"].clone()
    dead[1], dead[:, 2] = 0.0, 0.0
    fresh = {k: x for k, x in point.items() if k not in rule.init(point["param"])} | rule.init(point["param"])
    for p in (point, {**fresh, "grad": dead}):
        weights = weights_for(update(p))
        slopes = pulled(update, p, weights)
        tangents = {k: randn(3, *x.shape, seed=20 + i) for i, (k, x) in enumerate(p.items())}
        pushed = vmap(lambda d, p=p: jvp(update, (p,), (d,))[1])(tangents)
        for i in range(3):
            forward = sum(float((w * pushed[k][i]).sum()) for k, w in weights.items())
            reverse = sum(float((slopes[k] * tangents[k][i]).sum()) for k in p)
            assert forward == pytest.approx(reverse, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("rule", ALL)
def test_diagonal_is_what_the_dense_jacobian_says(rule: Rule) -> None:
    theta, slots = warm(rule, SHAPE, seed=3)
    g = randn(*SHAPE, seed=4)
    jacobian = torch.autograd.functional.jacobian(lambda x: rule.update(x, slots, 9, theta)[0], g)
    dense = jacobian.reshape(g.numel(), g.numel())
    off = float((dense - dense.diag().diag()).norm())
    if rule.diagonal:  # type: ignore[attr-defined]
        assert off == 0.0
    else:
        assert off > 1e-3 * float(dense.norm()) > 0


@pytest.mark.parametrize("rule", ALL)
def test_what_a_rule_says_of_itself(rule: Rule) -> None:
    assert isinstance(rule.diagonal, bool)  # type: ignore[attr-defined]
    assert rule.settles >= 0  # type: ignore[attr-defined]
    assert isinstance(rule.decoupled_weight_decay, bool)  # type: ignore[attr-defined]
    theta, slots = warm(rule, SHAPE, seed=3)
    a, b = randn(*SHAPE, seed=4), randn(*SHAPE, seed=5)
    other = {k: randn(*x.shape, seed=6) for k, x in slots.items()}
    if is_linear(rule, list(slots), 8):
        both = rule.update(a + b, {k: slots[k] + other[k] for k in slots}, 9, theta + b)[0]
        apart = rule.update(a, slots, 9, theta)[0] + rule.update(b, other, 9, b)[0]
        torch.testing.assert_close(both, apart, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", [n for n in RULES if n != "lion"])
def test_settled_is_when_few_derivatives_are_negative(name: str) -> None:
    """-d(change)/dg under noise around a mean: a share above 5 % of negative entries is sign noise."""
    rule, noise = RULES[name](lr=0.1), randn(101, 12, 12, seed=8)
    theta = randn(12, 12, seed=9)
    slots, shares, sizes = rule.init(theta), {}, {}
    for t in range(1, 101):
        g = 1 + noise[t]
        if t in (1, rule.settles, rule.settles + 1, 30, 100):
            dense = torch.func.jacrev(lambda x, s=slots, t=t: rule.update(x, s, t, theta)[0])(g).reshape(144, 144)
            shares[t], sizes[t] = float((dense.diagonal() > 0).double().mean()), float(dense.diagonal().abs().median())
        _, slots = rule.update(g, slots, t, theta)
    assert all(share <= 0.06 for t, share in shares.items() if t > rule.settles), shares
    if rule.settles > 1:
        assert shares[rule.settles] > 0.005
    elif rule.settles == 1 and name != "adafactor":  # whose matrices are sound at once, and whose vectors are g / |g|
        assert sizes[1] < 1e-3 * sizes[100]


@pytest.mark.parametrize("rule", ALL)
def test_decoupled_decay_is_what_moves_the_end_from_a_stationary_point(rule: Rule) -> None:
    """Coupled: with g + wd theta = 0 and no memory of gradients, nothing moves. Decoupled: with g = 0, theta does."""
    if not getattr(rule, "weight_decay", 0.0):
        return
    theta = randn(*SHAPE, seed=1)
    g = -rule.weight_decay * theta  # type: ignore[attr-defined]
    still = rule.update(g, rule.init(theta), 1, theta)[0]
    assert (not still.any()) == (not rule.decoupled_weight_decay)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "rule",
    [SGD(lr=0.3, weight_decay=0.4), Momentum(lr=0.2, momentum=0.3, weight_decay=0.4),
     Momentum(lr=0.2, momentum=0.3, nesterov=True, weight_decay=0.4)],
)  # fmt: skip
def test_coupled_decay_is_part_of_the_implicit_system(rule: Rule) -> None:
    """At the optimum of loss + wd/2 theta^2, implicit differentiation and the unrolled run agree."""
    scales = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    stage = Stage(lambda p, h, t: 0.5 * (scales * (p["w"] - h["c"]) ** 2).sum(), rule, lambda t: t, steps=200)
    hparams = {"c": randn(3, seed=1)}
    problem = Problem("decay", [stage], lambda p, h: p["w"].sum(), {"w": randn(3)}, hparams)
    expected = scales / (scales + 0.4)
    for name in ("dense", "cg", "unroll", "forward"):
        torch.testing.assert_close(estimate(problem, name).hparams["c"], expected, rtol=1e-10, atol=0)
    estimate(problem, "neumann")  # its step, the rule's own, converges for H + wd too


@pytest.mark.parametrize("t", [2, 10])
@pytest.mark.parametrize("rule", ALL)
def test_fields_as_tensors_and_per_coordinate(rule: Rule, t: int) -> None:
    """A number, a 0-d tensor and a tensor shaped as the leaf say the same."""
    theta, slots = warm(rule, SHAPE, seed=2)
    g = randn(*SHAPE, seed=3)
    expected, _ = rule.update(g, slots, t, theta)
    numbers = {k: torch.tensor(x, dtype=F64) for k, x in scalar_fields(rule).items()}
    for given_fields in (numbers, {k: x.expand(SHAPE) if k == "lr" else x for k, x in numbers.items()}):
        got, _ = with_fields(rule, given_fields).update(g, slots, t, theta)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_a_momentum_per_coordinate_has_slots_of_its_shape() -> None:
    """NAdam's product of momenta is 0-d unless they differ by coordinate; then a run can still go on from its state."""
    rates = torch.full(SHAPE, 0.8, dtype=F64)
    rule, plain = NAdam(lr=0.1, betas=(rates, 0.9)), NAdam(lr=0.1, betas=(0.8, 0.9))
    start, hparams = {"w": randn(*SHAPE)}, {"c": torch.tensor(1.0, dtype=F64)}
    stages = [Stage(lambda p, h, t: (h["c"] * p["w"] ** 2).sum(), r, lambda t: t, steps=3) for r in (rule, plain)]
    ends = [run(s, run(s, start, hparams).end, hparams).end for s in stages]
    assert ends[0].slots["w"]["mu_product"].shape == SHAPE
    assert ends[1].slots["w"]["mu_product"].shape == ()
    torch.testing.assert_close(ends[0].params, ends[1].params, rtol=1e-14, atol=0)


# ---------------------------------------------------------------- closed forms


def derivative(rule: Rule, g: Tensor, slots: dict[str, Tensor], t: int, theta: Tensor, c: Tensor) -> Tensor:
    """-(d change / dg)^T c."""
    (found,) = vjp(lambda x: rule.update(x, slots, t, theta)[0], g)[1](c)
    return -found


def state(rule: Rule, t: int) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    theta, slots = warm(rule, SHAPE, seed=t)
    return randn(*SHAPE, seed=t + 1), slots, theta, randn(*SHAPE, seed=t + 2)


@pytest.mark.parametrize("t", [2, 10, 100])
def test_rmsprop_in_closed_form(t: int) -> None:
    lr, a, eps = 0.1, 0.9, 1e-2
    for mu in (0.0, 0.5):  # a momentum buffer leaves the derivative alone
        rule = RMSprop(lr=lr, alpha=a, eps=eps, momentum=mu)
        g, slots, theta, c = state(rule, t)
        v = a * slots["square_avg"] + (1 - a) * g**2
        s = v.sqrt()
        d = lr * (1 / (s + eps) - (1 - a) * g**2 / (s * (s + eps) ** 2))
        torch.testing.assert_close(derivative(rule, g, slots, t, theta, c), d * c, rtol=1e-12, atol=1e-14)
    rule = RMSprop(lr=lr, alpha=a, eps=eps, centered=True)
    g, slots, theta, c = state(rule, t)
    mean = a * slots["grad_avg"] + (1 - a) * g
    q = a * slots["square_avg"] + (1 - a) * g**2 - mean**2
    den, dq = q.sqrt() + eps, 2 * (1 - a) * (g - mean)
    d = lr * (1 / den - g * dq / (2 * q.sqrt() * den**2))
    torch.testing.assert_close(derivative(rule, g, slots, t, theta, c), d * c, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("t", [2, 10, 100])
def test_adagrad_and_adadelta_in_closed_form(t: int) -> None:
    lr, eps, decay, rho = 0.1, 1e-2, 0.3, 0.9
    rule: Rule = Adagrad(lr=lr, eps=eps, lr_decay=decay)
    g, slots, theta, c = state(rule, t)
    total = slots["sum"] + g**2
    r = total.sqrt()
    d = lr / (1 + (t - 1) * decay) * (slots["sum"] + eps * r) / (r * (r + eps) ** 2)
    torch.testing.assert_close(derivative(rule, g, slots, t, theta, c), d * c, rtol=1e-12, atol=1e-14)
    rule = Adadelta(lr=lr, rho=rho, eps=eps)
    g, slots, theta, c = state(rule, t)
    v = rho * slots["square_avg"] + (1 - rho) * g**2
    d = lr * ((slots["acc_delta"] + eps) / (v + eps)).sqrt() * (1 - (1 - rho) * g**2 / (v + eps))
    torch.testing.assert_close(derivative(rule, g, slots, t, theta, c), d * c, rtol=1e-12, atol=1e-14)


def adam_diagonal(rule: Any, g: Tensor, slots: dict[str, Tensor], t: int) -> Tensor:
    """lr/bc1 [(1-b1)/den - m1 (1-b2) g / (s sqrt(bc2) den^2)], the second term only where the maximum is new."""
    b1, b2 = rule.betas
    bc1, bc2 = 1 - b1**t, 1 - b2**t
    m, v = b1 * slots["exp_avg"] + (1 - b1) * g, b2 * slots["exp_avg_sq"] + (1 - b2) * g**2
    top = torch.maximum(v, slots.get("max_exp_avg_sq", v))
    s = top.sqrt()
    den = s / bc2**0.5 + rule.eps
    return rule.lr / bc1 * ((1 - b1) / den - (v >= top) * m * (1 - b2) * g / (s * bc2**0.5 * den**2))


@pytest.mark.parametrize("t", [2, 10, 100])
def test_amsgrad_in_closed_form(t: int) -> None:
    rule = AMSGrad(lr=0.1, betas=(0.8, 0.6), eps=1e-2)
    g, slots, theta, c = state(rule, t)
    new = 0.6 * slots["exp_avg_sq"] + 0.4 * g**2 >= slots["max_exp_avg_sq"]
    assert bool(new.any())
    assert bool((~new).any())
    expected = adam_diagonal(rule, g, slots, t) * c
    torch.testing.assert_close(derivative(rule, g, slots, t, theta, c), expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("t", [2, 10, 100])
def test_lamb_in_closed_form(t: int, decay: float) -> None:
    """vjp(x) = D_r y, y = lr ||theta||/||r|| (x - rhat (rhat.x)), D_r = Adam's D / lr; zero along the update itself."""
    rule = LAMB(lr=0.1, betas=(0.8, 0.9), eps=1e-2, weight_decay=decay)
    g, slots, theta, c = state(rule, t)
    r = rule.update(g, slots, t, theta)[0]
    rhat = r / r.norm()
    adam = Adam(lr=0.1, betas=(0.8, 0.9), eps=1e-2)
    length = (decay * theta - adam.update(g, slots, t, theta)[0] / adam.lr).norm()  # of r itself
    y = rule.lr * theta.norm() / length * (c - rhat * (rhat * c).sum())
    expected = adam_diagonal(rule, g, slots, t) / rule.lr * y
    torch.testing.assert_close(derivative(rule, g, slots, t, theta, c), expected, rtol=1e-10, atol=1e-14)
    assert float(derivative(rule, g, slots, t, theta, r).norm()) < 1e-12 * float(r.norm())


def test_lamb_of_one_entry_has_no_derivative() -> None:
    """||theta|| r / ||r|| of a scalar is |theta| sign(r)."""
    rule = LAMB(lr=0.1, betas=(0.8, 0.9))
    theta, slots = warm(rule, (), seed=1)
    one = torch.ones((), dtype=F64)
    assert abs(float(derivative(rule, 2 * one, slots, 5, theta, one))) < 1e-15


@pytest.mark.parametrize("d", [1.0, 100.0])
@pytest.mark.parametrize("t", [2, 10, 100])
def test_adafactor_in_closed_form(t: int, d: float) -> None:
    """formulas: vjp = ybar rf cf + 2 (1-b) g (Rbar_i / ncol + Cbar_j / nrow), after the clip's own projection."""
    rule = Adafactor(lr=0.05, d=d)
    g, slots, theta, c = state(rule, t)
    g = 3 * g  # so that RMS(U) > 1: clipped at d = 1
    new, (n, m) = t**-0.8, SHAPE
    rows = (1 - new) * slots["row_var"] + new * (g**2).mean(1, keepdim=True)
    columns = (1 - new) * slots["col_var"] + new * (g**2).mean(0, keepdim=True)
    rf, cf = (rows / rows.mean()) ** -0.5, columns**-0.5
    y = g * rf * cf
    alpha = max(1e-3, float((theta**2).mean().sqrt())) * min(0.05, t**-0.5)
    ybar, size = alpha * c, float((y**2).mean().sqrt())
    assert (size > d) == (d == 1.0)
    if size > d:
        ybar = d / size * (ybar - y * (y * ybar).sum() / (y.numel() * size**2))
    s = ybar * y
    rbar = -s.sum(1, keepdim=True) / (2 * rows) + s.sum() / (2 * n * rows.mean())
    cbar = -s.sum(0, keepdim=True) / (2 * columns)
    expected = ybar * rf * cf + 2 * new * g * (rbar / m + cbar / n)
    torch.testing.assert_close(derivative(rule, g, slots, t, theta, c), expected, rtol=1e-10, atol=1e-14)


def test_muon_pulls_back_through_its_own_polynomial() -> None:
    """With one step of NS, x' = a x + b x x^T x + c x x^T x x^T x in elementary products, x = B / ||B||."""
    rule = Muon(lr=0.1, ns_steps=1, momentum=0.0, weight_decay=0.0, nesterov=False)
    g, w = randn(3, 4, seed=1), randn(3, 4, seed=2)
    a, b, c = rule.ns_coefficients

    def by_hand(matrix: Tensor) -> Tensor:
        x = matrix / matrix.square().sum().sqrt()
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        return -0.1 * (u * (a * s + b * s**3 + c * s**5)) @ v

    expected = torch.autograd.functional.vjp(by_hand, g, w)[1]
    found = vjp(lambda x: rule.update(x, rule.init(x), 1, g)[0], g)[1](w)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_muon_in_bfloat16_has_the_derivative_to_bfloat16() -> None:
    g, w = randn(4, 3, seed=1), randn(4, 3, seed=2)
    exact, rounded = (
        vjp(lambda x, r=r: r.update(x, r.init(x), 1, g)[0], g)[1](w)[0]
        for r in (Muon(lr=0.1), Muon(lr=0.1, bfloat16=True))
    )
    assert 1e-3 < relative(rounded, exact) < 0.25


# ---------------------------------------------------------------- where no gradient ever came


@pytest.mark.parametrize("t", [1, 2, 6, 50])
@pytest.mark.parametrize("name", RULES)
def test_dead_rows_change_as_the_reference_says_and_have_derivative_zero(name: str, t: int) -> None:
    """Six updates of an embedding with unused rows, defaults throughout."""
    rule = RULES[name](lr=0.1)
    rule = replace(rule, weight_decay=0.0)
    theta, g = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
    live = torch.tensor([True, False, True, False])
    g[~live] = 0.0
    slots = rule.init(theta)
    for i in range(1, t):
        _, slots = rule.update(g * (1 + 0.3 * math.sin(i)), slots, i, theta)
    inputs = [x.clone().requires_grad_() for x in (g, *slots.values())]
    change, after = rule.update(inputs[0], dict(zip(slots, inputs[1:], strict=True)), t, theta)
    assert not change[~live].any()
    assert all(bool(torch.isfinite(x).all()) for x in (change, *after.values()))
    if name == "lion":
        return
    (d,) = torch.autograd.grad((randn(*SHAPE, seed=9) * change).sum(), inputs[:1])
    assert bool(torch.isfinite(d).all())
    momentum_only = is_linear(rule, (), t) or (name == "radam" and t < 6)  # no root, hence a plain derivative
    if name == "muon":
        # Muon has no root by coordinate: an empty row moves with the space that the others span, and so it should.
        assert float(d[~live].norm()) < 1e4
    elif momentum_only:
        assert bool(d[~live].any())
    else:
        assert not d[~live].any()


@pytest.mark.parametrize("name", RULES)
def test_a_leaf_that_never_received_a_gradient(name: str) -> None:
    rule = replace(RULES[name](lr=0.1), weight_decay=0.0)
    shapes: list[tuple[int, ...]] = [SHAPE] if name == "muon" else [SHAPE, (3,), ()]
    for shape in shapes:
        theta = randn(*shape, seed=1)
        slots = rule.init(theta)
        for t in (1, 2, 50):
            inputs = {
                k: x.clone().requires_grad_() for k, x in {"g": torch.zeros_like(theta), "p": theta, **slots}.items()
            }
            change, after = rule.update(inputs["g"], {k: inputs[k] for k in slots}, t, inputs["p"])
            total = change.sum() + sum(x.sum() for x in after.values())
            found = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
            assert not change.any()
            assert all(bool(torch.isfinite(x).all()) for x in after.values())
            for x in found:
                assert x is None or bool((x.abs() < 100).all()), (name, t)
            slots = {k: x.detach() for k, x in after.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_zero_parameter_moves_as_the_reference_says(name: str) -> None:
    """Norms of zero parameters (LAMB, Adafactor) have neither NaN nor an infinite derivative."""
    rule = RULES[name](lr=0.1)
    theta = torch.zeros(SHAPE, dtype=F64, requires_grad=True)
    g = randn(*SHAPE).requires_grad_()
    change, _ = rule.update(g, rule.init(theta), 1, theta)
    assert bool(change.all())
    found = torch.autograd.grad((randn(*SHAPE, seed=3) * change).sum(), [g, theta], allow_unused=True)
    assert all(x is None or bool(torch.isfinite(x).all()) for x in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps1", [1e-30, 1e-3])
def test_adafactor_with_eps_inside_tells_dead_rows_from_small_gradients(dtype: torch.dtype, eps1: float) -> None:
    """Its second moments are averages of eps1 there, to rounding, which adds up over a long run."""
    rule = Adafactor(lr=0.1, eps=(eps1, 1e-3), eps_inside=True, relative_step=False, momentum=0.5)
    for shape, live in (
        (SHAPE, torch.tensor([True, False, True, True])),
        ((4,), torch.tensor([True, False, True, True])),
    ):
        theta, g = randn(*shape, seed=1).to(dtype), randn(*shape, seed=2).to(dtype)
        g[~live] = 0.0
        g[3] *= 0.1 * eps1**0.5  # small against eps1, but there
        slots = rule.init(theta)
        for t in range(1, 600):
            _, slots = rule.update(g, slots, t, theta)
        d = derivative(rule, g, slots, 600, theta, torch.ones_like(g))
        assert not d[~live].any()
        assert bool((d[live] != 0).all())
        assert bool(torch.isfinite(d).all())


def test_a_centred_variance_that_rounds_below_zero_is_zero() -> None:
    """torch.optim.RMSprop answers NaN here."""
    rule = RMSprop(lr=0.1, alpha=0.9, centered=True)
    theta = torch.zeros(200, dtype=F64)
    g = 1 + randn(200).abs()
    slots = rule.init(theta)
    for t in range(1, 3000):
        change, slots = rule.update(g, slots, t, theta)
    assert bool((slots["square_avg"] - slots["grad_avg"] ** 2 < 0).any())
    assert bool(torch.isfinite(change).all())
    assert bool(torch.isfinite(derivative(rule, g, slots, 3000, theta, g)).all())


# ---------------------------------------------------------------- refusals


def test_lion_is_refused_by_what_differentiates_the_rule_and_serves_the_others() -> None:
    stage = Stage(lambda p, h, t: ((p["w"] - h["c"]) ** 2).sum(), Lion(lr=0.01), lambda t: t, steps=4)
    problem = Problem("lion", [stage], lambda p, h: p["w"].sum(), {"w": randn(3)}, {"c": torch.tensor(0.3, dtype=F64)})
    for name in ("unroll", "forward", "sama"):
        with pytest.raises(NotApplicableError, match=r"Lion.*differentiable=False"):
            estimate(problem, name)
    assert float(estimate(problem, "dense").hparams["c"]) == pytest.approx(3.0)


BAD = [
    (lambda: SGD(lr=0.1, weight_decay=-1.0), "SGD.*weight_decay=-1.0"),
    (lambda: Momentum(lr=0.1, weight_decay=-1.0), "Momentum.*weight_decay=-1.0"),
    (lambda: NAdam(momentum_decay=-1.0), "NAdam.*momentum_decay"),
    (lambda: NAdam(betas=(1.0, 0.9)), "NAdam.*beta1=1.0.*below 1"),
    (lambda: RAdam(betas=(0.9, 1.0)), "RAdam.*beta2=1.0.*below 1"),
    (lambda: RAdam(eps=-1.0), "RAdam.*eps"),
    (lambda: Adamax(betas=(-0.1, 0.9)), "Adamax.*beta1=-0.1"),
    (lambda: Adamax(lr=math.nan), "Adamax.*lr=nan"),
    (lambda: RMSprop(alpha=1.0), "RMSprop.*alpha=1.0.*below 1"),
    (lambda: RMSprop(momentum=-0.1), "RMSprop.*momentum"),
    (lambda: Adagrad(lr_decay=-0.1), "Adagrad.*lr_decay"),
    (lambda: Adagrad(initial_accumulator_value=-0.1), "Adagrad.*initial_accumulator_value"),
    (lambda: Adagrad(initial_accumulator_value=torch.tensor(1.0)), "first slots for constants.*number"),  # type: ignore[arg-type]
    (lambda: Adadelta(rho=1.0), "Adadelta.*rho=1.0.*below 1"),
    (lambda: Adafactor(d=0.5), "Adafactor.*d=0.5.*at least 1"),
    (lambda: Adafactor(beta2_decay=0.8), "Adafactor.*beta2_decay=0.8.*at most 0"),
    (lambda: Adafactor(eps=(-1.0, 1e-3)), "Adafactor.*eps1"),
    (lambda: Adafactor(eps=(None, -1e-3)), "Adafactor.*eps2"),
    (lambda: Adafactor(momentum=1.0), "Adafactor.*momentum=1.0.*below 1"),
    (lambda: LAMB(betas=(0.9, 1.5)), "LAMB.*beta2=1.5.*below 1"),
    (lambda: LAMB(weight_decay=-1.0), "LAMB.*weight_decay"),
    (lambda: Lion(betas=(1.0, 0.9)), "Lion.*beta1=1.0.*below 1"),
    (lambda: Muon(ns_steps=100), "Muon.*ns_steps=100.*below 100"),
    (lambda: Muon(adjust_lr_fn="rms"), "adjust_lr_fn='rms'.*match_rms_adamw"),
    (lambda: Muon(ns_coefficients=(1.0, 2.0)), "ns_coefficients.*three numbers"),  # type: ignore[arg-type]
    (lambda: Muon().init(torch.zeros(3)), r"Muon is for matrices.*\(3,\).*AdamW"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_fields_are_refused_by_name(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(HypergradientError, match=message):
        build()


# ---------------------------------------------------------------- the real optimizers, differentiated numerically

unit = st.floats(0.0, 0.95)
decay = st.sampled_from([0.0, 0.01, 0.3])
eps = st.sampled_from([1e-8, 1e-4, 1e-2])
rate = st.floats(0.01, 0.1)
PAIRS: dict[str, tuple[type, Any, dict[str, Any]]] = {
    "sgd": (SGD, torch.optim.SGD, {"weight_decay": decay}),
    "momentum": (Momentum, torch.optim.SGD, {"momentum": unit, "dampening": unit, "weight_decay": decay}),
    "adam": (Adam, torch.optim.Adam, {"betas": st.tuples(unit, unit), "eps": eps, "weight_decay": decay, "amsgrad": st.booleans()}),
    "adamw": (AdamW, torch.optim.AdamW, {"betas": st.tuples(unit, unit), "eps": eps, "weight_decay": decay, "amsgrad": st.booleans()}),
    "nadam": (NAdam, torch.optim.NAdam, {"betas": st.tuples(unit, unit), "eps": eps, "weight_decay": decay, "momentum_decay": st.floats(0, 0.5), "decoupled_weight_decay": st.booleans()}),
    "radam": (RAdam, torch.optim.RAdam, {"betas": st.tuples(unit, st.floats(0.5, 0.99)), "eps": eps, "weight_decay": decay, "decoupled_weight_decay": st.booleans()}),
    "adamax": (Adamax, torch.optim.Adamax, {"betas": st.tuples(unit, unit), "eps": eps, "weight_decay": decay}),
    "rmsprop": (RMSprop, torch.optim.RMSprop, {"alpha": st.floats(0.3, 0.99), "eps": eps, "weight_decay": decay, "momentum": unit, "centered": st.booleans()}),
    "adagrad": (Adagrad, torch.optim.Adagrad, {"lr_decay": st.floats(0, 1), "eps": eps, "weight_decay": decay, "initial_accumulator_value": st.sampled_from([0.0, 0.1])}),
    "adadelta": (Adadelta, torch.optim.Adadelta, {"rho": unit, "eps": st.sampled_from([1e-6, 1e-3]), "weight_decay": decay}),
    "adafactor": (Adafactor, torch.optim.Adafactor, {"beta2_decay": st.floats(-1, -0.3), "d": st.floats(1, 2), "weight_decay": decay}),
}  # fmt: skip


def noisy_loss(p: dict[str, Tensor], c: Any, t: int) -> Tensor:
    """Gradients of order 1 whose signs change from step to step; c bends them."""
    w, b = p["w"] - 2 * randn(3, 2, seed=100 + t), p["b"] - 2 * randn(2, seed=200 + t)
    return (w.square().sum() + (c * torch.sin(w @ b)).sum() + b.square().sum()) * 0.5


NOISY_START = {"w": randn(3, 2, seed=1), "b": randn(2, seed=2)}


def outer(p: dict[str, Tensor], h: Any) -> Tensor:
    return (torch.cos(p["w"]) * randn(3, 2, seed=5)).sum() + (p["b"] ** 3).sum()


def end_of_real_training(kind: Any, options: dict[str, Any], lr: float, c: float) -> float:
    params = {k: x.clone().requires_grad_() for k, x in NOISY_START.items()}
    optimizer = InFloat64(kind, list(params.values()), lr=lr, **options)
    for t in range(8):
        for p in params.values():
            p.grad = None
        noisy_loss(params, c, t).backward()
        optimizer.step()
    return float(outer({k: p.detach() for k, p in params.items()}, None))


def slope(f: Callable[[float], float], h: float) -> float:
    return (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_unrolling_is_the_derivative_of_the_real_optimizers_training(name: str, data: st.DataObject) -> None:
    ours, theirs, choices = PAIRS[name]
    options = {k: data.draw(s, label=k) for k, s in choices.items()}
    lr, c = data.draw(rate, label="lr"), 0.7
    stage = Stage(lambda p, h, t: noisy_loss(p, h["c"], t), lambda h: ours(lr=h["lr"], **options), lambda t: t, steps=8)
    hparams = {"c": torch.tensor(c, dtype=F64), "lr": torch.tensor(lr, dtype=F64)}
    found = estimate(Problem("real", [stage], outer, NOISY_START, hparams), Unroll()).hparams
    for k, f, scale in (
        ("c", lambda x: end_of_real_training(theirs, options, lr, c + x), c),
        ("lr", lambda x: end_of_real_training(theirs, options, lr + x, c), lr),
    ):
        # A difference that has not converged straddles a kink (a maximum that changes hands, |g|, a clip).
        coarse, fine = slope(f, 1e-3 * scale), slope(f, 5e-4 * scale)
        assume(abs(coarse - fine) < 1e-7 * (1 + abs(fine)))
        assert float(found[k]) == pytest.approx(fine, rel=1e-6, abs=1e-7), (k, options)


@pytest.mark.parametrize("name", [n for n in RULES if n not in ("lion", "muon")])
def test_forward_mode_agrees_with_unrolling_through_every_rule(name: str) -> None:
    hparams = {"c": torch.tensor(0.7, dtype=F64), "lr": torch.tensor(0.05, dtype=F64)}
    stage = Stage(
        lambda p, h, t: noisy_loss(p, h["c"], t), lambda h: RULES[name](lr=h["lr"]), lambda t: t, steps=8
    )  # fmt: skip
    problem = Problem("both", [stage], outer, NOISY_START, hparams)
    forward, reverse = (flatten(estimate(problem, e).hparams) for e in (Forward(), Unroll()))
    assert relative(forward, reverse) < 1e-9
