"""What `run` lets go of on its way, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import peak
from benchmarks.meta_step import copied
from estimators import RULES, SGD, ClipNorm, Groups, Momentum, Muon, Scheduled, Stage, State, Tree, run
from estimators.rules import step_tree
from estimators.stage import advance

from .toy import toy

STEPS = 5


def rule(name: str) -> Any:
    made = RULES[name](lr=0.05)
    return Groups({"w": made, "*": SGD(lr=0.05)}) if isinstance(made, Muon) else made


OPTIMIZERS: dict[str, Callable[[], Any]] = {name: lambda name=name: rule(name) for name in RULES} | {
    "wrapped": lambda: ClipNorm(Scheduled(Momentum(lr=0.05, momentum=0.9), lambda t: 1 / (t + 1)), max_norm=0.1)
}


def by_pure_steps(stage: Stage, state: State, hparams: Tree) -> list[State]:
    """The states before every step and after the last, by nothing that writes in place."""
    states = [state]
    for t in range(state.step, state.step + stage.steps):
        leaves = {k: x.detach().requires_grad_() for k, x in states[-1].params.items()}
        loss = stage.loss(leaves, hparams, stage.stream(t))
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        changes, slots = step_tree(stage.rule, grads, states[-1])
        params = {k: x + changes[k] for k, x in states[-1].params.items()}
        states.append(State(params, slots, t + 1))
    return states


def equal(a: State, b: State) -> bool:
    same = all(torch.equal(x, b.params[k]) for k, x in a.params.items())
    return same and all(torch.equal(x, b.slots[k][n]) for k, s in a.slots.items() for n, x in s.items())


def near(a: State, b: State) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def tensors(state: State) -> list[Tensor]:
    return [*state.params.values(), *(x for s in state.slots.values() for x in s.values())]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_numbers_are_those_of_pure_steps(name: str) -> None:
    problem = toy(OPTIMIZERS[name](), steps=STEPS)
    stage, hparams = problem.stages[0], problem.hparams
    first = stage.initial(problem.start, hparams)
    kept = [(x, x.clone()) for x in [*tensors(first), *hparams.values()]]
    wanted = by_pure_steps(stage, first, hparams)
    end = run(stage, first, hparams, tail=0).end
    near(end, wanted[-1])
    for tail, every in ((None, 1), (None, 2), (3, 2)):
        record = run(stage, first, hparams, tail=tail, every=every)
        assert equal(record.end, end)  # whatever is recorded, to the bit
        for t, state in record.states.items():
            near(state, wanted[t])
            replayed = state
            while replayed.step < STEPS:
                replayed, _, _ = advance(stage, stage.bind(hparams), replayed, hparams)
            assert equal(replayed, end)
        assert all(torch.equal(x, y) for x, y in kept)
    half = run(replace(stage, steps=STEPS - 2), first, hparams, tail=0)
    assert equal(run(replace(stage, steps=2), half.end, hparams, tail=0).end, end)
    assert equal(run(stage, copied(first), hparams, tail=0, donate=True).end, end)


def test_what_a_record_holds_is_not_written_over_by_going_on() -> None:
    problem = toy(Momentum(lr=0.05, momentum=0.9), steps=STEPS)
    stage = problem.stages[0]
    record = run(stage, problem.start, problem.hparams, tail=None, every=2)
    held = [record.end, *record.states.values()]
    before = [[x.clone() for x in tensors(s)] for s in held]
    run(stage, record.end, problem.hparams, tail=0)
    assert all(
        torch.equal(x, y)
        for s, copies in zip(held, before, strict=True)
        for x, y in zip(tensors(s), copies, strict=True)
    )


@dataclass(frozen=True)
class GivesBack:
    """A rule whose slot is the gradient itself, and another that it never changes."""

    lr: float = 0.1

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"last": torch.zeros_like(param), "constant": torch.ones(()).to(param).expand(param.shape)}

    def update(self, grad: Tensor, slots: dict[str, Tensor], t: int, param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return -self.lr * (grad + slots["last"]) * slots["constant"], {"last": grad, "constant": slots["constant"]}


def test_rules_that_give_back_what_they_got() -> None:
    problem = toy(GivesBack(), steps=STEPS)
    stage = problem.stages[0]
    first = stage.initial(problem.start, problem.hparams)
    record = run(stage, first, problem.hparams, tail=0)
    assert equal(record.end, by_pure_steps(stage, first, problem.hparams)[-1])
    gradient = {k: x.clone() for k, x in record.grad.items()}
    run(stage, record.end, problem.hparams, tail=0)
    assert all(torch.equal(x, gradient[k]) for k, x in record.grad.items())


@pytest.mark.parametrize("held", [False, True])
def test_a_run_holds_one_copy_of_parameters_and_slots_beside_a_start_that_is_held(held: bool) -> None:
    """To the byte: L = x sum(w), so that the graph holds nothing of w's size but the gradient, one number expanded."""
    n, whole = 1000, 4000
    stage = Stage(lambda p, h, b: p["w"].sum() * h["x"], Momentum(lr=0.1, momentum=0.9), lambda t: None, 3)
    hparams = {"x": torch.ones(())}

    def start() -> State:
        return State({"w": torch.ones(n)}, {"w": {"momentum_buffer": torch.zeros(n)}}, 1)

    def train() -> object:
        if not held:
            return run(stage, start(), hparams, tail=0)
        kept = start()
        return run(stage, kept, hparams, tail=0), kept

    # theta and its slot; the gradient as a kernel wants it; as it came it is a number, as are the three losses
    assert peak(train).peak == 3 * whole + 4 * 4 + 2 * whole * held
