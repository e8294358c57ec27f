"""The report page in a real browser: at a phone's width and a desk's, in light and dark, by mouse and by keyboard, without a network."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis import figures
from analysis.report import write
from benchmarks import cells
from benchmarks.cells import Cell

from .test_report import EVIL, point, results, save

OVERFLOWING = """
() => [...document.body.querySelectorAll("*")].filter(e => {
  const inside = e.closest(".scroll") ? e.closest(".scroll").getBoundingClientRect() : null;
  const box = inside ?? e.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1) && !e.closest(".skip");
}).map(e => e.outerHTML.slice(0, 120))
"""
"""What reaches beyond the window, but for what scrolls within a frame that does not."""

CONTRAST = """
() => {
  const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = c => rgb(c).map(x => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } return "rgb(255,255,255)"; };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  return Math.min(...[...document.querySelectorAll("p, li, td, th, a, button, small, figcaption, dt, dd, summary")].filter(e => e.offsetParent)
    .map(e => ratio(light(getComputedStyle(e).color), light(paper(e)))));
}
"""
"""The least contrast (WCAG 2) of text to what is behind it."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of results with failures, and with markup wherever a result file may have some."""
    folder = results(tmp_path_factory.mktemp("browser") / "mine", seeds=3)
    save(
        folder,
        *point(EVIL, 0, problem=EVIL, error=0.1, ratio=2.0, peak=100, truth=EVIL, environment={"jobs": 1, EVIL: EVIL}),
    )
    failed = Cell(estimator="a-name-that-is-" + 10 * "very-" + "long", problem="ridge", settings={"cond": 10.0})
    save(folder, failed, cells.row(failed, "failed", "RuntimeError: " + 60 * "word " + 300 * "x", failure="error"))
    two = tmp_path_factory.mktemp("browser") / "other"
    save(two, *point("cg", 0, error=0.1, ratio=2.0, peak=100))
    patch = pytest.MonkeyPatch()
    patch.setattr(figures, "FIGURES", {"error_cost": figures.FIGURES["error_cost"]})
    written = write([folder, two], folder / "report.html")
    patch.undo()
    return written


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nothing may have been asked of a network, and no error said."""
    said, asked, contexts = list[str](), list[str](), list[Any]()

    def start(**options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield start
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((file.as_uri(), "blob:"))] == []


def column(page: Any, place: int) -> list[str]:
    """What stands in a column of the first table, hidden lines left out."""
    return page.eval_on_selector_all(
        f"[data-grid='r0-points'] tbody tr:not([hidden]) td:nth-child({place})", "tds => tds.map(td => td.dataset.key)"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_opens_with_nothing_cut_and_can_be_read(opened: Callable[..., Any], width: int, scheme: str) -> None:
    page = opened(viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CONTRAST) >= 4.5
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}[scheme]
    drawn = page.evaluate("getComputedStyle(document.querySelector('.drawing svg path')).fill")
    assert drawn == paper


def test_nothing_from_a_file_has_run_or_become_an_element(opened: Callable[..., Any]) -> None:
    page = opened()
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0
    assert page.get_by_text(EVIL).count() > 3


def test_a_click_on_a_heading_sorts_numbers_as_numbers(opened: Callable[..., Any]) -> None:
    page = opened()
    heads = page.locator("[data-grid='r0-points'] th")
    place = next(i for i in range(heads.count()) if "time / gradient" in heads.nth(i).inner_text())
    for direction in ("ascending", "descending"):
        heads.nth(place).locator("button").click()
        assert heads.nth(place).get_attribute("aria-sort") == direction
        keys = column(page, place + 1)
        values = [float(k) for k in keys if k]
        assert len(values) == 5
        assert values == sorted(values, reverse=direction == "descending")
        assert keys[len(values) :] == [""] * (len(keys) - len(values))  # what is missing comes last
    assert page.locator("[data-grid='r0-points'] th[aria-sort]").count() == 1


def test_the_keyboard_sorts_filters_and_opens(opened: Callable[..., Any]) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("[data-filter='r0-points']").focus()
    page.keyboard.type("sama")
    assert column(page, 1) == ["sama"]
    while not page.evaluate("document.activeElement.closest('th')"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("[data-grid='r0-points'] th").first.get_attribute("aria-sort") == "ascending"
    page.locator("[data-grid='r0-files'] [data-open]").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    assert '"schema"' in page.inner_text("#source-text")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    # every frame that scrolls can be reached, and so scrolled, without a mouse
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)")


def test_filters_meet_and_are_taken_back(opened: Callable[..., Any]) -> None:
    page = opened()
    whole = len(column(page, 1))
    page.select_option("[data-facet='r0-points'] >> nth=0", "cg")
    assert column(page, 1) == ["cg"]
    page.fill("[data-filter='r0-points']", "nothing such")
    assert column(page, 1) == []
    assert page.inner_text("[data-count='r0-points']") == f"0 of {whole} lines"
    page.click("[data-reset='r0-points']")
    assert len(column(page, 1)) == whole


def test_a_link_shows_the_line_that_a_filter_hides(opened: Callable[..., Any]) -> None:
    page = opened()
    page.fill("[data-filter='r0-points']", "nothing such")
    page.locator("#r0-summary a", has_text="dense").first.click()
    line = page.locator("[data-grid='r0-points'] tr:target")
    assert line.locator("td").first.inner_text() == "dense"
    line.wait_for(state="visible")
    box = line.bounding_box()
    assert 0 <= box["y"] <= 900
    line.locator("summary").click()
    line.locator("details a").first.click()
    assert page.evaluate("document.querySelector(':target').closest('table').dataset.grid") == "r0-files"


def test_data_figures_and_files_can_be_saved(opened: Callable[..., Any], file: Path, tmp_path: Path) -> None:
    page = opened()

    def saved(selector: str) -> str:
        with page.expect_download() as waiting:
            page.locator(selector).first.click()
        path = tmp_path / "saved"
        waiting.value.save_as(path)
        return path.read_text(encoding="utf-8")

    table = list(csv.DictReader(saved("[data-save='r0-points.csv']").splitlines()))
    assert {line["estimator"] for line in table} >= {"dense", "cg", "sama"}
    assert next(csv.DictReader(saved("[data-save='r0-error_cost.csv']").splitlines()))["id"]
    svg = saved("[data-svg]")
    assert svg.startswith("<svg") and "var(" not in svg
    opener = page.locator("[data-grid='r0-files'] [data-open]").first
    name = opener.inner_text()
    opener.click()
    page.wait_for_selector("dialog[open]")
    assert saved("#source-save") == (file.parent / name).read_text(encoding="utf-8")


def test_the_button_changes_the_theme(opened: Callable[..., Any]) -> None:
    page = opened(color_scheme="dark")
    seen = []
    for _ in range(3):
        page.click("#theme")
        seen.append((page.inner_text("#theme"), page.evaluate("getComputedStyle(document.body).backgroundColor")))
    light, dark = "rgb(255, 255, 255)", "rgb(22, 24, 28)"
    assert seen == [("Theme: light", light), ("Theme: dark", dark), ("Theme: as the system", dark)]


def test_without_scripts_all_can_be_read(opened: Callable[..., Any]) -> None:
    page = opened(java_script_enabled=False, viewport={"width": 390, "height": 900})
    assert page.get_by_text("Without scripts the page shows everything").is_visible()
    assert page.locator(".needs-script >> visible=true").count() == 0
    assert page.locator("[data-grid='r0-points'] tbody tr").count() == 8
    assert page.get_by_text("RuntimeError: out of luck").first.is_visible()
