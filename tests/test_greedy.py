"""Greedy learning against closed forms written from the papers, against one step of torch.optim, and against Unroll."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.problems import PROBLEMS
from estimators import (
    LAMB,
    SGD,
    Adadelta,
    Adafactor,
    Adam,
    AdamW,
    ClipNorm,
    Greedy,
    Groups,
    HypergradientError,
    Lion,
    Momentum,
    NotApplicableError,
    Problem,
    RMSprop,
    Stage,
    Tree,
    Unroll,
    estimate,
    hypergradient,
    registry,
    run,
)
from estimators.tree import flatten

F64 = torch.float64
ETA = 0.05
HPARAMS = {"a": torch.tensor(0.2, dtype=F64), "b": torch.tensor(0.8, dtype=F64)}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loss(p: Tree, h: Tree, batch: Tensor) -> Tensor:
    return ((p["m"] @ batch + p["v"]).tanh() - 0.3).square().sum() + (p["m"] ** 2).sum() / 10


def outer(p: Tree, h: Tree) -> Tensor:
    return (p["m"] - 1).square().sum() + p["v"].sin().sum()


def problem(rule: Any, steps: int, hparams: Tree = HPARAMS) -> Problem:
    start = {"m": randn(3, 4, seed=1), "v": randn(3, seed=2)}
    stage = Stage(loss, rule, lambda t: randn(4, seed=100 + t), steps)
    return Problem("greedy", [stage], outer, start, hparams)


class Last:
    """The last step of a run: its gradient g, the state before it, and the outer gradient q after it."""

    def __init__(self, p: Problem) -> None:
        (stage,) = p.stages
        record = run(stage, p.start, p.hparams, tail=1)
        assert record.grad is not None
        self.t, self.g, self.record = record.end.step, record.grad, record
        self.before = record.states[self.t - 1]
        end = {k: x.clone().requires_grad_() for k, x in record.end.params.items()}
        self.q = dict(zip(end, torch.autograd.grad(outer(end, {}), list(end.values())), strict=True))

    def slot(self, name: str) -> dict[str, Tensor]:
        return {k: s[name] for k, s in self.before.slots.items()}

    def slot_of(self, leaf: str, name: str) -> Tensor:
        return self.before.slots[leaf][name]

    def slopes(self, on_alpha: Tree, on_b1: Tree, b1: float, alpha: float) -> dict[str, float]:
        """dM/da = -alpha q.(du/dalpha), dM/db = -(db1/db) q.(du/db1) for theta' = theta - u."""
        pull = [float(sum((self.q[k] * d[k]).sum() for k in self.q)) for d in (on_alpha, on_b1)]
        return {"a": -alpha * pull[0], "b": -b1 * (1 - b1) * pull[1]}


ALPHA, B1 = math.exp(0.2), 1 / (1 + math.exp(-0.8))


def rate(h: Tree) -> Tensor:
    return ETA * h["a"].exp()


def check(rule: Any, steps: int, closed: Callable[[Last], tuple[Tree, Tree]], rel: float = 1e-9) -> None:
    p = problem(rule, steps)
    found = estimate(p, Greedy()).hparams
    last = Last(p)
    want = last.slopes(*closed(last), B1, ALPHA)
    assert {k: float(x) for k, x in found.items()} == pytest.approx(want, rel=rel, abs=1e-14)


def each(last: Last, fn: Callable[..., Tensor], *slots: str) -> Tree:
    return {k: fn(g, *(last.slot(s)[k] for s in slots)) for k, g in last.g.items()}


# ---------------------------------------------------------------- closed forms (Lichtarge et al. 2022, algorithm 1)


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_heavy_ball(steps: int) -> None:
    """du/dalpha = eta buf', du/db1 = alpha eta buf."""

    def closed(last: Last) -> tuple[Tree, Tree]:
        on_alpha = each(last, lambda g, b: ETA * (B1 * b + g), "momentum_buffer")
        return on_alpha, each(last, lambda g, b: ALPHA * ETA * b, "momentum_buffer")

    check(lambda h: Momentum(lr=rate(h), momentum=h["b"].sigmoid()), steps, closed)


@pytest.mark.parametrize("steps", [2, 8])
def test_nesterov(steps: int) -> None:
    """du/dalpha = eta (g + b1 buf'), du/db1 = alpha eta (g + 2 b1 buf)."""

    def closed(last: Last) -> tuple[Tree, Tree]:
        on_alpha = each(last, lambda g, b: ETA * (g + B1 * (B1 * b + g)), "momentum_buffer")
        return on_alpha, each(last, lambda g, b: ALPHA * ETA * (g + 2 * B1 * b), "momentum_buffer")

    check(lambda h: Momentum(lr=rate(h), momentum=h["b"].sigmoid(), nesterov=True), steps, closed)


@pytest.mark.parametrize("steps", [2, 8])
def test_averaged_momentum(steps: int) -> None:
    """buf' = b1 buf + (1 - b1) g: du/db1 = alpha eta (buf - g)."""

    def rule(h: Tree) -> Momentum:
        b1 = h["b"].sigmoid()
        return Momentum(lr=rate(h), momentum=b1, dampening=b1)

    def closed(last: Last) -> tuple[Tree, Tree]:
        on_alpha = each(last, lambda g, b: ETA * (B1 * b + (1 - B1) * g), "momentum_buffer")
        return on_alpha, each(last, lambda g, b: ALPHA * ETA * (b - g), "momentum_buffer")

    check(rule, steps, closed)


def adam(h: Tree, cls: type = Adam, **more: Any) -> Any:
    return cls(lr=rate(h), betas=(h["b"].sigmoid(), 0.999), **more)


def adam_derivatives(last: Last) -> tuple[Tree, Tree, Tree]:
    """u = alpha eta m'/(bc1 den): (du/dalpha, the moment's share of du/db1, the bias correction's)."""
    t, bc1, bc2 = last.t, 1 - B1**last.t, 1 - 0.999**last.t

    def parts(g: Tensor, m: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        den = ((0.999 * s + 0.001 * g * g) / bc2).sqrt() + 1e-8
        fresh = B1 * m + (1 - B1) * g
        correction = fresh * t * B1 ** (t - 1) / bc1**2
        return ETA * fresh / bc1 / den, ALPHA * ETA / den * (m - g) / bc1, ALPHA * ETA / den * correction

    found = {k: parts(g, last.slot("exp_avg")[k], last.slot("exp_avg_sq")[k]) for k, g in last.g.items()}
    on_alpha, moment, correction = ({k: x[i] for k, x in found.items()} for i in range(3))
    return on_alpha, moment, correction


@pytest.mark.parametrize("steps", [2, 5, 10, 30])
def test_adam(steps: int) -> None:
    """du/dalpha = u / alpha; du/db1 = alpha eta / den [(m - g)/bc1 + m' t b1^(t-1) / bc1^2]."""

    def closed(last: Last) -> tuple[Tree, Tree]:
        on_alpha, moment, correction = adam_derivatives(last)
        return on_alpha, {k: moment[k] + correction[k] for k in moment}

    check(adam, steps, closed, rel=1e-8)


def test_adam_s_first_step_does_not_depend_on_beta1() -> None:
    """The bias correction cancels exactly: g / |g|, whatever beta1."""
    found = estimate(problem(adam, 1), Greedy()).hparams
    assert abs(float(found["b"])) < 1e-14 * float(found["a"].abs())
    assert float(found["a"]) != 0


@pytest.mark.parametrize("steps", [2, 5, 10])
def test_lamb(steps: int) -> None:
    """du/dalpha = u/alpha; du/db1 = alpha eta ||th||/||r|| (I - rhat rhat^T) dr/db1, from which bias correction drops out."""

    def closed(last: Last) -> tuple[Tree, Tree]:
        on_alpha, on_b1 = {}, {}
        for k, g in last.g.items():
            m, s, theta = last.slot("exp_avg")[k], last.slot("exp_avg_sq")[k], last.before.params[k]
            den = ((0.999 * s + 0.001 * g * g) / (1 - 0.999**last.t)).sqrt() + 1e-6
            r, dr = (B1 * m + (1 - B1) * g) / den, (m - g) / den  # without 1/bc1: only r's direction matters
            trust, along = theta.norm() / r.norm(), r / r.norm()
            on_alpha[k] = ETA * trust * r
            on_b1[k] = ALPHA * ETA * trust * (dr - along * (along * dr).sum())
        return on_alpha, on_b1

    check(lambda h: adam(h, LAMB), steps, closed, rel=1e-8)


@pytest.mark.parametrize("steps", [2, 5, 10])
def test_adafactor_in_flax_s_order(steps: int) -> None:
    """m' = b1 m + (1 - b1) s with the lr-scaled step s: du/dalpha = (1 - b1) s/alpha, du/db1 = m - s.

    So alpha reaches only the fresh part of what is applied.
    """

    def rule(h: Tree) -> Adafactor:
        return Adafactor(lr=rate(h), eps=(1e-30, 1e-3), eps_inside=True, relative_step=False, momentum=h["b"].sigmoid())

    def closed(last: Last) -> tuple[Tree, Tree]:
        change = {k: last.record.end.params[k] - last.before.params[k] for k in last.g}
        fresh = each(last, lambda g, m: m, "exp_avg")
        s = {k: (-change[k] - B1 * m) / (1 - B1) for k, m in fresh.items()}
        return {k: (1 - B1) * s[k] / ALPHA for k in s}, {k: fresh[k] - s[k] for k in s}

    check(rule, steps, closed, rel=1e-8)


# ---------------------------------------------------------------- against one real step, and against Unroll


REAL = {
    "sgd momentum": (
        lambda h: Momentum(lr=rate(h), momentum=h["b"].sigmoid()),
        lambda p, a, b: torch.optim.SGD(p, lr=ETA * a, momentum=b),
    ),
    "nesterov": (
        lambda h: Momentum(lr=rate(h), momentum=h["b"].sigmoid(), nesterov=True),
        lambda p, a, b: torch.optim.SGD(p, lr=ETA * a, momentum=b, nesterov=True),
    ),
    "adam": (adam, lambda p, a, b: torch.optim.Adam(p, lr=ETA * a, betas=(b, 0.999))),
    "adam, decay": (
        lambda h: adam(h, weight_decay=0.1),
        lambda p, a, b: torch.optim.Adam(p, lr=ETA * a, betas=(b, 0.999), weight_decay=0.1),
    ),
    "adamw": (
        lambda h: adam(h, AdamW, weight_decay=0.1),
        lambda p, a, b: torch.optim.AdamW(p, lr=ETA * a, betas=(b, 0.999), weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_one_real_step_of_torch(name: str) -> None:
    """Central differences of the outer loss over one step of torch.optim, from the slots that its own steps made."""
    ours, real = REAL[name]
    steps = 6
    found = estimate(problem(ours, steps), Greedy()).hparams
    p = problem(ours, steps)

    def value(a: float, b: float) -> float:
        theta = {k: x.clone().requires_grad_() for k, x in p.start.items()}  # type: ignore[union-attr]
        optimizer = real(list(theta.values()), ALPHA, B1)
        for t in range(steps):
            if t == steps - 1:  # only the last step is taken with other hyperparameters
                for group in optimizer.param_groups:
                    group["lr"] = ETA * math.exp(a)
                    b1 = 1 / (1 + math.exp(-b))
                    group.update({"momentum": b1} if "momentum" in group else {"betas": (b1, 0.999)})
            optimizer.zero_grad()
            loss(theta, {}, randn(4, seed=100 + t)).backward()
            optimizer.step()
        return float(outer(theta, {}).detach())

    h = 1e-5
    slopes = {"a": value(0.2 + h, 0.8) - value(0.2 - h, 0.8), "b": value(0.2, 0.8 + h) - value(0.2, 0.8 - h)}
    assert {k: float(x) for k, x in found.items()} == pytest.approx(
        {k: x / (2 * h) for k, x in slopes.items()}, rel=1e-7
    )


RULES: dict[str, Any] = {
    **{name: ours for name, (ours, _) in REAL.items()},
    "lamb": lambda h: adam(h, LAMB, weight_decay=0.05),
    "adafactor": lambda h: Adafactor(lr=rate(h), momentum=h["b"].sigmoid(), relative_step=False),
    "eps": lambda h: Adam(lr=0.05, betas=(0.9, 0.99), eps=h["a"].exp() * 1e-2, weight_decay=h["b"].sigmoid()),
    "beta2": lambda h: Adam(lr=0.05, betas=(h["a"].sigmoid(), h["b"].sigmoid())),
    "clipped norm": lambda h: ClipNorm(Momentum(lr=0.05, momentum=h["b"].sigmoid()), max_norm=0.1 * h["a"].exp()),
    "clip of adafactor": lambda h: Adafactor(lr=0.05, d=1 + h["a"].exp() / 9, beta2_decay=-h["b"].sigmoid()),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("steps", [2, 9])
def test_it_is_the_unroll_of_the_last_step(name: str, steps: int) -> None:
    p = problem(RULES[name], steps)
    (a, b) = (flatten(estimate(p, e).hparams) for e in (Greedy(), Unroll(last=1)))
    assert float((a - b).norm() / b.norm()) < 1e-8  # Adam's slots are rewound by Greedy, recorded for Unroll
    assert float(b.abs().min()) > 0


def test_hyperparameters_of_single_leaves() -> None:
    """Groups: each leaf's own learning rate and momentum answer for that leaf alone."""
    hparams = {"a.m": torch.tensor(0.2, dtype=F64), "a.v": torch.tensor(-0.5, dtype=F64), "b": HPARAMS["b"]}

    def rule(h: Tree) -> Groups:
        momentum = Momentum(lr=ETA * h["a.m"].exp(), momentum=h["b"].sigmoid())
        return Groups({"m": momentum, "*": Adam(lr=ETA * h["a.v"].exp())})

    p = problem(rule, 6, hparams)
    found, last = estimate(p, Greedy()).hparams, Last(p)
    moved = {k: last.record.end.params[k] - last.before.params[k] for k in last.g}
    for k in ("m", "v"):
        assert float(found[f"a.{k}"]) == pytest.approx(float((last.q[k] * moved[k]).sum()), rel=1e-9)
    buffer = last.slot_of("m", "momentum_buffer")
    assert float(found["b"]) == pytest.approx(
        -B1 * (1 - B1) * ALPHA * ETA * float((last.q["m"] * buffer).sum()), rel=1e-9
    )


def test_it_costs_one_pass_that_asks_what_the_loss_reads_and_one_kept_state() -> None:
    found = estimate(problem(adam, 5), Greedy())
    assert (found.cost.products, found.cost.gradients, found.cost.kept_bytes) == (0, 1, 8 * (3 * 4 + 3))


@pytest.mark.parametrize(
    "rule",
    [
        lambda h: Momentum(lr=0.05, momentum=h["decay"]),
        lambda h: Adam(lr=0.05, betas=(h["decay"], 0.9)),
        lambda h: Adam(lr=0.05, betas=(0.9, h["decay"])),
        lambda h: RMSprop(lr=0.05, alpha=h["decay"]),
        lambda h: RMSprop(lr=0.05, momentum=h["decay"]),
        lambda h: Adadelta(rho=h["decay"]),
        lambda h: LAMB(lr=0.05, betas=(h["decay"], 0.9)),
    ],
    ids=["momentum", "adam b1", "adam b2", "rmsprop alpha", "rmsprop momentum", "adadelta", "lamb b1"],
)
def test_a_decay_of_zero_is_differentiated_like_any_other(rule: Any) -> None:
    """The step taken back would lose the slot that such a decay multiplies, and with it the derivative."""
    p = problem(rule, 6, {"decay": torch.tensor(0.0, dtype=F64)})
    want = float(estimate(p, Unroll(last=1)).hparams["decay"])
    assert want != 0.0
    assert float(estimate(p, Greedy()).hparams["decay"]) == pytest.approx(want, rel=1e-10)


def test_a_record_without_the_state_before_is_refused() -> None:
    p = problem(lambda h: SGD(lr=h["a"]), 3, {"a": torch.tensor(0.1, dtype=F64)})
    record = run(p.stages[0], p.start, p.hparams, tail=0)
    with pytest.raises(HypergradientError, match=r"run\(..., tail=1\)"):
        hypergradient(p.outer, p.stages, [Greedy()], [record], p.hparams)


@pytest.mark.parametrize(("steps", "share"), [(2, 1.34), (5, 1.03), (10, 0.91), (30, 0.34), (60, 0.027)])
def test_the_bias_correction_decides_the_first_steps(steps: int, share: float) -> None:
    """How long the bias correction's part of du/db1 is beside the whole, on gradients that are white noise, b1 = 0.9.

    An implementation that leaves it out, as a moment's own derivative would, is off by this much.
    """
    start, at_09 = {"w": torch.zeros(20_000, dtype=F64)}, {**HPARAMS, "b": torch.tensor(9.0, dtype=F64).log()}
    stage = Stage(lambda p, h, noise: (p["w"] * noise).sum(), adam, lambda t: randn(20_000, seed=t), steps)
    record = run(stage, start, at_09, tail=1)
    assert record.grad is not None
    slots = record.states[steps - 1].slots["w"]
    t, bc1, g, m = steps, 1 - 0.9**steps, record.grad["w"], slots["exp_avg"]
    den = ((0.999 * slots["exp_avg_sq"] + 0.001 * g * g) / (1 - 0.999**t)).sqrt() + 1e-8
    moment, correction = (m - g) / bc1 / den, (0.9 * m + 0.1 * g) * t * 0.9 ** (t - 1) / bc1**2 / den
    assert float(correction.norm() / (moment + correction).norm()) == pytest.approx(share, rel=0.1)
    for q in (randn(20_000, seed=1000), g):
        found = Greedy().pullback(stage, record, at_09, {"w": q}).hparams["b"]
        whole, without = (float(-ALPHA * ETA * 0.09 * (q * x).sum()) for x in (moment + correction, moment))
        assert float(found) == pytest.approx(whole, rel=1e-7)
        assert abs(without - whole) > 1e-4 * abs(whole)


# ---------------------------------------------------------------- refusals


def test_hyperparameters_in_the_loss_are_refused() -> None:
    p = problem(adam, 3, {**HPARAMS, "decay": torch.tensor(0.1, dtype=F64)})
    stage = Stage(lambda q, h, b: loss(q, h, b) + h["decay"] * q["v"].square().sum(), adam, p.stages[0].stream, 3)
    mixed = Problem("mixed", [stage], outer, p.start, p.hparams)
    with pytest.raises(NotApplicableError, match=r"the loss reads.*\['decay'\].*Unroll\(last=1\)"):
        estimate(mixed, Greedy())
    claim = registry["greedy"].claim
    assert "decay" in str(claim.refuses(mixed))


def test_one_that_sits_in_both_is_refused() -> None:
    stage = Stage(lambda q, h, b: loss(q, h, b) * h["a"].exp(), adam, lambda t: randn(4, seed=100 + t), 3)
    with pytest.raises(NotApplicableError, match=r"\['a'\]"):
        estimate(Problem("both", [stage], outer, problem(adam, 3).start, HPARAMS), Greedy())


def test_a_loss_that_reads_one_detached_is_no_matter() -> None:
    stage = Stage(lambda q, h, b: loss(q, h, b) * h["a"].detach().exp(), adam, lambda t: randn(4, seed=100 + t), 3)
    p = Problem("detached", [stage], outer, problem(adam, 3).start, HPARAMS)
    a, b = (flatten(estimate(p, e).hparams) for e in (Greedy(), Unroll(last=1)))
    assert float((a - b).norm() / b.norm()) < 1e-8


def test_a_rule_without_hyperparameters_is_refused() -> None:
    with pytest.raises(NotApplicableError, match=r"no hyperparameter sits in the rule, SGD.*Unroll"):
        estimate(problem(SGD(lr=0.1), 3), Greedy())
    assert registry["greedy"].claim.refuses(problem(SGD(lr=0.1), 3)) is not None
    assert registry["greedy"].claim.refuses(problem(adam, 3)) is None


def test_no_step_and_a_sign_are_refused() -> None:
    with pytest.raises(NotApplicableError, match=r"took no step.*Stage\(steps >= 1\)"):
        estimate(problem(adam, 0), Greedy())
    with pytest.raises(NotApplicableError, match="Lion"):
        estimate(problem(lambda h: Lion(lr=rate(h), betas=(h["b"].sigmoid(), 0.99)), 3), Greedy())


def test_a_momentum_has_slope_zero_in_the_first_step() -> None:
    p = problem(lambda h: Momentum(lr=rate(h), momentum=h["b"].sigmoid()), 1)
    found = estimate(p, Greedy()).hparams
    last = Last(p)
    assert float(found["b"]) == 0
    assert float(found["a"]) == pytest.approx(-ALPHA * ETA * float(flatten(last.q) @ flatten(last.g)))


def test_the_shipped_problem() -> None:
    p = PROBLEMS["one_step_rule"].make(steps=4)
    (stage,) = p.stages
    records = [run(stage, p.start, p.hparams, tail=1)]
    a, b = (
        flatten(hypergradient(p.outer, [stage], [e], records, p.hparams).hparams) for e in (Greedy(), Unroll(last=1))
    )
    assert float((a - b).norm() / b.norm()) < 1e-12
