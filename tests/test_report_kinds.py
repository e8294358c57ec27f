"""The report page of every kind of result but points: paths, meta steps, other libraries, advice; and of points without a truth."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import figures
from benchmarks import cells
from benchmarks.cells import Cell

from . import test_advise, test_analysis_meta
from .test_report import Page, page, point, save


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have tests of their own, and take most of the time."""
    monkeypatch.setattr(figures, "FIGURES", {})


def made(folder: Path) -> Page:
    return page(folder, out=folder / "report.html")


def table(made: Page, name: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(made.pack[f"r0-{name}.csv"]))


def test_without_a_truth_errors_are_unknown(tmp_path: Path) -> None:
    for name, ratio in (("cg", 30.0), ("sama", 5.0)):
        save(tmp_path, *point(name, 0, error=0.1, ratio=ratio, peak=100, truth=None, accuracy=None))
    text = made(tmp_path).text
    assert "2 estimators, 1 seed; truth: unknown." in text
    assert "Fastest of all is sama , 5 gradients, but with an unknown error." in text
    assert "Most accurate" not in text


def test_an_estimate_of_zero_has_no_direction(tmp_path: Path) -> None:
    accuracy = {"cosine": None, "relative_error": 1.0, "direction_error": None, "angle": None, "norm_ratio": 0.0}
    save(tmp_path, *point("cg", 0, error=0.1, ratio=30.0, peak=500))
    save(tmp_path, *point("zero", 0, error=0.1, ratio=1.0, peak=100, accuracy=accuracy))
    assert "Fastest of all is zero , 1 gradients, but with an undefined direction." in made(tmp_path).text


def test_of_one_hyperparameter_a_direction_is_but_a_sign(tmp_path: Path) -> None:
    save(tmp_path, *point("cg", 0, error=0.0, ratio=30.0, peak=500, size={"params": 10, "hparams": 1}))
    assert "There is one hyperparameter" in made(tmp_path).text


def path(folder: Path, name: str, cosines: list[float], **more: Any) -> None:
    cell = Cell(estimator=name, problem="ridge", kind="path", meta={"steps": len(cosines)})
    claim = {
        "of": "something",
        "citation": "someone",
        "target": "run",
        "exact": True,
        "bias": "",
        "scale": "true",
        "control": False,
    }
    series = {
        "cosine": cosines,
        "angle": [1.0] * len(cosines),
        "value": [3.0, 2.0, 1.5][: len(cosines)],
        "distance": None,
    } | more
    save(folder, cell, cells.row(cell, "ok", claim=claim, path=series, finished="2026-01-01T00:00:00Z"))


def test_paths_say_who_kept_the_direction_and_who_came_near(tmp_path: Path) -> None:
    path(tmp_path, "unroll", [1.0, 1.0, 1.0], distance=[10.0, 4.0, 2.0, 1.0])
    path(tmp_path, "cg", [1.0, 1.0, 0.999], distance=[10.0, 4.0, 2.0, 5.0])
    path(tmp_path, "sama", [0.5, 0.6, 0.7], distance=[10.0, 4.0, 2.0, 0.9])
    found = made(tmp_path)
    assert "Best direction on the way, by the mean cosine: unroll 1.0000, cg 0.9997." in found.text
    assert "by the share of the distance that is left: sama 0.09. It is far from there" in found.text
    lines = table(found, "paths").set_index("estimator")
    assert lines.loc["unroll", "distance_left"] == pytest.approx(0.1)
    assert lines.loc["sama", "least_cosine"] == 0.5


def test_a_path_without_a_known_optimum_has_its_loss(tmp_path: Path) -> None:
    path(tmp_path, "unroll", [1.0, 1.0, 1.0])
    found = made(tmp_path)
    assert "Least outer loss at the end: unroll 1.5." in found.text
    assert "distance that is left" not in found.text


def test_meta_steps_stand_beside_the_paper_and_failures_stay(tmp_path: Path) -> None:
    cell = test_analysis_meta.cell
    for name, ratio, memory in (("sama", 0.8, 1.4), ("neumann", 0.4, 2.5), ("unroll", 0.2, 3.0)):
        save(tmp_path, cell(name), test_analysis_meta.row(cell(name), ratio, memory))
    save(tmp_path, cell("cg"), cells.row(cell("cg"), "failed", "tried to allocate [all]", failure="oom"))
    found = made(tmp_path)
    assert "The most examples a second: sama at unroll 10, 0.8 [0.72, 0.88] of plain training's." in found.text
    assert "The least memory: sama at unroll 10, 1.4 of plain training's, 1.4 GiB." in found.text
    assert "1 of 4 have no figures: cg (oom: tried to allocate [all])." in found.text
    lines = table(found, "meta").set_index("estimator")
    assert lines.loc["unroll", "meta_peak"] == 3 * 2**30
    assert lines.loc["cg", "outcome"] == "oom: tried to allocate [all]"
    paper = table(found, "table8").set_index("method")
    neumann = paper.loc["Neumann series"]
    assert neumann["throughput_ratio"] == 0.4 and neumann["throughput_paper"] == pytest.approx(67.03 / 169.16)
    assert neumann["memory_difference"] == pytest.approx(2.5 - 19.70 / 7.77)
    assert neumann["sources"] == lines.loc["neumann", "sources"]
    assert paper.loc["conjugate gradient", "outcome"] == "oom" and paper.loc["DARTS", "outcome"] == "not run"
    assert {"r0-table2", "r0-table8", "r0-table9"} <= set(found.ids)


def peer(folder: Path, name: str, method: str, error: float | None, time: float, peak: int) -> None:
    cell = Cell(
        estimator=name,
        problem="net",
        kind="peers",
        meta={"method": method, "steps": 10, "settle": 0, "lr": None},
        dtype="float32",
    )
    library, _, variant = name.partition(": ")
    content = {
        "peers": {"library": library, "version": "1.0", "variant": variant, "note": "", "method": method, "steps": 10, "settle": 0, "lr": 0.1},
        "accuracy": {"cosine": 1.0, "relative_error": error, "direction_error": 0.0, "angle": 0.0, "norm_ratio": 1.0},
        "cost": {"seconds": time, "to_first": time, "peak_bytes": peak}, "pullbacks": [], "finished": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    save(folder, cell, cells.row(cell, "ok", **content))


def test_peers_are_compared_with_the_best_that_is_right(tmp_path: Path) -> None:
    peer(tmp_path, "hypergradbench: CG", "cg", 1e-7, 0.8, 400)
    peer(tmp_path, "other: solve", "cg", 1e-7, 1.0, 1000)
    peer(tmp_path, "wrong: solve", "cg", 0.5, 0.1, 10)
    peer(tmp_path, "hypergradbench: SAMA()", "sama", 0.1, 1.3, 1100)
    peer(tmp_path, "hypergradbench: SAMA, exact", "sama", 1e-7, 1.4, 1400)
    peer(tmp_path, "torch.optim: plain training", "sama", None, 1.0, 1000)
    text = made(tmp_path).text
    assert "Our fastest way, CG , takes 0.80 times as long as other: solve , the best of the others." in text
    assert "Our lightest way, CG , takes 0.40 times the bytes of other: solve , the best of the others." in text
    assert "Wrong by more than 5%: wrong: solve ." in text
    # SAMA is an approximation by definition: its error is no fault
    assert "Our fastest way, SAMA() , takes 1.30 times as long as torch.optim: plain training" in text
    assert text.count("Wrong by more than") == 1


def test_advice_is_given_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    for i, content in enumerate(test_advise.ROWS):
        (tmp_path / "cells" / f"{i}.json").write_text(json.dumps(content))
    found = made(tmp_path)
    assert "Recommended: neumann, error 0.04, 1.5 times the run, 300 B" in found.text
    assert "estimate(problem, 'neumann')" in found.text
    lines = table(found, "advice").set_index("label")
    assert lines.loc["neumann", "verdict"] == "recommended"
    assert lines.loc["direct", "verdict"] == "control"
    assert lines.loc["cg", "sources"] == "cg"
