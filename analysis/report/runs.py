"""A folder of results -> all that a page needs of it: rows, studies, the files themselves, and where they were measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from .. import results, studies

VOLATILE = {"load_average", "busy", "disturbed", "dtype", "executor"}
"""Parts of the environment that are told apart elsewhere, or change from one result to the next."""


STUDY = ("about", "citation", "status", "reason", "settings", "defaults", "claims", "finished")
"""What a study's file must say to be shown."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one folder holds.

    Attributes:
        label: its name, as `results.load` tells folders apart.
        frame: its rows.
        studies: its studies, each with its file below the folder.
        files: file below the folder -> its text, of every row and study.
        skipped: file below the folder -> why it was left out.
        environments: (what it was, how many files), the most frequent first.
        commands: how sweeps were asked for, as typed.
        missing: cells that sweeps asked for and that have no file (yet).
    """

    label: str
    frame: pd.DataFrame
    studies: Sequence[tuple[str, studies.Found]]
    files: Mapping[str, str]
    skipped: Mapping[str, str]
    environments: Sequence[tuple[Mapping[str, str], int]]
    commands: Sequence[str]
    missing: int


def read(folders: Sequence[Path]) -> list[Run]:
    """Every folder, in the order given.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    frame = results.load(folders)
    limits = {k: v for k, v in frame.attrs.items() if k == "limits"}
    found = []
    for label, folder in frame.attrs["folders"].items():
        rows = frame[frame["run"] == label].reset_index(drop=True)
        rows.attrs = dict(limits)
        begin = f"{label}/"
        left = {k.removeprefix(begin): v for k, v in frame.attrs["skipped"].items() if k.startswith(begin)}
        named = [k.removeprefix(begin) for k in frame.attrs["studies"] if k.startswith(begin)]
        found.append(_run(label, Path(folder), rows, left, named))
    return found


def _run(label: str, folder: Path, rows: pd.DataFrame, skipped: Mapping[str, str], named: Sequence[str]) -> Run:
    lost, read = dict(skipped), []
    for file in named:
        try:
            read.append((file, _study(folder / file)))
        except ValueError as error:
            lost[file] = str(error)
    files = {file: (folder / file).read_text(encoding="utf-8") for file in [*rows["file"], *(f for f, _ in read)]}
    places = Counter(_environment(json.loads(text).get("environment")) for text in files.values())
    commands, asked = _asked(folder)
    lost_cells = asked - {file.stem for file in folder.rglob("cells/*.json")}
    return Run(
        label=label, frame=rows, studies=read, files=files, skipped=lost, commands=commands, missing=len(lost_cells),
        environments=[(dict(place), n) for place, n in places.most_common()],
    )  # fmt: skip


def _study(file: Path) -> studies.Found:
    """One study's results.

    Raises:
        ValueError: it is damaged: something that the page shows is not there.
    """
    found = studies.load(file)
    try:
        for key in STUDY:
            found.content[key]
        for claim in found.claims:
            str(claim["text"]), str(claim["measured"]), bool(claim["holds"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file.name} is damaged or no study's result ({type(error).__name__}: {error})") from None
    return found


def _environment(content: Any) -> tuple[tuple[str, str], ...]:
    """What does not change from one cell to the next, as text; what is not known is left out."""
    if not isinstance(content, Mapping):
        return ()
    flat = {k: v for k, v in content.items() if k not in VOLATILE and not isinstance(v, Mapping)}
    flat |= {k: v for part in content.values() if isinstance(part, Mapping) for k, v in part.items()}
    return tuple((str(k), str(v)) for k, v in flat.items() if v is not None)


def _asked(folder: Path) -> tuple[list[str], set[str]]:
    """Command lines of the sweeps in ``folder``, and the ids of what they asked for."""
    commands, ids = [], set[str]()
    for file in sorted(folder.rglob("sweeps/*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            command, wanted = " ".join(map(str, content["command"])), set(map(str, content["ids"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `load` names what is damaged
        commands.append(command)
        ids |= wanted
    return list(dict.fromkeys(commands)), ids
