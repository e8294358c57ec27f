"""`Tartan` against its definition, the exact derivative of one step, and what the paper's forms leave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from estimators import (
    SGD,
    T1T2,
    Adam,
    Groups,
    HypergradientError,
    Momentum,
    MultiTask,
    NotApplicableError,
    Problem,
    Rule,
    Stage,
    Tartan,
    Tree,
    Unroll,
    estimate,
    hypergradient,
    registry,
    run,
    run_stages,
)
from estimators.tree import dot, norm, scale, select

from .definitions import DEFINITIONS
from .oracle import long_graph
from .toy import toy, toy_tasks

NAME = "task_logits"
BODY = ("body.weight", "body.bias", "scale")
EXACT = Tartan(cosine=False, through_softmax=True, body="all")
RULES: dict[str, Rule] = {
    "sgd": SGD(lr=0.1),
    "heavy ball": Momentum(lr=0.05, momentum=0.6),
    "adam": Adam(lr=0.05, betas=(0.7, 0.9)),
}


def asked(problem: Problem, estimator: Any, **options: Any) -> Tensor:
    return estimate(problem, estimator, **options).indirect[NAME]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def start_of(problem: Problem) -> Tree:
    assert isinstance(problem.start, dict)
    return problem.start


def with_rule(problem: Problem, rule: Any, **changes: Any) -> Problem:
    return replace(problem, stages=[replace(problem.stages[0], rule=rule, **changes)])


def parts(problem: Problem, at_end: bool = False) -> tuple[dict[str, Tree], Tree]:
    """Gradient of every task before the last step (or at the end) and of the outer loss at the end, by autograd."""
    (stage,) = problem.stages
    record = run(stage, start_of(problem), problem.hparams)
    last, loss = stage.steps - 1, stage.loss
    assert isinstance(loss, MultiTask)

    def gradient(f: Callable[[Tree], Tensor], at: Tree) -> Tree:
        theta = {k: x.clone().requires_grad_() for k, x in at.items()}
        found = torch.autograd.grad(f(theta), list(theta.values()), allow_unused=True)
        return {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(at.items(), found, strict=True)}

    at = record.end.params if at_end else record.states[last].params
    g = {k: gradient(lambda p, f=f: f(p, stage.stream(last)), at) for k, f in loss.tasks.items()}
    return g, gradient(lambda p: problem.outer(p, problem.hparams), record.end.params)


# --- against definitions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["tartan", "tartan-dot"])
def test_agrees_with_its_definition(name: str, rule: str) -> None:
    problem = toy_tasks(RULES[rule])
    found, want = asked(problem, name), DEFINITIONS[name](problem, problem.hparams)[NAME]
    assert relative(found, want) < 1e-11


@pytest.mark.parametrize("rule", RULES)
def test_the_dot_product_through_the_softmax_is_t1t2(rule: str) -> None:
    problem = toy_tasks(RULES[rule])
    assert relative(asked(problem, EXACT), asked(problem, T1T2())) < 1e-13
    assert estimate(problem, EXACT).cost.products == 0
    assert estimate(problem, EXACT).cost.gradients == 3


def test_rates_of_groups_are_the_leaves_own() -> None:
    groups = Groups({"body.*": SGD(lr=0.3), "*": SGD(lr=0.02)})
    problem = with_rule(toy_tasks(), groups)
    assert relative(asked(problem, EXACT), asked(problem, Unroll(last=1))) < 1e-13


def test_it_is_the_exact_derivative_of_one_step_of_gradient_descent() -> None:
    problem = toy_tasks(SGD(lr=0.1))
    assert relative(asked(problem, EXACT), asked(problem, Unroll(last=1))) < 1e-13
    direct = 0.02 * problem.hparams[NAME]
    assert relative(asked(problem, EXACT), long_graph(problem, problem.hparams, cut=5)[NAME] - direct) < 1e-12


def test_the_sign_is_that_of_the_derivative() -> None:
    """dM/dalpha_i by differences of real steps, with a minus that eqs. 7 to 9 lack: a task that helps has a negative one."""
    problem, lr, h = toy_tasks(SGD(lr=0.1), steps=1), 0.1, 1e-5
    (stage,) = problem.stages
    loss, start = stage.loss, start_of(problem)
    assert isinstance(loss, MultiTask)
    alpha = loss.weights(problem.hparams)

    def outer(weights: Tensor) -> float:
        theta = {k: x.clone().requires_grad_() for k, x in start.items()}
        total = (weights * torch.stack(list(loss.losses(theta, stage.stream(0)).values()))).sum()
        total = total + 0.05 * torch.stack([x.square().sum() for x in theta.values()]).sum()
        grads = torch.autograd.grad(total, list(theta.values()))
        return float(problem.outer({k: x.detach() - lr * g for (k, x), g in zip(theta.items(), grads, strict=True)},
                                   problem.hparams))  # fmt: skip

    units = torch.eye(3, dtype=torch.float64)
    slopes = torch.tensor([(outer(alpha + h * e) - outer(alpha - h * e)) / (2 * h) for e in units], dtype=torch.float64)
    assert relative(asked(problem, "tartan-dot"), slopes) < 1e-8
    assert float(slopes[0]) < -0.01  # the end task itself
    assert torch.equal(asked(problem, "tartan").sign(), asked(problem, Tartan(cosine=False)).sign())


def test_taking_both_gradients_at_one_point_errs_by_order_lr() -> None:
    """Eq. 6 prints the outer gradient at theta_t, exact is theta_{t+1}: an error that halves with the rate."""
    errors: dict[str, list[float]] = {"eq. 6": [], "at the end": []}
    for lr in (0.05, 0.025, 0.0125):
        problem = toy_tasks(SGD(lr=lr), steps=1)
        exact = asked(problem, "tartan-dot")
        g, _ = parts(problem)
        theta = {k: x.clone().requires_grad_() for k, x in start_of(problem).items()}
        value = problem.outer(theta, problem.hparams)
        found = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
        before = {k: torch.zeros_like(x) if c is None else c for (k, x), c in zip(theta.items(), found, strict=True)}
        printed = torch.stack([-lr * dot(gi, before) for gi in g.values()])
        errors["eq. 6"].append(relative(printed, exact))
        errors["at the end"].append(relative(asked(problem, Tartan(cosine=False, body="all", at_end=True)), exact))
    for series in errors.values():
        assert 0.01 < series[0] < 0.3
        for larger, smaller in zip(series, series[1:], strict=False):
            assert larger / smaller == pytest.approx(2, rel=0.1)


def test_at_the_end_all_gradients_are_the_end_s() -> None:
    problem = toy_tasks(Adam(lr=0.05))
    g, c = parts(problem, at_end=True)
    c = select(c, BODY)
    want = torch.stack([-dot(c, gi) / norm(c) / norm(select(gi, BODY)) for gi in g.values()])
    assert relative(asked(problem, Tartan(at_end=True)), want) < 1e-12
    assert Tartan(at_end=True).tail == 0
    assert relative(asked(problem, Tartan()), want) > 1e-2


# --- its fields -----------------------------------------------------------------------------------------------------


def test_the_softmax_takes_out_what_all_weights_have_in_common() -> None:
    problem = toy_tasks()
    straight, through = asked(problem, Tartan()), asked(problem, Tartan(through_softmax=True))
    alpha = torch.softmax(problem.hparams[NAME], 0)
    assert relative(through, (torch.diag(alpha) - torch.outer(alpha, alpha)) @ straight) < 1e-13
    assert abs(float(through.sum())) < 1e-15


def test_the_body_is_what_every_task_reads_unless_it_is_named() -> None:
    problem = toy_tasks()
    g, c = parts(problem)
    shared = asked(problem, Tartan())
    assert torch.equal(shared, asked(problem, Tartan(body=BODY)))
    assert torch.equal(shared, asked(problem, Tartan(body={"body", "scale"})))
    narrow = select(c, ("body.bias",))
    want = torch.stack([-dot(narrow, gi) / norm(narrow) / gi["body.bias"].norm() for gi in g.values()])
    assert relative(asked(problem, Tartan(body=["body.bias"])), want) < 1e-13
    # a leaf is no module: "body.b" names nothing
    with pytest.raises(HypergradientError, match=r"called 'body\.b'; there are \['body\.bias', 'body\.weight'"):
        asked(problem, Tartan(body=["body.b"]))


def test_heads_in_the_norms_make_the_cosines_of_other_tasks_small() -> None:
    """The released code's body="all": the factor by which it deflates them."""
    problem = toy_tasks()
    g, c = parts(problem)
    shared, whole = asked(problem, Tartan()), asked(problem, Tartan(body="all"))
    for i, task in ((1, "near"), (2, "far")):
        factor = norm(select(c, BODY)) / norm(c) * norm(select(g[task], BODY)) / norm(g[task])
        assert float(whole[i] / shared[i]) == pytest.approx(float(factor), rel=1e-12)
        assert float(factor) < 0.9


def test_the_cosine_knows_no_length() -> None:
    problem = toy_tasks(SGD(lr=1e-3), steps=1)
    loss = problem.stages[0].loss
    assert isinstance(loss, MultiTask)
    longer = replace(loss, tasks={k: lambda p, b, f=f: 1e3 * f(p, b) for k, f in loss.tasks.items()})
    scaled = with_rule(problem, SGD(lr=1e-6), loss=longer)
    assert relative(asked(scaled, Tartan()), asked(problem, Tartan())) < 1e-4  # the penalty is not scaled
    found = asked(problem, Tartan())
    assert float(found.abs().max()) <= 1
    records = run_stages(problem.stages, problem.start, problem.hparams, [Tartan()])

    def times(a: float, estimator: Tartan) -> Tensor:
        return hypergradient(
            lambda p, h: a * problem.outer(p, h), problem.stages, [estimator], records, problem.hparams
        ).indirect[NAME]  # fmt: skip

    for a in (1e-200, 1e-12, 1e6, 1e200):
        assert relative(times(a, Tartan()), found) < 1e-13
        assert relative(times(-a, Tartan()), -found) < 1e-13
    assert torch.equal(times(0.0, Tartan()), torch.zeros_like(found))
    assert relative(times(1e-12, EXACT) / 1e-12, times(1.0, EXACT)) < 1e-12


def test_a_task_without_a_gradient_has_no_say() -> None:
    problem = toy_tasks()
    loss = problem.stages[0].loss
    assert isinstance(loss, MultiTask)
    flat = {**loss.tasks, "far": lambda p, b: 0 * torch.stack([x.sum() for x in p.values()]).sum()}
    found = asked(with_rule(problem, SGD(lr=0.1), loss=replace(loss, tasks=flat)), Tartan())
    assert float(found[2]) == 0
    assert bool(torch.isfinite(found).all())
    assert found[:2].ne(0).all()


# --- laws -----------------------------------------------------------------------------------------------------------


def test_draws_are_those_of_the_step() -> None:
    """A task's dropout mask must be the one it had in the step, wherever the task stands."""
    problem = toy_tasks()
    loss = problem.stages[0].loss
    assert isinstance(loss, MultiTask)
    masked = {
        k: lambda p, b, f=f: f({**p, "body.weight": torch.dropout(p["body.weight"], 0.5, True)}, b)
        for k, f in loss.tasks.items()
    }
    drawn = with_rule(problem, SGD(lr=0.1), loss=replace(loss, tasks=masked), seed=3)
    assert relative(asked(drawn, EXACT), asked(drawn, T1T2())) < 1e-13
    assert relative(asked(drawn, EXACT), asked(problem, EXACT)) > 1e-2


@pytest.mark.parametrize("estimator", [Tartan(), Tartan(cosine=False), EXACT, Tartan(at_end=True)])
def test_low_precision_is_near_float64(estimator: Tartan) -> None:
    exact = asked(toy_tasks(), estimator)
    for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        found = asked(toy_tasks(dtype=dtype), estimator)
        assert found.dtype == dtype
        assert relative(found.double(), exact) < most


@pytest.mark.parametrize("name", ["tartan", "tartan-dot"])
def test_frozen_and_unread_leaves_change_nothing(name: str) -> None:
    plain = toy_tasks()
    (stage,), loss = plain.stages, plain.stages[0].loss
    assert isinstance(loss, MultiTask)
    tasks = {k: lambda p, b, f=f: f(p, b) * p["fixed"].mean() / 2 for k, f in loss.tasks.items()}

    def squares(p: Tree) -> Tensor:
        return 0.05 * torch.stack([p[k].square().sum() for k in start_of(plain)]).sum()

    extra = {"idle": torch.ones(4, dtype=torch.float64), "fixed": torch.full((2,), 2.0, dtype=torch.float64)}
    wider = Problem(
        "wider", [replace(stage, loss=MultiTask(tasks, penalty=squares), frozen=frozenset({"fixed"}))],
        lambda p, h: plain.outer(p, h) + p["idle"].sum() + p["fixed"].sum(), {**start_of(plain), **extra}, plain.hparams,
    )  # fmt: skip
    assert relative(asked(wider, name), asked(plain, name)) < 1e-12


def test_ranks_are_averaged_before_the_cosine() -> None:
    """A cosine of means is not the mean of cosines: `reduce` must see the gradients. Here it doubles what it sees."""
    problem = toy_tasks(steps=1)
    (stage,) = problem.stages
    seen: list[Tree] = []

    def keep(a: Tree) -> Tree:
        seen.append(a)
        return scale(a, 2.0)

    found = asked(with_rule(problem, stage.rule, reduce=keep), "tartan-dot")
    assert sum("body.weight" in a for a in seen) == 1 + 1 + 3  # of the step, of the outer loss, of three tasks
    doubled = with_rule(problem, SGD(lr=0.2))  # the same end
    assert relative(found, 2 * asked(doubled, Tartan(cosine=False, body="all"))) < 1e-12


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_it_cannot_answer_is_refused() -> None:
    with pytest.raises(NotApplicableError, match=r"weighs tasks.*MultiTask.*T1T2"):
        estimate(toy(), Tartan())
    with pytest.raises(NotApplicableError, match="took none"):
        estimate(toy_tasks(steps=0), Tartan())
    problem = toy_tasks()
    tuned = with_rule(problem, lambda h: SGD(lr=h["log_lr"].exp()))
    extra = {**problem.hparams, "log_lr": torch.tensor(-2.0, dtype=torch.float64)}
    with pytest.raises(NotApplicableError, match=r"\['log_lr'\] sit in SGD, and Tartan"):
        estimate(replace(tuned, hparams=extra), Tartan())
    with pytest.raises(HypergradientError, match=r"\['log_lr'\] influence nothing that Tartan can see"):
        estimate(replace(problem, hparams=extra), Tartan())
    apart = MultiTask({"a": lambda p, b: p["x"].square().sum(), "b": lambda p, b: p["y"].square().sum()})
    ones = torch.ones(2, dtype=torch.float64)
    split = Problem("apart", [Stage(apart, SGD(lr=0.1), lambda t: t, 1)], lambda p, h: p["x"].sum(),
                    {"x": ones, "y": ones}, {NAME: ones})  # fmt: skip
    with pytest.raises(HypergradientError, match="no leaf is read by every task"):
        estimate(split, Tartan())
    assert asked(split, Tartan(body="all"))[0] < 0


@pytest.mark.parametrize("body", ["everything", "", (), frozenset()])
def test_a_body_must_be_named(body: Any) -> None:
    with pytest.raises(HypergradientError, match="'shared', 'all', or a collection"):
        Tartan(body=body)


def test_the_claim_says_where_it_applies() -> None:
    for name in ("tartan", "tartan-dot"):
        claim = registry[name].claim
        assert claim.refuses(toy_tasks()) is None
        assert claim.refuses(toy()) == "weighs tasks, and the loss is no MultiTask"


def test_the_state_before_the_last_step_must_be_there() -> None:
    problem = toy_tasks(steps=2)
    record = run(problem.stages[0], problem.start, problem.hparams, tail=0)
    with pytest.raises(HypergradientError, match=r"run\(\.\.\., tail=1\)"):
        hypergradient(problem.outer, problem.stages, [Tartan()], [record], problem.hparams)
