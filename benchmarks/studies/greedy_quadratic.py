"""Greedy learning on the noisy quadratic: what one step of foresight does to a learning rate and to a momentum.

The learning rate's scalar alpha is learned with the momentum held (Lichtarge et al. 2022, figure 1), for several rates
eta of the meta optimizer, Adam; then the momentum with the learning rate held (figure 2), from several starts. Guidance is
the expected loss itself, so that none of this is noise of a guidance batch. Momentum comes in two forms: on *averages*
of gradients, as the papers' Adam and LAMB have it, it leaves the effective rate alone; in the *heavy ball* it multiplies
it by 1 / (1 - mu), and then what holds of the learning rate holds of the momentum.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from estimators import Greedy, HypergradientError

from ..online import hold, train_online
from ..problems import noisy_quadratic
from .base import Claimed, Row

CITATION = "Lichtarge et al. 2022, figures 1 and 2; the bias: Wu et al. 2018"
ABOUT = "Greedy learning of a learning rate and of a momentum on the noisy quadratic"
QUICK = {"seeds": (0,), "rates": (1e-3, 3e-2), "starts": (0.1, 0.9), "steps": 60}

FORMS = ("averaged", "momentum")
END = 0.9
"""Final values are means over the steps from this share of the training on: they fluctuate."""


def run(
    *,
    seeds: tuple[int, ...] = (0, 1),
    rates: tuple[float, ...] = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    starts: tuple[float, ...] = (0.1, 0.9, 0.99),
    momentum_rate: float = 3e-2,
    steps: int = 3000,
    dim: int = 20,
    points: int = 150,
) -> list[Row]:
    """Rows: seed, learned ("alpha" or "momentum"), rule, eta, start, step, value, outer_loss; or reason.

    Args:
        seeds: of the problem.
        rates: of the meta optimizer, for alpha.
        starts: of the momentum.
        momentum_rate: of the meta optimizer, for the momentum.
        steps: of training, each with a meta step.
        dim: parameters.
        points: of a trajectory that are kept.
    """
    cases: list[dict[str, Any]] = [
        {"learned": "alpha", "rule": "momentum", "eta": eta, "start": 1.0, "momentum": 0.9} for eta in rates
    ]
    cases += [
        {"learned": "momentum", "rule": rule, "eta": momentum_rate, "start": start, "momentum": start}
        for rule in FORMS
        for start in starts
    ]
    rows: list[Row] = []
    for seed in seeds:
        for case in cases:
            label = {"seed": seed, **{k: case[k] for k in ("learned", "rule", "eta", "start")}}
            try:
                found = _train(case, seed, steps, dim)
            except HypergradientError as error:
                rows.append({**label, "reason": str(error)})
                continue
            spacing = max(steps // points, 1)
            rows += [{**label, **r} for i, r in enumerate(found) if i % spacing == 0 or i == steps - 1]
    return rows


def _train(case: dict[str, Any], seed: int, steps: int, dim: int) -> list[Row]:
    problem = noisy_quadratic.make(seed=seed, rule=case["rule"], dim=dim, momentum=case["momentum"])
    name, held, shown = (
        ("log_lr", "raw_momentum", torch.exp)
        if case["learned"] == "alpha"
        else ("raw_momentum", "log_lr", torch.sigmoid)
    )
    done = train_online(
        hold(problem, [held]), Greedy(), lambda leaves: torch.optim.Adam(leaves, lr=case["eta"]), steps=steps
    )
    return [{"step": b.step, "value": float(shown(b.hparams[name])), "outer_loss": b.outer_loss} for b in done.blocks]


def claims(rows: list[Row]) -> list[Claimed]:
    """What the rows show."""
    measured = [r for r in rows if "value" in r]
    last = max((r["step"] for r in measured), default=0)
    seeds = sorted({r["seed"] for r in rows})

    def end(**of: Any) -> float:
        values = [r["value"] for r in measured if r["step"] >= END * last and all(r[k] == v for k, v in of.items())]
        return sum(values) / len(values) if values else math.nan  # a training that failed: with it no comparison holds

    rates = sorted({r["eta"] for r in rows if r["learned"] == "alpha"})
    alphas = {seed: [end(seed=seed, learned="alpha", eta=eta) for eta in rates] for seed in seeds}
    lists = "; ".join(f"seed {s}: " + ", ".join(f"{a:.3f}" for a in found) for s, found in alphas.items())
    starts = sorted({r["start"] for r in rows if r["learned"] == "momentum"})
    ends = {
        rule: {s: [end(seed=s, learned="momentum", rule=rule, start=at) for at in starts] for s in seeds}
        for rule in FORMS
    }
    ranges = {rule: ", ".join(f"{_range(e)} (seed {s})" for s, e in ends[rule].items()) for rule in FORMS}
    averaged, ball = ends["averaged"].values(), ends["momentum"].values()
    started = bool(seeds) and bool(starts)
    return [
        Claimed(
            text="Greedy learning drives the learning rate down, the further the larger the meta rate: alpha at the end is "
            "below 1 for every meta rate and falls with it, for every seed",
            measured=f"alpha for eta = {', '.join(f'{r:g}' for r in rates)}: {lists}",
            holds=bool(seeds)
            and len(rates) > 1
            and all(a[0] < 1 and all(x > y for x, y in zip(a, a[1:], strict=False)) for a in alphas.values()),
        ),
        Claimed(
            text=f"A momentum on averages of gradients forgets its start, {', '.join(f'{s:g}' for s in starts)}: the ends "
            "differ by less than 0.05, for every seed",
            measured=ranges["averaged"],
            holds=started and len(starts) > 1 and all(abs(x - y) < 0.05 for e in averaged for x in e for y in e),
        ),
        Claimed(
            text="It does not collapse: every end lies above 0.1",
            measured=ranges["averaged"],
            holds=started and all(x > 0.1 for e in averaged for x in e),
        ),
        Claimed(
            text="The heavy ball's momentum, which multiplies the rate, does collapse: every end lies below 0.05",
            measured=ranges["momentum"],
            holds=started and all(x < 0.05 for e in ball for x in e),
        ),
    ]


def _range(values: list[float]) -> str:
    finite = [x for x in values if not math.isnan(x)]
    failed = f", {len(values) - len(finite)} failed" if len(finite) < len(values) else ""
    return (f"{min(finite):.3f} to {max(finite):.3f}" if finite else "none") + failed
