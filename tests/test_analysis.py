"""Tables and figures from result files that are made up here: what they show is known."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.text import Text
from rich.console import Console

from analysis import figures, load
from analysis.figures.common import coinciding
from analysis.figures.tradeoff import pareto
from analysis.style import LOOKS, SPARE, look, order
from analysis.tables import line, save, short, show, spread
from benchmarks import cells
from benchmarks.cells import Cell
from estimators import registry

from .no_torch import NO_TORCH

ROOT = Path(__file__).resolve().parent.parent

OF_POINTS = ("figure5", "error_condition", "error_cost", "error_products", "error_memory")
"""Figures of what is made up here; those of meta steps have tests of their own."""


def result(cell: Cell, error: float = 0.1, ratio: float = 10.0, **more: object) -> dict:
    angle = float(np.degrees(np.arcsin(min(error, 1))))
    content: dict[str, Any] = {
        "claim": {"of": "something", "citation": "someone", "target": "run", "exact": True, "scale": "true"},
        "truth": "closed form",
        "accuracy": {"cosine": 1 - error**2 / 2, "relative_error": error, "direction_error": error, "angle": angle, "norm_ratio": 1.0},
        "bound": {"relative_error": 2 * error, "angle": None, "by": "made up"},
        "cost": {
            "seconds": ratio * 1e-4, "gradient_seconds": 1e-4, "time_ratio": ratio, "peak_bytes": 800, "peak_ratio": 8.0,
            "gradient_peak_bytes": 100, "kept_bytes": 0, "kept_ratio": 0.0, "gradients": 1, "products": 3, "matvecs": 2,
        },
        "pullbacks": [{"outcome": "CONVERGED", "text": "fine", "residual": 1e-12, "curvature": 0.5, "products": 3}],
        "environment": {"jobs": 1},
        "finished": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return cells.row(cell, "ok", **(content | more))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, error, ratio in (
        ("unroll", 1e-12, 300.0),
        ("cg", 1e-9, 50.0),
        ("neumann", 1e-2, 60.0),
        ("sama", 0.3, 5.0),
    ):
        for cond in (2.0, 10.0, 100.0):
            for seed in range(3):
                cell = Cell(estimator=name, problem="biased_regression", settings={"cond": cond}, seed=seed)
                cells.write(cell.file(tmp_path), result(cell, error * cond / 2 * (1 + seed / 10), ratio))
        cell = Cell(
            estimator=name, problem="biased_regression", settings={"cond": 30.0}, kind="path", meta={"steps": 3}
        )
        path = {"cosine": [1 - error] * 3, "angle": [1.0] * 3, "value": [1.0] * 3, "distance": [3.0, 2.0, 1.5, 1.0]}
        cells.write(cell.file(tmp_path), cells.row(cell, "ok", path=path, finished="2026-01-01T00:00:00Z"))
    failed = Cell(estimator="dense", problem="biased_regression", settings={"cond": 2.0})
    cells.write(failed.file(tmp_path), cells.row(failed, "failed", "RuntimeError: [no] luck"))
    refused = Cell(estimator="composed", problem="biased_regression", settings={"cond": 2.0})
    cells.write(refused.file(tmp_path), cells.row(refused, "refused", "needs two stages"))
    return tmp_path


def test_load_gives_a_row_a_cell(folder: Path) -> None:
    frame = load(folder)
    assert len(frame) == 4 * 3 * 3 + 4 + 2
    assert frame["id"].is_unique
    row = frame[
        (frame["estimator"] == "cg") & (frame["cond"] == 10) & (frame["seed"] == 1) & (frame["kind"] == "point")
    ].iloc[0]
    assert row["relative_error"] == pytest.approx(1e-9 * 5 * 1.1)
    assert row["case"] == "biased_regression (cond=10)"
    assert row["outcome"] == "converged"
    assert row["residual"] == 1e-12


def test_damaged_files_are_named_and_left_out(folder: Path) -> None:
    whole = len(load(folder))
    (folder / "cells" / "cut.json").write_text('{"schema": 1, "id"')
    (folder / "cells" / "list.json").write_text("[1, 2]")
    (folder / "cells" / "future.json").write_text('{"schema": 99}')
    frame = load(folder)
    assert len(frame) == whole
    assert [place.rpartition("/")[2] for place in frame.attrs["skipped"]] == ["cut.json", "future.json", "list.json"]
    with pytest.raises(FileNotFoundError):
        load(folder / "nowhere")


def test_the_newest_of_two_results_counts(folder: Path) -> None:
    before = load(folder)
    cell = Cell(estimator="cg", problem="biased_regression", settings={"cond": 2.0}, seed=0, built="with other fields")
    cells.write(cell.file(folder), result(cell, 0.5, finished="2026-02-02T00:00:00Z"))
    after = load(folder)
    assert len(after) == len(before)
    assert 0.5 in set(after["relative_error"])


def test_older_results_stay_when_they_are_asked_for(folder: Path) -> None:
    old = Cell(estimator="cg", problem="biased_regression", settings={"cond": 2.0}, seed=0)
    new = Cell(estimator="cg", problem="biased_regression", settings={"cond": 2.0}, seed=0, built="with other fields")
    cells.write(new.file(folder), result(new, 0.5, finished="2026-02-02T00:00:00Z"))
    assert old.id not in set(load(folder)["id"])
    assert list(load(folder, ids={old.id})["id"]) == [old.id]
    assert list(load(folder, ids=[old.id, new.id])["id"]) == [new.id]
    assert load(folder, ids=[]).empty


def test_the_table_shows_the_error_bound_beside_the_error_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    def printed() -> str:
        save(load(folder), tmp_path / "table.txt")
        return (tmp_path / "table.txt").read_text()

    assert "┃ error bound" not in printed().replace("  ", " ")
    cell = Cell(estimator="cg", problem="biased_regression", settings={"cond": 2.0}, seed=0)
    cells.write(cell.file(folder), result(cell, 0.5, error_bound={"relative": 0.625, "rigorous": True}))
    other = Cell(estimator="sama", problem="biased_regression", settings={"cond": 2.0}, seed=0)
    cells.write(other.file(folder), result(other, 0.5, error_bound={"reason": "no strict minimum"}))
    frame = load(folder)
    assert set(frame["error_bound"].dropna()) == {0.625}
    assert set(frame["error_bound_reason"].dropna()) == {"no strict minimum"}
    text = printed()
    assert "error bound" in text.splitlines()[2]
    assert "0.62 (2 none)" in text


def test_the_table_shows_spread_and_reasons(folder: Path, tmp_path: Path) -> None:
    save(load(folder), tmp_path / "table.txt")
    text = (tmp_path / "table.txt").read_text()
    assert "biased_regression (cond=100), float64, 3 seeds; truth: closed form" in text
    assert "0.55 [0.5..0.6]" in text  # neumann at cond 100
    assert "RuntimeError: [no] luck" in text
    assert "needs two stages" in text
    assert "not enough for 'A beats B', which takes 6" in text
    assert "the kept states (next column) come on top" in " ".join(text.split())


def test_a_narrow_table_cuts_no_words(folder: Path) -> None:
    with Console(width=120, record=True, file=io.StringIO()) as console:
        show(load(folder), console)
    text = console.export_text()
    assert "kept / gradient │" not in text and "something" not in text
    assert "Left out for want of width: estimates, kept / gradient" in text
    assert "converged" in text


def test_the_table_explains_the_outcomes_that_occur(tmp_path: Path) -> None:
    for name, word, advice in (
        ("unroll", "DONE", "complete: every step was differentiated"),
        ("cg", "INDEFINITE", "met negative curvature: not at a minimum; train longer"),
    ):
        pullback = {"outcome": word, "text": advice, "residual": None, "curvature": None}
        cell = Cell(estimator=name, problem="p")
        cells.write(cell.file(tmp_path), result(cell, pullbacks=[pullback, pullback]))
    save(load(tmp_path), tmp_path / "table.txt")
    text = (tmp_path / "table.txt").read_text()
    assert "Outcomes: done: every step was differentiated; indefinite: met negative curvature." in text


def test_the_cosine_of_nothing_is_undefined(tmp_path: Path) -> None:
    for name, error in (("cg", 1.0), ("dense", np.nan)):
        cell = Cell(estimator=name, problem="p")
        cells.write(cell.file(tmp_path), result(cell, accuracy={"cosine": np.nan, "relative_error": error}))
    frame = load(tmp_path)
    assert line("cg", frame[frame["estimator"] == "cg"])[2:4] == ["undefined", "1"]
    assert line("dense", frame[frame["estimator"] == "dense"])[2:4] == ["not finite", "not finite"]


def test_numbers_are_short() -> None:
    assert [short(x) for x in (0, 0.5, 99.4, 99.6, 100, 1e5, 1e-4)] == [
        "0",
        "0.5",
        "99",
        "100",
        "100",
        "1e+05",
        "1e-04",
    ]


def test_spread_says_what_was_not_finite() -> None:
    assert spread(pd.Series([1.0, 1.0]), short) == "1"
    assert spread(pd.Series([1.0, np.nan]), short) == "1 (1 not finite)"
    assert spread(pd.Series([np.nan]), short) == "not finite"


def test_figures_are_drawn_twice_alike(folder: Path, tmp_path: Path) -> None:
    frame = load(folder)
    first, second = (figures.draw_all(frame, tmp_path / name) for name in "ab")
    assert len(first) == 2 * len(OF_POINTS)
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_every_point_is_drawn_and_stays_under_its_bound(folder: Path) -> None:
    frame = load(folder)
    figure = figures.FIGURES["error_condition"].draw(frame)
    assert figure is not None
    points = [np.shape(c.get_offsets())[0] for axes in figure.axes for c in axes.collections]
    assert sum(points) == 4 * 3 * 3
    measured = frame.dropna(subset=["bound_error"])
    assert (measured["relative_error"] <= measured["bound_error"]).all()


def texts(figure: Figure | None) -> str:
    assert figure is not None
    figure.draw_without_rendering()
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def drawn(figure: Figure | None) -> dict[str, set[str]]:
    """Title of a panel -> what is drawn in it."""
    assert figure is not None
    return {
        a.get_title(loc="left"): {str(c.get_gid()) for c in [*a.collections, *a.lines] if c.get_gid()}
        for a in figure.axes
    }


def path(cell: Cell, cosine: object, distance: object) -> dict:
    series = {"cosine": cosine, "angle": cosine, "value": [1.0] * 3, "distance": distance}
    return cells.row(cell, "ok", path=series, finished="2026-01-01T00:00:00Z")


@pytest.mark.parametrize("alone", [False, True])
def test_a_zero_and_a_nan_do_not_crash_the_figures(folder: Path, tmp_path: Path, alone: bool) -> None:
    folder = tmp_path / "alone" if alone else folder
    nan = np.nan
    where = {"settings": {"cond": 30.0}, "kind": "path", "meta": {"steps": 3, "lr": 0.1}}
    for name, relative, curve, distance in (
        ("zero", 1.0, [nan] * 3, [3.0] * 4),
        ("lost", nan, [nan] * 3, [3.0, nan, nan, nan]),
        ("empty", nan, [], []),
        ("none", nan, None, None),
    ):
        for cond in (2.0, 10.0):
            cell = Cell(estimator=name, problem="biased_regression", settings={"cond": cond})
            errors = {"cosine": nan, "relative_error": relative, "direction_error": nan, "angle": nan}
            cells.write(cell.file(folder), result(cell, accuracy=errors, bound=None))
        cell = Cell(estimator=name, problem="biased_regression", **where)
        cells.write(cell.file(folder), path(cell, curve, distance))
    frame = load(folder)
    figures.draw_all(frame, tmp_path / "figures")
    text = texts(figures.FIGURES["figure5"].draw(frame))
    assert "far from converged, a shorter distance here is not a better gradient" in text
    assert "lost (distance: not finite at 3 of 4 steps)" in " ".join(text.split())
    assert alone or "lost, none, zero (cosine: undefined or not finite)" in " ".join(text.split())
    text = texts(figures.FIGURES["error_condition"].draw(frame))
    assert "lost (not finite)" in text and "zero (" not in text  # its error is 1
    if not alone:
        assert "dense (failed: RuntimeError: [no] luck)" in " ".join(text.split())
        text = texts(figures.FIGURES["error_cost"].draw(load(folder)))
        assert "not shown: " in text


def test_curves_are_one_only_if_cosine_and_distance_agree(tmp_path: Path) -> None:
    for name, cosine, distance in (
        ("unroll", 1.0, 100.0),
        ("cg", 0.999, 100.4),  # within 0.002, and within 0.5 % of the largest
        ("neumann", 0.95, 100.0),
        ("sama", 1.0, 99.0),
    ):
        cell = Cell(estimator=name, problem="biased_regression", kind="path", meta={"steps": 3, "lr": 0.1})
        cells.write(cell.file(tmp_path), path(cell, [cosine] * 3, [distance] * 4))
    panels = drawn(figures.FIGURES["figure5"].draw(load(tmp_path)))
    assert panels == {title: {"unroll", "neumann", "sama"} for title in ("direction", "distance to the optimum")}


@pytest.mark.parametrize("name", ["error_condition", "error_cost"])
def test_dtypes_are_not_pooled(folder: Path, name: str) -> None:
    before = drawn(figures.FIGURES[name].draw(load(folder)))
    for estimator in LOOKS:
        cell = Cell(estimator=estimator, problem="biased_regression", settings={"cond": 10.0}, dtype="float32")
        cells.write(cell.file(folder), result(cell))
    figure = figures.FIGURES[name].draw(load(folder))
    assert drawn(figure) == before
    assert "float32" in texts(figure).split("not shown: ")[1]
    only = load(folder)
    only = only[only["dtype"] == "float32"]
    other = figures.FIGURES["error_cost"].draw(only)
    assert "float32" in texts(other) and "not shown" not in texts(other)


def test_a_plugin_lands_in_its_panel(folder: Path) -> None:
    claim = {"of": "x", "citation": "x", "exact": False}
    for name, target, scale in (
        ("mine", "run", "true"),
        ("yours", "optimum", "true"),
        ("theirs", "direction", "lr"),
        ("unroll-truncated", "direction", "true"),
    ):
        for cond in (2.0, 10.0):
            cell = Cell(estimator=name, problem="biased_regression", settings={"cond": cond})
            row = result(cell, claim=claim | {"target": target, "scale": scale})
            cells.write(cell.file(folder), row)
    panels = drawn(figures.FIGURES["error_condition"].draw(load(folder)))
    assert panels["differentiating the run"] >= {"mine", "unroll-truncated"}
    assert panels["implicit differentiation"] == {"yours"}
    assert panels["a direction only"] == {"theirs"}


def test_every_problem_has_a_panel_and_its_truth(tmp_path: Path) -> None:
    for i in range(5):
        for name in ("unroll", "cg", "neumann", "sama"):
            cell = Cell(estimator=name, problem=f"problem{i}")
            truth = "full unroll in float64" if i == 4 else "closed form"
            cells.write(cell.file(tmp_path), result(cell, truth=truth))
    cell = Cell(estimator="cg", problem="lonely")
    cells.write(cell.file(tmp_path), result(cell))
    figure = figures.FIGURES["error_cost"].draw(load(tmp_path))
    text = texts(figure)
    assert [f"problem{i}" in text for i in range(5)] == [True] * 5
    assert text.count("(truth: float64 unroll)") == 1
    assert "not shown: lonely (fewer than 4 estimators)" in text


def test_figures_without_data_are_left_out(tmp_path: Path) -> None:
    cell = Cell(estimator="cg", problem="p")
    cells.write(cell.file(tmp_path), cells.row(cell, "failed", "no"))
    assert figures.draw_all(load(tmp_path), tmp_path / "figures") == []


def test_pareto_keeps_what_nothing_beats() -> None:
    points = pd.DataFrame({"time_ratio": [1, 2, 3, 4], "direction_error": [0.5, 0.6, 0.1, 0.1]}, index=list("abcd"))
    assert list(pareto(points, "time_ratio", "direction_error").index) == ["a", "c"]


def test_coinciding_curves_are_named_together() -> None:
    curves = {"cg": np.array([1.0, 1.0]), "dense": np.array([1.0, 0.9999]), "sama": np.array([0.8, 0.7])}
    assert coinciding(curves, 1e-3) == [["dense", "cg"], ["sama"]]


def test_every_registered_estimator_has_a_look_of_its_own() -> None:
    assert set(registry) <= set(LOOKS)
    assert len({style.marker for style in LOOKS.values()}) == len(LOOKS)
    assert len({style.color for style in LOOKS.values()}) == len(LOOKS)
    assert order(["zzz", "sama", "unroll"]) == ["unroll", "sama", "zzz"]
    assert all(MarkerStyle(style.marker).is_filled() for style in [*LOOKS.values(), *SPARE])
    assert look("mine", ["mine", "other"]) != look("other", ["mine", "other"])


def test_tables_and_figures_need_no_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        f"{NO_TORCH}\nfrom pathlib import Path\n"
        "from analysis import figures, load, tables\n"
        "frame = load(sys.argv[1]); tables.save(frame, Path(sys.argv[2]) / 't.txt')\n"
        "print(len(figures.draw_all(frame, Path(sys.argv[2]))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(2 * len(OF_POINTS))
