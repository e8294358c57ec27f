"""Which estimators are closest to the truth on one problem instance, as far as its seeds can say."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from . import stats
from .measures import floored
from .style import order

ALPHA = 1 - stats.CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One problem instance.

    Attributes:
        closest: the estimators that no other is shown to beat, the lowest geometric mean first.
        beaten: the others.
        left_out: those without an error at every seed; they are not compared.
        seeds: that all of the compared share.
        needed: seeds from which on so many estimators can be told apart.
    """

    closest: list[str]
    beaten: list[str]
    left_out: list[str]
    seeds: int
    needed: int

    @property
    def sentence(self) -> str:
        """What may be said."""
        compared = len(self.closest) + len(self.beaten)
        if compared < 2:
            return ""
        if self.seeds < self.needed:
            return f"Not enough seeds to say which is closest to the truth: {self.seeds}, and {compared} estimators take {self.needed}."
        if not self.beaten:
            return f"No estimator is shown to be closer to the truth than another ({self.seeds} seeds)."
        who = ", ".join(self.closest)
        return f"Closest to the truth: {who}{' (not told apart)' * (len(self.closest) > 1)}; {self.seeds} seeds, corrected for all pairs."


def ranking(rows: pd.DataFrame) -> Ranking:
    """Compare the directions of all estimators pair by pair, over the seeds that they share: exact permutation tests, Holm.

    Directions, since some estimates are scaled by definition; controls take no part. Errors that are rounding are equal.

    Args:
        rows: of `analysis.load`: one case, dtype and device.
    """
    rows = rows[rows["kind"].eq("point") & rows["control"].ne(True)]
    error = floored(2 * np.sin(np.radians(rows["angle"].astype(float)) / 2), rows["dtype"])
    table = rows.assign(error=error.where(rows["status"] == "ok")).pivot_table(
        index="seed", columns="estimator", values="error", aggfunc="last", dropna=False
    )
    names = [n for n in order(table.columns) if table[n].notna().all()]
    left_out = [n for n in order(rows["estimator"]) if n not in names]
    middle = np.log(table[names]).mean()
    names.sort(key=lambda n: middle[n])
    needed = stats.seeds_for(len(names) * (len(names) - 1) // 2)
    beaten: set[str] = set()
    if len(table) >= needed:
        pairs = list(combinations(names, 2))  # the first is the lower on average
        found = stats.corrected([stats.paired(table[a].to_numpy(), table[b].to_numpy(), log=True) for a, b in pairs])
        beaten = {b for (_, b), c in zip(pairs, found, strict=True) if c.verdict == stats.LOWER}
    return Ranking(
        closest=[n for n in names if n not in beaten],
        beaten=[n for n in names if n in beaten],
        left_out=left_out,
        seeds=len(table) if names else 0,
        needed=needed,
    )
