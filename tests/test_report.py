"""The report page: what it says of made-up results, where each number leads, and that nothing from a file becomes markup."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import figures
from analysis.report import sections, write
from analysis.report.grid import csv
from analysis.report.svg import DARK_PAPER, contrast, inline, on_dark
from analysis.style import LOOKS
from benchmarks import cells, cli
from benchmarks.cells import Cell

EVIL = '"><img src=x onerror=window.pwned=1></script><script>window.pwned=1</script>&amp;{{ 7*7 }}'
"""What would be markup, were it not escaped."""

ONE = {"error_cost": figures.FIGURES["error_cost"]}

COSTS = {"dense": (1e-12, 20.0, 5000), "cg": (1e-9, 30.0, 900), "sama": (0.3, 5.0, 300), "random": (1.4, 1.0, 100)}
"""estimator -> direction error, gradients, bytes."""


def point(
    name: str, seed: int, *, problem: str = "ridge", error: float, ratio: float, peak: int, **more: Any
) -> tuple[Cell, dict[str, Any]]:
    """A cell whose figures scatter a little over seeds, by a few percent and differently for each estimator."""
    cell = Cell(estimator=name, problem=problem, settings={"cond": 10.0}, seed=seed)
    jitter = 1 + 0.01 * seed * (1 + len(name) / 10)
    angle = 2 * error * jitter * 90 / 3.141592653589793
    content = {
        "claim": {"of": "something", "citation": "someone", "target": "run", "exact": True, "bias": "", "scale": "true", "control": name == "random"},
        "truth": "closed form",
        "accuracy": {"cosine": 1 - error**2 / 2, "relative_error": error * jitter, "direction_error": error, "angle": angle, "norm_ratio": 1.0},
        "cost": {
            "seconds": ratio * 1e-4 * jitter, "gradient_seconds": 1e-4, "time_ratio": ratio * jitter, "peak_bytes": peak, "peak_ratio": peak / 100,
            "gradient_peak_bytes": 100, "kept_bytes": 0, "kept_ratio": 0.0, "gradients": 1, "products": 3, "matvecs": 2,
        },
        "size": {"params": 10, "hparams": 10},
        "pullbacks": [{"outcome": "CONVERGED", "text": "fine", "residual": 1e-12, "curvature": 0.5, "products": 3}],
        "environment": {"jobs": 1, "cpu": "Some CPU", "settings": {"OMP_NUM_THREADS": "1"}, "busy": False, "load_average": [seed, 1, 1]},
        "finished": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return cell, cells.row(cell, "ok", **(content | more))


def save(folder: Path, cell: Cell, content: dict[str, Any]) -> Path:
    cells.write(cell.file(folder), content)
    return cell.file(folder)


def results(folder: Path, seeds: int = 7) -> Path:
    for name, (error, ratio, peak) in COSTS.items():
        for seed in range(seeds):
            save(folder, *point(name, seed, error=error, ratio=ratio, peak=peak))
    failed = Cell(estimator="neumann", problem="ridge", settings={"cond": 10.0})
    save(folder, failed, cells.row(failed, "failed", "RuntimeError: out of luck", failure="error"))
    refused = Cell(estimator="composed", problem="ridge", settings={"cond": 10.0})
    save(folder, refused, cells.row(refused, "refused", "needs two stages"))
    return folder


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.data: dict[str, str] = {}
        self._within = ""
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self._within = (found.get("id") or tag) if tag in ("script", "style") else ""
        if found.get("id"):
            self.ids.append(str(found["id"]))
        for key, value in attrs:
            if key in ("href", "xlink:href") and tag in ("a", "use"):
                self.links.append(str(value))
            elif key in ("src", "href", "srcset", "action", "poster", "data") or key.startswith("on"):
                self.loads.append(f"{tag} {key}={value}")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within:
            self.data[self._within] = self.data.get(self._within, "") + data
        else:
            self.words.append(data)

    @property
    def pack(self) -> dict[str, str]:
        """What can be saved or opened."""
        return json.loads(gzip.decompress(base64.b64decode(self.data["pack"])))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time."""
    monkeypatch.setattr(figures, "FIGURES", {})


quick = pytest.mark.usefixtures("no_figures")


def page(*folders: Path, out: Path) -> Page:
    return Page(write(folders, out).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = results(tmp_path_factory.mktemp("report") / "mine")
    return page(folder, out=folder / "report.html")


def test_the_summary_names_the_winners_with_intervals_and_tests(made: Page) -> None:
    assert "Most accurate: dense , cg ; their directions are right to 1e-09 or better" in made.text
    # seven seeds: 2 / 2^7 = 0.016, and twice that for two comparisons
    assert re.search(
        r"Of these the fastest is dense , 21 \[20, 21\] gradients; cg takes 1\.\d\d \[1\.\d\d, 1\.\d\d\] times as long \(p = 0\.031, 7 seeds\)\.",
        made.text,
    )
    assert (
        "Of these the lightest is cg , 9 times the memory of a gradient; dense needs 5.56 times as much (p = 0.031, 7 seeds)."
        in made.text
    )
    assert re.search(
        r"Fastest of all is sama , 5\.2 \[5(\.\d)?, 5\.\d\] gradients, but with direction error 0\.31 \[0\.\d+, 0\.\d+\]",
        made.text,
    )
    assert "2 comparisons, corrected together (Holm). So many can show a difference from 7 seeds on." in made.text
    assert "Not enough seeds" not in made.text


def test_a_control_wins_nothing(made: Page) -> None:
    assert "random" in made.text
    assert not re.search(r"(fastest|lightest|accurate)[^.]* random", made.text, re.I)


@quick
def test_few_seeds_are_said_to_be_not_enough(tmp_path: Path) -> None:
    text = page(results(tmp_path / "mine", seeds=3), out=tmp_path / "report.html").text
    assert "Not enough seeds: with 3 no paired test can tell two estimators apart; it takes 6, and more" in text
    assert re.search(
        r"cg takes 1\.\d\d \[1\.\d\d, 1\.\d\d\] times as long \(not enough seeds to tell them apart\)", text
    )
    assert "p = " not in text


@quick
def test_correction_may_ask_for_more_seeds(tmp_path: Path) -> None:
    text = page(results(tmp_path / "mine", seeds=6), out=tmp_path / "report.html").text
    assert "(p = 0.031, 0.062 when corrected: not enough seeds for so many comparisons)" in text


def test_failures_are_listed_with_their_reasons(made: Page) -> None:
    assert "28 succeeded, 1 failed, 1 does not apply." in made.text
    assert "RuntimeError: out of luck" in made.text
    assert "needs two stages" in made.text


def test_every_link_leads_to_one_place_on_the_page(made: Page) -> None:
    assert len(made.ids) == len(set(made.ids))
    assert [link for link in made.links if not link.startswith("#") or link[1:] not in made.ids] == []


def test_the_page_loads_nothing(made: Page) -> None:
    assert made.loads == []
    assert {"img", "iframe", "link", "object", "embed", "base", "form"} & set(made.tags) == set()
    assert "url(http" not in made.data["style"] and "@import" not in made.data["style"]


@quick
def test_each_number_can_be_traced_to_its_file(tmp_path: Path) -> None:
    folder = results(tmp_path / "mine")
    made = page(folder, out=tmp_path / "report.html")
    files = {f"r0/{f.relative_to(folder).as_posix()}": f.read_text() for f in folder.rglob("*.json")}
    assert {k: v for k, v in made.pack.items() if k.endswith(".json")} == files
    lines = pd.read_csv(io.StringIO(made.pack["r0-points.csv"])).set_index("estimator")
    for name in COSTS:
        sources = lines.loc[name, "sources"].split()
        stored = [json.loads(files[f"r0/cells/{source}.json"])["cost"]["time_ratio"] for source in sources]
        assert len(stored) == 7
        assert min(stored) <= lines.loc[name, "time_ratio_low"] <= lines.loc[name, "time_ratio"] <= max(stored)
    for source in lines.loc["cg", "sources"].split():
        assert source in made.text


def test_every_table_and_figure_has_its_data(made: Page, tmp_path: Path) -> None:
    names = {k for k in made.pack if k.endswith(".csv")}
    assert {"r0-points.csv", "r0-failures.csv", "r0-files.csv", "r0-all-columns.csv"} <= names
    drawn = {i.removeprefix("r0-figure-") for i in made.ids if i.startswith("r0-figure-")}
    assert "error_cost" in drawn
    for name in drawn:
        data = pd.read_csv(io.StringIO(made.pack[f"r0-{name}.csv"]))
        assert len(data)
        assert set(data["id"]) <= set(pd.read_csv(io.StringIO(made.pack["r0-all-columns.csv"]))["id"])


def test_the_same_results_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", ONE)
    folder = results(tmp_path / "mine", seeds=2)
    one, two = (write([folder], tmp_path / name).read_bytes() for name in ("one.html", "two.html"))
    assert one == two


@quick
def test_nothing_from_a_file_becomes_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = page(results(tmp_path / "plain" / "run"), out=tmp_path / "plain.html")
    folder = results(tmp_path / "evil" / "run")
    (folder / "cells" / "not json <b>.json").write_text(EVIL)
    for seed in range(2):
        environment = {"jobs": 1, "cpu": EVIL, EVIL: EVIL}
        pullbacks = [{"outcome": EVIL, "text": EVIL, "residual": None, "curvature": None, "products": 3}]
        cell, content = point(
            EVIL,
            seed,
            problem=EVIL,
            error=0.1,
            ratio=2.0,
            peak=100,
            truth=EVIL,
            environment=environment,
            pullbacks=pullbacks,
        )
        save(folder, cell, content)
    failed = Cell(estimator=EVIL, problem="ridge", settings={EVIL: EVIL})
    save(folder, failed, cells.row(failed, "failed", EVIL, failure="error"))
    study = {
        "schema": 1, "study": EVIL, "about": EVIL, "citation": EVIL, "status": "ok", "reason": None, "settings": {EVIL: EVIL}, "defaults": True,
        "rows": [{EVIL: EVIL}], "claims": [{"text": EVIL, "measured": EVIL, "holds": False}], "environment": {"cpu": EVIL}, "seconds": 1.0,
        "finished": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    (folder / "evil.json").write_text(json.dumps(study))
    monkeypatch.setattr(figures, "FIGURES", ONE)
    evil = page(folder, out=tmp_path / "evil.html")
    assert evil.text.count(EVIL) > 10
    assert {"img", "b"}.isdisjoint(evil.tags)
    assert evil.tags.count("script") == plain.tags.count("script") == 2
    assert evil.data["script"] == plain.data["script"]
    assert evil.loads == []
    assert len(evil.ids) == len(set(evil.ids))


@quick
def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = results(tmp_path / "mine")
    (folder / "cells" / "cut.json").write_text('{"schema": 1, "id"')
    text = page(folder, out=tmp_path / "report.html").text
    assert "1 files could not be read" in text or "1 file could not be read" in text
    assert "cells/cut.json: damaged" in text


@quick
def test_what_a_sweep_asked_for_and_is_not_there_is_said(tmp_path: Path) -> None:
    folder = results(tmp_path / "mine", seeds=1)
    (folder / "sweeps").mkdir()
    there = [file.stem for file in folder.rglob("cells/*.json")]
    asked = {"command": ["sweep", "mine.toml"], "ids": [*there, "another"], "began": "2026", "grid": {"kind": "point"}}
    (folder / "sweeps" / "mine-1.json").write_text(json.dumps(asked))
    text = page(folder, out=tmp_path / "report.html").text
    assert "1 result that a sweep asked for is not there (yet)." in text
    assert "Asked for by sweep mine.toml" in text


@quick
def test_a_claim_that_does_not_hold_is_in_the_summary(tmp_path: Path) -> None:
    claims = [
        {"text": "pigs fly", "measured": "0 of 3", "holds": False},
        {"text": "water is wet", "measured": "yes", "holds": True},
    ]
    study = {
        "schema": 1, "study": "animals", "about": "Animals", "citation": "folk", "status": "ok", "reason": None, "settings": {}, "defaults": True,
        "rows": [{"pig": 1.5}], "claims": claims, "environment": {"cpu": "Some CPU"}, "seconds": 1.0, "finished": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    (tmp_path / "animals.json").write_text(json.dumps(study))
    made = page(tmp_path, out=tmp_path / "report.html")
    assert "1 of 2 claims hold, in 1 study." in made.text
    assert "animals : does not hold: pigs fly (0 of 3)." in made.text
    assert made.pack["r0/animals.json"] == (tmp_path / "animals.json").read_text()


@quick
def test_runs_are_told_apart(tmp_path: Path) -> None:
    one, two = results(tmp_path / "one", seeds=2), results(tmp_path / "two", seeds=2)
    made = page(one, two, out=tmp_path / "report.html")
    assert len(made.ids) == len(set(made.ids))
    assert {"r0-points", "r1-points"} <= set(made.ids)
    assert made.text.count("Most accurate: dense") == 2


def test_a_figure_that_cannot_be_drawn_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(frame: pd.DataFrame) -> Figure:
        raise ValueError("no <such> axis")

    good = ONE["error_cost"]
    monkeypatch.setattr(figures, "FIGURES", {"broken": good._replace(draw=broken), "error_cost": good})
    text = page(results(tmp_path / "mine", seeds=2), out=tmp_path / "report.html").text
    assert "This figure could not be drawn: ValueError: no <such> axis" in text
    assert "error_cost." in text


@quick
def test_a_section_that_cannot_be_made_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: object, prefix: str) -> Any:
        raise TypeError("odd <result>")

    monkeypatch.setitem(sections.SECTIONS, "paths", broken)
    text = page(results(tmp_path / "mine", seeds=2), out=tmp_path / "report.html").text
    assert "The section on paths could not be made: TypeError: odd <result>" in text
    assert "Most accurate: dense" in text


@quick
def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    results(tmp_path, seeds=1)
    study = {"schema": 1, "study": "animals", "status": "ok", "rows": [{"pig": 1}], "claims": [{"text": "pigs fly"}]}
    (tmp_path / "animals.json").write_text(json.dumps(study))
    text = page(tmp_path, out=tmp_path / "report.html").text
    assert "animals.json: animals.json is damaged or no study's result (KeyError: 'about')" in text


def test_inlined_figures_share_no_id_and_keep_their_references() -> None:
    figure = Figure()
    figure.subplots().plot([1, 2], color="#123456", gid="curve")
    (one, colors), (two, _) = inline(figure, "one", "a"), inline(figure, "two", "b")
    ids = [set(re.findall(r'\bid="([^"]*)"', text)) for text in (one, two)]
    assert ids[0] and ids[0].isdisjoint(ids[1])
    assert "one-curve" in ids[0]
    for text, own in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]*)', text)) <= own
        assert "<style" not in text and "<metadata" not in text
    assert {"123456", "ffffff", "000000"} <= colors
    assert "var(--c-123456)" in one and "#123456" not in one


def test_a_map_of_colours_keeps_them() -> None:
    figure = Figure()
    figure.subplots().imshow([[0.0, 1.0]])
    text, colors = inline(figure, "map", "a map")
    assert colors == set() and "var(" not in text


@pytest.mark.parametrize("color", ["000000", "004d80", "332288", "7a3b00", "0072b2", "999999", "ffffff"])
def test_colours_can_be_seen_on_dark_paper(color: str) -> None:
    dark = on_dark(color)
    rgb = tuple(float(int(dark[i : i + 2], 16)) for i in (0, 2, 4))
    if color == "ffffff":
        assert rgb == DARK_PAPER
    else:
        assert contrast(rgb, DARK_PAPER) >= 3


def test_estimators_keep_colours_of_their_own_on_dark_paper() -> None:
    colors = {style.color[1:].lower() for style in LOOKS.values()}
    dark = {on_dark(color) for color in colors}
    assert len(dark) == len(colors)
    far = [
        sum(abs(int(a[i : i + 2], 16) - int(b[i : i + 2], 16)) for i in (0, 2, 4)) for a in dark for b in dark if a < b
    ]
    assert min(far) > 15


def test_a_csv_holds_no_formula() -> None:
    text = csv(pd.DataFrame({"name": ["=cmd()", "@x", "fine"], "value": [-1.5, 0.1 + 0.2, 3.0]}))
    assert text == "name,value\n'=cmd(),-1.5\n'@x,0.30000000000000004\nfine,3.0\n"


@quick
def test_the_command_writes_the_page_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results(tmp_path / "mine", seeds=1)
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert cli.main(["report", str(folder), "--out", str(tmp_path)]) == 2
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty")]) == 1
    errors = capsys.readouterr().err
    for said in ("there is no folder", "is a folder: name a file", "no results in"):
        assert said in errors
