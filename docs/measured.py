"""Result files -> docs/measured.csv, which the pages on estimators show.

    hypergradbench run --problems biased_regression log_ridge two_stage_quadratic noisy_quadratic digits_tasks \
        --conds 10 100 --seeds 0 1 2 3 4 5 --meta-steps 0 --figures False --out results/docs
    python docs/measured.py results/docs

One row an estimator and problem: median, smallest and largest error over the seeds. The error is relative to the truth where
the estimate claims its length, else the angle to it in degrees. What was refused or failed is a row with its reason.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

OUT = Path(__file__).resolve().parent / "measured.csv"


def main(folder: str) -> None:
    from analysis import load

    frame = load(Path(folder))
    if frame["dirty"].any():
        sys.exit(f"{folder} was measured with uncommitted changes: commit, and measure again")
    rows = [
        {"estimator": name, "problem": case, **summary(group)}
        for (name, case), group in frame.groupby(["estimator", "case"], sort=False)
    ]
    pd.DataFrame(rows).to_csv(OUT, index=False, float_format="%.3g", lineterminator="\n")


def summary(group: pd.DataFrame) -> dict[str, object]:
    """What the rows of one estimator on one problem say, a row a seed."""
    fine = group[group["status"] == "ok"]
    same = {"seeds": f"{len(fine)} of {len(group)}", "commit": str(group["commit"].iloc[0])[:10]}
    if fine.empty:
        return {**same, "reason": f"{group['status'].iloc[0]}: {group['reason'].iloc[0]}"}
    by_length = fine["scale"].iloc[0] == "true"
    error = fine["relative_error" if by_length else "angle"]
    medians = {name: fine[name].median() for name in ("products", "gradients", "time_ratio")}
    medians["memory_ratio"] = (fine["peak_ratio"] + fine["kept_ratio"]).median()
    kind = "relative" if by_length else "angle"
    return {
        **same,
        "reason": "",
        "kind": kind,
        "error": error.median(),
        "low": error.min(),
        "high": error.max(),
        **medians,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(sys.argv[1])
