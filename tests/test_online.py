"""The online driver against the same loop written out by hand, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.online import hold, train_online
from benchmarks.problems import PROBLEMS
from estimators import (
    SAMA,
    SGD,
    Adam,
    Greedy,
    HypergradientError,
    Momentum,
    MultiTask,
    NonFiniteError,
    NotApplicableError,
    Problem,
    Stage,
    Tartan,
    Tree,
    Unroll,
    estimate,
    reverse_over_reverse,
    run,
)

F64 = torch.float64


def sgd(lr: float) -> Any:
    return lambda leaves: torch.optim.SGD(leaves, lr=lr)


def drifting(rule: Any = None) -> Problem:
    """A quadratic whose batches change with the step; the learning rate and a target are hyperparameters."""

    def stream(t: int) -> Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(t), dtype=F64)

    def loss(p: Tree, h: Tree, noise: Tensor) -> Tensor:
        return ((p["w"] - h["target"] + noise) ** 2 * torch.tensor([1.0, 2.0, 0.5, 0.1], dtype=F64)).sum() / 2

    return Problem(
        "drifting",
        [Stage(loss, rule or (lambda h: SGD(lr=h["a"].exp())), stream, 1)],
        lambda p, h: (p["w"] - 1).square().sum() / 2 + 0.1 * h["target"],
        {"w": torch.zeros(4, dtype=F64)},
        {"a": torch.tensor(-1.0, dtype=F64), "target": torch.tensor(0.3, dtype=F64)},
    )


def by_hand(steps: int, horizon: int, lr: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same with one autograd graph a block, and the loss's gradient written out."""
    curvature = torch.tensor([1.0, 2.0, 0.5, 0.1], dtype=F64)
    w = torch.zeros(4, dtype=F64)
    a, target = torch.tensor(-1.0, dtype=F64), torch.tensor(0.3, dtype=F64)
    t = 0
    while t < steps:
        a, target = a.detach().requires_grad_(), target.detach().requires_grad_()
        w = w.detach()
        for _ in range(min(horizon, steps - t)):
            noise = torch.randn(4, generator=torch.Generator().manual_seed(t), dtype=F64)
            w = w - a.exp() * curvature * (w - target + noise)
            t += 1
        value = (w - 1).square().sum() / 2 + 0.1 * target
        slopes = torch.autograd.grad(value, [a, target])
        a, target = a.detach() - lr * slopes[0], target.detach() - lr * slopes[1]
    return w.detach(), a, target


@pytest.mark.parametrize("horizon", [1, 3, 7])
def test_it_walks_the_loop_written_out_by_hand(horizon: int) -> None:
    done = train_online(drifting(), Unroll(), sgd(0.05), steps=7, horizon=horizon)
    w, a, target = by_hand(7, horizon, 0.05)
    torch.testing.assert_close(done.end.params["w"], w, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(done.hparams, {"a": a, "target": target}, rtol=1e-12, atol=1e-12)
    assert [b.step for b in done.blocks] == [*range(horizon, 7, horizon), 7]
    assert done.end.step == 7


def test_plain_training_is_a_run() -> None:
    problem = drifting(Adam(lr=0.1))
    (stage,) = problem.stages
    whole = run(Stage(stage.loss, stage.rule, stage.stream, 10), problem.start, problem.hparams)
    done = train_online(problem, Unroll(), steps=10, horizon=4, update_hparams=False)
    assert torch.equal(done.end.params["w"], whole.end.params["w"])
    assert all(torch.equal(done.end.slots["w"][k], x) for k, x in whole.end.slots["w"].items())
    assert all(torch.equal(x, problem.hparams[k]) for k, x in done.hparams.items())
    assert all(b.hypergradient is None and b.cost.products == 0 for b in done.blocks)
    assert [b.inner_loss for b in done.blocks] == [float(x.mean()) for x in whole.losses.split(4)]


def test_it_mutates_nothing_it_was_given_and_repeats() -> None:
    problem = drifting()
    before = {k: x.clone() for k, x in {**problem.start, **problem.hparams}.items()}  # type: ignore[dict-item]
    first, second = (train_online(problem, Unroll(), sgd(0.1), steps=5, horizon=2) for _ in range(2))
    assert all(torch.equal(x, before[k]) for k, x in {**problem.start, **problem.hparams}.items())  # type: ignore[dict-item]
    assert first.rows() == second.rows()


def test_a_block_records_the_hyperparameters_its_steps_were_taken_with() -> None:
    problem = drifting()
    done = train_online(problem, Unroll(), sgd(0.1), steps=4, horizon=2)
    assert torch.equal(done.blocks[0].hparams["a"], problem.hparams["a"])
    slope = done.blocks[0].hypergradient
    assert slope is not None
    torch.testing.assert_close(done.blocks[1].hparams["a"], problem.hparams["a"] - 0.1 * slope["a"])
    row = done.blocks[1].row()
    assert row["a"] == float(done.blocks[1].hparams["a"])
    assert row["step"] == 4


def test_the_meta_optimizer_keeps_its_state() -> None:
    made = []

    def meta(leaves: Sequence[Tensor]) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(leaves, lr=0.1))
        return made[-1]

    train_online(drifting(), Unroll(), meta, steps=6, horizon=2)
    assert len(made) == 1
    assert [float(s["step"]) for s in made[0].state.values()] == [3.0, 3.0]


def test_warmup_makes_no_meta_step() -> None:
    done = train_online(drifting(), Unroll(), sgd(0.1), steps=6, horizon=2, warmup=3)
    assert [b.hypergradient is None for b in done.blocks] == [True, False, False]
    assert torch.equal(done.blocks[0].hparams["a"], done.blocks[1].hparams["a"])
    # a momentum has no influence on the first step of all: an unroll of that step alone is refused, after it it is not
    problem = PROBLEMS["one_step_rule"].make(steps=2)
    with pytest.raises(HypergradientError, match="raw_momentum"):
        train_online(problem, Unroll(), sgd(0.1), steps=2)
    train_online(problem, Unroll(), sgd(0.01), steps=2, warmup=1)


def test_the_outer_loss_may_change_with_the_step() -> None:
    asked = []

    def outer_at(step: int) -> Any:
        asked.append(step)
        return lambda p, h: step * p["w"].sum() + 0 * h["target"]

    done = train_online(drifting(), Unroll(), sgd(0.0), steps=5, horizon=2, outer_at=outer_at)
    assert asked == [2, 4, 5]
    assert done.blocks[-1].outer_loss == pytest.approx(5 * float(done.end.params["w"].sum()))


def test_what_was_observed_is_in_the_rows() -> None:
    done = train_online(
        drifting(), Unroll(), sgd(0.1), steps=4, horizon=2,
        observe=lambda state, lam: {"first": float(state.params["w"][0]), "at": state.step},
    )  # fmt: skip
    assert [r["at"] for r in done.rows()] == [2, 4]
    assert done.rows()[-1]["first"] == float(done.end.params["w"][0])


@pytest.mark.parametrize("update", [True, False])
def test_the_extra_update_moves_the_parameters(update: bool) -> None:
    problem = drifting(SGD(lr=0.1))
    problem = Problem("no rule", problem.stages, problem.outer, problem.start, {"target": problem.hparams["target"]})
    sama = SAMA(product=reverse_over_reverse, extra_update=0.5)
    meta = sgd(0.1) if update else None
    plain = train_online(problem, sama, meta, steps=2, horizon=2, update_hparams=update)
    moved = train_online(problem, sama, meta, steps=2, horizon=2, update_hparams=update, apply_extra=True)
    change = moved.end.params["w"] - plain.end.params["w"]
    w = plain.end.params["w"]
    # SGD's adaptation is a multiple of the identity: 0.5 against the outer gradient w - 1
    torch.testing.assert_close(change, -0.5 * (w - 1) / (w - 1).norm(), rtol=1e-10, atol=1e-12)
    assert moved.blocks[0].extra_norm == pytest.approx(0.5)
    assert moved.blocks[0].extra_relative > 0
    assert (float(moved.hparams["target"]) != 0.3) is update


def test_greedy_is_the_unroll_of_one_step_here() -> None:
    problem = PROBLEMS["one_step_rule"].make(steps=2)
    a = train_online(problem, Greedy(), sgd(0.01), steps=20, warmup=1)
    b = train_online(problem, Unroll(), sgd(0.01), steps=20, warmup=1)
    for x, y in zip(a.rows(), b.rows(), strict=True):
        assert x == pytest.approx(y, rel=1e-10)


def test_a_state_to_go_on_from() -> None:
    problem = drifting(Momentum(lr=0.1))
    (stage,) = problem.stages
    middle = run(Stage(stage.loss, stage.rule, stage.stream, 3), problem.start, problem.hparams).end
    later = Problem("later", problem.stages, problem.outer, middle, problem.hparams)
    whole = train_online(problem, Unroll(), steps=8, horizon=8, update_hparams=False)
    rest = train_online(later, Unroll(), steps=5, horizon=2, update_hparams=False)
    assert torch.equal(rest.end.params["w"], whole.end.params["w"])
    assert rest.blocks[-1].step == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps=0.*at least 1"),
        ({"horizon": 0}, r"horizon=0"),
        ({"warmup": -1}, r"warmup=-1"),
        ({"meta": None}, r"meta=None: give a meta optimizer"),
        ({"apply_extra": True}, r"Unroll.*proposes no extra update.*SAMA\(extra_update=1.0\)"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HypergradientError, match=message):
        train_online(drifting(), Unroll(), **{"meta": sgd(0.1), "steps": 3, **options})


def test_several_stages_are_refused() -> None:
    with pytest.raises(HypergradientError, match="2 stages"):
        train_online(PROBLEMS["two_stage_quadratic"].make(), Unroll(), sgd(0.1), steps=3)


def test_a_learning_rate_that_runs_away_is_named() -> None:
    with pytest.raises(NonFiniteError, match="at step"):
        train_online(drifting(SGD(lr=1e30)), Unroll(), steps=40, horizon=4, update_hparams=False)


def test_held_hyperparameters_stay_and_the_others_feel_them() -> None:
    problem = drifting()
    fixed = hold(problem, ["target"])
    assert set(fixed.hparams) == {"a"}
    whole, part = (estimate(p, Unroll()).hparams["a"] for p in (problem, fixed))
    assert torch.equal(whole, part)
    done = train_online(fixed, Unroll(), sgd(0.1), steps=3)
    assert set(done.hparams) == {"a"}
    for names in (["a", "target"], ["b"]):
        with pytest.raises(HypergradientError, match="whose hyperparameters are"):
            hold(problem, names)


def test_one_name_is_held_as_a_list_of_it() -> None:
    assert set(hold(drifting(), "target").hparams) == {"a"}
    with pytest.raises(HypergradientError, match=r"hold\(\['b'\]\).*whose hyperparameters are \['a', 'target'\]"):
        hold(drifting(), "b")


def test_a_multitask_loss_stays_one_unless_its_own_weights_are_held() -> None:
    tasks = {"one": lambda p, b: (p["w"] - 1).square().sum(), "two": lambda p, b: (p["w"] + b).square().sum()}
    start = {"w": torch.zeros(2, dtype=F64)}
    lam = {"task_logits": torch.tensor([0.3, 0.1], dtype=F64), "extra": torch.tensor(2.0, dtype=F64)}
    problem = Problem(
        "tasks", [Stage(MultiTask(tasks), SGD(lr=0.1), lambda t: torch.tensor(0.5, dtype=F64), 2)],
        lambda p, h: h["extra"] * (p["w"] - 1).square().sum(), start, lam,
    )  # fmt: skip
    found = estimate(hold(problem, "extra"), Tartan())
    assert torch.equal(found.hparams["task_logits"], estimate(problem, Tartan()).hparams["task_logits"])
    with pytest.raises(NotApplicableError, match="MultiTask"):
        estimate(hold(problem, "task_logits"), Tartan())


def test_an_estimator_may_be_named() -> None:
    named, given = (train_online(drifting(), e, sgd(0.1), steps=3) for e in ("unroll", Unroll()))
    assert named.rows() == given.rows()
    with pytest.raises(HypergradientError, match="2 estimators for 1 stages"):
        train_online(drifting(), ("unroll", Unroll()), sgd(0.1), steps=3)
    with pytest.raises(KeyError, match="unrol"):
        train_online(drifting(), "unrol", sgd(0.1), steps=3)
    with pytest.raises(HypergradientError, match="Unroll is a class"):
        train_online(drifting(), Unroll, sgd(0.1), steps=3)  # type: ignore[arg-type]
