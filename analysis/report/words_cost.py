"""What results of meta steps, of other libraries, of advice and of studies say, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .. import advice, peer_tables
from ..meta_tables import SAME, size
from ..studies import Found
from ..style import OURS
from .grid import Grid
from .words import Finding, Part, Sentence, controls, counted, joined


def of_meta_steps(frame: pd.DataFrame, grid: Grid) -> list[Finding]:
    """Who costs least beside plain training, workload by workload, and what did not run."""
    rows = frame[frame["kind"] == "meta"]
    idle = set(rows.loc[controls(rows), "estimator"])
    lines = grid.frame.assign(anchor=[f"{grid.name}-{i}" for i in range(len(grid.frame))])
    found = []
    for key, mine in lines.groupby(SAME, sort=False, dropna=False):
        fine = mine[mine["status"].eq("ok") & ~mine["estimator"].isin(idle)]
        sentences: list[Sentence] = []
        for column, best, text in (
            ("throughput_ratio", "idxmax", "The most examples a second: "), ("memory_ratio", "idxmin", "The least memory: "),
        ):  # fmt: skip
            if fine[column].notna().any():
                line = fine.loc[getattr(fine[column], best)()]
                sentences.append(
                    [Part(text), _link(line), Part(f" at unroll {line['unroll']:.0f}, {_cost(line, column)}.")]
                )
        lost = mine[mine["status"] == "failed"]
        if len(lost):
            listed = [
                p for _, line in lost.iterrows() for p in (Part(", "), _link(line), Part(f" ({line['outcome']})"))
            ][1:]
            sentences.append([Part(f"{len(lost)} of {len(mine)} have no figures: "), *listed, Part(".")])
        if not sentences:
            sentences.append([Part("Nothing was measured: see what failed or does not apply.")])
        words = dict(zip(SAME, key, strict=True))
        parts = [words["problem"], words["setting"], words["dtype"], words["device_asked"]]
        found.append(Finding(", ".join(str(p) for p in parts if p and pd.notna(p)), sentences))
    return found


def _link(line: pd.Series) -> Part:
    more = f" on {line['workers']:.0f} workers" if line["workers"] > 1 else ""
    return Part(f"{line['estimator']}{more}", str(line["anchor"]))


def _cost(line: pd.Series, column: str) -> str:
    low, high = line[f"{column}_low"], line[f"{column}_high"]
    between = f" [{low:.2g}, {high:.2g}]" if pd.notna(low) and f"{low:.2g}" != f"{high:.2g}" else ""
    text = f"{line[column]:.3g}{between} of plain training's"
    return f"{text}, {size(line['meta_peak'])}" if column == "memory_ratio" else text


APPROXIMATE = ("sama",)
"""Tasks whose answer is an approximation by definition: its error is no fault, and its yardstick plain training."""


def of_peers(frame: pd.DataFrame, grid: Grid) -> list[Finding]:
    """Ours against the best of the others, task by task."""
    found = []
    places = {i: f"{grid.name}-{n}" for n, i in enumerate(grid.frame["id"])}
    for rows in peer_tables.tasks(frame):
        fine = rows[rows["status"].eq("ok")]
        off = fine[fine["wrong"] & ~(fine["library"].eq(OURS) & fine["method"].isin(APPROXIMATE))]
        right = fine.drop(off.index)
        sentences: list[Sentence] = []
        for column, ratio, begin, than in (
            ("to_first", "time_to_best", "Our fastest way, ", "times as long as "),
            ("peak_bytes", "peak_to_best", "Our lightest way, ", "times the bytes of "),
        ):
            mine = right[right["library"].eq(OURS) & right[ratio].notna()]
            others = right[right["library"].ne(OURS)]
            if mine.empty or others.empty:
                continue
            best, theirs = mine.loc[mine[ratio].idxmin()], others.loc[others[column].idxmin()]
            sentences.append([
                Part(begin), Part(_variant(best), places[best["id"]]), Part(f", takes {best[ratio]:.2f} {than}"),
                Part(str(theirs["estimator"]), places[theirs["id"]]), Part(", the best of the others."),
            ])  # fmt: skip
        if len(off):
            listed = joined(Part(str(r["estimator"]), places[r["id"]]) for _, r in off.iterrows())
            sentences.append([Part(f"Wrong by more than {peer_tables.WRONG:.0%}: "), *listed, Part(".")])
        if not sentences:
            sentences.append([Part("There is nothing to compare with.")])
        found.append(Finding(peer_tables.title(rows), sentences))
    return found


def _variant(row: pd.Series) -> str:
    return str(row["estimator"]).partition(": ")[2]


def of_advice(frame: pd.DataFrame, grid: Grid) -> list[Finding]:
    """What `advise` recommends, and what it warns of."""
    del grid  # its words name the candidates themselves
    found = []
    for head, _, advised in advice.of_places(frame):
        sentences: list[list[Part]] = []
        for line in advice.words(advised):
            if line.startswith(" ") and sentences:  # the line of code to use
                sentences[-1] += [Part(" "), Part(line.strip(), code=True)]
            else:
                sentences.append([Part(line)])
        found.append(Finding(head, sentences))
    return found


def of_studies(found: Sequence[Found], grid: Grid) -> list[Finding]:
    """How many claims hold, and each that does not."""
    lines = grid.frame
    held = int(lines["holds"].eq("yes").sum())
    sentences: list[Sentence] = [
        [
            Part(
                f"{held} of {lines['holds'].ne('failed').sum()} claims hold, in {counted(len(found), 'study', 'studies')}."
            )
        ]
    ]
    others = [f.name for f in found if not f.content["defaults"]]
    if others:
        sentences.append(
            [Part(f"Not run at the default settings, which the thresholds are meant for: {', '.join(others)}.")]
        )
    for i, (_, line) in enumerate(lines.iterrows()):
        place, study = f"{grid.name}-{i}", str(line["study"])
        if line["holds"] == "no":
            sentences.append([Part(study, place), Part(f": does not hold: {line['text']} ({line['measured']}).")])
        elif line["holds"] == "failed":
            sentences.append([Part(study, place), Part(f" failed: {line['measured']}")])
    return [Finding("Claims", sentences)]
