"""What a handful of seeds says: intervals, paired differences, permutation tests, correction for many comparisons.

Errors and times scatter by factors: they are compared on logs (``log=True``), so that a middle is a geometric mean and an effect a
ratio. An interval is Student's t below `BOOTSTRAP_FROM` values and a studentised bootstrap from there on; which of the usual
methods keep what they promise at these sizes is measured in docs/comparing.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

CONFIDENCE = 0.95
LEAST_SEEDS = 6
"""Pairs before "A beats B" may be said: the exact paired test of five cannot go below p = 0.0625, of six it reaches 0.03125."""

BOOTSTRAP_FROM = 20
RESAMPLES = 1999
EXACT_UP_TO = 14
"""Pairs up to which every one of the 2^n changes of signs is tried; of more, 2^14 drawn ones."""

NOT_ENOUGH, EQUAL, LOWER, HIGHER, UNDECIDED = "not enough seeds", "equal", "lower", "higher", "no difference seen"

KEY = (
    "kind", "problem", "case", "dtype", "device_asked", "workers", "kernel", "task", "meta_lr", "products_or_steps", "seed",
)  # fmt: skip
"""Columns that two cells share if they differ in the estimator only (those of them that a frame has)."""


@dataclass(frozen=True)
class Interval:
    """A middle and how sure it is.

    Attributes:
        low, high: confidence limits of the middle, in the values' unit; NaN below two values.
        middle: geometric mean of the values (``log``), else their mean; NaN without values.
        n: number of values.
        method: how the limits were found, in words.
    """

    low: float
    middle: float
    high: float
    n: int
    method: str


@dataclass(frozen=True)
class Paired:
    """What a does against b, pair by pair.

    Attributes:
        effect: ratio a / b (geometric mean over pairs; ``log``) or mean difference a - b.
        low, high: confidence limits of the effect; NaN below two pairs.
        p: of "no difference", two-sided: exact permutation test of the changes of sign; NaN without pairs.
        p_t: the same by Student's paired t test: what belongs to the interval. Unlike ``p`` it can be small at few pairs.
        n: number of pairs.
        verdict: "lower" or "higher" (a than b), "no difference seen", "equal" (in every pair), or "not enough seeds".
        log: whether the effect is a ratio.
    """

    effect: float
    low: float
    high: float
    p: float
    p_t: float
    n: int
    verdict: str
    log: bool


def interval(values: Sequence[float], *, log: bool, confidence: float = CONFIDENCE) -> Interval:
    """Confidence interval of the geometric mean (``log``; for log-normal values also the median) or of the mean.

    The same values give the same interval, in any order.

    Raises:
        ValueError: a value is not finite, or with ``log`` not positive: drop or floor it first, and say so.
    """
    x = np.sort(_finite(values, log, "values"))
    low, middle, high, method = _limits(x, confidence)
    low, middle, high = (float(np.exp(v)) if log else v for v in (low, middle, high))
    return Interval(low, middle, high, len(x), method + (" on logs" if log and len(x) > 1 else ""))


def paired(a: Sequence[float], b: Sequence[float], *, log: bool, confidence: float = CONFIDENCE) -> Paired:
    """Compare ``a[i]`` with ``b[i]``: the same seed, the same data, the same starting point.

    The verdict is that of this comparison alone; for several see `corrected`.

    Raises:
        ValueError: their lengths differ, or as for `interval`.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}: see by_seed")
    d = np.sort(_finite(a, log, "a") - _finite(b, log, "b"))
    low, effect, high, _ = _limits(d, confidence)
    p = permutation_p(d)
    low, effect, high = (float(np.exp(v)) if log else v for v in (low, effect, high))
    found = Paired(effect, low, high, p, _t_p(d), len(d), EQUAL if len(d) and not d.any() else "", log)
    return _judged(found, p, 1 - confidence)


def permutation_p(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of "the sign of each difference is a coin's": of all 2^n signs up to `EXACT_UP_TO`, else of 2^14 drawn ones.

    Source: Fisher 1935, The Design of Experiments, sec. 21. For n pairs no p is smaller than 2 / 2^n. (scipy's
    permutation_test gives the same p, a hundred times slower.)
    """
    d = np.asarray(differences, dtype=float)
    n = len(d)
    if not n:
        return math.nan
    blocks = [_every_sign(n)] if n <= EXACT_UP_TO else _drawn_signs(n)
    sums = np.concatenate([block @ d for block in blocks])
    as_far = np.abs(sums) >= abs(d.sum()) - 1e-12 * np.abs(d).sum()  # rounding must not break ties
    drawn = n > EXACT_UP_TO  # then what was observed is one more draw (Phipson and Smyth 2010)
    return float((as_far.sum() + drawn) / (len(as_far) + drawn))


@cache
def _every_sign(n: int) -> np.ndarray:
    """All changes of n signs, a row each."""
    return 1.0 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


def _drawn_signs(n: int) -> Iterator[np.ndarray]:
    """2^`EXACT_UP_TO` drawn ones, a part at a time: of a thousand pairs they would be 130 MB."""
    rng, rows = np.random.default_rng(0), 2**10
    for _ in range(2**EXACT_UP_TO // rows):
        yield 1.0 - 2 * rng.integers(2, size=(rows, n), dtype=np.int8)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given; NaN (a comparison that could not be made) stays and does not count."""
    p = np.asarray(ps, dtype=float)
    adjusted = np.full(len(p), math.nan)
    known = np.flatnonzero(~np.isnan(p))
    ranked = known[np.argsort(p[known], kind="stable")]
    factors = len(ranked) - np.arange(len(ranked))
    adjusted[ranked] = np.minimum(1.0, np.maximum.accumulate(factors * p[ranked]))
    return adjusted.tolist()


def corrected(comparisons: Sequence[Paired], confidence: float = CONFIDENCE) -> list[Paired]:
    """The same comparisons with p adjusted (`holm`) for being made together, and verdicts by the adjusted p."""
    return [_judged(c, p, 1 - confidence) for c, p in zip(comparisons, holm([c.p for c in comparisons]), strict=True)]


def seeds_for(comparisons: int, confidence: float = CONFIDENCE) -> int:
    """The fewest pairs with which every one of so many exact tests made together can be small enough (`holm`); `LEAST_SEEDS` for one."""
    return next(n for n in range(LEAST_SEEDS, 64) if max(comparisons, 1) * 2 / 2**n <= 1 - confidence)


def by_seed(frame: pd.DataFrame, column: str, *estimators: str) -> pd.DataFrame:
    """Values of ``column`` side by side where all the estimators have one: a row a (case, seed), a column an estimator.

    The index holds `KEY`. Seeds are what repeats: compare case by case (``for _, rows in pairs.groupby("case")``), since the
    cases of one seed are no independent draws. ``attrs["left_out"]`` counts the rows that an estimator has no finite value for.

    Args:
        frame: of `analysis.load`.
        column: numeric.
        estimators: at least one; as in the column "estimator".

    Raises:
        ValueError: an estimator is not in the frame, or has two values for one (case, seed).
    """
    unknown = set(estimators) - set(frame["estimator"])
    if unknown:
        raise ValueError(
            f"no results of {', '.join(sorted(unknown))}; there are {', '.join(sorted(set(frame['estimator'])))}"
        )
    rows = frame[frame["estimator"].isin(estimators)]
    key = [name for name in KEY if name in frame.columns]
    # a level that does not apply is "": a missing one would not be equal to itself
    index = [rows[name].where(rows[name].notna(), "") for name in key]
    table = rows.set_index([*index, rows["estimator"]])[column]
    if table.index.has_duplicates:
        raise ValueError(f"{table.index[table.index.duplicated()][0]} has two values of {column}")
    wide = table.astype(float).unstack("estimator").reindex(columns=list(estimators))
    whole = wide[np.isfinite(wide).all(axis=1)]
    whole.attrs["left_out"] = len(wide) - len(whole)
    return whole


def _finite(values: Sequence[float], log: bool, name: str) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1:
        raise ValueError(f"{name} must be a sequence of numbers, not of shape {x.shape}")
    wrong = ~np.isfinite(x) | (log & (x <= 0))
    if wrong.any():
        kind = "finite and positive" if log else "finite"
        raise ValueError(f"{wrong.sum()} of {len(x)} {name} are not {kind} (the first: {x[wrong][0]:g})")
    return np.log(x) if log else x


def _limits(x: np.ndarray, confidence: float) -> tuple[float, float, float, str]:
    """(low, mean, high, method) of sorted values."""
    n = len(x)
    if n < 2:
        return math.nan, float(x[0]) if n else math.nan, math.nan, "single value" if n else "no values"
    mean, error = float(x.mean()), float(x.std(ddof=1) / math.sqrt(n))
    if x[0] == x[-1]:
        return float(x[0]), float(x[0]), float(x[0]), "t"
    if n >= BOOTSTRAP_FROM:
        quantiles = _studentised(x, mean, confidence)
        if quantiles is not None:
            return mean - quantiles[1] * error, mean, mean - quantiles[0] * error, "studentised bootstrap"
    half = float(scipy_stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return mean - half, mean, mean + half, "t"


def _studentised(x: np.ndarray, mean: float, confidence: float) -> tuple[float, float] | None:
    """Quantiles of (resampled mean - mean) / its standard error (Efron and Tibshirani 1993, sec. 12.5).

    None if a resample has no spread: values that are nearly all the same are none for a bootstrap.
    """
    n = len(x)
    drawn = x[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))]
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    if not errors.all():
        return None
    low, high = np.quantile((drawn.mean(axis=1) - mean) / errors, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _t_p(d: np.ndarray) -> float:
    n = len(d)
    if n < 2:
        return math.nan
    if d[0] == d[-1]:
        return 0.0 if d[0] else 1.0
    t = d.mean() / (d.std(ddof=1) / math.sqrt(n))
    return float(2 * scipy_stats.t.sf(abs(t), n - 1))


def _judged(c: Paired, p: float, alpha: float) -> Paired:
    """With this p, and the verdict that follows."""
    if c.verdict == EQUAL:
        return replace(c, p=p)
    if c.n < LEAST_SEEDS:
        return replace(c, p=p, verdict=NOT_ENOUGH)
    if not p <= alpha:
        return replace(c, p=p, verdict=UNDECIDED)
    # p says that there is a difference, the effect which way
    return replace(c, p=p, verdict=HIGHER if c.effect > (1 if c.log else 0) else LOWER)
