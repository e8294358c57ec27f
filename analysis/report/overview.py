"""What a run is in a few sentences, what to be careful about, what failed, and every file of it."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from .. import stats
from ..advice import distance
from .grid import SOURCES, Column, Grid, count, number
from .lines import why
from .runs import Run
from .words import counted

STATUSES = {
    "ok": ("succeeded", "succeeded"),
    "failed": ("failed", "failed"),
    "refused": ("does not apply", "do not apply"),
}
"""status -> what one does, what several do."""


def sentences(run: Run) -> list[str]:
    """How much there is, of what, measured when and where."""
    frame, said = run.frame, []
    if len(frame):
        counts = Counter(frame["status"])
        became = ", ".join(f"{n} {words[n > 1]}" for s, words in STATUSES.items() if (n := counts[s]))
        kinds = {"estimator": "estimators", "case": "problems and settings", "seed": "seeds"}
        of = [f"{n} {word}" for column, word in kinds.items() if (n := frame[column].nunique()) > 1]
        said.append(f"{len(frame)} results{': ' if of else ''}{', '.join(of)}. {became}.")
        when = sorted(str(t)[:10] for t in frame["finished"].dropna())
        if when:
            said.append(f"Measured {when[0]}{f' to {when[-1]}' if when[-1] != when[0] else ''}.")
    if run.studies:
        said.append(
            f"{counted(len(run.studies), 'study', 'studies')}: {', '.join(found.name for _, found in run.studies)}."
        )
    return said or ["There are no results in this folder."]


def cautions(run: Run) -> list[str]:
    """Why numbers of this run may say less than they seem to."""
    frame, said = run.frame, []
    fine = frame[frame["status"] == "ok"]
    points = fine[fine["kind"].isin(["point", "path"])]
    seeds = (
        int(points.groupby(["kind", "case", "dtype", "estimator"])["seed"].nunique().max())
        if len(points)
        else stats.LEAST_SEEDS
    )
    if seeds < stats.LEAST_SEEDS:
        said.append(
            f"Not enough seeds: with {seeds} no paired test can tell two estimators apart; it takes {stats.LEAST_SEEDS}, and more where much is compared. What is called "
            "best below is what was seen, not what was shown."
        )
    if busy := int(fine["busy"].eq(True).sum()):
        said.append(
            f"{busy} of {len(fine)} results were timed while the machine was busy with other work: trust ratios before times."
        )
    if jobs := int(fine["jobs"].gt(1).sum()):
        said.append(
            f"{jobs} of {len(fine)} results were timed with several processes at once: compare their times with care."
        )
    wide = int(fine["reached"].eq(False).sum())
    if wide:
        said.append(f"{wide} of {len(fine)} timings ended before their interval was as narrow as was asked for.")
    commits = frame["commit"].dropna().nunique()
    if commits > 1:
        said.append(f"The results are of {commits} versions of the code.")
    if dirty := int(frame["dirty"].eq(True).sum()):
        said.append(f"{dirty} of {len(frame)} results are of code with changes that are in no commit.")
    if run.missing:
        said.append(
            f"{counted(run.missing, 'result')} that a sweep asked for {'is' if run.missing == 1 else 'are'} not there (yet)."
        )
    if run.skipped:
        said.append(
            f"{counted(len(run.skipped), 'file')} could not be read and left out: see below, with the environment."
        )
    return said


FAILURES = (
    Column(
        key="what",
        head="what",
        about="failed: it should have worked; does not apply: the estimator refused the problem",
        facet=True,
    ),
    Column(key="reason", head="reason", about="as the result says it"),
    Column(key="estimators", head="estimators", about="that it happened to"),
    Column(key="cases", head="problems", about="on which"),
    Column(key="cells", head="results", about="how many", write=count),
)


def failures(run: Run, name: str) -> Grid | None:
    """What has no figures, equal reasons together; None if nothing is missing."""
    rows = run.frame[run.frame["status"] != "ok"]
    if rows.empty:
        return None
    rows = rows.assign(
        what=[STATUSES[s][0] for s in rows["status"]],
        said=[why(r).partition(": ")[2] or why(r) for _, r in rows.iterrows()],
    )
    found = []
    for (what, said), mine in rows.groupby(["what", "said"], sort=False):
        words = mine["failure"].dropna().unique()
        found.append({
            "what": f"{what} ({', '.join(words)})" if len(words) else what, "reason": said, "estimators": ", ".join(dict.fromkeys(mine["estimator"])),
            "cases": ", ".join(dict.fromkeys(mine["case"])), "cells": len(mine), "status": mine["status"].iloc[0], SOURCES: list(mine["id"]),
        })  # fmt: skip
    lines = pd.DataFrame(found).sort_values("status", kind="stable")
    return Grid(name=name, title="What failed, and what does not apply", columns=FAILURES, frame=lines, notes=[])


FILES = (
    Column(key="estimator", head="estimator", about="its registered name", facet=True),
    Column(key="file", head="file", about="below the folder of the run"),
    Column(
        key="kind",
        head="kind",
        about="what was measured: a point, a path, a meta step (meta), libraries (peers), advice, or a study",
        facet=True,
    ),
    Column(key="case", head="problem", about="the problem and its settings", facet=True),
    Column(key="seed", head="seed", about="of the problem", write=count, facet=True),
    Column(key="dtype", head="dtype", about="precision", facet=True),
    Column(key="status", head="status", about="ok, failed, or refused: the estimator does not apply", facet=True),
    Column(
        key="direction_error",
        head="direction error",
        better="less",
        write=number,
        about="distance of the unit vectors of estimate and truth",
    ),
    Column(
        key="time",
        head="time ratio",
        better="less",
        write=number,
        about="time in gradients (points), in plain steps (meta) or in runs (advice)",
    ),
    Column(
        key="bytes",
        head="bytes",
        better="less",
        write="{:,.0f}".format,
        about="peak of live tensors, kept states included",
    ),
    Column(key="outcome", head="outcome", about="what the estimator said of itself, or why there are no figures"),
    Column(key="finished", head="finished", about="when, UTC"),
)


def files(run: Run, name: str) -> Grid:
    """A line a result file."""
    frame = run.frame
    lines = pd.DataFrame({
        "finished": frame["finished"].map(_minute), **{k: frame[k] for k in ("kind", "case", "estimator", "seed", "dtype", "status", "file")},
        "direction_error": distance(frame["angle"]), "time": frame["time_ratio"].fillna(1 / frame["throughput_ratio"]).fillna(frame["run_ratio"]),
        "bytes": (frame["peak_bytes"] + frame["kept_bytes"].fillna(0)).fillna(frame["meta_peak"]),
        "outcome": [r["outcome"] if r["status"] == "ok" else why(r) for _, r in frame.iterrows()], SOURCES: frame["id"].map(lambda i: [i]),
    })  # fmt: skip
    studies = pd.DataFrame([
        {
            "kind": "study", "case": found.name, "status": found.content["status"], "finished": _minute(found.content["finished"]), "file": file,
            "outcome": f"{len(found.rows)} rows" if found.ok else found.content["reason"], SOURCES: [file],
        }
        for file, found in run.studies
    ], columns=lines.columns)  # fmt: skip
    whole = pd.concat([t for t in (lines, studies) if len(t)] or [lines], ignore_index=True)
    return Grid(
        name=name,
        title="Every result",
        columns=FILES,
        frame=whole,
        notes=["Each number on this page comes from one of these files; their contents are in the page."],
    )


CLAIMS = (
    Column(key="study", head="study", about="its name", facet=True),
    Column(key="text", head="claim", about="with its threshold"),
    Column(key="measured", head="measured", about="the numbers that decide it"),
    Column(key="holds", head="holds", about="whether they meet the threshold", facet=True),
    Column(key="citation", head="whose", about="claim it is"),
)


def claims(run: Run, name: str) -> Grid | None:
    """What the studies claim; None if there are none."""
    found = []
    for file, study in run.studies:
        same = {"study": study.name, "citation": study.content["citation"], SOURCES: [file]}
        found += [
            {
                **same,
                "text": c["text"],
                "measured": c["measured"],
                "holds": "yes" if c["holds"] else "no",
                "status": "ok",
            }
            for c in study.claims
        ]
        if not study.ok:
            found.append(
                {**same, "text": "", "measured": study.content["reason"], "holds": "failed", "status": "failed"}
            )
    if not found:
        return None
    return Grid(name=name, title="Claims", columns=CLAIMS, frame=pd.DataFrame(found), notes=[])


def _minute(moment: object) -> str:
    """ISO 8601, without what no reader needs."""
    return str(moment)[:16].replace("T", " ") if moment else ""
