"""Rules walk the trajectory of their reference, and the older ones of them are differentiable: derivatives against
finite differences and an implementation written independently from the papers (all rules: test_rules_derivatives)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from estimators import (
    RULES,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    HypergradientError,
    Momentum,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Stage,
    run,
)
from estimators.rules import is_linear

from .rule_references import CASES, warm

F64 = torch.float64
SHAPES = [(), (3,), (2, 4), (2, 1, 3)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def shapes_for(rule):
    return [s for s in SHAPES if len(s) == 2] if isinstance(rule, Muon) else SHAPES


def test_every_rule_has_a_reference():
    assert {type(case.rule) for case in CASES} == set(RULES.values())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_trajectory_is_that_of_the_reference(case):
    generator = torch.Generator().manual_seed(3)
    ours = [torch.randn(s, dtype=F64, generator=generator) for s in shapes_for(case.rule)]
    reference = [x.clone().requires_grad_() for x in ours]
    slots = [case.rule.init(x) for x in ours]
    optimizer = case.reference(reference)
    for t in range(1, 51):
        # Non-stationary over seven orders of magnitude, so that a running maximum is sometimes old, sometimes new.
        size = 10 ** (3 * math.sin(t / 5))
        grads = [size * (torch.randn(x.shape, dtype=F64, generator=generator) + 0.5) for x in ours]
        for i, g in enumerate(grads):
            change, slots[i] = case.rule.update(g, slots[i], t, ours[i])
            ours[i] = ours[i] + change
            reference[i].grad = g.clone()
        optimizer.step()
        for mine, other in zip(ours, reference, strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-12, atol=1e-12)


def several_leaves(p, h, t):
    """Nonlinear in several leaves, batches that change, and a leaf that two steps in five do not read."""
    x, y = randn(12, 4, seed=1)[(torch.arange(4) + 4 * t) % 12], randn(12, 3, seed=2)[(torch.arange(4) + 4 * t) % 12]
    value = (torch.tanh(x @ p["w"]) @ p["v"] - y).square().mean() + h["decay"] * p["w"].square().sum()
    if "b" in p:
        value = value + (torch.sin(p["b"] + y) * p["s"]).square().mean()
    if t % 5 > 1:
        value = value + (p["late"] ** 3 / 3 - 0.5 * p["late"]).mean()
    return value


def several_start(rule):
    start = {"w": randn(4, 3, seed=3), "v": randn(3, 3, seed=4), "late": 0.3 * randn(2, 4, seed=5)}
    return start if isinstance(rule, Muon) else {**start, "b": randn(3, seed=6), "s": randn(seed=7)}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_run_is_the_loop_with_the_reference(case):
    """A leaf without a gradient is left alone and its count of steps stays behind (bias correction, first buffer)."""
    start = several_start(case.rule)
    hparams = {"decay": torch.tensor(0.2, dtype=F64)}
    record = run(Stage(several_leaves, case.rule, lambda t: t, steps=50), start, hparams)
    path = [record.states[t].params for t in range(1, 50)] + [record.end.params]
    reference = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimizer = case.reference(list(reference.values()))
    # The two gradients differ by rounding, which a short memory magnifies, m / |g| (b2 = 0) without bound.
    tol, steps = (1e-11, 50) if case.smooth else (1e-9, 10)
    for t, ours in enumerate(path[:steps]):
        for p in reference.values():
            p.grad = None
        several_leaves(reference, hparams, t).backward()
        optimizer.step()
        for k in start:
            torch.testing.assert_close(ours[k], reference[k].detach(), rtol=tol, atol=tol)


# ---------------------------------------------------------------- derivatives


def _independent_update(kind: str, g, slots, t, theta, o):
    """The papers' formulas, written without a look at the library: (change, *new slots in the order given)."""
    if kind == "sgd":
        return (-o["lr"] * g,)
    if kind == "momentum":
        (b,) = slots
        b = g if t == 1 else o["momentum"] * b + g - o["dampening"] * g
        return (-o["lr"] * (g + o["momentum"] * b) if o["nesterov"] else -o["lr"] * b), b
    m, s, *rest = slots
    decayed = g + o["weight_decay"] * theta if kind == "adam" else g
    m = torch.lerp(decayed, m, o["b1"]) if isinstance(o["b1"], Tensor) else o["b1"] * m + decayed - o["b1"] * decayed
    s = s * o["b2"] + decayed.pow(2) - o["b2"] * decayed.pow(2)
    top = torch.maximum(rest[0], s) if rest else s  # ties do not occur in these tests
    mhat = m / (1 - o["b1"] ** t)
    shat = top / (1 - o["b2"] ** t)
    change = -o["lr"] * mhat / (shat.sqrt() + o["eps"])
    if kind == "adamw":
        change = change - o["lr"] * o["weight_decay"] * theta
    return (change, m, s, *([top] if rest else []))


DERIVATIVES = [
    ("sgd", {}, lambda o: SGD(lr=o["lr"])),
    *[
        (
            "momentum",
            {"momentum": 0.8, "dampening": damp, "nesterov": nesterov},
            lambda o: Momentum(lr=o["lr"], momentum=o["momentum"], dampening=o["dampening"], nesterov=o["nesterov"]),
        )
        for damp, nesterov in [(0.0, False), (0.4, False), (0.0, True)]
    ],
    *[
        (
            kind,
            {"b1": 0.9, "b2": 0.99, "eps": 1e-3, "weight_decay": wd, "amsgrad": ams},
            lambda o, cls=cls: cls(
                lr=o["lr"], betas=(o["b1"], o["b2"]), eps=o["eps"], weight_decay=o["weight_decay"], amsgrad=o["amsgrad"]
            ),
        )
        for kind, cls in [("adam", Adam), ("adamw", AdamW)]
        for wd in (0.0, 0.2)
        for ams in (False, True)
    ],
]
IDS = [f"{k}-{'-'.join(map(str, o.values()))}" for k, o, _ in DERIVATIVES]


def _point(kind: str, options: dict, t: int):
    """Everything an update depends on, as float64 tensors away from kinks and zeros."""
    shape = (2, 3)
    signs = torch.tensor([[1, -1, 1], [-1, -1, 1]], dtype=F64)
    point = {"g": signs * (0.5 + randn(*shape, seed=t).abs()), "theta": randn(*shape, seed=t + 1)}
    point["lr"] = torch.tensor(0.1, dtype=F64)
    names = {"sgd": [], "momentum": ["momentum_buffer"]}.get(kind, ["exp_avg", "exp_avg_sq"])
    if options.get("amsgrad"):
        names = [*names, "max_exp_avg_sq"]
    for i, name in enumerate(names):
        x = randn(*shape, seed=10 * t + i)
        point[name] = x if name in ("momentum_buffer", "exp_avg") else 0.3 + x**2
    if options.get("amsgrad"):  # half of the coordinates keep an old maximum, half set a new one
        offset = torch.tensor([[1.0, -0.2, 1.0], [-0.2, 1.0, -0.2]], dtype=F64)
        point["max_exp_avg_sq"] = point["exp_avg_sq"] + offset
    for k, v in options.items():
        if not isinstance(v, bool):
            point[k] = torch.tensor(v, dtype=F64)
    return point, names


def _library(kind, options, build, names, t):
    def fn(point):
        rule = build({**options, **point})
        change, slots = rule.update(point["g"], {n: point[n] for n in names}, t, point["theta"])
        assert list(slots) == names
        return [change, *slots.values()]

    return fn


def _slope(fn, point, weights, wrt):
    inputs = {k: v.clone().requires_grad_(k in wrt) for k, v in point.items()}
    total = sum((w * out).sum() for w, out in zip(weights, fn(inputs), strict=True))
    grads = torch.autograd.grad(total, [inputs[k] for k in wrt], allow_unused=True)
    return {k: torch.zeros_like(point[k]) if g is None else g for k, g in zip(wrt, grads, strict=True)}


@pytest.mark.parametrize("t", [1, 2, 10, 100])
@pytest.mark.parametrize(("kind", "options", "build"), DERIVATIVES, ids=IDS)
def test_derivative_of_everything_against_an_independent_implementation(kind, options, build, t):
    point, names = _point(kind, options, t)
    weights = [randn(2, 3, seed=50 + i) for i in range(1 + len(names))]
    wrt = list(point)
    ours = _slope(_library(kind, options, build, names, t), point, weights, wrt)
    theirs = _slope(
        lambda p: _independent_update(kind, p["g"], [p[n] for n in names], t, p["theta"], {**options, **p}),
        point, weights, wrt,
    )  # fmt: skip
    for k in wrt:
        torch.testing.assert_close(ours[k], theirs[k], rtol=1e-11, atol=1e-12, msg=lambda m, k=k: f"{k}: {m}")


@pytest.mark.parametrize("t", [1, 2, 10, 100])
@pytest.mark.parametrize(("kind", "options", "build"), DERIVATIVES, ids=IDS)
def test_derivative_of_everything_against_finite_differences(kind, options, build, t):
    point, names = _point(kind, options, t)
    weights = [randn(2, 3, seed=50 + i) for i in range(1 + len(names))]
    fn = _library(kind, options, build, names, t)
    slopes = _slope(fn, point, weights, list(point))
    with torch.no_grad():
        for k, ours in slopes.items():
            direction = randn(*point[k].shape, seed=7)
            direction = direction / direction.norm()
            # fourth order: truncation h^4 (times a fifth derivative), rounding 1e-16/h
            h = 2e-4 if k != "b2" else 2e-5  # b2 = .99 sits close to its end
            values = []
            for c in (-2, -1, 1, 2):
                moved = {**point, k: point[k] + c * h * direction}
                values.append(float(sum((w * out).sum() for w, out in zip(weights, fn(moved), strict=True))))
            difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
            assert float((ours * direction).sum()) == pytest.approx(difference, rel=1e-8, abs=1e-8), k


@pytest.mark.parametrize("rule", [SGD, Momentum, Adam, AdamW])
def test_a_learning_rate_shaped_as_the_leaf(rule):
    lr = (0.1 + randn(2, 3).abs()).requires_grad_()
    g, theta = randn(2, 3, seed=1), randn(2, 3, seed=2)
    made = rule(lr=lr)
    change, _ = made.update(g, made.init(theta), 1, theta)
    (d,) = torch.autograd.grad(change.sum(), lr)
    torch.testing.assert_close(d, (change / lr).detach(), rtol=1e-12, atol=0)  # every change is linear in lr


# ---------------------------------------------------------------- zero gradients


@pytest.mark.parametrize("t", [1, 2, 50])
@pytest.mark.parametrize("rule", [Adam(lr=0.1), Adam(lr=0.1, amsgrad=True), AdamW(lr=0.1), Adam(lr=0.1, eps=1e-12)])
def test_a_dead_coordinate_gives_no_nan_and_a_zero_derivative(rule, t):
    theta, g = randn(4), torch.tensor([0.0, 1.0, 0.0, -2.0], dtype=F64)
    live = g != 0
    slots = {k: torch.where(live, 0.5, 0.0).to(F64) for k in rule.init(theta)}
    inputs = [g.clone().requires_grad_(), *[s.clone().requires_grad_() for s in slots.values()]]
    change, after = rule.update(inputs[0], dict(zip(slots, inputs[1:], strict=True)), t, theta)
    derivatives = torch.autograd.grad(change.sum(), inputs, allow_unused=True)
    assert bool(torch.isfinite(change).all())
    assert all(bool(torch.isfinite(x).all()) for x in after.values())
    for d in derivatives:
        if d is not None:
            assert bool(torch.isfinite(d).all())
            assert bool((d[~live] == 0).all())
    assert bool((derivatives[0][live] != 0).all())


@pytest.mark.parametrize("name", RULES)
def test_zero_gradients_from_the_first_step_on(name):
    rule = RULES[name](lr=0.1)
    theta = randn(3, 2).requires_grad_()
    g = torch.zeros(3, 2, dtype=F64, requires_grad=True)
    change, after = rule.update(g, rule.init(theta), 1, theta)
    (d,) = torch.autograd.grad(change.sum() + sum(x.sum() for x in after.values()), g)
    assert bool(torch.isfinite(change).all())
    assert bool(torch.isfinite(d).all())


def test_a_zero_gradient_after_nonzero_ones_keeps_its_derivative():
    """g = 0 with live moments is an ordinary point: d change/dg = -lr/bc1 (1-b1)/(sqrt(s/bc2)+eps)."""
    rule, t = Adam(lr=0.1, eps=1e-8), 7
    g = torch.zeros(3, dtype=F64, requires_grad=True)
    slots = {"exp_avg": randn(3), "exp_avg_sq": 1 + randn(3) ** 2}
    change, _after = rule.update(g, slots, t, randn(3))
    (d,) = torch.autograd.grad(change.sum(), g)
    s = 0.999 * slots["exp_avg_sq"]
    expected = -0.1 / (1 - 0.9**t) * 0.1 / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(d, expected, rtol=1e-12, atol=0)


# ---------------------------------------------------------------- rewind

REWINDABLE = [
    *[(name, cls(lr=0.07)) for name, cls in RULES.items() if hasattr(cls, "rewind")],
    ("damped", Momentum(lr=0.07, dampening=0.3)),
    ("average", Momentum(lr=0.07, dampening=0.9)),
    ("nesterov", Momentum(lr=0.07, nesterov=True)),
    ("momentum-0", Momentum(lr=0.07, momentum=0.0)),
    ("momentum-0-tensor", Momentum(lr=0.07, momentum=torch.tensor(0.0, dtype=F64))),
    ("adam-l2", Adam(lr=0.07, weight_decay=0.3)),
    ("adam-ams", Adam(lr=0.07, amsgrad=True, weight_decay=0.1)),
    ("adam-b1-0", Adam(lr=0.07, betas=(0.0, 0.99))),
    ("adam-b2-0", Adam(lr=0.07, betas=(0.9, 0.0))),
    ("adam-b1-0-tensor", Adam(lr=0.07, betas=(torch.tensor(0.0, dtype=F64), torch.tensor(0.99, dtype=F64)))),
    ("adamw-decay", AdamW(lr=0.07, weight_decay=0.5)),
    ("adamw-ams", AdamW(lr=0.07, weight_decay=0.5, amsgrad=True)),
    ("sgd-l2", SGD(lr=0.07, weight_decay=0.5)),
    ("momentum-l2", Momentum(lr=0.07, weight_decay=0.5)),
    ("nesterov-l2", Momentum(lr=0.07, nesterov=True, weight_decay=0.5)),
    ("nadam-decay", NAdam(lr=0.07, weight_decay=0.5, decoupled_weight_decay=True)),
    ("nadam-b1-0", NAdam(lr=0.07, betas=(0.0, 0.9))),
    ("radam-l2", RAdam(lr=0.07, betas=(0.9, 0.9), weight_decay=0.5)),
    ("radam-decay", RAdam(lr=0.07, betas=(0.9, 0.9), weight_decay=0.5, decoupled_weight_decay=True)),
    ("adamax-short", Adamax(lr=0.07, betas=(0.9, 0.5))),
    ("rmsprop-all", RMSprop(lr=0.07, centered=True, momentum=0.5)),
    ("rmsprop-alpha-0", RMSprop(lr=0.07, alpha=0.0)),
    ("adagrad-initial", Adagrad(lr=0.07, lr_decay=0.1, initial_accumulator_value=0.5)),
    ("adadelta-rho-0", Adadelta(lr=0.07, rho=0.0)),
    ("muon-decay", Muon(lr=0.07, nesterov=False, weight_decay=0.5)),
]
LOSSY = ("momentum-0", "adam-b", "nadam-b1-0", "rmsprop-alpha-0", "adadelta-rho-0")  # a decay rate of 0 forgets


def _random_state(rule, t: int, seed: int):
    return warm(rule, (3, 2), seed, updates=0 if t == 1 else 4)


@pytest.mark.parametrize("t", [1, 2, 10, 1000])
@pytest.mark.parametrize("rule", [r for _, r in REWINDABLE], ids=[n for n, _ in REWINDABLE])
def test_rewind_reproduces_the_step_and_its_derivative(rule, t):
    """What estimators use it for: the step from the rewound state is the step that was taken."""
    for seed in range(5):
        theta, slots = _random_state(rule, t, seed)
        g = randn(3, 2, seed=seed + 99)
        change, after = rule.update(g, slots, t, theta)
        back, moved = rule.rewind(g, after, t, theta + change)
        assert list(back) == list(slots)
        torch.testing.assert_close(moved, theta, rtol=1e-12, atol=1e-12)
        again, after_again = rule.update(g, back, t, moved)
        torch.testing.assert_close(again, change, rtol=1e-11, atol=1e-12)
        for k in after:
            torch.testing.assert_close(after_again[k], after[k], rtol=1e-11, atol=1e-12)
        derivatives = []
        for s, p in [(slots, theta), (back, moved)]:
            leaf = g.clone().requires_grad_()
            (d,) = torch.autograd.grad(rule.update(leaf, s, t, p)[0].sum(), leaf)
            derivatives.append(d)
        # At t = 1 Adam's derivative is the difference of two numbers that agree to eps: compare on their scale, 1.
        torch.testing.assert_close(derivatives[1], derivatives[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t", [1, 2, 10, 1000])
@pytest.mark.parametrize(
    "rule",
    [r for n, r in REWINDABLE if not n.startswith(LOSSY)],
    ids=[n for n, _ in REWINDABLE if not n.startswith(LOSSY)],
)
def test_rewind_is_the_inverse_of_update(rule, t):
    for seed in range(5):
        theta, slots = _random_state(rule, t, seed)
        g = randn(3, 2, seed=seed + 99)
        change, after = rule.update(g, slots, t, theta)
        back, moved = rule.rewind(g, after, t, theta + change)
        torch.testing.assert_close(moved, theta, rtol=1e-12, atol=1e-12)
        for k in slots:
            kept = torch.ones_like(slots[k], dtype=torch.bool)
            if k == "max_exp_avg_sq":  # a maximum set by this very step has overwritten the earlier one
                kept = slots[k] > after["exp_avg_sq"]
                assert bool((back[k][~kept] <= after["exp_avg_sq"][~kept]).all())
            if k == "exp_inf":  # likewise
                kept = after[k] > g.abs() + rule.eps
            if t == 1 and isinstance(rule, Momentum):
                continue  # the first step ignores the buffer
            torch.testing.assert_close(back[k][kept], slots[k][kept], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rule", [NAdam, Adamax, RMSprop, Adagrad, Adadelta], ids=lambda r: r.__name__)
def test_coupled_decay_takes_the_rewind_away_and_a_run_keeps_the_state(rule):
    assert hasattr(rule(), "rewind")
    assert not hasattr(rule(weight_decay=0.1), "rewind")
    assert not hasattr(rule(weight_decay=torch.tensor(0.0)), "rewind")
    stage = Stage(lambda p, h, t: (h["c"] * p["w"] ** 2).sum(), rule(weight_decay=0.1), lambda t: t, steps=3)
    record = run(stage, {"w": randn(3)}, {"c": torch.tensor(1.0, dtype=F64)}, tail=0)
    assert set(record.states) == {2}


@pytest.mark.parametrize("name", RULES)
def test_update_and_rewind_change_no_argument(name):
    rule = RULES[name](lr=0.1)
    theta, slots = warm(rule, (3, 2), seed=0)
    g = randn(3, 2, seed=5)
    arguments = [theta, g, *slots.values()]
    versions, copies = [x._version for x in arguments], [x.clone() for x in arguments]
    change, after = rule.update(g, slots, 3, theta)
    if hasattr(rule, "rewind"):
        rule.rewind(g, after, 3, theta + change)
    assert [x._version for x in arguments] == versions
    assert all(torch.equal(x, c) for x, c in zip(arguments, copies, strict=True))


# ---------------------------------------------------------------- stability


@pytest.mark.parametrize(
    "rule",
    [
        SGD(lr=0.1),
        *[Momentum(lr=0.1, momentum=m, dampening=d) for m in (0.0, 0.5, 0.99) for d in (0.0, 0.4)],
        *[Momentum(lr=0.1, momentum=m, nesterov=True) for m in (0.1, 0.5, 0.99)],
    ],
    ids=lambda r: (
        f"{type(r).__name__}-{getattr(r, 'momentum', '')}-{getattr(r, 'dampening', '')}-{getattr(r, 'nesterov', '')}"
    ),
)
def test_gradient_step_is_the_limit_of_stability(rule):
    """The map (theta, buffer) -> next, on the quadratic h theta^2 / 2, leaves the unit disc at gradient_step h = 2."""

    def radius(h: float) -> float:
        columns = []
        names = list(rule.init(torch.zeros((), dtype=F64)))
        for e in torch.eye(1 + len(names), dtype=F64):
            theta, slots = e[0], dict(zip(names, e[1:], strict=True))
            change, after = rule.update(h * theta, slots, 2, theta)
            columns.append(torch.stack([theta + change, *after.values()]))
        return float(torch.linalg.eigvals(torch.stack(columns, dim=1)).abs().max())

    limit = 2 / rule.gradient_step
    assert radius(limit * (1 - 1e-6)) < 1 - 1e-10
    assert radius(limit * (1 + 1e-6)) > 1 + 1e-10
    for fraction in (1e-3, 0.1, 0.5, 0.9):
        assert radius(limit * fraction) < 1


def test_adaptive_rules_have_no_gradient_step():
    assert all(getattr(rule, "gradient_step", None) is None for rule in (Adam(), AdamW()))


# ---------------------------------------------------------------- fields

OUT_OF_RANGE = [
    (lambda: SGD(lr=-0.1), "SGD.*lr=-0.1.*at least 0"),
    (lambda: SGD(lr=math.nan), "SGD.*lr=nan"),
    (lambda: Momentum(lr=-1.0), "Momentum.*lr=-1.0"),
    (lambda: Momentum(lr=0.1, momentum=1.0), "momentum=1.0.*below 1"),
    (lambda: Momentum(lr=0.1, momentum=-0.1), "momentum=-0.1.*at least 0"),
    (lambda: Momentum(lr=0.1, nesterov=True, dampening=0.1), "nesterov.*dampening=0"),
    (lambda: Momentum(lr=0.1, nesterov=True, momentum=0.0), "nesterov.*momentum"),
    (lambda: Adam(lr=-1.0), "Adam.*lr"),
    (lambda: Adam(eps=-1e-8), "Adam.*eps"),
    (lambda: Adam(weight_decay=-1.0), "Adam.*weight_decay"),
    (lambda: Adam(betas=(1.0, 0.9)), "Adam.*beta1=1.0.*below 1"),
    (lambda: Adam(betas=(0.9, 1.0)), "Adam.*beta2=1.0.*below 1"),
    (lambda: Adam(betas=(-0.1, 0.9)), "Adam.*beta1=-0.1.*at least 0"),
    (lambda: AdamW(betas=(0.9, -0.1)), "AdamW.*beta2=-0.1.*at least 0"),
]


@pytest.mark.parametrize(("build", "message"), OUT_OF_RANGE)
def test_fields_out_of_range_are_refused_by_name(build, message):
    with pytest.raises(HypergradientError, match=message):
        build()


@pytest.mark.parametrize("name", RULES)
def test_rules_are_frozen(name):
    with pytest.raises(AttributeError):
        RULES[name](lr=0.1).lr = 0.2


def test_a_subclass_does_not_inherit_the_promise_of_linearity():
    """`Unroll` skips the gradient for linear rules: a nonlinear child of SGD would be differentiated wrongly."""

    class Cubed(SGD):
        def update(self, grad, slots, t, param):
            return -self.lr * grad**3, {}

    assert is_linear(SGD(lr=0.1), (), 0)
    assert not is_linear(Cubed(lr=0.1), (), 0)
    assert not is_linear(lambda hparams: SGD(lr=0.1), (), 0)
