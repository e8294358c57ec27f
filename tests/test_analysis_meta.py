"""Tables and figures of meta steps, from rows that are made up here, and what the paper printed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from rich.console import Console

from analysis import figures, load, published
from analysis.figures import memory_size, memory_split, throughput_memory
from analysis.figures.memory_split import PARTS
from analysis.meta_tables import KINDS, shares, size
from analysis.tables import save, show
from benchmarks import cells
from benchmarks.cells import Cell
from benchmarks.measure import CATEGORIES
from benchmarks.throughput import units

PLAIN_PEAK = 2**30


def cell(estimator: str, unroll: int = 10, scale: str = "base", **more: Any) -> Cell:
    options = {"problem": "bert_noisy", "dtype": "float32", "kind": "meta", "meta": {"kernel": "best"}}
    return Cell(estimator=estimator, settings={"size": scale, "unroll": unroll}, **(options | more))


def row(cell: Cell, ratio: float, memory: float, params: int = 109_000_000, plain_peak: int = PLAIN_PEAK) -> dict:
    unroll, peak = cell.settings["unroll"], int(memory * plain_peak)
    split = dict.fromkeys(CATEGORIES, 0) | {"parameters": peak // 4, "graph": peak - peak // 4}
    content = {
        "claim": {"of": "something", "citation": "someone", "target": "direction", "exact": False, "scale": "true"},
        "workload": {
            "name": cell.problem, "size": cell.settings["size"], "unroll": unroll, "samples": 48, "params": params,
            "hparams": 301, "data": "generated: tokens", "kernel": "best", "settings": cell.settings,
        },
        "throughput": {
            "samples_per_second": 400 * ratio, "plain_samples_per_second": 400.0, "seconds": 1.2 / ratio, "plain_seconds": 1.2,
            "ratio": ratio, "ratio_low": 0.9 * ratio, "ratio_high": 1.1 * ratio, "meta_step_units": units(ratio, unroll),
            "samples": 6, "relative_width": 0.2,
        },
        "memory": {
            "peak_bytes": peak, "plain_peak_bytes": plain_peak, "ratio": memory, "split": split,
            "plain_split": dict.fromkeys(CATEGORIES, 0) | {"graph": plain_peak}, "cuda": None,
        },
        "environment": {"device": "Some GPU", "jobs": 1},
        "finished": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return cells.row(cell, "ok", **content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, ratio, memory in (("sama", 0.8, 1.4), ("neumann", 0.4, 2.5), ("unroll", 0.2, 3.0)):
        cells.write(cell(name).file(tmp_path), row(cell(name), ratio, memory))
    darts = cell("t1t2", unroll=1)
    cells.write(darts.file(tmp_path), row(darts, 0.26, 1.5))
    two = cell("sama", workers=2)
    cells.write(two.file(tmp_path), row(two, 0.7, 1.1))
    big = cell("cg")
    cells.write(big.file(tmp_path), cells.row(big, "failed", "tried to allocate [all]", failure="oom"))
    refused = cell("composed")
    cells.write(refused.file(tmp_path), cells.row(refused, "refused", "needs two stages"))
    return tmp_path


def text_of(folder: Path, width: int = 210) -> str:
    with Console(width=width, record=True, file=io.StringIO()) as console:
        show(load(folder), console)
    return console.export_text()


def line(text: str, *words: str) -> list[str]:
    """The cells of the one line of a table that begins with these."""
    lines = [[c.strip() for c in row.strip("│ ").split("│")] for row in text.splitlines() if row.startswith("│")]
    (found,) = [c for c in lines if c[: len(words)] == list(words)]
    return found


def test_the_table_has_the_papers_layout_with_its_ratios_beside_ours(folder: Path) -> None:
    text = text_of(folder)
    sama = line(text, "sama", "10", "1")
    assert sama[3:8] == ["320", "0.8 [0.72, 0.88]", "2.5", "1.4 GiB", "1.40"]
    assert sama[8:10] == ["25", "0"]  # percent parameters and slots
    assert sama[-2:] == ["0.795 | 0.81", "1.43 | 1.64"]
    assert line(text, "t1t2", "1")[-2:] == ["0.258 | 0.26", "1.39 | 1.57"]
    assert line(text, "sama", "10", "2")[-2:] == ["1.34 | 1.36", "1.03 | 1.19"]
    assert line(text, "plain training", "10", "1")[3:8] == ["400", "1", "0", "1 GiB", "1"]
    assert "109,000,000 parameters, 301 hyperparameters, batch 48" in text
    assert "Some GPU" in text and "data generated: tokens" in text
    assert "published, on other hardware" in " ".join(text.split())


def test_everything_relative_to_sama_as_in_table_2(folder: Path) -> None:
    text = text_of(folder)
    assert line(text, "Neumann series") == [
        "Neumann series", "neumann", "1", "2.5 GiB", "1.79", "1.82", "-0.03 (-2%)", "160", "0.5", "0.584", "-0.08 (-14%)",
    ]  # fmt: skip
    assert line(text, "SAMA, 2 GPUs") == [
        "SAMA, 2 GPUs", "sama", "2", "1.1 GiB", "0.79", "0.73", "+0.06 (+8%)", "280", "0.875", "1.7", "-0.82 (-48%)",
    ]  # fmt: skip
    assert line(text, "conjugate gradient")[1:5] == ["cg", "1", "oom", ""]


def test_what_did_not_fit_stays_in_the_table_with_its_reason(folder: Path) -> None:
    text = text_of(folder)
    assert line(text, "cg", "10", "1")[3] == "oom"
    assert line(text, "composed", "10", "1")[3] == "refused"
    assert "tried to allocate [all]" in text
    assert "needs two stages" in text


def test_another_workload_has_no_published_figures(tmp_path: Path) -> None:
    other = cell("sama", problem="gpt_mixture")
    cells.write(other.file(tmp_path), row(other, 0.8, 1.4))
    text = text_of(tmp_path)
    assert "T8" not in text and "0.795" not in text
    assert line(text, "sama", "10", "1")[3] == "320"


def test_a_narrow_table_leaves_the_split_out(folder: Path) -> None:
    text = text_of(folder, width=120)
    assert len(line(text, "neumann", "10", "1")) == 10
    assert "buf." not in text.split("One meta step is")[0]


def test_fields_that_were_swept_make_several_estimators(tmp_path: Path) -> None:
    for steps, ratio in ((5, 0.5), (20, 0.2)):
        c = cell("neumann", fields={"solver.steps": steps})
        cells.write(c.file(tmp_path), row(c, ratio, 2.0))
    c = cell("cg", fields={"solver.steps": 5})
    cells.write(c.file(tmp_path), row(c, 0.4, 2.0))
    frame = load(tmp_path)
    assert set(frame["estimator"]) == {"neumann(solver.steps=5)", "neumann(solver.steps=20)", "cg"}
    text = text_of(tmp_path)
    assert line(text, "neumann(solver.steps=20)")[3] == "80"
    assert line(text, "neumann(solver.steps=5)")[-1] == "2.54 | 2.99"


def test_rows_of_other_devices_dtypes_and_workers_are_kept_apart(tmp_path: Path) -> None:
    for more in ({}, {"device": "cuda"}, {"dtype": "float64"}, {"workers": 2}, {"meta": {"kernel": "math"}}):
        c = cell("sama", **more)
        cells.write(c.file(tmp_path), row(c, 0.5, 2.0))
    assert len(load(tmp_path)) == 5
    tables = [text for text in text_of(tmp_path).splitlines() if text.startswith("bert_noisy (size=base)")]
    assert len(tables) == 4  # workers share a table


def test_the_text_file_is_written(folder: Path, tmp_path: Path) -> None:
    save(load(folder), tmp_path / "table.txt")
    assert "SAMA's Table 2 beside ours" in (tmp_path / "table.txt").read_text()
    assert "cosine" not in (tmp_path / "table.txt").read_text()  # nothing of points, where there are none


UNITS = {
    published.SAMA: (2.57, 2.35),
    published.Row("sama-na"): (2.27, 2.25),
    published.Row("neumann"): (15.2, 15.0),
    published.Row("cg"): (16.0, 15.7),
}
"""Cost of one meta step in base steps, worked out by hand from Tables 8 and 9."""


@pytest.mark.parametrize("table", [published.TABLE_8, published.TABLE_9])
def test_published_figures_agree_with_one_another(table: dict) -> None:
    which = 0 if table is published.TABLE_8 else 1
    for theirs, stated in UNITS.items():
        assert 10 * (1 / table[theirs].throughput - 1) == pytest.approx(stated[which], abs=0.05)
    one, two = table[published.SAMA], table[published.Row("sama", 10, 2)]
    assert two.throughput / one.throughput == pytest.approx(1.68, abs=0.01)  # two GPUs over one, as in both tables
    assert two.memory < one.memory
    assert table.keys() == published.NAMES.keys()


def test_published_tables_tell_the_same_of_neumann_and_cg() -> None:
    """Table 2 is relative to SAMA. (Table 8 says the same within its own spread: 0.396 / 0.795 = 0.50.)"""
    for name in ("neumann", "cg"):
        theirs = published.Row(name)
        eight = published.TABLE_8[theirs].throughput / published.TABLE_8[published.SAMA].throughput
        assert eight == pytest.approx(published.TABLE_2[theirs].throughput, rel=0.2)


def test_sizes_and_shares_are_legible() -> None:
    assert [size(x) for x in (12, 2048, 3 * 2**20, 1.5 * 2**30, 1200 * 2**30)] == [
        "12 B", "2 KiB", "3 MiB", "1.5 GiB", "1200 GiB",
    ]  # fmt: skip
    assert tuple(KINDS) == tuple(PARTS) == CATEGORIES
    assert shares({"parameters": 1, "data": 3}) == ["25", "0", "0", "0", "0", "0", "75"]


# --- figures


def words(figure: Any) -> str:
    return " ".join(t.get_text() for t in figure.findobj(Text))


def test_throughput_against_memory(folder: Path) -> None:
    figure = throughput_memory.draw(load(folder))
    assert figure is not None
    left, right = figure.axes
    points = {c.get_gid(): c.get_offsets()[0] for c in left.collections if c.get_gid()}
    assert tuple(points["neumann"]) == pytest.approx((2.5, 0.4), rel=1e-6)
    absolute = {c.get_gid(): c.get_offsets()[0] for c in right.collections if c.get_gid()}
    assert tuple(absolute["neumann"]) == pytest.approx((2.5 * 1024, 160))
    text = words(figure)
    assert "Some GPU" in text and "generated data" in text and "size=base" in text
    assert "cg (out of memory)" in text  # named, although it has no point
    assert "u10 ×2" in text


def test_memory_against_size(tmp_path: Path) -> None:
    for scale, params, plain in (("small", 60, 2**30), ("base", 110, 2**31), ("xl", 1000, 2**34)):
        for name, memory in (("sama", 1.5), ("unroll", 4.0)):
            c = cell(name, scale=scale, unroll=4)
            found = row(c, 0.5, memory, params * 10**6, plain)
            if (name, scale) == ("unroll", "xl"):
                found = cells.row(c, "failed", "no room", failure="oom")
            cells.write(c.file(tmp_path), found)
    figure = memory_size.draw(load(tmp_path))
    assert figure is not None
    drawn = {c.get_gid(): c.get_offsets() for c in figure.axes[0].collections if c.get_gid()}
    assert drawn["sama"].tolist() == [[60e6, 1.5], [110e6, 3.0], [1e9, 24.0]]
    assert drawn["unroll"].tolist() == [[60e6, 4.0], [110e6, 8.0]]
    assert "unroll (out of memory at xl)" in words(figure)
    assert "unroll 4" in words(figure) and "1 B" in words(figure)


def test_one_size_is_no_line(folder: Path) -> None:
    assert memory_size.draw(load(folder)) is None


def test_the_split_is_stacked_to_the_ratio(folder: Path) -> None:
    figure = memory_split.draw(load(folder))
    assert figure is not None
    (axes,) = figure.axes
    tops: dict[int, float] = {}
    for patch in axes.patches:
        i = round(patch.get_x() + patch.get_width() / 2)
        tops[i] = max(tops.get(i, 0.0), patch.get_y() + patch.get_height())
    labels = [t.get_text() for t in axes.get_xticklabels()]
    assert tops[0] == pytest.approx(1)
    assert tops[labels.index("neumann\nunroll 10")] == pytest.approx(2.5)
    assert "cg (out of memory)" in words(figure)


def test_all_three_are_drawn_with_the_others_and_repeat(folder: Path, tmp_path: Path) -> None:
    frame = load(folder)
    first = figures.draw_all(frame, tmp_path / "one")
    assert {p.stem for p in first} == {"throughput_memory", "memory_split", "memory_unroll", "workers"}
    second = figures.draw_all(frame, tmp_path / "two")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_nothing_is_drawn_of_failures_alone(tmp_path: Path) -> None:
    c = cell("cg")
    cells.write(c.file(tmp_path), cells.row(c, "failed", "no room", failure="oom"))
    frame = load(tmp_path)
    assert throughput_memory.draw(frame) is memory_size.draw(frame) is memory_split.draw(frame) is None
    assert line(text_of(tmp_path), "cg", "10", "1")[3] == "oom"


def test_figures_whose_points_share_their_unroll_say_which(tmp_path: Path) -> None:
    for name, ratio, memory in (("sama", 0.8, 1.4), ("neumann", 0.4, 2.5)):
        cells.write(cell(name, unroll=7).file(tmp_path), row(cell(name, unroll=7), ratio, memory))
    for module in (throughput_memory, memory_split):
        figure = module.draw(load(tmp_path))
        assert figure is not None
        assert figure.get_suptitle().endswith("; unroll 7")
        words = " ".join(t.get_text() for t in figure.findobj(Text))
        assert "u1, u2" not in words, "explains labels that are not there"
    cells.write(cell("sama").file(tmp_path), row(cell("sama"), 0.8, 1.4))
    figure = throughput_memory.draw(load(tmp_path))
    assert figure is not None
    assert not figure.get_suptitle().endswith("; unroll 7")
    assert "u1, u2" in " ".join(t.get_text() for t in figure.findobj(Text))


def test_rows_that_were_timed_on_a_busy_machine_are_told_of(tmp_path: Path) -> None:
    for name, busy in (("sama", True), ("neumann", False), ("cg", None)):
        content = row(cell(name), 0.5, 2.0)
        content["environment"]["busy"] = busy
        cells.write(cell(name).file(tmp_path), content)
    assert "1 of 3 rows: the machine was busy" in text_of(tmp_path)


def test_an_idle_machine_is_not_told_of(folder: Path) -> None:
    assert "busy" not in text_of(folder)


def test_rows_whose_intervals_are_wider_than_asked_are_told_of(tmp_path: Path) -> None:
    for name, reached in (("sama", False), ("neumann", True)):
        content = row(cell(name), 0.5, 2.0)
        content["throughput"]["reached"] = reached
        cells.write(cell(name).file(tmp_path), content)
    assert "1 of 2 rows: the time ran out" in text_of(tmp_path)


@pytest.mark.parametrize(("rounds", "words"), [(1, "(1 round)"), (5, "(5 rounds)")])
def test_too_few_rounds_for_an_interval(tmp_path: Path, rounds: int, words: str) -> None:
    content = row(cell("sama"), 0.5, 2.0)
    content["throughput"] |= {"samples": rounds, "ratio_low": None, "ratio_high": None}
    cells.write(cell("sama").file(tmp_path), content)
    assert words in text_of(tmp_path)
