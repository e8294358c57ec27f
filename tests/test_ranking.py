"""Which estimators are closest to the truth: nothing is said that the seeds do not show."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.ranking import ranking

SCATTER = {"unroll": (1e-14, 0.0), "cg": (1e-12, 0.0), "neumann": (1e-2, 0.3), "sama": (0.3, 0.3), "t1t2": (0.35, 0.8)}


def frame(seeds: int, names: tuple[str, ...] = tuple(SCATTER)) -> pd.DataFrame:
    """Errors of each estimator that scatter by factors; the exact ones are rounding."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "kind": "point", "control": False, "status": "ok", "dtype": "float64", "seed": seed, "estimator": name,
            "angle": float(np.degrees(SCATTER[name][0] * np.exp(SCATTER[name][1] * rng.standard_normal()))),
        }
        for seed in range(seeds)
        for name in names
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_exact_ones_are_closest_and_not_told_apart() -> None:
    found = ranking(frame(12))
    assert set(found.closest) == {"unroll", "cg"} and set(found.beaten) == {"neumann", "sama", "t1t2"}
    assert found.seeds == 12 and "not told apart" in found.sentence and "12 seeds" in found.sentence


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_few_seeds_say_how_many_it_takes(seeds: int) -> None:
    found = ranking(frame(seeds))
    assert not found.beaten and found.needed == 9  # ten pairs: 10 * 2 / 2^9 = 0.04
    assert found.sentence == f"Not enough seeds to say which is closest to the truth: {seeds}, and 5 estimators take 9."


def test_two_estimators_take_six_seeds() -> None:
    assert ranking(frame(6, ("neumann", "sama"))).closest == ["neumann"]
    assert ranking(frame(5, ("neumann", "sama"))).beaten == []


def test_estimators_that_do_not_differ_are_not_ranked() -> None:
    rows = frame(12, ("sama",))
    rng = np.random.default_rng(1)
    other = rows.assign(estimator="t1t2", angle=rows["angle"] * np.exp(0.3 * rng.standard_normal(12)))
    found = ranking(pd.concat([rows, other]))
    assert found.beaten == [] and found.sentence.startswith("No estimator is shown to be closer")


def test_the_opposite_direction_is_the_farthest() -> None:
    rows = frame(8, ("neumann", "sama"))
    rows.loc[rows["estimator"] == "neumann", "angle"] = 180 - rows["angle"]
    assert ranking(rows).closest == ["sama"]


def test_controls_and_what_failed_at_a_seed_take_no_part() -> None:
    rows = frame(12)
    rows.loc[(rows["estimator"] == "cg") & (rows["seed"] == 3), ["status", "angle"]] = ["failed", np.nan]
    rows.loc[rows["estimator"] == "t1t2", "control"] = True
    found = ranking(rows)
    assert (
        found.closest == ["unroll"]
        and found.left_out == ["cg"]
        and "Not compared: cg," in found.sentence
        and "t1t2" not in found.beaten
    )


def test_one_estimator_alone_says_nothing() -> None:
    assert ranking(frame(12, ("cg",))).sentence == "" and ranking(frame(1).iloc[:0]).sentence == ""


def test_the_table_says_it_from_six_seeds_on() -> None:
    from analysis.tables import block

    def caption(seeds: int) -> str:
        rows = frame(seeds, ("neumann", "sama"))
        columns = [
            "error_bound",
            "truth",
            "outcome",
            "cosine",
            "relative_error",
            "seconds",
            "time_ratio",
            "peak_ratio",
            "kept_ratio",
            "products",
        ]
        return block("c", "float64", rows.assign(**dict.fromkeys(columns, np.nan), scale="true", of="x")).caption

    assert caption(6) == "Closest to the truth: neumann; 6 seeds, corrected for all pairs." and caption(5) == ""
