"""Rules around rules: parameter groups, schedules and clipping, against torch's own loop and against differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from estimators import (
    CG,
    SAMA,
    SGD,
    T1T2,
    WRAPPERS,
    Adafactor,
    Adam,
    AdamW,
    ClipNorm,
    Dense,
    Forward,
    Greedy,
    Groups,
    HypergradientError,
    Implicit,
    Lion,
    Momentum,
    Neumann,
    NotApplicableError,
    Problem,
    Scheduled,
    Tree,
    Unroll,
    adapt,
    estimate,
    gradients,
    reverse_over_reverse,
    run,
)
from estimators.rules import can_rewind, leaf_rule, step_tree
from estimators.tree import flatten, unflatten

from .toy import toy

F64 = torch.float64
STEPS = 15


def warm(t: int) -> float:
    return min(1.0, (t + 1) / 6)


def clip(grads: list[Tensor], at: float) -> None:
    torch.nn.utils.clip_grad_norm_(grads, at)


GROUPS = Groups({"w": Momentum(lr=0.05, momentum=0.8), "*": AdamW(lr=0.02, weight_decay=0.1)})
Make = Callable[[Tree], list[torch.optim.Optimizer]]


def two(p: Tree) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SGD([p["w"]], lr=0.05, momentum=0.8),
        torch.optim.AdamW([p["b"], p["scale"]], lr=0.02, weight_decay=0.1),
    ]


def adam(p: Tree) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(p.values(), lr=0.05)]


def sgd(p: Tree) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(p.values(), lr=0.3)]


# name -> (rule, torch optimizers, schedule, what is clipped: leaves and norm)
CASES: dict[str, tuple[Any, Make, Any, dict[tuple[str, ...], float]]] = {
    "groups": (GROUPS, two, None, {}),
    "scheduled": (Scheduled(Adam(lr=0.05), warm), adam, warm, {}),
    "scheduled groups": (Scheduled(GROUPS, warm), two, warm, {}),
    "clipped": (ClipNorm(SGD(lr=0.3), 0.5), sgd, None, {("w", "b", "scale"): 0.5}),
    "clipped, loosely": (ClipNorm(Adam(lr=0.05), 1e3), adam, None, {("w", "b", "scale"): 1e3}),
    "clipped, scheduled groups": (ClipNorm(Scheduled(GROUPS, warm), 0.5), two, warm, {("w", "b", "scale"): 0.5}),
    "one clipped group": (
        Groups({"w": ClipNorm(Momentum(lr=0.05, momentum=0.8), 0.1), "*": AdamW(lr=0.02, weight_decay=0.1)}),
        two, None, {("w",): 0.1},
    ),
}  # fmt: skip
each = pytest.mark.parametrize("name", CASES)


def torch_loop(name: str, hparams: Tree, steps: int = STEPS) -> Tree:
    """A training loop as users write it."""
    _, make, factor, clips = CASES[name]
    problem = toy(steps=steps)
    params = {k: x.clone().requires_grad_() for k, x in problem.start.items()}  # type: ignore[union-attr]
    optimizers = make(params)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers] if factor else []
    for t in range(steps):
        for p in params.values():
            p.grad = None
        problem.stages[0].loss(params, hparams, problem.stages[0].stream(t)).backward()
        for leaves, at in clips.items():
            clip([params[k] for k in leaves], at)
        for each_of_them in (*optimizers, *schedulers):
            each_of_them.step()
    return {k: p.detach() for k, p in params.items()}


def differences(of: Callable[[Tree], Tensor], hparams: Tree) -> Tensor:
    """Central differences of fourth order."""
    flat, found = flatten(hparams), []
    for e in torch.eye(len(flat), dtype=F64):
        at = [float(of(unflatten(flat + k * 1e-3 * e, hparams))) for k in (-2, -1, 1, 2)]
        found.append((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / 12e-3)
    return torch.tensor(found, dtype=F64)


@each
def test_the_trajectory_is_that_of_torch_s_own_loop(name: str) -> None:
    problem = toy(CASES[name][0], steps=STEPS)
    end = run(problem.stages[0], problem.start, problem.hparams).end.params
    torch.testing.assert_close(end, torch_loop(name, problem.hparams), rtol=1e-12, atol=1e-12)


@each
@pytest.mark.parametrize(
    "estimator", [Unroll(), Unroll(checkpoint=4), Forward()], ids=["reverse", "replayed", "forward"]
)
def test_the_derivative_is_that_of_torch_s_own_loop(name: str, estimator: Any) -> None:
    problem = toy(CASES[name][0], steps=STEPS)
    want = differences(lambda h: problem.outer(torch_loop(name, h), h), problem.hparams)
    got = flatten(estimate(problem, estimator).hparams)
    assert float((got - want).norm() / want.norm()) < 1e-6


@each
def test_the_adaptation_is_the_derivative_of_the_last_change(name: str) -> None:
    """By differences of the whole change in every coordinate of the gradient: clipping makes it depend on all."""
    problem = toy(CASES[name][0], steps=STEPS)
    (stage,), rule = problem.stages, CASES[name][0]
    record = run(stage, problem.start, problem.hparams, tail=1)
    before = record.states[STEPS - 1]
    assert record.grad is not None
    _, c, _ = gradients(problem.outer, record.end.params, problem.hparams, wrt_params=record.end.params)
    like = record.grad

    def along(grads: Tree) -> Tensor:
        changes, _ = step_tree(rule, grads, before)
        return torch.stack([(changes[k] * x).sum() for k, x in c.items()]).sum()

    g = flatten(like)
    h = 1e-5 * float(g.abs().max())
    want = [
        (along(unflatten(g + h * e, like)) - along(unflatten(g - h * e, like))) / (2 * h)
        for e in torch.eye(len(g), dtype=F64)
    ]
    got = adapt(stage, record, problem.hparams, c)
    torch.testing.assert_close(flatten(got), torch.stack(want), rtol=1e-5, atol=1e-8)
    rewound = replace(record, states={})
    torch.testing.assert_close(adapt(stage, rewound, problem.hparams, c), got, rtol=1e-6, atol=1e-9)


@each
def test_every_estimator_of_the_loss_s_hyperparameters_takes_it(name: str) -> None:
    problem = toy(CASES[name][0], steps=STEPS)
    for estimator in (
        T1T2(),
        SAMA(),
        Implicit(CG(steps=3)),
        Implicit(Neumann(steps=3)),
        Implicit(Neumann(), adapt=True),
    ):
        assert flatten(estimate(problem, estimator, throw=False).hparams).isfinite().all()


def test_t1t2_takes_each_leaf_s_own_rate_at_that_step() -> None:
    """The derivative of one step of gradient descent with these rates."""
    rates = {"w": 0.05, "b": 0.3, "scale": 0.02}
    rule = Scheduled(Groups({k: SGD(lr=r) for k, r in rates.items()}), lambda t: 1 / (t + 1))
    problem = toy(rule, steps=STEPS)
    torch.testing.assert_close(
        estimate(problem, T1T2()).hparams, estimate(problem, Unroll(last=1)).hparams, rtol=1e-10, atol=1e-14
    )


def test_implicit_takes_each_leaf_s_own_decay() -> None:
    """Coupled decay of one group is part of the loss: the same as writing it there."""
    rule = Groups({"w": SGD(lr=0.1, weight_decay=0.3), "*": SGD(lr=0.1)})
    problem = toy(rule, steps=STEPS)
    plain = toy(SGD(lr=0.1), steps=STEPS)
    (stage,) = plain.stages
    written = replace(
        plain,
        stages=[replace(stage, loss=lambda p, h, b: stage.loss(p, h, b) + 0.15 * p["w"].square().sum())],
    )
    torch.testing.assert_close(
        estimate(problem, Implicit(Dense())).hparams,
        estimate(written, Implicit(Dense())).hparams,
        rtol=1e-8,
        atol=1e-12,
    )


def test_the_series_step_is_shared_or_found() -> None:
    """One gradient step for all groups is taken as it is; different ones leave 1 / lambda_max by power iteration."""
    same = toy(Groups({"w": SGD(lr=0.1), "*": SGD(lr=0.1)}), steps=STEPS)
    plain = toy(SGD(lr=0.1), steps=STEPS)
    series = Implicit(Neumann(steps=4))
    torch.testing.assert_close(estimate(same, series).hparams, estimate(plain, series).hparams, rtol=1e-12, atol=0)
    different = toy(Groups({"w": SGD(lr=0.1), "*": SGD(lr=0.05)}), steps=STEPS)
    assert estimate(different, series).cost.matvecs == 14
    assert estimate(same, series).cost.matvecs == 4


# -- hyperparameters inside -----------------------------------------------------------------------------------------


def tuned(rule: Callable[[Tree], Any], hparams: Tree) -> Problem:
    """The toy problem with hyperparameters of the rule instead of its own."""
    base = toy(steps=6)
    (stage,) = base.stages
    fixed = base.hparams
    loss = lambda p, h, b: stage.loss(p, fixed, b)  # noqa: E731
    return replace(
        base, stages=[replace(stage, loss=loss, rule=rule)], outer=lambda p, h: base.outer(p, fixed), hparams=hparams
    )


INSIDE: dict[str, tuple[Callable[[Tree], Any], Tree]] = {
    "a rate for every leaf": (
        lambda h: Groups({k: Momentum(lr=h[f"log_lr.{k}"].exp(), momentum=0.5) for k in ("w", "b", "scale")}),
        {f"log_lr.{k}": torch.tensor(-3.0 - i, dtype=F64) for i, k in enumerate(("w", "b", "scale"))},
    ),
    "a schedule": (
        lambda h: Scheduled(Adam(lr=0.05), lambda t: torch.exp(-h["decay"] * t)),
        {"decay": torch.tensor(0.2, dtype=F64)},
    ),
    "a schedule of pieces": (
        lambda h: Scheduled(SGD(lr=0.1), lambda t: h["early" if t < 3 else "late"].exp()),
        {"early": torch.tensor(0.1, dtype=F64), "late": torch.tensor(-0.4, dtype=F64)},
    ),
    "the norm": (
        lambda h: ClipNorm(SGD(lr=0.3), h["log_norm"].exp()),
        {"log_norm": torch.tensor(-1.0, dtype=F64)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_hyperparameters_may_sit_anywhere_in_them(name: str) -> None:
    problem = tuned(*INSIDE[name])
    (stage,) = problem.stages
    want = differences(lambda h: problem.outer(run(stage, problem.start, h).end.params, h), problem.hparams)
    assert want.abs().min() > 1e-6  # every one of them matters
    for estimator in (Unroll(), Forward()):
        torch.testing.assert_close(flatten(estimate(problem, estimator).hparams), want, rtol=1e-6, atol=1e-9)
    greedy = estimate(problem, Greedy()).hparams
    if name == "a schedule of pieces":  # the last step reads one of them, and Unroll(last=1) refuses the other
        assert float(greedy["early"]) == 0.0 != float(greedy["late"])
    else:
        torch.testing.assert_close(greedy, estimate(problem, Unroll(last=1)).hparams, rtol=1e-8, atol=1e-12)
    for estimator in (T1T2(), SAMA(), Implicit(CG())):
        with pytest.raises(NotApplicableError, match=f"hyperparameters.*{list(problem.hparams)[-1]}.* sit in"):
            estimate(problem, estimator)


# -- what they refuse -----------------------------------------------------------------------------------------------


def test_clipping_takes_a_zero_gradient() -> None:
    flat = toy(ClipNorm(SGD(lr=0.1), 1.0), steps=3)
    (stage,) = flat.stages
    still = replace(flat, stages=[replace(stage, loss=lambda p, h, b: 0 * stage.loss(p, h, b))])
    assert flatten(estimate(still, Unroll()).hparams).isfinite().all()


def test_steps_are_taken_back_where_all_leaves_can() -> None:
    assert can_rewind(GROUPS, ("w", "b"), 3)
    mixed = Groups({"w": Adafactor(), "*": SGD(lr=0.1)})
    assert not can_rewind(mixed, ("w", "b"), 3)
    assert can_rewind(mixed, ("b",), 3)
    problem = toy(mixed)
    assert flatten(estimate(problem, SAMA(product=reverse_over_reverse)).hparams).isfinite().all()


def test_bad_input_is_named() -> None:
    with pytest.raises(HypergradientError, match="at least one rule"):
        Groups({})
    with pytest.raises(HypergradientError, match=r"no pattern of \['b\*'\] matches the leaf 'w'"):
        run(toy(Groups({"b*": SGD(lr=0.1)})).stages[0], toy().start, toy().hparams)
    with pytest.raises(HypergradientError, match=r"ClipNorm\(max_norm=0\): must be positive"):
        ClipNorm(SGD(lr=0.1), 0)
    with pytest.raises(NotApplicableError, match="Lion, which moves 'w', declares differentiable=False"):
        estimate(toy(Groups({"w": Lion(lr=0.01), "*": SGD(lr=0.1)})), Unroll())


def test_what_is_no_rule_is_named() -> None:
    for make, text in (
        (lambda: Groups({"*": SGD}), r"Groups\['\*'\]: SGD is a class"),
        (lambda: Groups([SGD(lr=0.1)]), "give patterns"),  # type: ignore[arg-type]
        (lambda: ClipNorm(SGD, 1.0), "ClipNorm: SGD is a class"),  # type: ignore[arg-type]
        (lambda: ClipNorm(1.0, SGD(lr=0.1)), "ClipNorm: 1.0 is no rule"),  # type: ignore[arg-type]
        (lambda: Scheduled(SGD, warm), "Scheduled: SGD is a class"),  # type: ignore[arg-type]
        (lambda: Scheduled(SGD(lr=0.1), 0.5), "give a function of the step"),  # type: ignore[arg-type]
        (lambda: toy({"*": SGD(lr=0.1)}), r"is no rule: pass one such as SGD\(lr=0.1\), Groups"),  # type: ignore[arg-type]
        (lambda: Adam(betas=(0.9, 0.9, 0.9)), "give two rates"),  # type: ignore[arg-type]
    ):
        with pytest.raises(HypergradientError, match=text):
            make()


def test_a_name_that_is_no_leaf_s_and_a_pattern_that_comes_too_late_are_refused() -> None:
    a, b = SGD(lr=0.1), SGD(lr=0.2)
    for rule, text in (
        (Groups({"wieghts": a, "*": b}), "there is no leaf 'wieghts'; there are"),
        (Groups({"*": a, "w*": b}), r"all leaves that 'w\*' matches belong to patterns before it"),
    ):
        for wrapped in (rule, Scheduled(rule, warm), ClipNorm(rule, 1.0)):
            problem = toy(wrapped, steps=2)
            with pytest.raises(HypergradientError, match=text):
                run(problem.stages[0], problem.start, problem.hparams)
    none_matches = toy(Groups({"*.bias": a, "*": b}), steps=2)
    run(none_matches.stages[0], none_matches.start, none_matches.hparams)


def test_frozen_leaves_need_no_rule() -> None:
    problem = toy(Groups({"w": SGD(lr=0.1)}), steps=2)
    end = run(replace(problem.stages[0], frozen=frozenset({"b", "scale"})), problem.start, problem.hparams).end
    assert torch.equal(end.params["b"], problem.start["b"])  # type: ignore[index]
    assert not torch.equal(end.params["w"], problem.start["w"])  # type: ignore[index]


def test_a_schedule_that_ends_at_zero() -> None:
    """The last rate says nothing of where the run stopped: the series finds its own step; SAMA has nothing to adapt by."""
    problem = toy(Scheduled(SGD(lr=0.1), lambda t: 1 - t / (STEPS - 1)), steps=STEPS)
    assert estimate(problem, Implicit(Neumann(steps=4))).cost.matvecs == 14
    with pytest.raises(NotApplicableError, match="a learning rate of 0"):
        estimate(problem, SAMA())


class Bare:
    """A rule that is no dataclass."""

    lr = 0.1
    init = SGD(lr=0.1).init
    update = SGD(lr=0.1).update


def test_a_schedule_needs_a_rate_to_change() -> None:
    with pytest.raises(HypergradientError, match="Bare must be a dataclass with a field lr"):
        run(toy(Scheduled(Bare(), warm)).stages[0], toy().start, toy().hparams)


def test_names_win_over_patterns_and_the_first_pattern_over_later_ones() -> None:
    a, b, c = SGD(lr=0.1), SGD(lr=0.2), SGD(lr=0.3)
    groups = Groups({"*": a, "head.*": b, "head.bias": c})
    assert leaf_rule(groups, "head.bias", 0) is c
    assert leaf_rule(groups, "head.weight", 0) is a


def test_every_wrapper_is_tested() -> None:
    assert {Groups, Scheduled, ClipNorm} == set(WRAPPERS.values())
