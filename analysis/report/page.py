"""Runs -> one page that needs no network: the template's values, and what can be downloaded from it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jinja2

from . import drawings, overview, sections
from .grid import csv
from .runs import Run
from .svg import theme


def render(runs: Sequence[Run], title: str) -> str:
    """The page. The same results give the same bytes."""
    loader = jinja2.PackageLoader("analysis.report", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    parts = [_part(run, f"r{i}") for i, run in enumerate(runs)]
    light, dark = theme({c for part in parts for drawing in part["drawings"] for c in drawing.colors})
    script = loader.get_source(environment, "page.js")[0]
    return environment.get_template("page.html.j2").render(
        title=title, parts=parts, light=light, dark=dark, style=loader.get_source(environment, "page.css")[0], script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        pack=_packed({k: v for part in parts for k, v in part["pack"].items()}),
    )  # fmt: skip


def _packed(files: dict[str, str]) -> str:
    """JSON, compressed, in letters that no HTML parser minds."""
    return base64.b64encode(gzip.compress(json.dumps(files, sort_keys=True).encode(), mtime=0)).decode()


def _part(run: Run, prefix: str) -> dict[str, Any]:
    """What the template shows of one run; ``pack`` is what the reader can open or save."""
    made, troubles = sections.of(run, prefix)
    drawn = drawings.of(run, prefix)
    listing = overview.files(run, f"{prefix}-files")
    failures = overview.failures(run, f"{prefix}-failures")
    grids = [section.grid for section in made]
    pack = {f"{s.name}.csv": s.csv() for s in [*grids, listing, *([failures] if failures else [])]}
    pack |= {f"{prefix}-{d.name}.csv": d.data for d in drawn if d.svg}
    pack |= {f"{prefix}-all-columns.csv": csv(run.frame)} if len(run.frame) else {}
    pack |= {f"{prefix}/{file}": text for file, text in run.files.items()}
    return {
        "prefix": prefix, "run": run, "grids": grids, "failures": failures, "listing": listing, "drawings": drawn, "pack": pack,
        "overview": overview.sentences(run), "cautions": [*troubles, *overview.cautions(run)],
        "findings": [finding for section in made for finding in section.findings],
        "place": {source[0]: f"{listing.name}-{i}" for i, source in enumerate(listing.frame["sources"])},
    }  # fmt: skip
