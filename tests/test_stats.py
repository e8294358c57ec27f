"""Statistics: held to what they promise by simulation, and to figures worked out by hand."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test

from analysis import stats

REPEATS = {"t": 1200, "studentised bootstrap": 500}
"""Simulations for each n; at 95 % the standard error of the coverage is 0.6 % and 1 %."""


def covered(n: int, repeats: int) -> float:
    """How often the interval of n log-normal values holds their true median, 3."""
    rng = np.random.default_rng(n)
    found = 0
    for _ in range(repeats):
        at = stats.interval(np.exp(np.log(3) + 1.5 * rng.standard_normal(n)), log=True)
        found += at.low <= 3 <= at.high
    return found / repeats


@pytest.mark.parametrize("n", [*range(3, 20), 20, 25, 30])
def test_the_95_percent_interval_of_log_normal_values_covers(n: int) -> None:
    method = "t" if n < stats.BOOTSTRAP_FROM else "studentised bootstrap"
    assert 0.92 <= covered(n, REPEATS[method]) <= 0.97


def test_from_20_values_on_skewed_ones_are_covered_too() -> None:
    """Where t covers 92 % of means of exponential values, percentile and BCa bootstraps 90 and 91."""
    rng = np.random.default_rng(0)
    found = [stats.interval(rng.exponential(size=20), log=False) for _ in range(600)]
    assert np.mean([i.low <= 1 <= i.high for i in found]) >= 0.93
    assert (
        np.mean([i.high - i.middle > i.middle - i.low for i in found]) > 0.9
    )  # the long side is that of the long tail


def test_a_wider_confidence_gives_a_wider_interval_and_the_method_is_named() -> None:
    rng = np.random.default_rng(0)
    for n, method in ((5, "t on logs"), (24, "studentised bootstrap on logs")):
        x = np.exp(rng.standard_normal(n))
        at = [stats.interval(x, log=True, confidence=c) for c in (0.5, 0.95, 0.99)]
        assert all(a.low > b.low and a.high < b.high for a, b in itertools.pairwise(at))
        assert at[0].method == method and at[0].n == n
        assert at[0].middle == pytest.approx(np.exp(np.log(x).mean()))


def test_an_interval_worked_out_by_hand() -> None:
    at = stats.interval([1.0, 2.0, 3.0], log=False)
    half = 4.302653 * 1 / math.sqrt(3)  # t(0.975, 2) * s / sqrt(n)
    assert (at.low, at.middle, at.high) == pytest.approx((2 - half, 2, 2 + half), abs=1e-6)
    assert at.method == "t"


@pytest.mark.parametrize("n", [7, 25])
def test_order_and_repetition_change_nothing(n: int) -> None:
    x = np.exp(np.random.default_rng(1).standard_normal(n))
    assert stats.interval(x, log=True) == stats.interval(x[::-1].copy(), log=True) == stats.interval(list(x), log=True)


def test_few_and_equal_values() -> None:
    none, one = stats.interval([], log=True), stats.interval([4.0], log=True)
    assert math.isnan(none.middle) and none.method == "no values" and none.n == 0
    assert (
        one.middle == pytest.approx(4) and math.isnan(one.low) and math.isnan(one.high) and one.method == "single value"
    )
    for n in (2, 30):
        at = stats.interval([4.0] * n, log=False)
        assert (at.low, at.middle, at.high) == (4, 4, 4)


def test_values_that_are_nearly_all_the_same_fall_back_to_t() -> None:
    at = stats.interval([1.0] * 24 + [2.0], log=False)
    assert at.method == "t" and at.low < at.middle < at.high


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_values_without_a_log_are_refused_and_counted(bad: float) -> None:
    with pytest.raises(ValueError, match=r"1 of 3 values are not finite and positive"):
        stats.interval([1.0, bad, 2.0], log=True)


def test_zeros_are_values_where_no_log_is_taken() -> None:
    assert stats.interval([0.0, 0.0, 3.0], log=False).middle == pytest.approx(1)


def by_enumeration(d: list[float]) -> float:
    """Two-sided p over all signs, written out."""
    means = [
        abs(np.mean([s * x for s, x in zip(signs, d, strict=True)]))
        for signs in itertools.product((1, -1), repeat=len(d))
    ]
    return float(np.mean([m >= abs(np.mean(d)) - 1e-12 for m in means]))


def test_the_permutation_test_tries_every_sign() -> None:
    for n in range(1, 9):
        d = list(np.random.default_rng(n).normal(0.5, 1, n))
        assert stats.permutation_p(d) == pytest.approx(by_enumeration(d))
        if n > 1:
            scipys = permutation_test((d,), np.mean, permutation_type="samples", n_resamples=2**n)
            assert stats.permutation_p(d) == pytest.approx(scipys.pvalue)
    for n, least in ((3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125)):
        assert stats.permutation_p([1.0] * n) == pytest.approx(least)


def test_differences_that_cancel_are_no_difference_in_spite_of_rounding() -> None:
    assert sum([0.1, 0.2, -0.3]) != 0
    assert stats.permutation_p([0.1, 0.2, -0.3]) == 1
    assert stats.permutation_p([0.0] * 6) == 1 and stats.permutation_p([0.0] * 5 + [1.0]) == 1  # a zero has no sign


def test_many_pairs_take_little_memory() -> None:
    tracemalloc.start()
    assert 0.05 < stats.permutation_p(np.random.default_rng(500).normal(size=1000)) < 0.2  # t: 0.11
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**25  # all signs at once would be 2^27 bytes


def test_the_permutation_test_keeps_its_level_where_signs_are_drawn() -> None:
    rng = np.random.default_rng(0)
    n = stats.EXACT_UP_TO + 4
    ps = np.array([stats.permutation_p(rng.standard_t(3, n)) for _ in range(250)])
    assert 0.01 <= (ps <= 0.05).mean() <= 0.09 and 0.41 <= (ps <= 0.5).mean() <= 0.59
    assert stats.permutation_p(rng.normal(2, 1, n)) < 1e-3


def test_a_ratio_of_pairs_is_found_through_the_scatter_of_seeds() -> None:
    rng = np.random.default_rng(0)
    b = np.exp(2 * rng.standard_normal(8))  # seeds differ by factors of ten ...
    a = b * 0.5 * np.exp(np.tile([0.1, -0.1], 4))  # ... a is half of b at each
    found = stats.paired(a, b, log=True)
    assert 0.4 < found.low < found.effect < found.high < 0.6 and found.effect == pytest.approx(0.5) and found.n == 8
    assert found.verdict == "lower" and found.p == pytest.approx(2 / 2**8)
    assert stats.paired(b, a, log=True).verdict == "higher"
    assert found.p_t < 1e-4
    assert stats.paired(rng.permutation(a), b, log=True).verdict == "no difference seen"  # the pairing is what finds it


def test_differences_have_their_own_sign() -> None:
    found = stats.paired([1.0, 2, 3, 4, 5, 6], [2.0, 3.1, 4.2, 5, 6.1, 7], log=False)
    assert found.effect == pytest.approx(-6.4 / 6) and found.verdict == "lower" and not found.log


@pytest.mark.parametrize("n", [1, 3, 5])
def test_few_seeds_are_not_enough_however_clear(n: int) -> None:
    found = stats.paired([1e9 * (i + 1) for i in range(n)], [1.0] * n, log=True)
    assert found.verdict == "not enough seeds" and found.n == n


def test_equal_pairs_are_equal_whatever_their_number() -> None:
    for n in (1, 3, 30):
        found = stats.paired([2.0] * n, [2.0] * n, log=True)
        assert (found.effect, found.p, found.verdict) == (1, 1, "equal")


def test_no_pairs_give_no_effect() -> None:
    found = stats.paired([], [], log=True)
    assert found.n == 0 and math.isnan(found.effect) and math.isnan(found.p) and found.verdict == "not enough seeds"


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        stats.paired([1.0, 2.0], [1.0], log=True)
    with pytest.raises(ValueError, match="1 of 2 b are not finite and positive"):
        stats.paired([1.0, 2.0], [1.0, 0.0], log=True)


def test_p_t_is_that_of_the_interval() -> None:
    a, b = [1.0, 2.0, 4.0, 3.0], [1.5, 2.6, 4.1, 3.9]
    p = stats.paired(a, b, log=True).p_t
    just = stats.paired(a, b, log=True, confidence=1 - p)
    assert just.high == pytest.approx(1, abs=1e-6)


def test_holm_by_hand() -> None:
    # sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 (= 0.06, not below its predecessor), 0.9 x 1
    assert stats.holm([0.02, 0.9, 0.01, 0.03]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert stats.holm([0.6, 0.7]) == [1, 1] and stats.holm([]) == []
    mixed = stats.holm([0.01, math.nan, 0.04])
    assert mixed[0] == pytest.approx(0.02) and math.isnan(mixed[1]) and mixed[2] == pytest.approx(0.04)


def test_so_many_seeds_are_needed_for_so_many_comparisons() -> None:
    assert [stats.seeds_for(m) for m in (0, 1, 2, 45, 190)] == [6, 6, 7, 11, 13]
    for m in (1, 7, 45):
        n = stats.seeds_for(m)
        p = stats.permutation_p([1.0] * n)
        assert max(stats.holm([p] * m)) <= 0.05 and (n == 6 or stats.holm([2 * p] * m)[0] > 0.05)


def test_holm_keeps_the_chance_of_any_false_alarm() -> None:
    ps = np.random.default_rng(0).uniform(size=(1000, 20))
    alarms = np.mean([min(stats.holm(row)) <= 0.05 for row in ps])
    assert 0.03 <= alarms <= 0.07 and np.mean(ps.min(axis=1) <= 0.05) > 0.5  # what it would be without


def test_corrected_verdicts_are_by_the_adjusted_p() -> None:
    rng = np.random.default_rng(0)
    clear = stats.paired(np.exp(rng.normal(2, 0.3, 10)), [1.0] * 10, log=True)
    weak = stats.paired(np.exp([0.1, 0.2, 0.15, 0.3, 0.1, 0.2]), [1.0] * 6, log=True)  # p = 1/32
    few = stats.paired([5.0, 6.0], [1.0, 1.0], log=True)
    same = stats.paired([1.0] * 3, [1.0] * 3, log=True)
    assert (clear.verdict, weak.verdict) == ("higher", "higher")
    found = stats.corrected([clear, weak, few, same])
    assert [c.verdict for c in found] == ["higher", "no difference seen", "not enough seeds", "equal"]
    assert found[0].p == pytest.approx(4 * 2 / 2**10) and found[0].effect == clear.effect


def frame() -> pd.DataFrame:
    rows = [
        {
            "kind": "point",
            "case": case,
            "dtype": "float64",
            "kernel": None,
            "seed": seed,
            "estimator": name,
            "error": error,
        }
        for case in ("one", "two")
        for seed in (0, 1, 2)
        for name, error in (("cg", 10.0 * seed + len(case)), ("sama", 100.0 + seed), ("unroll", 0.0))
    ]
    return pd.DataFrame(rows)


def test_values_are_paired_by_case_and_seed_whatever_the_order_of_rows() -> None:
    shuffled = frame().sample(frac=1, random_state=0)
    pairs = stats.by_seed(shuffled, "error", "sama", "cg")
    assert list(pairs.columns) == ["sama", "cg"] and len(pairs) == 6 and pairs.attrs["left_out"] == 0
    one = pairs.xs("one", level="case")
    assert one.index.get_level_values("seed").tolist() == [0, 1, 2]
    assert one["cg"].tolist() == [3, 13, 23] and one["sama"].tolist() == [100, 101, 102]


def test_what_lacks_a_partner_is_left_out_and_counted() -> None:
    rows = frame()
    rows = rows.drop(rows[(rows["estimator"] == "cg") & (rows["seed"] == 1) & (rows["case"] == "one")].index)
    rows.loc[(rows["estimator"] == "sama") & (rows["seed"] == 2), "error"] = np.nan  # failed
    pairs = stats.by_seed(rows, "error", "sama", "cg")
    assert pairs.index.droplevel([k for k in pairs.index.names if k not in ("case", "seed")]).tolist() == [
        ("one", 0), ("two", 0), ("two", 1)
    ]  # fmt: skip
    assert pairs.attrs["left_out"] == 3


def test_wrong_names_and_doubled_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no results of gc; there are cg, sama, unroll"):
        stats.by_seed(frame(), "error", "sama", "gc")
    with pytest.raises(ValueError, match="has two values of error"):
        stats.by_seed(pd.concat([frame(), frame()]), "error", "sama", "cg")
