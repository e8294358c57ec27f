"""The error bound that needs no truth, against the truth.

Three problems whose inner loss is quadratic (docs/error_bound.md has the derivation), at conditions from 2 to some thousands,
run for 10 and 100 steps, and estimates of all families. *Products* is the size of each Krylov space that the bound may
use: at least as large as the number of parameters the spectrum is known and the bound rigorous, below it is an estimate, and
refused where the smallest curvature is not resolved. *Own* is the part that an estimate knows of itself: ||M|| ||r|| / mu with its
solver's residual r, or with what the contraction of the unrolled steps leaves of the cotangent; it bounds the distance to the
exact implicit gradient at the end of the run (by a dense solve).

Errors below 1e-8 of the truth's norm are left out of medians of bound / error: they are rounding.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from estimators import (
    CG,
    SAMA,
    T1T2,
    Dense,
    Estimator,
    FixedPoint,
    Implicit,
    Neumann,
    NoBound,
    Nystrom,
    Problem,
    Unroll,
    certify,
    hypergradient,
    tree,
)
from estimators import run as train

from ..problems import PROBLEMS, truth
from .base import Claimed, Row

CITATION = "bounds after Pedregosa 2016, Shaban et al. 2019 and Grazzi et al. 2020; the certificate is ours"
ABOUT = "An error bound that needs no truth, against the true error, for every family of estimators"
QUICK = {"seeds": (0,), "lengths": (10,), "conds": (2.0, 30.0)}
NEEDS = {"products": (60, 20)}

WORTH = 1e-8
"""Relative errors below it are rounding."""

ESTIMATORS: dict[str, Estimator] = {
    "unroll": Unroll(),
    "unroll-truncated": Unroll(last=5),
    "cg-5": Implicit(CG(steps=5)),
    "neumann-10": Implicit(Neumann(steps=10)),
    "fixed-point-50": Implicit(FixedPoint(steps=50)),
    "nystrom-10": Implicit(Nystrom(rank=10, rho=0.1)),
    "t1t2": T1T2(),
    "sama-na": SAMA(adapt=False),
}


def run(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    lengths: tuple[int, ...] = (10, 100),
    conds: tuple[float, ...] = (2.0, 10.0, 30.0, 100.0, 1000.0),
    products: tuple[int, ...] = (60, 20, 10),
    dim: int = 40,
) -> list[Row]:
    """Rows: problem, cond (asked of biased_regression), condition, seed, steps, products, spent, reason (of no bound), and one
    an estimator: error, bound, solve_error, solve_bound, own, all relative to the truth's norm, rigorous, doubt, mu_ratio
    (to the dense eigenvalue).

    Args:
        seeds: of the problems.
        lengths: steps of the run.
        conds: of biased_regression.
        products: of each Krylov space.
        dim: parameters.
    """
    rows: list[Row] = []
    cases: list[tuple[str, dict[str, Any]]] = [("biased_regression", {"cond": c, "n_train": dim + 10}) for c in conds]
    cases += [("weighted_ridge", {"n_train": 2 * dim}), ("log_ridge", {"n_train": dim + 20})]
    for name, settings in cases:
        for seed in seeds:
            for steps in lengths:
                problem = PROBLEMS[name].make(seed=seed, dim=dim, steps=steps, **settings)
                labels = {"problem": name, "cond": settings.get("cond"), "seed": seed, "steps": steps}
                rows += [labels | row for row in _point(problem, products)]
    return rows


def _point(problem: Problem, products: tuple[int, ...]) -> list[Row]:
    (stage,), lam = problem.stages, problem.hparams
    record = train(stage, problem.start, lam)

    def pulled(estimator: Estimator) -> Any:
        return hypergradient(problem.outer, [stage], [estimator], [record], lam, throw=False)

    answers = {name: pulled(estimator) for name, estimator in ESTIMATORS.items()}
    exact, true = pulled(Implicit(Dense())).hparams, truth(problem)
    size = float(tree.norm(true))
    assert problem.hessian is not None
    eigenvalues = torch.linalg.eigvalsh(problem.hessian(record.end.params))
    rows: list[Row] = []
    for count in products:
        found = certify(problem.outer, stage, record, lam, products=count)
        at = {"condition": float(eigenvalues[-1] / eigenvalues[0]), "products": count}
        if isinstance(found, NoBound):
            rows.append(at | {"estimator": None, "reason": found.reason})
            continue
        for name, answer in answers.items():
            bound = found.bound(answer, ESTIMATORS[name])
            rows.append(
                at
                | {
                    "estimator": name, "reason": None, "spent": found.products, "rigorous": bound.rigorous, "doubt": bound.doubt,
                    "mu_ratio": found.mu / float(eigenvalues[0]), "bound": bound.total / size, "solve_bound": bound.solve / size,
                    "error": float(tree.norm(tree.sub(answer.hparams, true))) / size,
                    "solve_error": float(tree.norm(tree.sub(answer.hparams, exact))) / size,
                    "own": None if bound.own is None else bound.own / size,
                }
            )  # fmt: skip
    return rows


def claims(rows: list[Row]) -> list[Claimed]:
    """See `Study`."""
    frame = pd.DataFrame(rows)
    cells = frame[frame["estimator"].notna()]
    sure, guess = cells[cells["rigorous"] == True], cells[cells["rigorous"] == False]  # noqa: E712  (the column holds None too)
    points = frame.drop_duplicates(["problem", "cond", "seed", "steps", "products"])
    few = points[~points["products"].isin(sure["products"])]
    implicit = cells[
        cells["own"].notna()
        & ~cells["estimator"].str.startswith("unroll")
        & (cells["products"] == cells["products"].max())
    ]
    steps = sure[sure["estimator"] == "unroll-truncated"]
    still, moving = steps[steps["problem"] == "biased_regression"], steps[steps["problem"] != "biased_regression"]
    resolved = guess[guess["mu_ratio"] > 2].drop_duplicates(["problem", "cond", "seed", "steps", "products"])
    held, total = int((guess["error"] <= guess["bound"]).sum()), len(guess)
    return [
        Claimed(
            "Where the spectrum is known the bound holds in every cell, and the median of bound / error is below 1.01",
            f"{int((sure['error'] <= sure['bound']).sum())} of {len(sure)}; median {_median(sure, 'bound', 'error'):.4f}",
            bool((sure["error"] <= sure["bound"]).all()) and _median(sure, "bound", "error") < 1.01,
        ),
        Claimed(
            "With fewer products than parameters, where it is an estimate, it holds in every cell that it is not refused, with a "
            "median bound / error below 3",
            f"{held} of {total}; median {_median(guess, 'bound', 'error'):.2f}, nine in ten below {_median(guess, 'bound', 'error', 0.9):.0f}; refused at {int(few['reason'].notna().sum())} of "
            f"{len(few)} points, of condition {few.loc[few['reason'].notna(), 'condition'].min():.0f} and more",
            held == total and _median(guess, "bound", "error") < 3,
        ),
        Claimed(
            "The smallest curvature is never taken for more than twice what it is",
            f"{len(resolved)} of {guess.drop_duplicates(['problem', 'cond', 'seed', 'steps', 'products']).shape[0]} estimated ones",
            resolved.empty,
        ),
        Claimed(
            "The residual that a solver knows of itself bounds the error of its solve in every cell",
            f"{int((implicit['solve_error'] <= implicit['own']).sum())} of {len(implicit)}; median own / error "
            f"{_median(implicit, 'own', 'solve_error'):.1f}",
            bool((implicit["solve_error"] <= implicit["own"]).all()),
        ),
        Claimed(
            "Truncated unrolls: where H and M are constant (biased_regression) the rate of contraction bounds what is left out in every "
            "cell",
            f"{int((still['solve_error'] <= still['own']).sum())} of {len(still)}; median {_median(still, 'own', 'solve_error'):.1f}; "
            f"where M moves with theta {int((moving['solve_error'] <= moving['own']).sum())} of {len(moving)}",
            bool((still["solve_error"] <= still["own"]).all()),
        ),
    ]  # fmt: skip


def _median(frame: pd.DataFrame, bound: str, error: str, share: float = 0.5) -> float:
    worth = frame[frame[error] > WORTH]
    return float((worth[bound] / worth[error]).quantile(share))
