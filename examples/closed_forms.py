"""Compare estimators where the right answer is known.

    python examples/closed_forms.py
    python examples/closed_forms.py --conds 2 10 100 1000 --seeds 6 --figure closed_forms.png

Biased regression (Grazzi et al. 2020) has a closed-form hypergradient and a spectrum that we choose. How far is each estimate
from the truth, by the condition number of the inner problem?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median

from benchmarks.accuracy import compare
from benchmarks.problems import PROBLEMS
from estimators import SAMA, Implicit, Neumann, Unroll, estimate, reverse_over_reverse
from estimators.solvers import CG

ESTIMATORS = {
    "unroll": Unroll(),
    "unroll, last 10": Unroll(last=10),
    "CG, 5 products": Implicit(CG(steps=5)),
    "CG, 20 products": Implicit(CG(steps=20)),
    "Neumann, 20": Implicit(Neumann(steps=20)),
    "SAMA, exact product": SAMA(product=reverse_over_reverse),
}


def angles(conds: Sequence[float], seeds: int) -> dict[str, list[list[float]]]:
    """Angle to the true hypergradient in degrees: by estimator, for each condition number, one a seed."""
    found: dict[str, list[list[float]]] = {name: [] for name in ESTIMATORS}
    for cond in conds:
        problems = [PROBLEMS["biased_regression"].make(seed=seed, cond=cond) for seed in range(seeds)]
        for name, estimator in ESTIMATORS.items():
            found[name].append(
                [compare(estimate(p, estimator).hparams, p.exact(p.hparams))["angle"] for p in problems]  # type: ignore[misc]
            )
    return found


def draw(found: dict[str, list[list[float]]], conds: Sequence[float], path: str) -> None:
    """Every point, and a line through the medians."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for (name, by_cond), marker in zip(found.items(), "osDXPd", strict=True):
        (line,) = axes.plot(conds, [median(a) for a in by_cond], marker=marker, label=name, markersize=4)
        for cond, points in zip(conds, by_cond, strict=True):
            axes.plot([cond] * len(points), points, linestyle="", marker=marker, markersize=2, color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="condition number of the inner problem")
    axes.set_ylabel("angle to the truth, degrees (lower is better)")
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=200)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[list[float]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conds", type=float, nargs="+", default=[2.0, 10.0, 100.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", metavar="PATH", help="draw it, as .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    found = angles(options.conds, options.seeds)
    print(f"Angle to the true hypergradient, degrees: median of {options.seeds} seeds\n")
    print(f"{'condition number':22}" + "".join(f"{cond:>10g}" for cond in options.conds))
    for name, by_cond in found.items():
        print(f"{name:22}" + "".join(f"{median(a):10.2g}" for a in by_cond))
    if options.figure:
        draw(found, options.conds, options.figure)
    return found


if __name__ == "__main__":
    main()
