"""Laws of the estimators that differentiate the rule, on the toy problem with every rule. Registering is being tested."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from estimators import RULES, SGD, Groups, Hypergradient, Muon, Problem, Tree, hypergradient, per_stage, run_stages
from estimators.tree import flatten, scale

from .rule_references import F64
from .toy import toy

DIFFERENTIABLE = [name for name in RULES if name != "lion"]
THROUGH = ["unroll", "unroll-checkpointed", "forward", "sama-exact"]


def rule_for(name: str, **fields: Any) -> Any:
    """The rule for all leaves of the toy problem; Muon for its matrix alone."""
    rule = RULES[name](lr=0.05, **fields)
    return Groups({"w": rule, "*": SGD(lr=0.05)}) if isinstance(rule, Muon) else rule


@cache
def recorded(name: str, estimator: str, dtype: torch.dtype = F64) -> tuple[Problem, Any, Any]:
    problem = toy(rule_for(name), steps=9, dtype=dtype)
    chosen = per_stage(estimator, 1)
    return problem, chosen, run_stages(problem.stages, problem.start, problem.hparams, chosen)


def ask(name: str, estimator: str, factor: float = 1.0, dtype: torch.dtype = F64) -> Hypergradient:
    problem, chosen, records = recorded(name, estimator, dtype)
    return hypergradient(
        lambda p, h: factor * problem.outer(p, h), problem.stages, chosen, records, problem.hparams, throw=False
    )


def relative(a: Tree, b: Tree) -> float:
    return float((flatten(a) - flatten(b)).norm() / flatten(b).norm())


@pytest.mark.parametrize("estimator", THROUGH)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_laws(name: str, estimator: str) -> None:
    _, _, (record,) = recorded(name, estimator)
    kept = [*record.end.params.values(), *(x for s in record.end.slots.values() for x in s.values())]
    before = [(x, x.clone()) for x in kept]
    first, second = ask(name, estimator), ask(name, estimator)
    for k, x in first.hparams.items():
        assert torch.equal(x, second.hparams[k])  # repeatable, to the bit
    assert all(torch.equal(x, y) for x, y in before)  # mutates nothing
    for factor in (-3.0, 1e-12):  # homogeneous
        scaled = ask(name, estimator, factor)
        assert relative(scale(scaled.indirect, 1 / factor), first.indirect) < 1e-8
    assert not any(x.any() for x in ask(name, estimator, 0.0).hparams.values())  # zero in, zero out


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_float32_is_near_float64(name: str) -> None:
    low = {k: x.double() for k, x in ask(name, "unroll", dtype=torch.float32).hparams.items()}
    # float32 has 1e-7; young Adams take differences of nearly equal numbers.
    assert relative(low, ask(name, "unroll").hparams) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_keeps_the_dtype_of_its_leaf(name: str, dtype: torch.dtype) -> None:
    rule = RULES[name](lr=0.1)
    theta = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    slots = rule.init(theta)
    for t in range(1, 9):
        change, slots = rule.update(torch.ones_like(theta) * t, slots, t, theta)
        theta = theta + change
        assert {x.dtype for x in (change, *slots.values())} == {dtype}
    assert bool(torch.isfinite(theta).all())
