"""What got better or worse between two sets of results of the same cells: the arithmetic of `hypergradbench compare`.

A cell of one set is paired with the cell of the other that agrees with it in everything but the code. What a comparison needs before
it calls a change a regression depends on what is measured:

- bytes are exact: growth beyond the threshold in one pair is enough;
- an error is exact, too, for given code, machine and seed, but code that draws other random numbers has another error at every
  seed: the mean over seeds must have grown beyond the threshold and no seed may say the opposite, unless p is small all the same;
- times are noisy: the mean must have grown beyond the threshold and p, corrected for the number of comparisons, be small.

Here p is that of the paired t test on logs, whose interval is printed beside it: from 3 pairs on it covers what it promises, and
unlike the exact permutation test it can survive the correction for dozens of comparisons with a handful of seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from . import stats
from .measures import BYTES, ERRORS, INSTANCE, MEASURES, by_the_others, floored, labelled, measured

LEAST_PAIRS = 3
"""For a test of noisy values: with two, the interval is wider than any change that matters."""

ESTIMATOR = ("kind", "name", "fields", "dtype", "device_asked", "workers", "kernel")
"""What cells share whose times are taken together."""

SAID = ("status", "failure", "reason", "built", "truth")
"""Columns that are kept of both."""

WORSE, BETTER, SAME, UNDECIDED, TOO_FEW = "worse", "better", "within the threshold", "not decided", "too few pairs"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Growth that is no regression yet, as a fraction (0.1: ten percent).

    Attributes:
        error, time, bytes: of each.
        alpha: chance of a false alarm over all comparisons of noisy values together.
        floor: errors below are all the same (None: `FLOORS`).
    """

    error: float = 0.1
    time: float = 0.25
    bytes: float = 0.01
    alpha: float = 0.05
    floor: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measure of one estimator, before and after.

    Attributes:
        measure: "error", "error on the run", "time", "peak bytes" or "kept bytes".
        instance: the columns that its pairs share.
        before, after: geometric means over the pairs; errors after flooring, times relative to plain training or to a gradient.
        paired: after / before.
        least, most: the smallest and the largest after / before of a pair.
        at: case and seed of the largest.
        p: corrected for all comparisons of noisy values; NaN if it is not one of them.
        verdict: "worse" or "better" (beyond the threshold), "within the threshold", "not decided", or "too few pairs".
    """

    measure: str
    instance: pd.Series
    before: float
    after: float
    paired: stats.Paired
    least: float
    most: float
    at: str
    p: float = math.nan
    verdict: str = SAME

    @property
    def estimator(self) -> str:
        return labelled(self.instance)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All that was found.

    Attributes:
        comparisons: of every estimator and case that has pairs.
        pairs: cells measured in both.
        newly_failing, now_working: rows (of after, of before) whose partner was measured.
        lost: rows of after that have no number any more for what ``measures`` lists: an error, the time, or bytes.
        still_failing: number of cells that failed or were refused in both.
        appeared, disappeared: rows that one set alone has.
        rebuilt: rows of after whose estimator of the same name has other fields now (``built``), with ``built_before``.
        retruthed: number of pairs whose errors are to different truths, and not compared.
    """

    comparisons: Sequence[Comparison]
    pairs: int
    newly_failing: pd.DataFrame
    now_working: pd.DataFrame
    lost: pd.DataFrame
    still_failing: int
    appeared: pd.DataFrame
    disappeared: pd.DataFrame
    rebuilt: pd.DataFrame
    retruthed: int

    @property
    def worse(self) -> list[Comparison]:
        return [c for c in self.comparisons if c.verdict == WORSE]

    @property
    def regressed(self) -> bool:
        return bool(self.worse) or not self.newly_failing.empty or not self.lost.empty


def compare(
    before: pd.DataFrame, after: pd.DataFrame, thresholds: Thresholds = Thresholds(), *, each_case: bool = False
) -> Compared:
    """Compare two frames of `analysis.load`.

    Args:
        before, after: at most one result a cell is used of each, the newest.
        thresholds: see there.
        each_case: test times of each case by itself, over seeds only, in place of an estimator's over all its cases.
    """
    both = _joined(before, after)
    shared = both[both["_merge"] == "both"]
    fine, was_fine = shared["status_after"].eq("ok"), shared["status_before"].eq("ok")
    pairs = shared[fine & was_fine]
    same_truth = pairs["truth_before"].eq(pairs["truth_after"])
    judged = pairs[same_truth]
    found = [
        *_of_errors(judged, thresholds),
        *_of_times(pairs, [*INSTANCE] if each_case else [*ESTIMATOR]),
        *_of_bytes(pairs, thresholds),
    ]
    lost = _lost(pairs, same_truth | pairs["truth_after"].eq(""))
    changed = pairs["built_before"].ne(pairs["built_after"]) & pairs["built_before"].ne("")
    return Compared(
        comparisons=_judged(found, thresholds),
        pairs=len(pairs),
        newly_failing=_side(shared[was_fine & ~fine], "after"),
        now_working=_side(shared[fine & ~was_fine], "before"),
        lost=_side(pairs[lost.ne("")], "after").assign(measures=lost[lost.ne("")]),
        still_failing=int((~fine & ~was_fine).sum()),
        appeared=_side(both[both["_merge"] == "right_only"], "after"),
        disappeared=_side(both[both["_merge"] == "left_only"], "before"),
        rebuilt=_side(pairs[changed], "after").assign(built_before=pairs.loc[changed, "built_before"]),
        retruthed=int((~same_truth).sum()),
    )


def of_commit(frame: pd.DataFrame, commit: str) -> pd.DataFrame:
    """The rows measured at one commit, given by as many of its first digits as tell it apart.

    Raises:
        ValueError: no row, or rows of several commits, begin so; says which commits there are.
    """
    known = frame.loc[frame["commit"].notna(), "commit"]
    found = sorted({c for c in known if c.startswith(commit)}) if commit else []
    if len(found) != 1:
        last = frame.assign(finished=frame["finished"].fillna("")).groupby("commit")["finished"].max().sort_values()
        there = ", ".join(f"{c[:10]} ({when[:10]})" for c, when in last.items()) or "none: no row says its commit"
        what = f"{len(found)} commits begin with" if found else "no result is of commit"
        raise ValueError(f"{what} {commit!r}; there are {there}")
    return frame[frame["commit"] == found[0]]


def _joined(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    key = [*INSTANCE, "seed"]
    sides = []
    for frame in (before, after):
        side = pd.concat([frame[[*key, *SAID]], measured(frame)], axis=1)
        texts = [*INSTANCE, *SAID]
        side[texts] = side[texts].astype(object).where(side[texts].notna(), "")  # a missing value has no equal
        newest = frame["finished"].fillna("").argsort(kind="stable")
        sides.append(side.iloc[newest].drop_duplicates(key, keep="last").sort_index())
    return sides[0].merge(sides[1], on=key, how="outer", suffixes=("_before", "_after"), indicator=True)


def _lost(pairs: pd.DataFrame, comparable: pd.Series) -> pd.Series:
    """Of each pair the measures that were a number and are none any more; errors where their truths are ``comparable``."""
    gone = {
        name: np.isfinite(pairs[f"{column}_before"])
        & ~np.isfinite(pairs[f"{column}_after"])
        & (comparable | (name not in ERRORS))
        for name, column in MEASURES.items()
    }
    return pd.Series([", ".join(n for n in gone if gone[n][i]) for i in pairs.index], index=pairs.index, dtype=object)


def _side(rows: pd.DataFrame, side: str) -> pd.DataFrame:
    """The key and what one of the two says beside it."""
    mine = {f"{c}_{side}": c for c in SAID}
    return rows[[*INSTANCE, "seed", *mine]].rename(columns=mine)


def _of_errors(pairs: pd.DataFrame, thresholds: Thresholds) -> list[Comparison]:
    found = []
    for measure, column in ERRORS.items():
        a, b = (floored(pairs[f"{column}_{side}"], pairs["dtype"], thresholds.floor) for side in ("before", "after"))
        found += _compared(pairs.assign(a=a, b=b), measure, [*INSTANCE])
    return found


def _of_times(pairs: pd.DataFrame, together: list[str]) -> list[Comparison]:
    pairs = by_the_others(pairs.assign(a=pairs["time_before"], b=pairs["time_after"]))
    return _compared(pairs, "time", together)


def _of_bytes(pairs: pd.DataFrame, thresholds: Thresholds) -> list[Comparison]:
    found = []
    for measure, column in BYTES.items():
        # nothing kept is compared as one byte, so that a ratio can be said: any growth from nothing is far beyond the threshold
        at_least_one = pairs.assign(a=pairs[f"{column}_before"].clip(lower=1), b=pairs[f"{column}_after"].clip(lower=1))
        for c in _compared(at_least_one, measure, [*INSTANCE]):
            fell = c.least < 1 / (1 + thresholds.bytes)
            found.append(replace(c, verdict=WORSE if c.most > 1 + thresholds.bytes else BETTER if fell else SAME))
    return found


def _compared(rows: pd.DataFrame, measure: str, together: list[str]) -> list[Comparison]:
    """One comparison a group of the pairs whose columns ``a`` (before) and ``b`` (after) are both positive numbers."""
    rows = rows[np.isfinite(rows["a"]) & np.isfinite(rows["b"]) & rows["a"].gt(0) & rows["b"].gt(0)]
    found = []
    for _, group in rows.groupby(together, sort=False):
        ratios = group["b"] / group["a"]
        most = group.loc[ratios.idxmax()]
        found.append(
            Comparison(
                measure=measure,
                instance=group.iloc[0][together],
                before=float(np.exp(np.log(group["a"]).mean())),
                after=float(np.exp(np.log(group["b"]).mean())),
                paired=stats.paired(group["b"].to_numpy(), group["a"].to_numpy(), log=True),
                least=float(ratios.min()),
                most=float(ratios.max()),
                at=f"{most['case']}, seed {most['seed']}",
            )
        )
    return found


def _judged(found: Sequence[Comparison], thresholds: Thresholds) -> list[Comparison]:
    """With p corrected over all noisy comparisons that changed at all, and verdicts by it."""
    noisy = [i for i, c in enumerate(found) if c.measure not in BYTES and c.paired.verdict != stats.EQUAL]
    tested = [found[i].paired.p_t if found[i].paired.n >= LEAST_PAIRS else math.nan for i in noisy]
    judged = list(found)
    for i, p in zip(noisy, stats.holm(tested), strict=True):
        judged[i] = replace(found[i], p=p, verdict=_verdict(found[i], p, thresholds))
    return judged


def _verdict(c: Comparison, p: float, thresholds: Thresholds) -> str:
    """Of an error or a time whose p is corrected."""
    most = 1 + (thresholds.time if c.measure == "time" else thresholds.error)
    if 1 / most <= c.paired.effect <= most:
        return SAME
    grew = c.paired.effect > most
    verdict = WORSE if grew else BETTER
    if p <= thresholds.alpha:
        return verdict
    if c.measure != "time" and not (c.least < 1 / most if grew else c.most > most):
        return verdict  # no seed says the opposite
    return TOO_FEW if math.isnan(p) else UNDECIDED
