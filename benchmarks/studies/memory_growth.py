"""Peak memory of a hypergradient by the number of unrolled steps, of a small multilayer perceptron under Adam.

    inner  L(theta, lam) = cross-entropy of a 4-layer MLP + sum_leaf exp(lam_leaf) ||leaf||^2
    outer  M(theta)      = cross-entropy of another batch

Live tensor bytes at the peak of one meta step (the run, the hypergradient and the meta update), what is held between meta
steps included: parameters, slots and hyperparameters. The counts are exact, and the same on every machine.
Iterative differentiation keeps every state and every step's graph; with a checkpoint every sqrt(T) steps about sqrt(T) states and
as many steps taken again; with a budget what fits into it, and it takes steps again and again; the others keep no state, or one. What grows in those that are flat is the list of the run's losses, a 0-d tensor each, which
is taken off; it is a column of the rows.
"""

from __future__ import annotations

import math

import numpy as np

from estimators import CG, SAMA, T1T2, Estimator, Implicit, Neumann, Unroll
from estimators.stage import sizes_of

from ..measure.of_meta_step import memory_of
from ..meta_step import MetaStep, copied, settled
from ..workloads import mlp_decay
from .base import Claimed, Row

ABOUT = "Peak bytes of a hypergradient by the number of unrolled steps"
CITATION = "Franceschi et al. 2017; Griewank & Walther 2000; Lorraine et al. 2020; Choe et al. 2023"
QUICK = {"lengths": (4, 9, 16), "width": 8}
NEEDS = {"width": 8}

FLAT = ("cg", "neumann", "t1t2", "sama")
HELD = 4
"""Steps whose states and graphs the budget has room for."""

LOSS = 4
"""Bytes of a recorded loss, in float32."""


def run(*, lengths: tuple[int, ...] = (4, 9, 16, 25, 36), width: int = 16, batch: int = 16) -> list[Row]:
    """Rows: estimator, steps, peak_bytes, losses_bytes, recorded_bytes, graph_bytes, budget (0: none), gradients (beside the run).

    Args:
        lengths: T, at least three squares, so that sqrt(T) is a spacing of checkpoints.
        width: of the layers.
        batch: examples a step.
    """
    rows: list[Row] = []
    for steps in lengths:
        workload = mlp_decay.make(unroll=steps, width=width, batch=batch)
        state = settled(workload)
        sizes = sizes_of(workload.stage, state, workload.problem.hparams)
        for name, estimator in _estimators(steps, HELD * sizes.step).items():
            taken = MetaStep(workload, estimator, copied(state))().cost.gradients
            step = MetaStep(workload, estimator, copied(state), onward=True)  # as the rows of sweeps count it
            step.warm()
            found = memory_of(step)
            rows.append({
                "estimator": name, "steps": steps, "peak_bytes": found.peak, "losses_bytes": LOSS * steps,
                "recorded_bytes": found.split["recorded"], "graph_bytes": found.split["graph"],
                "budget": getattr(estimator, "budget", None) or 0, "gradients": taken,
            })  # fmt: skip
    return rows


def _estimators(steps: int, budget: int) -> dict[str, Estimator]:
    return {
        "unroll": Unroll(),
        "unroll-checkpointed": Unroll(checkpoint=max(1, math.isqrt(steps))),
        "unroll-budget": Unroll(budget=budget),
        "cg": Implicit(CG(steps=4)),
        "neumann": Implicit(Neumann(steps=4)),
        "t1t2": T1T2(),
        "sama": SAMA(),
    }


def claims(rows: list[Row]) -> list[Claimed]:
    """What the rows show."""
    steps, peaks = _series(rows, "unroll")
    slope, _, fit = line(steps, peaks)
    root, root_peaks = _series(rows, "unroll-checkpointed")
    _, _, root_fit = line(np.sqrt(root), root_peaks)
    _, _, straight = line(root, root_peaks)
    flat = {name: _series(rows, name) for name in FLAT}
    changes = {name: int(np.ptp(p)) if len(p) else None for name, (_, p) in flat.items()}
    longest = max((int(t) for t in steps), default=0)
    _, under = _series(rows, "unroll-budget")
    over = max((p / peaks[0] for p in under), default=math.inf) if len(peaks) else math.inf
    again = max((r["gradients"] / r["steps"] for r in rows if r["estimator"] == "unroll-budget"), default=math.inf)
    share = {name: p[-1] / peaks[-1] if len(p) and len(peaks) else math.inf for name, (_, p) in flat.items()}
    return [
        Claimed(
            text="Iterative differentiation grows linearly with the number of steps: R^2 of the line above 0.999",
            measured=f"R^2 = {fit:.7f}, {slope:.0f} bytes a step",
            holds=fit > 0.999,
        ),
        Claimed(
            text="Checkpointed every sqrt(T) steps it grows like the square root: R^2 above 0.999 for a + b sqrt(T), below 0.99 for a + b T",
            measured=f"R^2 = {root_fit:.7f} for the square root, {straight:.4f} for the line",
            holds=root_fit > 0.999 and straight < 0.99,
        ),
        Claimed(
            text="CG, Neumann, T1-T2 and SAMA are flat: the same peak at every length, to the byte",
            measured="largest difference: " + ", ".join(f"{c} bytes ({name})" for name, c in changes.items()),
            holds=bool(longest) and all(c == 0 for c in changes.values()),
        ),
        Claimed(
            text="At the longest run they take less than a fifth of what iterative differentiation takes",
            measured=f"{max(share.values()):.2f} of it at most, {longest} steps",
            holds=bool(longest) and max(share.values()) < 0.2,
        ),
        Claimed(
            text=f"With a budget for {HELD} steps no run takes more than 1.1 times what the shortest takes without one, at less than one gradient a step",
            measured=f"{over:.2f} times at most, {again:.2f} gradients a step beside the products and the run",
            holds=over <= 1.1 and again < 1,
        ),
    ]


def _series(rows: list[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, peak bytes without the list of losses), ascending."""
    mine = sorted((r["steps"], r["peak_bytes"] - r["losses_bytes"]) for r in rows if r["estimator"] == name)
    return np.array([t for t, _ in mine], dtype=float), np.array([p for _, p in mine], dtype=float)


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """(slope, intercept, R^2) of the least-squares line; NaN for fewer than three points."""
    if len(x) < 3:
        return math.nan, math.nan, math.nan
    slope, intercept = np.polyfit(x, y, 1)
    left = np.square(y - slope * x - intercept).sum()
    return float(slope), float(intercept), float(1 - left / np.square(y - y.mean()).sum())
