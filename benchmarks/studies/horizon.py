"""How far a hypergradient must look: the learning rate of the noisy quadratic by the number of steps that are looked at.

- *slope*: a run of T steps at a constant learning rate, and dM/dlog_lr by `Unroll(last=K)`, beside that of the whole run;
- *online*: one training of T steps from the same start, whose rate is learned on the way by K-step blocks
  (`train_online`; K = 1 is greedy learning). Adam outside, its rate eta K, so that the learning rate may move as far per
  training step whatever K. Shown is the expected loss at the end above its minimum, beside that of the best constant rate.
"""

from __future__ import annotations

import math
from statistics import median

import torch

from estimators import HypergradientError, Problem, Tree, Unroll, hypergradient
from estimators import run as run_stage

from ..online import hold, train_online
from ..problems import noisy_quadratic
from .base import Claimed, Row

CITATION = "the bias: Wu et al. 2018; horizons: Shaban et al. 2019"
ABOUT = "The bias of a short horizon: slope of the learning rate, and training with a learned one, by the horizon"
QUICK = {
    "seeds": (0, 1),
    "horizons": (1, 10),
    "blocks": (1, 10),
    "log_lrs": (0.0,),
    "constants": (0.0, 1.0),
    "steps": 40,
    "dim": 30,
}
NEEDS = {"horizons": (10,), "blocks": (1, 10)}


def run(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7),
    horizons: tuple[int, ...] = (1, 3, 10, 30, 100),
    blocks: tuple[int, ...] = (1, 3, 10, 30),
    log_lrs: tuple[float, ...] = (0.0, 1.0),
    constants: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5),
    eta: float = 0.02,
    steps: int = 300,
    dim: int = 300,
) -> list[Row]:
    """Rows: part ("slope", "online" or "constant"), seed, horizon, log_lr, slope, share (of the whole run's), excess, alpha;
    or reason.

    Args:
        seeds: of the problem.
        horizons: K of the slopes, 10 among them; the whole run's comes on top.
        blocks: K of the trainings with a learned rate, 1 and 10 among them; longer ones leave too few meta steps.
        log_lrs: where the slopes are taken.
        constants: log_lr of the trainings at a constant rate.
        eta: of the meta optimizer, for each training step.
        steps: T.
        dim: parameters.
    """
    rows: list[Row] = []
    for seed in seeds:
        problem = noisy_quadratic.make(seed=seed, steps=steps, dim=dim, momentum=0.5, base=0.2)
        problem = hold(problem, ["raw_momentum"])
        for log_lr in log_lrs:
            slopes = _slopes(problem, {"log_lr": torch.tensor(log_lr, dtype=torch.float64)}, (*horizons, steps))
            for horizon, slope in slopes.items():
                found = {"slope": slope, "share": slope / slopes[steps]}
                rows.append({"part": "slope", "seed": seed, "log_lr": log_lr, "horizon": horizon, **found})
        for log_lr in constants:
            rows.append({"part": "constant", "seed": seed, "log_lr": log_lr, **_constant(problem, log_lr)})
        for horizon in blocks:
            rows.append({"part": "online", "seed": seed, "horizon": horizon, **_online(problem, horizon, eta, steps)})
    return rows


def _slopes(problem: Problem, hparams: Tree, horizons: tuple[int, ...]) -> dict[int, float]:
    """K -> dM/dlog_lr through the last K steps of one run."""
    (stage,) = problem.stages
    record = run_stage(stage, problem.start, hparams)
    return {
        k: float(hypergradient(problem.outer, [stage], [Unroll(last=k)], [record], hparams).hparams["log_lr"])
        for k in horizons
    }


def _constant(problem: Problem, log_lr: float) -> Row:
    lam = {"log_lr": torch.tensor(log_lr, dtype=torch.float64)}
    try:
        end = run_stage(problem.stages[0], problem.start, lam, tail=0).end.params
    except HypergradientError as error:
        return {"reason": str(error)}
    return {"excess": _excess(problem, float(problem.outer(end, lam)))}


def _online(problem: Problem, horizon: int, eta: float, steps: int) -> Row:
    try:
        done = train_online(
            problem, Unroll(), lambda leaves: torch.optim.Adam(leaves, lr=eta * horizon), steps=steps, horizon=horizon
        )
    except HypergradientError as error:
        return {"reason": str(error)}
    last = done.blocks[-1]
    return {"excess": _excess(problem, last.outer_loss), "alpha": float(last.hparams["log_lr"].exp())}


def _excess(problem: Problem, value: float) -> float:
    """Expected loss above its minimum, sum_i h_i w_i^2 / 2."""
    return value - float(problem.outer({"w": torch.zeros(problem.settings["dim"], dtype=torch.float64)}, {}))


def claims(rows: list[Row]) -> list[Claimed]:
    """What the rows show."""
    slopes = [r for r in rows if r["part"] == "slope"]
    high = max(r["log_lr"] for r in slopes)
    by_horizon = {
        k: [r["slope"] for r in slopes if r["horizon"] == k and r["log_lr"] == high]
        for k in sorted({r["horizon"] for r in slopes})
    }
    whole = max(by_horizon)
    short = [k for k in by_horizon if 1 < k <= 10]
    wrong = {k: sum(x > 0 for x in found) for k, found in by_horizon.items()}
    seeds = len(by_horizon[whole])
    learned = _medians(rows, "online", "horizon")
    constant = _medians(rows, "constant", "log_lr")
    best = min(constant, key=lambda k: constant[k])
    upto = [v for k, v in learned.items() if k <= 10]
    shown = ", ".join(f"{v:.3g} (K = {k})" for k, v in learned.items())
    beside = f"{constant[best]:.3g} at the best constant rate (log_lr = {best:g})"
    return [
        Claimed(
            text=f"A short horizon gets the sign wrong: at log_lr = {high:g} the whole run asks for a larger rate, and the last "
            "3 to 10 steps for a smaller one, for every seed",
            measured=f"slopes above 0 of {seeds}: " + ", ".join(f"{n} (K = {k})" for k, n in wrong.items()),
            holds=bool(short) and wrong[whole] == 0 and all(wrong[k] == seeds for k in short),
        ),
        Claimed(
            text="Learned on the way by a longer horizon the rate does better: the median excess loss at the end falls with "
            "every longer horizon up to 10 steps. (Longer ones leave few meta steps in one training, and may gain nothing.)",
            measured=shown,
            holds=len(upto) > 1 and all(math.inf > a > b for a, b in zip(upto, upto[1:], strict=False)),
        ),
        Claimed(
            text="Learned greedily (K = 1) it does worse than the best constant rate, with K = 10 better (medians)",
            measured=f"{shown}; {beside}",
            holds=math.inf > learned[1] > constant[best] > learned[10],
        ),
    ]


def _medians(rows: list[Row], part: str, by: str) -> dict[float, float]:
    """Of the excess, a training that diverged being one of infinite excess."""
    found: dict[float, list[float]] = {}
    for r in rows:
        if r["part"] == part:
            found.setdefault(r[by], []).append(r.get("excess", math.inf))
    return {k: median(v) for k, v in sorted(found.items())}
