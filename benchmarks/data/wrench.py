"""WRENCH text classification sets (Zhang et al. 2021): a folder of train.json, valid.json and label.json.

A split is ``{id: {"label": 0, "weak_labels": [0, -1, 2], "data": {"text": "..."}}}``, where -1 is a labelling function that does
not vote; label.json is ``{"0": "name of class 0", ...}``. The layout is that of the loader in the authors' repository.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folder import DataError, contents, opened, origin, shown

ABSTAIN = -1
LAYOUT = "train.json, valid.json and label.json of a WRENCH text classification set, such as datasets/agnews"


@dataclass(frozen=True)
class Split:
    """One file of examples, in its order.

    Attributes:
        texts: what is to be classified.
        labels: right classes, from 0.
        votes: of the labelling functions, `ABSTAIN` among them.
    """

    texts: list[str]
    labels: list[int]
    votes: list[list[int]]


@dataclass(frozen=True)
class Wrench:
    """A set.

    Attributes:
        name: what it is and the folder's own name.
        classes: their names.
        train: with weak labels to learn from.
        valid: the clean examples.
    """

    name: str
    classes: list[str]
    train: Split
    valid: Split


def load(folder: str | Path) -> Wrench:
    """Read a folder.

    Raises:
        DataError: it is no such folder; the message names the file and the entry.
    """
    folder = opened(folder, LAYOUT)
    classes = _classes(folder / "label.json")
    train, valid = (_split(folder / f"{part}.json", len(classes)) for part in ("train", "valid"))
    return Wrench(origin("WRENCH", folder), classes, train, valid)


def majority(votes: list[int]) -> int | None:
    """The class with most votes, the first of them if several have; None if nobody votes."""
    counts = Counter(v for v in votes if v != ABSTAIN)
    return min(counts, key=lambda c: (-counts[c], c), default=None)


def _classes(path: Path) -> list[str]:
    found = _read(path)
    try:
        names = {int(k): str(v) for k, v in found.items()}
    except ValueError:
        names = {}
    if len(names) < 2 or sorted(names) != list(range(len(names))):
        raise DataError(
            f'{path}: the classes are {shown(found)}, not "0", "1" and so on, two at least: a label.json of WRENCH holds '
            '{"0": "name", "1": "name"}'
        )
    return [names[i] for i in range(len(names))]


def _split(path: Path, classes: int) -> Split:
    out = Split([], [], [])
    for key, example in _read(path).items():
        text, label, votes = _fields(example, f"{path}, example {key!r}")
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(
                f"{path}, example {key!r}: its label is {str(label)[:80]}, not one of the {classes} classes of label.json (sets for "
                "sequence tagging are not read)"
            )
        if not isinstance(votes, list) or not all(type(v) is int and ABSTAIN <= v < classes for v in votes):
            raise DataError(
                f"{path}, example {key!r}: weak_labels is {str(votes)[:80]}, not a list of classes below {classes}, or -1 where "
                "a labelling function does not vote"
            )
        out.texts.append(text)
        out.labels.append(label)
        out.votes.append(votes)
    if not out.texts:
        raise DataError(f"{path}: holds no example: is the copy complete?")
    return out


def _fields(example: Any, where: str) -> tuple[str, Any, Any]:
    """(text, label, weak labels)"""
    if not isinstance(example, dict):
        raise DataError(f'{where}: is {type(example).__name__}, not {{"label": ..., "weak_labels": ..., "data": ...}}')
    missing = [k for k in ("label", "weak_labels", "data") if k not in example]
    if missing:
        raise DataError(
            f"{where}: has no {' and no '.join(map(repr, missing))}, only {shown(example)}: is it a file of WRENCH?"
        )
    data = example["data"]
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str):
        raise DataError(
            f"{where}: its data hold no text ({shown(data) if isinstance(data, dict) else type(data).__name__}): only text "
            "classification sets can be read, such as agnews, imdb, yelp, trec, youtube, sms"
        )
    return text, example["label"], example["weak_labels"]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path.parent} has no {path.name}, {contents(path.parent)}: give a folder that holds {LAYOUT}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: of syntax, of encoding, or a number of thousands of digits
        raise DataError(f"{path}: is no JSON ({error}): is the copy complete?") from error
    if not isinstance(found, dict):
        raise DataError(
            f"{path}: holds a {type(found).__name__}, not {{id: example}}: give a folder that holds {LAYOUT}"
        )
    return found
