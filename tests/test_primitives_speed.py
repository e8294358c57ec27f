"""The primitives on one small problem: first the answer, then the speed.

Timed only with ``--benchmark-enable`` (``python3 do.py test --speed``); otherwise each is called once and checked. No
history is kept here: that, memory, and the comparison of commits are asv's (benchmarks/asv_suite).
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.benchmark.utils.timer import timer  # synchronises an accelerator, if there is one

from estimators import PRODUCTS, RULES, SOLVERS, tree

SIZE = 256

speed = pytest.mark.benchmark(timer=timer, warmup=True, min_rounds=5, max_time=0.5)

# How each solver is set up so that its answer has a closed form at H = diag(1 ... 2).
SETTINGS: dict[str, dict[str, float]] = {
    "identity": {},
    "neumann": {"steps": 10, "lr": 0.5},
    "cg": {"steps": 10},
    "nystrom": {"rank": 10, "rho": 0.1},
    "fixed-point": {"steps": 10, "lr": 0.5},
    "dense": {},
}

TORCH = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@speed
@pytest.mark.parametrize("name", PRODUCTS)
def test_product(benchmark, name: str) -> None:
    """L = sum(exp(lam) sin(A w)), with both rows wanted."""
    benchmark.group = "product"
    a, w, lam, v = (torch.randn(*shape, dtype=torch.float64) for shape in [(SIZE, SIZE), (SIZE,), (SIZE,), (SIZE,)])
    a /= SIZE**0.5

    def loss(params, hparams):
        return (hparams["lam"].exp() * (a @ params["w"]).sin()).sum()

    rows, mixed = benchmark(
        PRODUCTS[name], loss, {"w": w}, {"lam": lam}, {"w": v}, wrt_params=["w"], wrt_hparams=["lam"]
    )
    inside, slope = a @ w, a @ v
    tolerance = 1e-12 if "reverse" in name else 1e-4  # a central difference has a truncation error
    torch.testing.assert_close(rows["w"], -a.T @ (lam.exp() * inside.sin() * slope), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mixed["lam"], lam.exp() * inside.cos() * slope, rtol=tolerance, atol=tolerance)


@speed
@pytest.mark.parametrize("name", SETTINGS)
def test_solver(benchmark, name: str) -> None:
    benchmark.group = "solver"
    diagonal = torch.linspace(1.0, 2.0, SIZE, dtype=torch.float64)
    b = {"w": torch.randn(SIZE, dtype=torch.float64)}
    solution = benchmark(SOLVERS[name](**SETTINGS[name]), lambda v: {"w": diagonal * v["w"]}, b)
    benchmark.extra_info["matvecs"] = solution.matvecs
    if name == "identity":
        expected, tolerance = b["w"], 0.0
    elif name == "nystrom":  # exact on the sampled columns, b / rho elsewhere: no closed form without knowing them
        low, high = b["w"] / (diagonal + 0.1), b["w"] / 0.1
        assert ((solution.value["w"] - low).abs() < 1e-9).sum() == 10
        assert ((solution.value["w"] - high).abs() < 1e-9).sum() == SIZE - 10
        return
    else:
        # Neumann and fixed point leave (I - lr H)^k of it, at most 2^-10; CG 2 (0.17)^10, from the condition number 2.
        expected, tolerance = b["w"] / diagonal, 1e-12 if name == "dense" else 1e-3
    assert tree.norm({"w": solution.value["w"] - expected}) <= tolerance * tree.norm(b)


@speed
@pytest.mark.parametrize("name", RULES)
def test_rule_update(benchmark, name: str) -> None:
    """Three steps, then the cost of the fourth; the end is that of `torch.optim`."""
    benchmark.group = "rule"
    start = torch.randn(SIZE, SIZE, dtype=torch.float64)
    grads = torch.randn(4, SIZE, SIZE, dtype=torch.float64)
    rule = RULES[name](lr=0.1)
    theta, slots = start, rule.init(start)
    for t in range(3):
        change, slots = rule.update(grads[t], slots, t + 1, theta)
        theta = theta + change
    change, _ = benchmark(rule.update, grads[3], slots, 4, theta)

    if name not in TORCH:
        return  # its answer has a test of its own
    leaf = start.clone().requires_grad_()
    optimizer = TORCH[name]([leaf], lr=0.1, weight_decay=getattr(rule, "weight_decay", 0.0))
    for g in grads:
        leaf.grad = g
        optimizer.step()
    torch.testing.assert_close(theta + change, leaf.detach(), rtol=1e-10, atol=1e-12)
