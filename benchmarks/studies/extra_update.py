"""SAMA's three arms: the meta update alone, the extra update of the base parameters alone, and both.

The published numbers of SAMA include an update theta <- theta - alpha v / ||v|| after every hypergradient, v being the
adapted outer gradient (the released code leaves it out unless asked: ``sama_multitask``). It trains on the clean outer
set by itself, by a length alpha that knows nothing of the learning rate. So a comparison must report the arms apart.

Digits with mostly redrawn labels, a Meta-Weight-Net on the example's (detached) loss, Adam inside; one meta step every ``horizon``
steps, going on from the same state. Accuracy is on held-out clean digits, at the end of training.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from estimators import SAMA, reverse_over_reverse

from ..online import train_online
from ..problems import digits_reweighting
from .base import Claimed, Row

CITATION = "Choe et al. 2023 (SAMA) and its released code; the arms apart are ours"
ABOUT = "SAMA's extra update of the base parameters: meta update alone, extra alone, both; on noisy digits"
QUICK = {"seeds": (0,), "alphas": (0.1,), "steps": 60}
NEEDS = {"warmup": 0}

ARMS: dict[str, tuple[bool, bool]] = {
    "plain": (False, False),
    "meta only": (True, False),
    "extra only": (False, True),
    "both": (True, True),
}
"""name -> (hyperparameters move, parameters get the extra update): the grid of the ablation."""


def run(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    alphas: tuple[float, ...] = (0.1, 1.0),
    steps: int = 1000,
    horizon: int = 10,
    warmup: int = 50,
    noise: float = 0.6,
    n_train: int = 1000,
    n_valid: int = 100,
    lr: float = 3e-3,
    meta_lr: float = 1e-2,
) -> list[Row]:
    """Rows: seed, arm, alpha (0 without an extra update), accuracy, extra_relative (median size of the extra update in
    units of the last optimizer step), norm (of the parameters at the end).

    Args:
        seeds: of the problem.
        alphas: norms of the extra update.
        steps: of training.
        horizon: steps between meta steps.
        warmup: steps before the first one.
        noise: share of training labels redrawn.
        n_train: examples with such labels.
        n_valid: clean examples of the outer loss.
        lr: of Adam inside.
        meta_lr: of Adam outside.
    """
    rows: list[Row] = []
    for seed in seeds:
        sizes: dict[str, Any] = {"seed": seed, "n_train": n_train, "n_valid": n_valid}
        problem = digits_reweighting.make(space="mwn", noise=noise, lr=lr, detach=True, **sizes)
        images, labels = digits_reweighting.held_out(**sizes)
        for arm, (meta, extra) in ARMS.items():
            for alpha in alphas if extra else (0.0,):
                online = train_online(
                    problem,
                    SAMA(product=reverse_over_reverse, extra_update=alpha if extra else None),
                    lambda leaves: torch.optim.Adam(leaves, lr=meta_lr),
                    steps=steps, horizon=horizon, warmup=warmup, update_hparams=meta, apply_extra=extra,
                )  # fmt: skip
                lengths = [b.extra_relative for b in online.blocks if b.extra_norm]
                end = online.end.params
                rows.append(
                    {
                        "seed": seed, "arm": arm, "alpha": alpha,
                        "accuracy": digits_reweighting.accuracy(end, images, labels),
                        "extra_relative": float(pd.Series(lengths, dtype=float).median()) if lengths else 0.0,
                        "norm": float(torch.stack([x.square().sum() for x in end.values()]).sum().sqrt()),
                    }
                )  # fmt: skip
    return rows


def claims(rows: list[Row]) -> list[Claimed]:
    """See `Study`. Means over seeds; differences are paired by seed."""
    frame = pd.DataFrame(rows)
    small, large = frame.loc[frame["alpha"] > 0, "alpha"].min(), frame["alpha"].max()

    def of(arm: str, alpha: float = 0.0) -> pd.Series:
        return frame[(frame["arm"] == arm) & (frame["alpha"] == alpha)].set_index("seed")["accuracy"]

    def text(x: pd.Series) -> str:
        return f"{100 * x.mean():.1f} ({100 * x.min():.1f} to {100 * x.max():.1f})"

    plain, meta, extra, both = of("plain"), of("meta only"), of("extra only", small), of("both", small)
    relative = frame.loc[frame["alpha"] == large, "extra_relative"]
    found = [
        Claimed(
            f"The extra update alone (alpha = {small:g}), without any meta-learning, beats plain training for every seed",
            f"accuracy in %: extra only {text(extra)}, plain {text(plain)}",
            (extra > plain).all(),
        ),
        Claimed(
            "The meta update alone beats plain training for every seed",
            f"meta only {text(meta)}, plain {text(plain)}",
            (meta > plain).all(),
        ),
        Claimed(
            f"An alpha of {large:g} (the paper's) is many optimizer steps long: a median above 3",
            f"{relative.median():.1f} times the last Adam step ({relative.min():.1f} to {relative.max():.1f})",
            relative.median() > 3,
        ),
        Claimed(
            "What the arms give together is at least what the better of them gives alone, less one point",
            f"both {text(both)}",
            100 * (both.mean() - max(meta.mean(), extra.mean())) > -1,
        ),
    ]
    return found
