"""Links to the pages beside docs/ (README.md, CONTRIBUTING.md, CHANGELOG.md) lead to the page of the site that holds them."""

from __future__ import annotations

from sphinx.application import Sphinx

PAGES = {"../README.md": "index.md", "../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md"}


def _redirect(app: Sphinx, page: str, source: list[str]) -> None:
    for outside, inside in PAGES.items():
        source[0] = source[0].replace(f"]({outside}", f"]({inside}")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _redirect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
