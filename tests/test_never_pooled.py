"""Results of several devices in one folder: no figure, table or page takes them for more seeds."""

from __future__ import annotations

from functools import cache

import pandas as pd
import pytest

from analysis import advice, figures, tables

from .test_figures import everything


@cache
def on_two_devices() -> pd.DataFrame:
    """The same cells on a CPU and, less often and with other numbers, on a GPU."""
    cpu = everything()
    gpu = cpu[cpu["seed"].eq(0)].copy()
    for column in ("angle", "relative_error", "seconds", "time_ratio", "throughput", "run_ratio", "cosine"):
        gpu[column] = gpu[column] / 7
    return pd.concat([cpu, gpu.assign(id="gpu" + gpu["id"], device_asked="cuda", device="a GPU")], ignore_index=True)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_is_of_one_device(name: str) -> None:
    data = figures.data(name, on_two_devices())
    assert len(data)
    if "id" in data:
        assert data["id"].str.startswith("gpu").nunique() == 1
    else:
        assert data["device_asked"].nunique() == 1


def test_a_table_is_of_one_device() -> None:
    def sheets(frame: pd.DataFrame) -> dict[str, list[list[str]]]:
        points = frame[frame["kind"].isin(["point", "advice"])]
        points = points.assign(scale=points["scale"].fillna("true"), of="the derivative")
        return {s.title: [list(x.cells) for x in s.lines] for part in tables.sections(points) for s in part.sheets}

    alone, both = sheets(everything()), sheets(on_two_devices())
    assert len(both) == 2 * len(alone) and sum("cuda" in title for title in both) == len(alone)
    assert {title: both[title] for title in alone} == alone


def test_a_reference_alone_is_no_advice_yet() -> None:
    """What an interrupted `advise` leaves behind."""
    frame = everything()
    asked = frame[frame["kind"].eq("advice")]
    only = pd.concat([frame[frame["kind"].eq("point")], asked.iloc[:1].assign(name=advice.REFERENCE)])
    assert advice.of_places(only) == [] and figures.draw("pareto", only) is None
