"""Runs -> one page that needs no network: the template's values, and what can be downloaded from it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jinja2

from . import drawings, meta, overview, paper, points, words, words_cost
from .grid import Grid, csv
from .runs import Run
from .svg import theme
from .words import Finding


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
    told = _told(run, prefix)
    drawn = drawings.of(run, prefix)
    listing = overview.files(run, f"{prefix}-files")
    failures = overview.failures(run, f"{prefix}-failures")
    grids = [grid for grid, _ in told]
    pack = {f"{s.name}.csv": s.csv() for s in [*grids, listing, *([failures] if failures else [])]}
    pack |= {f"{prefix}-{d.name}.csv": d.data for d in drawn if d.svg}
    pack |= {f"{prefix}-all-columns.csv": csv(run.frame)} if len(run.frame) else {}
    pack |= {f"{prefix}/{file}": text for file, text in run.files.items()}
    return {
        "prefix": prefix, "run": run, "grids": grids, "failures": failures, "listing": listing, "drawings": drawn, "pack": pack,
        "overview": overview.sentences(run), "cautions": overview.cautions(run), "findings": [f for _, found in told for f in found],
        "place": {source[0]: f"{listing.name}-{i}" for i, source in enumerate(listing.frame["sources"])},
    }  # fmt: skip


def _told(run: Run, prefix: str) -> list[tuple[Grid, list[Finding]]]:
    """Each table that the run allows, with what it says."""
    frame, told = run.frame, []
    for grid, say in (
        (points.grid(frame, f"{prefix}-points"), words.of_points),
        (points.paths_grid(frame, f"{prefix}-paths"), words.of_paths),
        (meta.grid(frame, f"{prefix}-meta"), words_cost.of_meta_steps),
        (meta.peers_grid(frame, f"{prefix}-peers"), words_cost.of_peers),
        (meta.advice_grid(frame, f"{prefix}-advice"), words_cost.of_advice),
    ):
        if grid is not None:
            told.append((grid, say(frame, grid)))
    told += [(grid, []) for grid in paper.grids(frame, prefix)]
    claims = overview.claims(run, f"{prefix}-claims")
    if claims is not None:
        told.append((claims, words_cost.of_studies([found for _, found in run.studies], claims)))
    return told
