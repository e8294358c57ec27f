"""What a handful of samples says of a median, whatever their distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

CONFIDENCE = 0.95


class Summary(NamedTuple):
    """A median with how sure it is and how far samples scatter.

    Attributes:
        median: of the samples.
        low, high: their quartiles (the spread; both the median if there is one sample).
        interval: confidence interval of the true median, None below six samples (for 95 %).
        width: length of the interval relative to the median; None with it.
    """

    median: float
    low: float
    high: float
    interval: tuple[float, float] | None
    width: float | None


def summary(samples: Sequence[float], confidence: float = CONFIDENCE) -> Summary:
    """Describe samples, of which there must be at least one."""
    median = statistics.median(samples)
    low, high = median, median
    if len(samples) > 1:
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    interval = median_interval(samples, confidence)
    width = None if interval is None or not median else (interval[1] - interval[0]) / abs(median)
    return Summary(median, low, high, interval, width)


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Distribution-free confidence interval of the median, from order statistics.

    Of n independent samples the number below the true median is Binomial(n, 1/2), so that it lies between the k-th smallest
    and the k-th largest with probability at least 1 - 2 P(Binomial(n, 1/2) < k). (David and Nagaraja 2003, sec. 7.1.)

    Args:
        samples: n of them.
        confidence: at least this probability.

    Returns:
        The narrowest such interval; None if n is too small for any: n < 1 + log2(1 / (1 - confidence)).
    """
    k = _rank(len(samples), confidence)
    if k == 0:
        return None
    ordered = sorted(samples)
    return ordered[k - 1], ordered[-k]


@cache
def _rank(n: int, confidence: float) -> int:
    """The largest k with 2 P(Binomial(n, 1/2) < k) <= 1 - confidence."""
    tail, k = 0, 0
    while k < n // 2 and 2 * (tail + math.comb(n, k)) <= (1 - confidence) * 2**n:
        tail += math.comb(n, k)
        k += 1
    return k
