"""The site: it builds without a warning, its examples run, and it opens without a network."""

from __future__ import annotations

import doctest
import html
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from estimators import registry

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p.stem for p in DOCS.glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Built once: whatever asks for it is in this file."""
    out = tmp_path_factory.mktemp("site")
    options = ["-b", "html", "--fail-on-warning", "--keep-going", "--quiet", "-d", str(out / ".doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(DOCS), str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_built_and_can_be_reached(site: Path) -> None:
    # a page in no toctree is a warning, and so an error: that it is built means that the sidebar leads there
    assert sorted(p.stem for p in site.glob("*.html") if p.stem not in ("genindex", "search")) == PAGES


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^"']+""")
    for page in (*site.glob("*.html"), *site.rglob("*.css")):
        text = page.read_text(encoding="utf-8")
        assert not loads.search(text), page.name
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", text), page.name


def test_every_estimator_is_on_the_site_with_what_it_claims(site: Path) -> None:
    page = html.unescape(re.sub(r"<[^>]+>", "", (site / "estimators.html").read_text(encoding="utf-8")))
    for name, (_, claim) in registry.items():
        for said in (name, claim.of, claim.bias, claim.citation):
            assert said.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}") in page, (name, said)


CUT = """
() => [...document.querySelectorAll("article :is(p, li, h1, h2, h3, img)")]
  .filter(e => !e.closest(".table-wrapper, pre") && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 120))
"""
"""What reaches beyond the window, but for what scrolls in a box of its own."""


@pytest.mark.parametrize("width", [390, 1400])
def test_pages_open_offline_with_no_error_and_nothing_cut(site: Path, browser: Any, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    said, asked = list[str](), list[str]()
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for name in PAGES:
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than {width} pixels"
        broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
        assert broken == [], name
        flat = page.evaluate(
            "[...document.querySelectorAll('math')].filter(m => m.getBoundingClientRect().height < 5).length"
        )
        assert flat == 0, f"{flat} equations of {name} are not drawn"
        cut = page.evaluate(CUT)
        assert cut == [], name
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("file:")] == []


def test_search_works_offline(site: Path, browser: Any) -> None:
    context = browser.new_context(offline=True)
    page, said = context.new_page(), list[str]()
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto((site / "search.html").as_uri() + "?q=wielandt")
    page.wait_for_selector("#search-results a[href*='one_product']", timeout=20_000)
    context.close()
    assert said == []


ELSEWHERE = {
    "measuring": "test_measure_docs", "error_bound": "test_error_bound", "throughput": "test_throughput", "results": "test_load",
}  # fmt: skip
"""Pages whose examples another file runs, and looks at what comes out."""
SMALLER = {"prediction": {"bert_noisy": "mlp_decay", '"base", "unroll": 64': '"tiny", "unroll": 2'}}
"""What an example is run with here in place of what the page says, where that takes minutes."""
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.M | re.S)


@pytest.mark.parametrize("name", [p for p in PAGES if BLOCK.search((DOCS / f"{p}.md").read_text(encoding="utf-8"))])
def test_the_examples_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, in one namespace; `pycon` blocks are doctests, whose output is compared."""
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    if name in ELSEWHERE:
        test = (ROOT / "tests" / f"{ELSEWHERE[name]}.py").read_text(encoding="utf-8")
        assert f'"{name}.md", "exec"' in test, f"tests/{ELSEWHERE[name]}.py no longer runs docs/{name}.md"
        return
    for large, small in SMALLER.get(name, {}).items():
        assert large in text
        text = text.replace(large, small)
    monkeypatch.chdir(tmp_path)  # whatever an example writes
    names: dict[str, Any] = {}
    for kind, block in BLOCK.findall(text):
        if kind == "python":
            exec(compile(block, f"{name}.md", "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, name, f"{name}.md", 0)
        said = list[str]()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert runner.run(test, out=said.append, clear_globs=False).failed == 0, "".join(said)
        names = test.globs


SOURCES = [path for part in ("estimators", "benchmarks", "analysis") for path in sorted((ROOT / part).rglob("*.py"))]
WITH_EXAMPLES = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SOURCES if ">>> " in p.read_text("utf-8")]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_a_docstring_run(module: str) -> None:
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted and not done.failed


def test_measured_errors_are_medians_and_what_was_refused_keeps_its_reason() -> None:
    spec = importlib.util.spec_from_file_location("measured", DOCS / "measured.py")
    assert spec is not None and spec.loader is not None
    measured = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measured)
    fine = {"status": "ok", "commit": "c0ffee", "scale": "lr", "relative_error": 9.0, "products": 1, "gradients": 0}
    costs = {"time_ratio": 2.0, "kept_ratio": 1.0, "peak_ratio": 2.0}
    rows = [{**fine, **costs, "angle": angle} for angle in (10.0, 40.0, 20.0)]
    found = measured.summary(pd.DataFrame([*rows, {"status": "failed", "commit": "c0ffee", "reason": "NaN"}]))
    assert (found["kind"], found["error"], found["low"], found["high"]) == ("angle", 20.0, 10.0, 40.0)
    assert (found["seeds"], found["memory_ratio"]) == ("3 of 4", 3.0)
    refused = pd.DataFrame([{"status": "refused", "reason": "two stages", "commit": "c0ffee"}])
    assert measured.summary(refused)["reason"] == "refused: two stages"
