"""`hypergradbench table`: every form says the same, nothing in a result file can break one, and the paper's layouts add up."""

# ruff: noqa: F811 (a fixture from another file)

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from analysis import document, load, published
from analysis.layouts import LAYOUTS, table2, table8
from analysis.report import paper
from analysis.sheet import Head, Line, Sheet, latex, markdown, tex
from analysis.tables import by_run, of_runs
from benchmarks import cells
from benchmarks.cells import Cell
from benchmarks.cli import main

from .test_analysis_meta import cell, folder, row  # noqa: F401 (a fixture)

OLD = Path(__file__).resolve().parent / "old_results"

HOSTILE = "a|b & c_d 5% $x$ #1 {y} ~ ^ \\end{table} <script>alert(1)</script> `code` [link](x) *b* \x1b[31m\nnext"


def hostile(path: Path) -> Path:
    """A run whose estimator and failure are named so that they would break a table if they were taken for commands."""
    broken = Cell(estimator=HOSTILE, problem="p")
    cells.write(broken.file(path), cells.row(broken, "failed", HOSTILE, "error"))
    return path


def of_markdown(text: str) -> list[list[str]]:
    """Cells of every table's every line."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[re.sub(r"\\(.)", r"\1", c.strip()) for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows]


def test_markdown_has_the_cells_of_the_terminal(folder: Path) -> None:
    frame = load(folder)
    text = document.markdown(frame)
    for _, sections in of_runs(frame):
        for section in sections:
            for sheet in section.sheets:
                assert [h.text for h in sheet.heads] in of_markdown(text)
                for line in sheet.lines:
                    assert [" ".join(c.split()) for c in line.cells] in of_markdown(text)
    assert "needs two stages" in text  # reasons, too


def test_nothing_in_a_file_breaks_markdown(tmp_path: Path) -> None:
    text = document.markdown(load(hostile(tmp_path)))
    rows = of_markdown(text)
    assert len({len(cells) for cells in rows}) == 1
    assert "<script" not in text and "\x1b" not in text
    assert "\\`code\\`" in text and "\\*b\\*" in text


def test_nothing_in_a_file_breaks_latex(tmp_path: Path) -> None:
    text = document.latex(load(hostile(tmp_path)))
    assert text.count(r"\end{table}") == text.count(r"\begin{table}") == 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2
    assert len({len(re.split(r"(?<!\\)&", line)) for line in rows}) == 1
    assert "\x1b" not in text and r"\textbackslash{}end\{table\}" in text


def test_latex_is_in_the_manner_of_booktabs() -> None:
    sheet = Sheet(
        title="a_b\nc", heads=[Head("who", words=True), Head("/ plain")], lines=[Line(["me", "[-1..2]"])], caption="×2."
    )
    assert latex(sheet).splitlines() == [
        r"\begin{table}", r"\centering", r"\caption{a\_b; c. $\times$2.}", r"\begin{tabular}{lr}", r"\toprule",
        r"who & / plain \\", r"\midrule", r"me & {[}$-$1..2] \\", r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    assert tex("--time 1e-3") == "-{}-time 1e-3"
    assert markdown(sheet).splitlines()[2:5] == ["| who | / plain |", "|---|---:|", "| me | \\[-1..2\\] |"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(folder: Path, tmp_path: Path) -> None:
    frame = load([folder, OLD, hostile(tmp_path / "hostile")])
    body = "\n".join([document.latex(frame), document.latex(load(folder), "table8")])
    head = r"\documentclass{article}\usepackage{booktabs,graphicx,textcomp}\begin{document}"
    (tmp_path / "t.tex").write_text("\n".join([head, body, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_csv_holds_every_number_unrounded(tmp_path: Path) -> None:
    frame = load([OLD, hostile(tmp_path)], newest=False)
    read = pd.read_csv(io.StringIO(document.csv(frame)), dtype=str)
    assert list(read.columns) == list(frame.columns)
    for name in ("relative_error", "seconds", "meta_peak", "seed"):
        assert [float(x) for x in read[name].dropna()] == list(frame[name].dropna()), name
    assert list(read["reason"].dropna()) == list(frame["reason"].dropna())
    assert read["path_cosine"].dropna().str.startswith("[0.9").all()


def test_runs_are_shown_one_after_another(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("somewhere") / "other"
    one = cell("sama")
    cells.write(one.file(other), row(one, 0.5, 2.0))
    frame = load([other, folder])
    assert [run for run, _ in by_run(frame)] == [run for run, _ in of_runs(frame)] == list(frame.attrs["folders"])
    text = document.markdown(frame)
    assert "## other" in text
    assert "| 0.5 \\[0.45, 0.55\\] |" in text and "| 0.8 \\[0.72, 0.88\\] |" in text  # not their median
    assert document.csv(frame, "table8")[:6] == "method"
    assert set(pd.read_csv(io.StringIO(document.csv(frame, "table8")))["run"]) == set(frame.attrs["folders"])


# The paper's layouts.


def test_table_8_is_relative_to_plain_training_on_one_worker(folder: Path) -> None:
    (sheet,) = table8(load(folder))
    assert sheet.data is not None
    data = sheet.data.set_index("method")
    assert list(data.index) == list(published.NAMES.values())  # every row of the paper's, run or not
    sama = data.loc["SAMA"]
    assert (sama["throughput_ratio"], sama["memory_ratio"]) == pytest.approx((0.8, 1.4), rel=1e-6)
    assert sama["throughput_paper"] == 134.56 / 169.16
    assert sama["memory_difference"] == pytest.approx(1.4 - 11.12 / 7.77, rel=1e-6)
    # 400 samples a second are plain training's on one worker, and 280 ours on two
    assert data.loc["SAMA, 2 GPUs", "throughput_ratio"] == pytest.approx(0.7)
    assert data.loc["SAMA, 2 GPUs", "throughput_paper"] == pytest.approx(1.34, abs=0.005)
    assert dict(data["outcome"]) | {"conjugate gradient": "oom", "SAMA-NA": "not run"} == dict(data["outcome"])
    assert data.loc["DARTS", "outcome"] == "ok"  # t1t2 at unroll 1
    lines = {line.cells[0]: line.cells for line in sheet.lines}
    assert lines["SAMA"][2:] == [
        "o", "o", "x", "320", "0.8", "0.795", "+0.00 (+1%)", "1.4 GiB", "1.40", "1.43", "-0.03 (-2%)",
    ]  # fmt: skip
    assert lines["conjugate gradient"][5:] == ["oom", "", "0.385", "", "oom", "", "2.84", ""]
    assert lines["SAMA, 4 GPUs"][5] == "not run"
    assert "not the paper's model" not in sheet.caption


def test_without_a_run_on_one_worker_there_is_no_ratio(tmp_path: Path) -> None:
    two = cell("sama", workers=2)
    cells.write(two.file(tmp_path), row(two, 0.7, 1.1))
    (sheet,) = table8(load(tmp_path))
    lines = {line.cells[0]: line.cells for line in sheet.lines}
    assert lines["SAMA, 2 GPUs"][5:9] == ["280", "-", "1.34", "-"]
    assert table2(load(tmp_path)) == []  # relative to SAMA on one


def test_another_size_is_said_not_to_be_the_papers(tmp_path: Path) -> None:
    tiny = cell("sama", scale="tiny")
    cells.write(tiny.file(tmp_path), row(tiny, 0.7, 1.1))
    for layout in LAYOUTS.values():
        (sheet,) = layout(load(tmp_path))
        assert "Of size tiny, which is not the paper's model" in sheet.caption


def test_several_seeds_give_their_median(tmp_path: Path) -> None:
    for seed, ratio in enumerate((0.5, 0.6, 0.9)):
        one = cell("sama", seed=seed)
        cells.write(one.file(tmp_path), row(one, ratio, 2.0))
    (sheet,) = table8(load(tmp_path))
    assert sheet.data is not None
    assert sheet.data.set_index("method").loc["SAMA", ["throughput_ratio", "seeds"]].tolist() == pytest.approx([0.6, 3])
    assert sheet.title.endswith("medians over 3 seeds")


# The command.


FORMS = ("console", "markdown", "latex", "csv")


@pytest.mark.parametrize(
    ("form", "layout"), [*((f, "all") for f in FORMS), *(("console", n) for n in LAYOUTS), ("csv", "table8")]
)
def test_every_form_is_printed_and_written(
    folder: Path, tmp_path: Path, form: str, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["table", str(folder), "--format", form, "--layout", layout]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "new folder" / "t")]) == 0
    assert (tmp_path / "new folder" / "t").read_text() == printed
    assert "sama" in printed


def test_what_is_wrong_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (folder / "cells" / "cut.json").write_text("{")
    for words, status, said in (
        ([str(tmp_path / "no")], 2, "there is no folder"),
        ([], 2, "give a results folder"),
        ([str(tmp_path / "empty")], 1, "no results in"),
        (
            [str(OLD / "48e32c8"), "--layout", "table8"],
            1,
            "measure what does by `hypergradbench sweep benchmarks/sweeps/table8.toml`",
        ),
        ([str(folder), "--out", str(folder)], 2, "nothing can be written to"),
        ([str(folder)], 0, "cells/cut.json was left out: damaged: no JSON at line 1, column 2"),
    ):
        assert main(["table", *words]) == status, words
        assert said in capsys.readouterr().err


def test_lines_of_other_kernels_are_told_apart_and_have_sources_of_their_own(folder: Path) -> None:
    math = cell("sama", meta={"kernel": "math"})
    cells.write(math.file(folder), row(math, 0.5, 1.4))
    frame = load(folder)
    data = pd.concat([sheet.data for sheet in table8(frame)])
    assert data.dropna(subset="throughput").groupby("kernel").size().to_dict() == {"best": 5, "math": 1}
    (grid,) = (g for g in paper.grids(frame, "r0") if g.name == "r0-table8")
    sama = grid.frame[grid.frame["method"].eq("SAMA")]
    assert sorted(map(len, sama["sources"])) == [1, 1]
