"""Reading results: files of every age that are real ones, damaged and foreign ones, several folders."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import figures, load, report, schema, tables
from analysis.columns import COLUMNS, markdown
from benchmarks import cells
from benchmarks.cells import Cell

ROOT = Path(__file__).resolve().parent.parent
OLD = ROOT / "tests" / "old_results"
"""Folders named for the commits whose command line wrote them; nothing in them was changed since."""

FIRST = "48e32c8/cells/52d4627817d2accf.json"


def test_files_of_every_age_are_read(tmp_path: Path) -> None:
    files = [file for file in OLD.rglob("*.json") if file.parent.name == "cells"]
    frame = load(OLD, newest=False)
    assert frame.attrs["skipped"] == {}
    assert sorted(frame["file"]) == sorted(file.relative_to(OLD).as_posix() for file in files)
    assert set(frame["run"]) == {"old_results"}
    assert set(frame["kind"]) == {"point", "path", "meta", "peers", "advice"}
    assert set(frame["status"]) == {"ok", "failed", "refused"}
    assert {json.loads(f.read_text())["schema"] for f in files} == set(schema.MIGRATIONS)  # a real file of each
    first = frame.set_index("file").loc[FIRST]
    content = json.loads((OLD / FIRST).read_text())
    assert first["relative_error"] == content["accuracy"]["relative_error"]
    assert first["built"] == content["config"]["built"]
    tables.save(load(OLD), tmp_path / "table.txt")
    assert "RuntimeError: this estimator is broken" in (tmp_path / "table.txt").read_text()
    assert figures.draw("figure5", load(OLD)) is not None


def test_what_the_first_files_lack_is_what_it_was_then() -> None:
    frame = load(OLD / "48e32c8").set_index("name")
    lacking = json.loads((OLD / FIRST).read_text())
    assert not {"device", "workers", "fields"} & lacking["config"].keys() and "failure" not in lacking
    assert (frame["device_asked"] == "cpu").all() and (frame["workers"] == 1).all() and (frame["fields"] == "").all()
    assert frame["clock"].isna().all()  # it changed while files did not say it
    assert frame.loc["broken", "failure"] == "error"
    assert frame.loc["killer", "failure"] == "crash"
    assert pd.isna(frame.loc["composed", "failure"])
    assert frame.loc["composed", "control"] == False  # noqa: E712 (a numpy one)


def test_an_old_result_and_a_new_one_of_the_same_cell_are_one(tmp_path: Path) -> None:
    shutil.copytree(OLD / "48e32c8", tmp_path / "run")
    cell = Cell(estimator="cg", problem="biased_regression", settings={"cond": 10.0})
    new = cells.row(cell, "ok", accuracy={"relative_error": 0.5}, finished="2027-01-01T00:00:00Z")
    cells.write(cell.file(tmp_path / "run"), new)
    rows = load(tmp_path / "run")
    rows = rows[(rows["name"] == "cg") & (rows["kind"] == "point")]
    assert list(rows["relative_error"]) == [0.5]
    both = load(tmp_path / "run", newest=False)
    assert len(both) == len(load(tmp_path / "run")) + 1


def test_versions_have_what_leads_to_the_newest() -> None:
    assert schema.CURRENT == cells.SCHEMA
    assert set(schema.MIGRATIONS) == set(range(1, schema.CURRENT))
    now = cells.row(Cell(estimator="cg", problem="p"), "ok")
    assert schema.upgraded(now) == now


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("timeout: killed after 600 s", "timeout"),
        ("the process was killed by SIGKILL (out of memory?)", "crash"),  # nobody knows
        ("the process ended with exit code 1: MemoryError: no room", "oom"),
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
            "oom",
        ),
        ("NonFiniteError: the estimate is NaN or infinite (diverged)", "nan"),
        ("ValueError: out of range", "error"),
        (None, "error"),
    ],
)
def test_a_failure_without_a_word_gets_one(reason: str | None, word: str) -> None:
    assert schema.failure_word(reason) == word


def whole() -> dict[str, Any]:
    return json.loads((OLD / "c99cbc6/cells/eced39dd6c12783f.json").read_text())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no JSON at line 1"),
        (b'{"schema": 1, "id"', "no JSON at line 1, column 19"),
        (b"\xff\xfe\x00binary", "damaged: no text"),
        (b"[" * 100_000, "nested too deeply"),
        (b"null", "it holds nothing"),
        (b"[1, 2]", "it holds a list"),
        (b'{"name": "package", "version": "1.0"}', "it has no schema"),
        (b'{"$schema": "http://json-schema.org", "schema": "draft"}', "its schema is 'draft'"),
        (b'{"schema": true}', "its schema is True"),
        (b'{"schema": 99}', "written by a newer hypergradbench: schema 99, and this one knows 1 to 2"),
        (b'{"schema": 1}', "it has no config"),
        (b'{"schema": 1, "config": {"estimator": "cg"}}', "it has no id, status, kind, problem, seed, dtype"),
    ],
)
def test_what_is_no_result_is_named_with_the_reason(tmp_path: Path, content: bytes, why: str) -> None:
    shutil.copytree(OLD / "c99cbc6", tmp_path / "run")
    (tmp_path / "run" / "cells" / "other.json").write_bytes(content)
    frame = load(tmp_path / "run")
    assert len(frame) == 1
    assert list(frame.attrs["skipped"]) == ["run/cells/other.json"]
    assert why in frame.attrs["skipped"]["run/cells/other.json"]


def test_what_cannot_be_read_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.json").mkdir()
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**27)
    frame = load(tmp_path)
    assert frame.empty and list(frame.columns) == [c.name for c in COLUMNS]
    skipped = {place.rpartition("/")[2]: why for place, why in frame.attrs["skipped"].items()}
    assert skipped == {
        "gone.json": "cannot be read: No such file or directory", "large.json": "no result file: it has 134217728 bytes",
    }  # fmt: skip


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def test_no_wrong_value_anywhere_is_fatal(tmp_path: Path) -> None:
    """Each place of a real file in turn holds something else: it is read or named, and the file beside it is read."""
    places = [p for p in leaves(whole()) if p]
    assert len(places) > 100
    for i, place in enumerate(places):
        for j, wrong in enumerate((None, "text", 10**30, 1.5, True, [[]], {"a": {}})):
            content = copy.deepcopy(whole())
            inside = content
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = wrong
            (tmp_path / f"{i}-{j}.json").write_text(json.dumps(content))
    count = len(list(tmp_path.iterdir()))
    frame = load(tmp_path, newest=False)
    assert len(frame) + len(frame.attrs["skipped"]) == count
    assert len(frame) > 100 and len(frame.attrs["skipped"]) > 100
    assert all(frame.attrs["skipped"].values())
    for column in COLUMNS:
        if column.kind in ("number", "count"):
            assert pd.api.types.is_numeric_dtype(frame[column.name]) or frame[column.name].isna().all(), column.name
    tables.save(load(tmp_path), tmp_path / "out" / "table.txt")


def test_a_wrong_kind_is_said_with_its_place(tmp_path: Path) -> None:
    content = whole()
    content["accuracy"]["cosine"] = "high"
    (tmp_path / "a.json").write_text(json.dumps(content))
    (why,) = load(tmp_path).attrs["skipped"].values()
    assert why == "damaged: accuracy.cosine is 'high', where a number belongs"


def test_settings_belong_to_the_problem(tmp_path: Path) -> None:
    cell = Cell(estimator="cg", problem="mine.py:make", settings={"cond": "bad", "size": 5, "unroll": "all"})
    cells.write(cell.file(tmp_path), cells.row(cell, "ok"))
    (row,) = load(tmp_path).to_dict("records")
    assert row["case"] == "mine.py:make (cond=bad, size=5, unroll=all)"
    assert pd.isna(row["cond"]) and pd.isna(row["size"]) and pd.isna(row["unroll"])


def written(folder: Path, *estimators: str, error: float = 0.1, day: int = 1, **more: Any) -> Path:
    for name in estimators:
        cell = Cell(estimator=name, **({"problem": "p"} | more))
        row = cells.row(cell, "ok", accuracy={"relative_error": error}, finished=f"2026-01-0{day}T00:00:00Z")
        cells.write(cell.file(folder), row)
    return folder


def test_several_folders_are_kept_apart_and_named(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a" / "results", "cg", "sama"), written(tmp_path / "b" / "results", "cg", error=0.2)
    frame = load([two, str(one), two / ".." / "results"])
    assert frame.attrs["folders"] == {"b/results": str(two), "a/results": str(one)}
    assert list(frame[["run", "estimator"]].itertuples(index=False, name=None)) == [
        ("b/results", "cg"), ("a/results", "cg"), ("a/results", "sama"),
    ]  # fmt: skip
    for _, row in frame.iterrows():
        content = json.loads((Path(frame.attrs["folders"][row["run"]]) / row["file"]).read_text())
        assert content["id"] == row["id"]
        assert content["accuracy"]["relative_error"] == row["relative_error"]
    assert list(load([one]).attrs["folders"]) == ["results"]
    assert len(load(tmp_path)) == 2  # the folder that holds both is one run: the newest of each


def test_an_edited_problem_of_the_users_own_leaves_its_older_results_behind(tmp_path: Path) -> None:
    mine = "mine.py:make"
    written(tmp_path / "run", "cg", "sama", problem=mine, meta={"version": "old"})
    written(tmp_path / "run", "unroll")  # of a registered one
    assert sorted(load(tmp_path / "run")["name"]) == ["cg", "sama", "unroll"]
    written(tmp_path / "run", "cg", problem=mine, meta={"version": "new"}, day=2)
    assert sorted(load(tmp_path / "run")["name"]) == ["cg", "unroll"]
    assert len(load(tmp_path / "run", newest=False)) == 4


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("{}")
    for wrong, why in (
        (tmp_path / "no", "there is no folder"),
        (tmp_path / "file.json", "is a file: give the folder"),
        ([], "no folder"),
    ):
        with pytest.raises(FileNotFoundError, match=why):
            load(wrong)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load([tmp_path, tmp_path / "no"])


def test_results_of_studies_are_left_to_them(tmp_path: Path) -> None:
    (tmp_path / "horizon.json").write_text('{"schema": 1, "study": "horizon", "rows": []}')
    frame = load(tmp_path)
    assert frame.attrs["studies"] == [f"{tmp_path.name}/horizon.json"]
    assert frame.attrs["skipped"] == {}


def test_the_page_of_the_format_has_every_column() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert markdown() in page, "paste there: python -c 'from analysis.columns import markdown; print(markdown())'"
    assert len({c.name for c in COLUMNS}) == len(COLUMNS)


def test_the_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(OLD, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "results.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    exec(compile(block, "results.md", "exec"), {})
    said = capsys.readouterr().out
    assert "biased_regression (cond=10)" in said and said.endswith("{}\n")


def test_paths_of_two_learning_rates_are_two_results(tmp_path: Path) -> None:
    for rate in (0.1, 0.01):
        written(tmp_path, "cg", kind="path", meta={"steps": 3, "lr": rate})
    assert sorted(load(tmp_path)["meta_lr"]) == [0.01, 0.1]


def of_kind(kind: str) -> dict[str, Any]:
    files = (json.loads(file.read_text()) for file in sorted(OLD.rglob("cells/*.json")))
    return next(c for c in files if c["config"]["kind"] == kind and c["status"] == "ok")


@pytest.mark.parametrize(
    ("kind", "place", "wrong", "why"),
    [
        ("meta", "memory", None, None),
        ("meta", "memory.split", {}, None),
        ("meta", "memory.split", {"graph": None}, "memory_split holds what is no number"),
        ("meta", "config.workers", None, "it has no workers"),
        ("peers", "config.meta", {}, "it has no method, products_or_steps"),
        ("peers", "config.meta.steps", None, "it has no products_or_steps"),
        ("peers", "config.meta.method", "of the future", None),
        ("point", "pullbacks", [], None),
        ("point", "config.device", None, "it has no device_asked"),
    ],
)
def test_what_a_kind_lacks_is_named_or_left_blank(
    tmp_path: Path, kind: str, place: str, wrong: object, why: str | None
) -> None:
    """One such file must not cost the others their tables and their page."""
    content = inside = of_kind(kind)
    *path, last = place.split(".")
    for key in path:
        inside = inside[key]
    inside[last] = wrong
    (tmp_path / "a.json").write_text(json.dumps(content))
    frame = load(tmp_path)
    if why is not None:
        assert why in frame.attrs["skipped"][f"{tmp_path.name}/a.json"]
        return
    assert len(frame) == 1
    tables.save(frame, tmp_path / "table.txt")
    assert "could not be drawn" not in report.write([tmp_path], tmp_path / "report.html").read_text()


def test_a_column_that_a_table_lacks_is_not_explained_below_it(tmp_path: Path) -> None:
    tables.save(load(written(tmp_path, "cg")), tmp_path / "table.txt")
    text = (tmp_path / "table.txt").read_text()
    assert "relative error: to the truth" in text
    assert "error bound" not in text
