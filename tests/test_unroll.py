"""What is kept and what is taken again changes the memory and the time of an unroll, and not its answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.measure import peak_bytes
from estimators import (
    SGD,
    Adam,
    CentralDifference,
    ClipNorm,
    FiniteDifference,
    Groups,
    HypergradientError,
    Momentum,
    Muon,
    Problem,
    Record,
    Stage,
    Tree,
    Unroll,
    estimate,
    hypergradient,
    reverse_over_forward,
    run,
)
from estimators.checkpointing import Sizes, cheapest
from estimators.stage import sizes_of
from estimators.tree import flatten

from .definitions import long_graph
from .toy import toy

RULES: dict[str, Callable[[], Any]] = {
    "sgd": lambda: SGD(lr=0.1, weight_decay=0.01),
    "momentum": lambda: Momentum(lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "nesterov": lambda: Momentum(lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda: Adam(lr=0.05, weight_decay=0.01),
    "muon": lambda: Groups({"w": Muon(lr=0.05), "*": Momentum(lr=0.05)}),
    "clipped": lambda: ClipNorm(Adam(lr=0.05), max_norm=0.1),
}


def gap(a: Tree, b: Tree) -> float:
    x, y = flatten(a), flatten({k: b[k] for k in a})
    return float((x - y).norm() / y.norm().clamp_min(1e-300))


def sizes(problem: Problem) -> Sizes:
    stage = problem.stages[0]
    return sizes_of(stage, stage.initial(problem.start, problem.hparams), problem.hparams)  # type: ignore[arg-type]


def least(problem: Problem) -> int:
    found = sizes(problem)
    return min(found.state + found.step, max(problem.stages[0].steps, 1) * found.step)


@functools.cache
def true(rule: str, steps: int) -> Tree:
    """By one long graph, which knows nothing of the library's sweep."""
    problem = toy(RULES[rule](), steps=steps)
    return long_graph(problem, problem.hparams)


@pytest.mark.parametrize("rule", [r for r in RULES if r != "clipped"])
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_every_way_gives_the_long_graph(rule: str, steps: int) -> None:
    problem = toy(RULES[rule](), steps=steps)
    ways = [
        Unroll(),
        *(Unroll(checkpoint=k) for k in (1, 2, 3, 50)),
        Unroll(budget=least(problem)),
        Unroll(budget="1MB"),
    ]
    for estimator in ways:
        assert gap(estimate(problem, estimator).hparams, true(rule, steps)) < 1e-10, estimator


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rule=st.sampled_from(sorted(RULES)), steps=st.integers(0, 40), spare=st.integers(0, 20_000),
    last=st.none() | st.integers(0, 12),
)  # fmt: skip
def test_any_budget_gives_the_same(rule: str, steps: int, spare: int, last: int | None) -> None:
    problem = toy(RULES[rule](), steps=steps)
    plain = estimate(problem, Unroll(last=last, checkpoint=1))
    found = estimate(problem, Unroll(last=last, budget=least(problem) + spare))
    assert gap(found.hparams, plain.hparams) < 1e-12
    assert found.cost.products == plain.cost.products
    assert found.outcomes == plain.outcomes


@pytest.mark.parametrize("estimator", [Unroll(), Unroll(checkpoint=3), Unroll(budget="1MB"), Unroll(budget=4000)])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_record_serves_again_when_its_steps_are_used_up(estimator: Unroll, rule: str) -> None:
    problem = toy(RULES[rule](), steps=9)
    record = run(problem.stages[0], problem.start, problem.hparams, keep=estimator.keep)
    assert record.kept

    def pull(e: Unroll) -> Tree:
        return hypergradient(problem.outer, problem.stages, [e], [record], problem.hparams).hparams

    first = pull(estimator)
    assert not record.kept
    assert all(torch.equal(x, pull(estimator)[k]) for k, x in first.items())
    assert gap(pull(Unroll(checkpoint=2)), first) < 1e-12
    assert gap(pull(Unroll(last=2)), estimate(problem, Unroll(last=2, checkpoint=1)).hparams) < 1e-12


@pytest.mark.parametrize("estimator", [Unroll(budget=3000), Unroll(), Unroll(checkpoint=4), Unroll(last=5)])
@pytest.mark.parametrize(("tail", "every"), [(None, 1), (None, 3), (None, 2**62), (6, 1), (6, 4)])
def test_a_record_made_for_others_will_do(estimator: Unroll, tail: int | None, every: int) -> None:
    problem = toy(RULES["adam"](), steps=9)
    if estimator.last is None and tail is not None:
        pytest.skip("does not reach back")
    record = run(problem.stages[0], problem.start, problem.hparams, tail=tail, every=every)
    found = hypergradient(problem.outer, problem.stages, [estimator], [record], problem.hparams).hparams
    assert gap(found, estimate(problem, replace(estimator, budget=None, checkpoint=1)).hparams) < 1e-12


@pytest.mark.parametrize(
    "product", [reverse_over_forward, CentralDifference(alpha=1e-5)], ids=["forward", "difference"]
)
def test_products_without_a_graph_of_their_own(product: Any) -> None:
    problem = toy(Adam(lr=0.05), steps=9)
    plain = estimate(problem, Unroll(product=product))
    for more in ({"checkpoint": 4}, {"budget": 3000}, {"budget": "1MB"}):
        found = estimate(problem, Unroll(product=product, **more))
        assert gap(found.hparams, plain.hparams) < 1e-12
        assert found.cost.gradients >= plain.cost.gradients == 9  # the rule's own derivative wants each step's gradient


def test_the_states_of_a_run_that_keeps_are_those_of_one_that_does_not() -> None:
    problem = toy(Adam(lr=0.05), steps=9)
    stage = problem.stages[0]
    plain = run(stage, problem.start, problem.hparams)
    for estimator in (Unroll(), Unroll(checkpoint=4), Unroll(budget=3000)):
        record = run(stage, problem.start, problem.hparams, keep=estimator.keep)
        for t, state in {**record.states, **{t: one.state for t, one in record.kept.items()}, 9: record.end}.items():
            other = plain.end if t == 9 else plain.states[t]
            assert all(torch.equal(x, y) for x, y in zip(state.tensors(), other.tensors(), strict=True))


def test_leaves_that_some_steps_skip() -> None:
    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        fit = (p["a"] - h["x"]).pow(4).sum()
        return fit + (p["b"] * p["a"]).square().sum() * h["y"] if t % 3 == 0 else fit

    g = torch.Generator().manual_seed(0)
    start = {k: torch.randn(3, generator=g, dtype=torch.float64) for k in "ab"}
    hparams = {"x": torch.ones(3, dtype=torch.float64), "y": torch.tensor(0.5, dtype=torch.float64)}
    for rule in (SGD(lr=0.01), Adam(lr=0.01), Momentum(lr=0.01)):
        stage = Stage(loss, rule, lambda t: t, 11)
        problem = Problem("skips", [stage], lambda p, h: (p["a"] * p["b"]).sum(), start, hparams)
        plain = estimate(problem, Unroll(checkpoint=1)).hparams
        assert gap(plain, estimate(problem, FiniteDifference()).hparams) < 1e-6
        for estimator in (Unroll(), Unroll(checkpoint=3), Unroll(budget=1200)):
            assert gap(estimate(problem, estimator).hparams, plain) < 1e-12


@pytest.mark.parametrize(
    "rule", [SGD(lr=0.3), SGD(lr=1.0), Momentum(lr=1.0, momentum=0.5)], ids=["sgd", "plain", "momentum"]
)
def test_products_that_hand_the_cotangents_around(rule: Any) -> None:
    """H swaps two leaves and M is the identity: what a product gives may be the cotangents themselves."""

    def loss(p: Tree, h: Tree, batch: None) -> Tensor:
        return torch.dot(p["a"], p["b"]) + torch.dot(p["a"], h["x"])

    g = torch.Generator().manual_seed(0)
    start = {k: torch.randn(3, generator=g, dtype=torch.float64) for k in "ab"}
    hparams = {"x": torch.randn(3, generator=g, dtype=torch.float64)}
    outer = {k: torch.randn(3, generator=g, dtype=torch.float64) for k in "ab"}
    stage = Stage(loss, rule, lambda t: None, 6)
    problem = Problem("swap", [stage], lambda p, h: sum(torch.dot(p[k], outer[k]) for k in "ab"), start, hparams)  # type: ignore[arg-type, return-value, misc]
    assert gap(estimate(problem, Unroll()).hparams, long_graph(problem, hparams)) < 1e-12


def test_random_losses_see_the_same_draws() -> None:
    def loss(p: Tree, h: Tree, batch: Tensor) -> Tensor:
        kept = torch.nn.functional.dropout(p["w"] * batch, 0.5)
        return (kept - h["x"]).square().mean()

    start, hparams = {"w": torch.ones(20, dtype=torch.float64)}, {"x": torch.ones(20, dtype=torch.float64)}
    stage = Stage(loss, Momentum(lr=0.3), lambda t: torch.randn(20, dtype=torch.float64), 10, seed=3)
    problem = Problem("drops", [stage], lambda p, h: p["w"].square().sum(), start, hparams)
    plain = estimate(problem, Unroll(checkpoint=1)).hparams
    for estimator in (Unroll(), Unroll(checkpoint=3), Unroll(budget=2500)):
        assert gap(estimate(problem, estimator).hparams, plain) < 1e-12


# ---------------------------------------------------------------- cost and bytes


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("steps", [5, 17])
def test_the_cost_is_that_of_the_schedule(rule: str, steps: int) -> None:
    problem = toy(RULES[rule](), steps=steps)
    found = sizes(problem)
    for budget in (least(problem), least(problem) + 3 * found.step, 10**6):
        schedule = cheapest(steps, budget, found)
        cost = estimate(problem, Unroll(budget=budget)).cost
        assert cost.products == steps
        # the last step of a stretch is linearised for its product and never taken: the run did, or the next stretch has it
        assert cost.gradients + steps <= schedule.taken(steps)
    assert estimate(problem, Unroll()).cost.gradients == 0
    assert estimate(problem, Unroll(checkpoint=1)).cost.gradients == 0


N = 500


def wide(steps: int, rule: Any) -> Problem:
    """A state and a graph of known size: sum sin(w) x + x^2 w^2, of N numbers."""

    def loss(p: Tree, h: Tree, batch: None) -> Tensor:
        return (p["w"].sin() * h["x"] + (p["w"] * h["x"]).square()).sum()

    w = torch.linspace(0, 1, N, dtype=torch.float64)
    stage = Stage(loss, rule, lambda t: None, steps)
    return Problem(
        "wide", [stage], lambda p, h: p["w"].square().sum(), {"w": w}, {"x": torch.ones(N, dtype=torch.float64)}
    )


def peak(problem: Problem, estimator: Unroll) -> int:
    """Of run and pullback, without the losses and the flags, a number each."""

    def work() -> None:
        record = run(problem.stages[0], problem.start, problem.hparams, keep=estimator.keep)
        hypergradient(problem.outer, problem.stages, [estimator], [record], problem.hparams, consume=True)

    return peak_bytes(work)


@pytest.mark.parametrize("rule", [SGD(lr=0.01), Momentum(lr=0.01), Adam(lr=0.01)], ids=lambda r: type(r).__name__)
def test_the_peak_stays_within_the_budget(rule: Any) -> None:
    """Beside it, what one step needs: the same at every length and for every budget."""
    problem = wide(30, rule)
    found = sizes(problem)
    low = found.state + found.step
    beside = peak(wide(3, rule), Unroll(budget=low)) - low  # where steps are taken again
    for budget in (low, low + found.state, 2 * low, 5 * low, 12 * low):
        assert peak(problem, Unroll(budget=budget)) <= budget + beside + 100 * 30
    with pytest.raises(HypergradientError, match=f"give budget={low} or more"):
        estimate(problem, Unroll(budget=low - 1))


def test_the_size_of_a_step_is_what_keeping_it_takes() -> None:
    for rule in (SGD(lr=0.01), Momentum(lr=0.01), Adam(lr=0.01)):
        found = sizes(wide(5, rule))
        grown = [peak(wide(steps, rule), Unroll()) for steps in (10, 11, 14)]
        assert 0 <= grown[1] - grown[0] - found.step < 64  # a loss, and the flags of a step
        assert 0 <= grown[2] - grown[1] - 3 * found.step < 3 * 64


def test_with_a_checkpoint_every_sqrt_of_the_steps_memory_grows_like_the_square_root() -> None:
    def kept(root: int) -> float:
        losses = 8 * root**2
        return peak(wide(root**2, SGD(lr=0.001)), Unroll(checkpoint=root)) - losses

    at = [kept(root) for root in (4, 8, 12)]
    assert at[2] - at[1] == pytest.approx(at[1] - at[0], rel=1e-2)


def test_a_tenth_of_the_steps_memory_costs_less_than_twice_the_gradients() -> None:
    problem = wide(200, SGD(lr=0.001))
    everything = 200 * sizes(problem).step
    cost = estimate(problem, Unroll(budget=everything // 5)).cost
    assert cost.gradients < 200
    cost = estimate(problem, Unroll(budget=everything // 30)).cost
    assert cost.gradients < 2 * 200


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Unroll(budget="2 parsecs"), "2GiB"),
        (lambda: Unroll(budget=0), "2GiB"),
        (lambda: Unroll(budget="1GiB", checkpoint=3), "checkpoint or budget"),
    ],
)
def test_what_it_refuses(make: Callable[[], Unroll], words: str) -> None:
    with pytest.raises(HypergradientError, match=words):
        make()


def test_a_record_that_keeps_says_what_its_states_take() -> None:
    problem = wide(6, SGD(lr=0.01))
    record: Record = run(problem.stages[0], problem.start, problem.hparams, keep=Unroll(checkpoint=2).keep)
    assert sorted(record.states) == [0, 2, 4]
    assert sorted(record.kept) == [4, 5]
    assert record.kept_bytes == 4 * 8 * N  # before the steps 0, 2, 4 and 5
