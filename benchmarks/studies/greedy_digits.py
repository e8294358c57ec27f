"""Greedy learning of the learning rate's scalar on digits with redrawn labels, beside static rates.

Guidance is by examples with right labels. Early on a larger rate helps; once the network has learned what the right labels
teach, every further step learns wrong ones, and the rate is driven down. Without label noise there is nothing to shrink
from. Beside it, the same trainings at static rates: what one run of guided learning is worth against a small search, whose
best member is chosen *on the held-out examples themselves*, and so flattered. Here that member is a small rate that does
what stopping early would, before the wrong labels are learned; the guided rate rises first, and falls too late to.

Momentum (beta1) is 0.9, but 0.5 in Adafactor. In Adafactor as flax has it, momentum averages steps that the rate is already in, so that one step shows greed only 1 - beta1 of what
a rate does in the long run: "adafactor-0.9" is there to show what becomes of that.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import torch

from estimators import Greedy, HypergradientError, Problem
from estimators import run as run_stage

from ..online import hold, train_online
from ..problems import digits_label_noise
from ..problems.common import require
from ..problems.digits_reweighting import accuracy, held_out
from .base import Claimed, Row

CITATION = "after Lichtarge et al. 2022, figure 1 and table 2"
ABOUT = "Greedy learning of a learning rate on digits with label noise, beside static rates"
QUICK = {"seeds": (0,), "rules": ("momentum", "adafactor-0.9"), "log_lrs": (-1.0, 0.0), "steps": 30}
NEEDS = {"log_lrs": (0.0,)}

NOISE = 0.4
MYOPIC = "adafactor-0.9"
RULES = {
    "momentum": ("momentum", 0.9),
    "adam": ("adam", 0.9),
    "lamb": ("lamb", 0.9),
    "adafactor": ("adafactor", 0.5),
    MYOPIC: ("adafactor", 0.9),
}
"""name here -> name in `tuned_rule` and momentum; all but the last are compared with static rates."""


def run(
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    rules: tuple[str, ...] = tuple(RULES),
    log_lrs: tuple[float, ...] = (-4.0, -3.0, -2.0, -1.0, 0.0),
    eta: float = 1e-2,
    steps: int = 1200,
    points: int = 120,
) -> list[Row]:
    """Rows: part ("guided", a point of a trajectory; "end", of a guided training; "static"), seed, rule, noise, step, alpha,
    guidance_loss, accuracy (on held-out examples); or reason.

    Args:
        seeds: of the problem.
        rules: inner optimizers, of `RULES`.
        log_lrs: of the static rates; the claims read 0.
        eta: of the meta optimizer, Adam.
        steps: of training; of "adafactor-0.9" a third of them.
        points: of a trajectory that are kept.

    Raises:
        ValueError: an unknown rule.
    """
    require(set(rules) <= RULES.keys(), f"rules={rules}: choose of {', '.join(RULES)}")
    rows: list[Row] = []
    for seed in seeds:
        for rule in rules:
            most = steps if rule != MYOPIC else max(steps // 3, 1)  # it has run away by then
            for noise in (NOISE, 0.0):
                label = {"seed": seed, "rule": rule, "noise": noise}
                rows += [{**label, **r} for r in _guided(_problem(seed, rule, noise), eta, most, points)]
            for log_lr in log_lrs if rule != MYOPIC else ():
                static = _static(_problem(seed, rule, NOISE, log_lr, steps))
                rows.append({"part": "static", "seed": seed, "rule": rule, "noise": NOISE, "log_lr": log_lr, **static})
    return rows


def _problem(seed: int, rule: str, noise: float, log_lr: float = 0.0, steps: int = 2) -> Problem:
    name, momentum = RULES[rule]
    problem = digits_label_noise.make(
        seed=seed, rule=name, momentum=momentum, noise=noise, log_lr=log_lr, steps=steps, dtype=torch.float32
    )
    return hold(problem, ["raw_momentum"])


def _accuracy(problem: Problem, params: dict[str, torch.Tensor]) -> float:
    return accuracy(params, *held_out(seed=problem.settings["seed"]))


def _guided(problem: Problem, eta: float, steps: int, points: int) -> list[Row]:
    try:
        done = train_online(problem, Greedy(), lambda leaves: torch.optim.Adam(leaves, lr=eta), steps=steps)
    except HypergradientError as error:
        return [{"part": "end", "reason": str(error)}]
    spacing = max(steps // points, 1)
    rows: list[Row] = [
        {"part": "guided", "step": b.step, "alpha": float(b.hparams["log_lr"].exp()), "guidance_loss": b.outer_loss}
        for b in done.blocks
    ]
    alphas = [r["alpha"] for r in rows]
    end = {
        "part": "end", "alpha": alphas[-1], "top": max(alphas), "top_step": alphas.index(max(alphas)) + 1,
        "guidance_loss": done.blocks[-1].outer_loss, "accuracy": _accuracy(problem, done.end.params),
    }  # fmt: skip
    return [*(r for i, r in enumerate(rows) if i % spacing == 0 or i == steps - 1), end]


def _static(problem: Problem) -> Row:
    try:
        end = run_stage(problem.stages[0], problem.start, problem.hparams, tail=0).end.params
    except HypergradientError as error:
        return {"reason": str(error)}
    return {"guidance_loss": float(problem.outer(end, problem.hparams)), "accuracy": _accuracy(problem, end)}


def claims(rows: list[Row]) -> list[Claimed]:
    """What the rows show."""
    ends = [r for r in rows if r["part"] == "end" and "alpha" in r]
    complete = bool(ends) and not any("reason" in r for r in rows if r["part"] == "end")
    myopic = [r for r in ends if r["rule"] == MYOPIC]
    noisy, clean = ([r for r in ends if (r["noise"] > 0) is wanted and r["rule"] != MYOPIC] for wanted in (True, False))
    before = {(r["rule"], r["seed"]): r["alpha"] for r in noisy}
    ratios = [r["alpha"] / before.get((r["rule"], r["seed"]), math.inf) for r in clean]
    peaks, lows, highs = _ranges(noisy, "top"), _ranges(noisy, "alpha"), _ranges(clean, "alpha")
    compared = _compared(rows, noisy)
    shown = "; ".join(
        f"{rule}: guided {c['guided']:.3f}, best static {c['best']:.3f} at log_lr = {c['at']:g}, log_lr = 0 {c['start']:.3f}"
        for rule, c in compared.items()
    )
    return [
        Claimed(
            text="With label noise alpha rises first, above 1.2, and then falls below 0.6, for every seed and rule",
            measured="; ".join(f"{rule} {peaks[rule]}, then {lows[rule]}" for rule in peaks),
            holds=complete and bool(noisy) and all(r["top"] > 1.2 and r["alpha"] < 0.6 for r in noisy),
        ),
        Claimed(
            text="It is the noise that drives it down: without it alpha ends more than twice as high, for every seed and rule, "
            "and above 1 but for LAMB's, which falls below 1 even so",
            measured="; ".join(f"{rule} {x}" for rule, x in highs.items()) + f"; {min(ratios, default=0.0):.1f} times and more",
            holds=complete and bool(clean) and min(ratios) > 2 and all((r["alpha"] > 1) is (r["rule"] != "lamb") for r in clean),
        ),
        Claimed(
            text="Guided within one run it beats the static rate that it starts from, in median accuracy on held-out examples, by "
            "more than 2 points with momentum, Adam and LAMB; with Adafactor it gains less than 1 point, or loses less",
            measured=shown,
            holds=complete
            and bool(compared)
            and all(
                abs(gain) < 0.01 if rule == "adafactor" else gain > 0.02
                for rule, gain in ((rule, c["guided"] - c["start"]) for rule, c in compared.items())
            ),
        ),
        Claimed(
            text="It does not reach the best static rate of the grid: more than 3 points below it, for every rule. (In table 2 of "
            "Lichtarge et al. guided learning matches a search; here the best rate is small from the start, and greed, which "
            "raises the rate first, lowers it too late)",
            measured=shown,
            holds=complete and bool(compared) and all(c["guided"] < c["best"] - 0.03 for c in compared.values()),
        ),
        Claimed(
            text="Where momentum averages steps that the rate is already in (Adafactor, beta1 = 0.9), greed sees a tenth of what "
            "the rate will do, and it runs away: alpha passes 10, for every seed, with label noise and without",
            measured=f"highest {_ranges(myopic, 'top').get(MYOPIC, 'none')}",
            holds=complete and bool(myopic) and all(r["top"] > 10 for r in myopic),
        ),
    ]  # fmt: skip


def _ranges(rows: list[Row], column: str) -> dict[str, str]:
    """rule -> least to largest."""
    found: dict[str, list[float]] = {}
    for r in rows:
        found.setdefault(r["rule"], []).append(r[column])
    return {rule: f"{min(x):.3g} to {max(x):.3g}" for rule, x in found.items()}


def _compared(rows: list[Row], ends: list[Row]) -> dict[str, dict[str, Any]]:
    """rule -> median accuracy over seeds: guided, at the best static rate and where that is, and at the guided one's start."""
    found = {}
    for rule in dict.fromkeys(r["rule"] for r in ends):
        static = {
            at: median(r.get("accuracy", 0.0) for r in rows if r["part"] == "static" and (r["rule"], r["log_lr"]) == (rule, at))
            for at in sorted({r["log_lr"] for r in rows if r["part"] == "static"})
        }  # fmt: skip
        best = max(static, key=lambda at: static[at])
        guided = median(r["accuracy"] for r in ends if r["rule"] == rule)
        found[rule] = {"guided": guided, "best": static[best], "at": best, "start": static[0.0]}
    return found
