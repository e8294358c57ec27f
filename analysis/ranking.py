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
        left_out: those with an error at some seeds only; they are not compared.
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
        if len(self.closest) + len(self.beaten) < 2:
            return ""
        lost = f" Not compared: {', '.join(self.left_out)}, without an error at every seed." if self.left_out else ""
        return self._finding + lost

    @property
    def _finding(self) -> str:
        if self.seeds < self.needed:
            compared = len(self.closest) + len(self.beaten)
            return f"Not enough seeds to say which is closest to the truth: {self.seeds}, and {compared} estimators take {self.needed}."
        if not self.beaten:
            return f"No estimator is shown to be closer to the truth than another ({self.seeds} seeds)."
        who = ", ".join(self.closest) + " (not told apart)" * (len(self.closest) > 1)
        return f"Closest to the truth: {who}; {self.seeds} seeds, corrected for all pairs."


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
    left_out = [n for n in order(table.columns) if table[n].isna().any() and table[n].notna().any()]
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
