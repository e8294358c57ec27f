"""How far the central difference is from the product M^T v that it stands for, by its perturbation and precision.

    M^T v ~ (g(theta + e v) - g(theta - e v)) / 2e,   e = alpha / ||v||,   g = dL/dlam

(Choe et al. 2023, SAMA, eq. 5, whose experiments have alpha = 1, Table 4; Liu et al. 2019, DARTS, eq. 8, alpha = 0.01). Truncation costs
O(alpha^2), rounding O(1/alpha). Measured against double backward in float64 *at the rounded theta, lam and v*, so that the
error is the difference's own, and for classifiers of several widths, whose ||theta|| differ.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import pandas as pd
import torch

from estimators import CentralDifference, reverse_over_reverse, tree

from ..accuracy import compare
from ..problems import digits_reweighting
from .base import Claimed, Row
from .point import end_of, rounded

CITATION = "Choe et al. 2023 (SAMA), eq. 5 and Table 4; Liu et al. 2019 (DARTS), eq. 8"
ABOUT = "The central difference's error against its perturbation alpha, in four precisions, on digits"
QUICK = {"seeds": (0,), "widths": (8,), "alphas": (1e-4, 1e-3, 1e-2, 0.1, 1.0), "steps": 10}
NEEDS = {"alphas": QUICK["alphas"]}

PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16 autocast": torch.float32,  # parameters in float32, the network's matrix products in bfloat16
    "bfloat16": torch.bfloat16,
}


def run(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    widths: tuple[int, ...] = (8, 64, 512, 2048),
    alphas: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),
    space: str = "wide",
    steps: int = 60,
) -> list[Row]:
    """Rows: seed, width, precision, alpha, theta (its norm), relative_alpha (alpha / ||theta||), relative_error, cosine.

    Args:
        seeds: of the problem.
        widths: of the classifier.
        alphas: norms of the perturbation; the claims read 1e-4, 1e-3, 0.01, 0.1 and 1.
        space: of the hyperparameters, as in `digits_reweighting`.
        steps: of Adam before the product is taken.
    """
    rows = []
    for seed in seeds:
        for width in widths:
            make = partial(digits_reweighting.make, seed=seed, space=space, hidden=width, steps=steps)
            point = end_of(make())
            for name, dtype in PRECISIONS.items():
                params, hparams, v = (rounded(a, dtype) for a in (point.params, point.hparams, point.tangent))
                doubles = [rounded(a, torch.float64) for a in (params, hparams, v)]
                _, exact = reverse_over_reverse(point.loss, *doubles, wrt_hparams=hparams)
                (stage,) = make(dtype=dtype).stages
                size = float(tree.norm(doubles[0]))
                for alpha in alphas:
                    with _autocast(name):
                        _, found = CentralDifference(alpha=alpha)(
                            stage.objective(steps - 1), params, hparams, v, wrt_hparams=hparams
                        )
                    errors = compare(found, exact)
                    rows.append(
                        {
                            "seed": seed, "width": width, "precision": name, "alpha": alpha, "theta": size,
                            "relative_alpha": alpha / size, "relative_error": errors["relative_error"],
                            "cosine": errors["cosine"],
                        }
                    )  # fmt: skip
    return rows


def _autocast(precision: str) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if "autocast" in precision else nullcontext()


def claims(rows: list[Row]) -> list[Claimed]:
    """See `Study`; medians are over seeds, and over widths where none is named."""
    frame = pd.DataFrame(rows)
    errors = frame.groupby(["precision", "width", "alpha"])["relative_error"].median().unstack("alpha")
    pooled = frame.groupby(["precision", "alpha"])[["relative_error", "cosine"]].median()

    def order(precision: str, low: float, high: float) -> pd.Series:
        return np.log(errors.loc[precision, high] / errors.loc[precision, low]) / np.log(high / low)

    truncation, rounding = order("float64", 1e-3, 1e-1), order("float32", 1e-4, 1e-3)
    published, darts = pooled.xs(1.0, level="alpha"), pooled.xs(1e-2, level="alpha")["relative_error"]
    best = errors.groupby("precision").min().min(axis=1)
    absolute = errors.loc["float64"].apply(_reaching, axis=1, error=1e-2)
    relative = absolute / frame.groupby("width")["theta"].median()
    spread, relative_spread = absolute.max() / absolute.min(), relative.max() / relative.min()
    halves = darts[["bfloat16", "bfloat16 autocast"]]
    return [
        Claimed(
            "In float64 the error grows as alpha^2 (order within 0.1 of 2 between 1e-3 and 0.1, at every width)",
            f"order {truncation.min():.3f} to {truncation.max():.3f}",
            (truncation - 2).abs().max() < 0.1,
        ),
        Claimed(
            "In float32 rounding grows as 1/alpha (order within 0.3 of -1 between 1e-4 and 1e-3, at every width)",
            f"order {rounding.min():.2f} to {rounding.max():.2f}",
            (rounding + 1).abs().max() < 0.3,
        ),
        Claimed(
            "SAMA's alpha = 1 truncates: median error above 15 % even in float64 (the direction mostly survives)",
            f"median error {published.loc['float64', 'relative_error']:.0%}, median cosine "
            f"{published.loc['float64', 'cosine']:.3f}; the worst of all runs "
            f"{frame.loc[frame['alpha'].eq(1) & frame['precision'].eq('float64'), 'cosine'].min():.3f}",
            published.loc["float64", "relative_error"] > 0.15,
        ),
        Claimed(
            "DARTS' alpha = 0.01 suits float32 (median error below 0.1 %) ...",
            f"median error {darts['float32']:.1e}",
            darts["float32"] < 1e-3,
        ),
        Claimed(
            "... and is noise in bfloat16, of the parameters or by autocast (median error above 40 %)",
            ", ".join(f"{name}: {error:.0%}" for name, error in halves.items()),
            halves.min() > 0.4,
        ),
        Claimed(
            "In bfloat16 no alpha is good: even the best leaves a median error above 2 % at every width",
            ", ".join(f"{name}: {best[name]:.1%} at best" for name in halves.index),
            best[halves.index].min() > 0.02,
        ),
        Claimed(
            "Measuring alpha in units of ||theta|| does not carry over better between widths: the alpha of 1 % error varies "
            "by a factor below 4 in either unit",
            f"absolute: factor {spread:.1f}; relative: {relative_spread:.1f} (||theta|| "
            f"{frame['theta'].min():.1f} to {frame['theta'].max():.1f})",
            max(spread, relative_spread) < 4,
        ),
    ]


def _reaching(errors: pd.Series, error: float) -> float:
    """The alpha at which the truncation error is ``error``, by interpolation between logarithms."""
    rising = errors.loc[errors.idxmin() :]
    return float(np.exp(np.interp(np.log(error), np.log(rising), np.log(rising.index))))
