"""The outer gradient that is used up leaf by leaf as it arrives: the same numbers, nobody's tensors changed, and its bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from benchmarks.cells import built_as
from benchmarks.measure import Meter
from estimators import (
    SAMA,
    SGD,
    T1T2,
    Adam,
    AdamW,
    AMSGrad,
    CentralDifference,
    ClipNorm,
    Groups,
    HypergradientError,
    MeanOf,
    Momentum,
    NAdam,
    Problem,
    RMSprop,
    Stage,
    Tree,
    adapt,
    estimate,
    hypergradient,
    reverse_over_reverse,
    run,
)
from estimators.adaptation import pull_rule, state_before_last
from estimators.tree import flatten, nbytes

from .toy import toy

F64 = torch.float64
RULES: dict[str, Any] = {
    "sgd": SGD(lr=0.1),
    "momentum": Momentum(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.2),
    "nesterov": Momentum(lr=0.1, momentum=0.9, nesterov=True),
    "adam": Adam(lr=0.05),
    "adam-l2": Adam(lr=0.05, weight_decay=0.3, eps=1e-2),
    "amsgrad": AMSGrad(lr=0.05, betas=(0.9, 0.5)),
    "adamw": AdamW(lr=0.05, weight_decay=0.3),
    "nadam": NAdam(lr=0.05),
    "rmsprop": RMSprop(lr=0.05, weight_decay=0.1),
    "groups": Groups({"w": Adam(lr=0.05), "*": SGD(lr=0.1)}),
}


def by_autograd(stage: Stage, record: Any, hparams: Tree, cotangent: Tree) -> Tree:
    """(du/dg)^T c with no closed form: of `update`, at the state before the step."""
    before = state_before_last(stage, record, hparams)
    return pull_rule(stage, before, hparams, record.grad, cotangent, {}, gradients_only=True).grads


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_the_derivative_in_closed_form_is_autograds(name: str, steps: int) -> None:
    problem = toy(RULES[name], steps=steps)
    (stage,) = problem.stages
    record = run(stage, problem.start, problem.hparams, tail=1)
    generator = torch.Generator().manual_seed(1)
    c = {k: torch.randn(x.shape, dtype=F64, generator=generator) for k, x in record.end.params.items()}
    want = by_autograd(stage, record, problem.hparams, c)
    # Adam's derivative at t = 1 is a difference of numbers 1e6 times as large
    torch.testing.assert_close(
        adapt(stage, record, problem.hparams, c), want, rtol=1e-9 if steps == 1 else 1e-11, atol=1e-12
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Doubled(Adam):
    """A subclass with another update, which says that it mixes no coordinates, and defines no derivative."""

    diagonal: ClassVar[bool] = True

    def update(self, grad: Tensor, slots: dict[str, Tensor], t: int, param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        change, after = super().update(grad, slots, t, param)
        return 2 * change, after

    def rewind(self, grad: Tensor, slots: dict[str, Tensor], t: int, param: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        before, _ = super().rewind(grad, slots, t, param)
        return before, param - 2 * self._step(slots, t)


def test_a_subclass_does_not_inherit_the_derivative() -> None:
    problem = toy(Doubled(lr=0.05), steps=5)
    (stage,) = problem.stages
    record = run(stage, problem.start, problem.hparams, tail=1)
    c = {k: torch.ones_like(x) for k, x in record.end.params.items()}
    torch.testing.assert_close(
        adapt(stage, record, problem.hparams, c), by_autograd(stage, record, problem.hparams, c), rtol=1e-10, atol=1e-13
    )


def test_leaves_of_several_pieces_of_a_rule_with_and_without_a_closed_form() -> None:
    n = 3 * 2**15 + 5
    for rule in (Adam(lr=0.1), RMSprop(lr=0.1), NAdam(lr=0.1)):
        stage = Stage(lambda p, h, t: ((p["w"] - h["a"] * t) ** 4).sum(), rule, lambda t: t, steps=3)
        start, hparams = {"w": torch.linspace(-1, 1, n, dtype=F64).reshape(1, n)}, {"a": torch.tensor(0.1, dtype=F64)}
        record = run(stage, start, hparams, tail=1)
        c = {"w": torch.linspace(1, 2, n, dtype=F64).reshape(1, n)}
        torch.testing.assert_close(
            adapt(stage, record, hparams, c), by_autograd(stage, record, hparams, c), rtol=1e-9, atol=1e-12
        )


PRODUCTS = [CentralDifference(0.1), reverse_over_reverse]
ESTIMATORS = [
    e for p in PRODUCTS for e in (SAMA(product=p), SAMA(adapt=False, product=p), SAMA(product=p, batches=2), T1T2(p))
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=built_as)
@pytest.mark.parametrize("name", ["adam", "rmsprop", "groups"])
def test_what_arrives_leaf_by_leaf_gives_the_pullback_of_the_whole(estimator: Any, name: str) -> None:
    problem = toy(RULES[name], steps=6)
    (stage,) = problem.stages
    record = run(stage, problem.start, problem.hparams, tail=1)
    tensors = [
        *record.grad.values(),
        *record.end.params.values(),
        *(x for s in record.end.slots.values() for x in s.values()),
    ]
    before = [(x, x.clone(), x._version) for x in [*tensors, *problem.hparams.values()]]
    leaves = {k: x.clone().requires_grad_() for k, x in record.end.params.items()}
    value = problem.outer(leaves, problem.hparams)
    grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    c = {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(leaves.items(), grads, strict=True)}
    kept = {k: x.clone() for k, x in c.items()}
    whole = estimator.pullback(stage, record, problem.hparams, c)
    found = [hypergradient(problem.outer, [stage], [estimator], [record], problem.hparams) for _ in range(2)]
    for answer in found:
        torch.testing.assert_close(answer.pullbacks[0].hparams, whole.hparams, rtol=1e-12, atol=1e-15)
    assert all(torch.equal(x, kept[k]) for k, x in c.items())
    assert all(torch.equal(x, y) and x._version == v for x, y, v in before)


def test_rules_that_mix_coordinates_get_the_whole() -> None:
    problem = toy(ClipNorm(Adam(lr=0.05), max_norm=0.1), steps=6)
    (stage,) = problem.stages
    assert SAMA().absorb(stage, run(stage, problem.start, problem.hparams), problem.hparams) is None


class Held(torch.autograd.Function):
    """Gives a tensor of its own for a gradient, and keeps it."""

    constant = torch.arange(1.0, 4.0, dtype=F64)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * Held.constant).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return Held.constant


def neighbours(p: Tree, h: Tree) -> Tensor:
    """The gradients of u and v are two views of the same numbers; w's is somebody's constant; x is used twice."""
    total = (p["u"].view(-1) + p["v"].view(3)).square().sum() + Held.apply(p["w"])
    return total + p["x"].square().sum() + (p["x"] * p["u"]).sum()


@pytest.mark.parametrize("estimator", [SAMA(product=reverse_over_reverse), T1T2(), SAMA(adapt=False)], ids=built_as)
def test_gradients_that_others_hold_are_not_written_over(estimator: Any) -> None:
    names, scales = "uvwx", (1.0, 10.0, 100.0, 1000.0)
    start = {k: torch.linspace(0.5, 1.5, 3, dtype=F64) * i for i, k in enumerate(names, 1)}
    hparams = {"h": torch.tensor(0.5, dtype=F64)}

    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        return sum((s * (p[k] - h["h"]) ** 2).sum() for k, s in zip(names, scales, strict=True))

    # by group, so that what is made of one leaf would be seen in its neighbour
    rule = Groups({"u": Adam(lr=0.01), "v": SGD(lr=1e-3), "w": Adam(lr=0.02), "x": Momentum(lr=1e-4)})
    stage = Stage(loss, rule, lambda t: t, steps=3)
    record = run(stage, start, hparams, tail=1)
    leaves = {k: x.clone().requires_grad_() for k, x in record.end.params.items()}
    c = dict(zip(names, torch.autograd.grad(neighbours(leaves, hparams), list(leaves.values())), strict=True))
    want = estimator.pullback(stage, record, hparams, {k: x.clone() for k, x in c.items()}).hparams
    found = hypergradient(neighbours, [stage], [estimator], [record], hparams)
    torch.testing.assert_close(found.indirect, want, rtol=1e-12, atol=0)
    assert torch.equal(Held.constant, torch.arange(1.0, 4.0, dtype=F64))


def test_a_record_that_was_used_up_says_so() -> None:
    problem = toy(Adam(lr=0.05), steps=4)
    (stage,) = problem.stages
    record = run(stage, problem.start, problem.hparams, tail=1)

    def ask(consume: bool) -> Tensor:
        return flatten(
            hypergradient(problem.outer, [stage], [SAMA()], [record], problem.hparams, consume=consume).hparams
        )

    first = ask(False)
    assert torch.equal(ask(True), first)
    with pytest.raises(HypergradientError, match="used up by hypergradient.*consume=True.*run the stage again"):
        ask(False)


def test_an_outer_loss_that_reads_what_no_step_moves() -> None:
    """Zero, and no error: the stage cannot see it; but an outer loss that reads nothing is refused."""
    stage = Stage(lambda p, h, t: ((p["w"] - h["a"]) ** 2).sum() + p["b"].sum(), SGD(lr=0.1), int, 2, frozen={"b"})
    start, hparams = {"w": torch.ones(2, dtype=F64), "b": torch.ones(2, dtype=F64)}, {"a": torch.zeros((), dtype=F64)}
    record = run(stage, start, hparams, tail=1)
    for estimator in (SAMA(), T1T2()):
        found = hypergradient(lambda p, h: p["b"].square().sum(), [stage], [estimator], [record], hparams)
        assert float(found.hparams["a"]) == 0.0
        with pytest.raises(HypergradientError, match="depends on neither"):
            hypergradient(lambda p, h: torch.ones((), dtype=F64), [stage], [estimator], [record], hparams)


def in_parts(problem: Problem, read: list[int]) -> tuple[MeanOf, Any]:
    """Three outer losses that read different leaves, and their mean."""
    keys = list(problem.hparams)

    def part(i: int) -> Any:
        def loss(p: Tree, h: Tree) -> Tensor:
            read.append(i)
            own = (p["w"] * (i + 1)).square().sum() if i != 1 else (p["b"] - 1).square().sum()
            return own + i * h[keys[0]].square().sum()

        return loss

    parts = [part(i) for i in range(3)]
    return MeanOf(parts), lambda p, h: sum(x(p, h) for x in parts) / 3


@pytest.mark.parametrize("name", ["sama", "cg", "unroll"])
def test_the_mean_of_parts_is_the_whole(name: str) -> None:
    problem, read = toy(Adam(lr=0.05) if name == "sama" else SGD(lr=0.1), steps=5), list[int]()
    parts, whole = in_parts(problem, read)
    got, want = (estimate(replace(problem, outer=outer), name) for outer in (parts, whole))
    assert read == [0, 1, 2] * 2
    torch.testing.assert_close(got.hparams, want.hparams, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got.direct, want.direct, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got.value, want.value, rtol=1e-13, atol=0)
    torch.testing.assert_close(parts(problem.start, problem.hparams), whole(problem.start, problem.hparams))
    with pytest.raises(HypergradientError, match="at least one"):
        MeanOf([])


def test_a_gradient_that_waits_in_half_precision_moves_the_answer_by_its_rounding() -> None:
    problem = toy(Adam(lr=0.05), steps=20)
    exact, rounded = (
        flatten(estimate(problem, SAMA(product=reverse_over_reverse, waiting=w)).indirect)
        for w in (None, torch.bfloat16)
    )
    error = float((rounded - exact).norm() / exact.norm())
    assert 0 < error < 2**-9  # the rounding of a bfloat16; all but a part of the derivative does not see it


# -- bytes ----------------------------------------------------------------------------------------------------------

N, LEAVES = 2**18, 8  # so large that pieces do not count


def peak_of(estimator: Any, rule: Any) -> tuple[float, float]:
    """Peak of a hypergradient of leaves whose losses hold no activations, and bytes of parameters and slots, in parameters."""
    names = [f"w{i}" for i in range(LEAVES)]

    def quadratic(p: Tree, h: Tree) -> Tensor:
        return sum(torch.dot(p[k], p[k]) * h["h"] for k in names)

    def linear(p: Tree, h: Tree) -> Tensor:
        return sum(p[k].sum() for k in names)

    stage = Stage(lambda p, h, t: quadratic(p, h), rule, lambda t: t, steps=2)
    hparams = {"h": torch.tensor(0.3)}
    held = [run(stage, {k: torch.ones(N) for k in names}, hparams, tail=estimator.tail)]
    end, meter = held[0].end, Meter()
    meter.resident(
        {"parameters": end.params, "slots": end.slots, "recorded": [s.params for s in held[0].states.values()]}
    )
    meter.hold(held[0].grad)
    with meter.measuring():
        hypergradient(linear, [stage], [estimator], held, hparams, consume=True)
    one = nbytes(end.params)
    return meter.peak / one, meter._resident_bytes / one


@pytest.mark.parametrize(
    ("rule", "estimator", "waits"),
    [
        (Adam(lr=0.1), SAMA(), 1),
        (Adam(lr=0.1), SAMA(waiting=torch.bfloat16), 0.5),
        (SGD(lr=0.1), SAMA(), 1),
        (SGD(lr=0.1), SAMA(adapt=False), 0),
        (SGD(lr=0.1), T1T2(CentralDifference(0.1)), 0),
    ],
    ids=["adam", "adam-half", "sgd", "sgd-na", "t1t2"],
)
def test_one_copy_of_the_parameters_beside_what_training_holds(rule: Any, estimator: Any, waits: float) -> None:
    """The tangent, written over the outer gradient: while its last leaf is made the last gradient's is there, if it waits."""
    peak, resident = peak_of(estimator, rule)
    pieces = 5 * 2**15 / (LEAVES * N)
    assert resident + 1 + waits / LEAVES <= peak <= resident + 1 + waits / LEAVES + pieces
