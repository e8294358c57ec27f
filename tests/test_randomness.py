"""Random draws inside losses and streams: refused without a seed, and with one a pure function of the step."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from estimators import (
    CG,
    SAMA,
    SGD,
    T1T2,
    Adam,
    CentralDifference,
    Forward,
    HypergradientError,
    Implicit,
    Problem,
    Stage,
    State,
    Unroll,
    estimate,
    reverse_over_forward,
    reverse_over_reverse,
    run,
)

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


X, Y = randn(12, 4, seed=1), randn(12, seed=2)
START = {"w": randn(5, 4, seed=3), "v": randn(5, seed=4)}
HPARAMS = {"weights": randn(12, seed=5)}


def dropout_loss(p, h, rows):
    hidden = F.dropout(torch.tanh(X[rows] @ p["w"].T), 0.4)
    noise = 0.1 * torch.randn(len(X[rows]), dtype=F64)
    return (torch.sigmoid(h["weights"][rows]) * (hidden @ p["v"] + noise - Y[rows]) ** 2).mean()


def outer(p, h):
    return ((torch.tanh(X @ p["w"].T) @ p["v"] + Y) ** 2).mean()


def batches(t):
    return slice(4 * (t % 3), 4 * (t % 3) + 4)


def shuffled(t):
    return torch.randperm(12)[:5]


def stage(seed=0, loss=dropout_loss, stream=batches, steps=6, rule=None):
    return Stage(loss, rule or SGD(lr=0.1), stream, steps, seed=seed)


def deterministic(p, h, rows):
    return (torch.sigmoid(h["weights"][rows]) * (torch.tanh(X[rows] @ p["w"].T) @ p["v"] - Y[rows]) ** 2).mean()


# ---------------------------------------------------------------- without a seed


@pytest.mark.parametrize(("loss", "stream"), [(dropout_loss, batches), (deterministic, shuffled)])
def test_draws_without_a_seed_are_refused(loss, stream):
    with pytest.raises(HypergradientError, match=r"draws from torch's global generator.*Stage\(seed=0\)"):
        run(stage(None, loss, stream), START, HPARAMS)


def test_draws_that_begin_later_are_refused_as_well():
    """Dropout after a warm-up; a stream that reshuffles at an epoch's end."""

    def late(p, h, t):
        value = deterministic(p, h, batches(t))
        return value if t < 4 else value * (1 + 0.1 * torch.rand((), dtype=F64))

    with pytest.raises(HypergradientError, match=r"Stage\(seed=0\)"):
        run(stage(None, late, lambda t: t), START, HPARAMS)


def test_a_generator_of_one_s_own_is_allowed():
    """A stream that is a pure function of the step may draw."""
    drawing = stage(None, deterministic, lambda t: torch.randperm(12, generator=torch.Generator().manual_seed(t))[:5])
    one, two = (run(drawing, START, HPARAMS) for _ in range(2))
    assert torch.equal(one.losses, two.losses)


# ---------------------------------------------------------------- with a seed


@pytest.mark.parametrize("stream", [batches, shuffled])
def test_a_seeded_run_repeats_bitwise_and_leaves_the_global_generator_alone(stream):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    one = run(stage(stream=stream), START, HPARAMS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(456)
    two = run(stage(stream=stream), START, HPARAMS)
    assert torch.equal(one.losses, two.losses)
    assert all(torch.equal(one.end.params[k], two.end.params[k]) for k in START)
    other = run(stage(seed=1, stream=stream), START, HPARAMS)
    assert not torch.equal(one.losses, other.losses)


def test_every_step_draws_anew():
    seen = []

    def spy(p, h, rows):
        seen.append(torch.rand(3, dtype=F64))
        return deterministic(p, h, rows)

    run(stage(loss=spy), START, HPARAMS)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


def test_the_stream_and_the_loss_of_a_step_draw_different_numbers():
    """Seeded alike, input noise and dropout masks would be the same numbers: perfectly correlated."""
    pairs = []

    def stream(t):
        return torch.rand(6, dtype=F64)

    def spy(p, h, noise):
        pairs.append((noise, torch.rand(6, dtype=F64)))
        return deterministic(p, h, slice(0, 6))

    run(stage(loss=spy, stream=stream), START, HPARAMS)
    assert pairs
    assert all(not torch.equal(a, b) for a, b in pairs)


def test_a_continued_run_draws_as_the_whole_one():
    whole = run(stage(steps=6, rule=Adam(lr=0.1)), START, HPARAMS)
    first = run(stage(steps=4, rule=Adam(lr=0.1)), START, HPARAMS)
    second = run(stage(steps=2, rule=Adam(lr=0.1)), first.end, HPARAMS)
    assert torch.equal(torch.cat([first.losses, second.losses]), whole.losses)
    assert all(torch.equal(whole.end.params[k], second.end.params[k]) for k in START)


def finite_difference(made: Stage, direction) -> float:
    def value(c):
        h = {"weights": HPARAMS["weights"] + c * direction}
        return float(outer(run(made, START, h).end.params, h))

    h = 1e-3
    return (value(-2 * h) - 8 * value(-h) + 8 * value(h) - value(2 * h)) / (12 * h)


@pytest.mark.parametrize("stream", [batches, shuffled])
@pytest.mark.parametrize("rule", [SGD(lr=0.1), Adam(lr=0.05)], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    "estimator",
    [
        Unroll(product=reverse_over_reverse), Unroll(product=reverse_over_forward), Unroll(checkpoint=4), Forward(),
        Unroll(product=CentralDifference(alpha=1e-5)),
    ],
    ids=["reverse", "forward", "checkpoint", "forward-mode", "difference"],
)  # fmt: skip
def test_exact_estimators_equal_finite_differences_under_the_same_seed(estimator, rule, stream):
    made = stage(rule=rule, stream=stream)
    found = estimate(Problem("dropout", [made], outer, START, HPARAMS), estimator).hparams["weights"]
    for seed in (7, 8):
        direction = randn(12, seed=seed)
        assert float(found @ direction) == pytest.approx(finite_difference(made, direction), rel=1e-7, abs=1e-10)


@pytest.mark.parametrize(
    "estimator", [Unroll(), Forward(), Implicit(CG(steps=3)), T1T2(), SAMA()], ids=lambda e: type(e).__name__
)
def test_estimates_repeat_bitwise_and_leave_the_global_generator_alone(estimator):
    problem = Problem("dropout", [stage()], outer, START, HPARAMS)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = estimate(problem, estimator, throw=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two = estimate(problem, estimator, throw=False)
    assert torch.equal(one.hparams["weights"], two.hparams["weights"])


def test_a_solver_s_operator_is_one_fixed_matrix():
    """Every product of a solve sees the same masks: H v is linear in v."""
    made = stage()
    end = run(made, START, HPARAMS).end
    objective = made.objective(end.step - 1)
    u, v = ({k: randn(*x.shape, seed=s) for k, x in START.items()} for s in (1, 2))

    def hv(tangent):
        return reverse_over_reverse(objective, end.params, HPARAMS, tangent, wrt_params=tangent)[0]

    both, one, two = hv({k: u[k] + v[k] for k in u}), hv(u), hv(v)
    for k in START:
        torch.testing.assert_close(both[k], one[k] + two[k], rtol=1e-12, atol=1e-13)


def test_the_state_s_step_decides_the_draws():
    made = stage(steps=1)
    slots = {k: {} for k in START}
    losses = [run(made, State(START, slots, t), HPARAMS).losses for t in (0, 3)]  # batches(0) == batches(3)
    assert not torch.equal(*losses)
