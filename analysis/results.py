"""Result files -> one table, a row a cell."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .columns import COLUMNS, READ, Column, checked
from .schema import upgraded
from .style import order

LARGEST = 64 * 2**20
"""Bytes of the largest file that may be one of ours: they have a few thousand."""

STATUSES = ("ok", "failed", "refused")

NEEDED = ("id", "status", "kind", "estimator", "problem", "seed", "dtype", "device_asked", "workers")
"""Columns without which a file is no result."""

SAME = [
    "run",
    "kind",
    "estimator",
    "problem",
    "case",
    "seed",
    "dtype",
    "device_asked",
    "workers",
    "kernel",
    "fields",
    "task",
    "meta_lr",
]
"""Rows that agree in these are one result, taken twice."""


def load(
    path: Path | str | Sequence[Path | str], ids: Collection[str] | None = None, *, newest: bool = True
) -> pd.DataFrame:
    """Every readable result below ``path``: a folder that `run`, `sweep`, `peers` or `advise` wrote (or its ``cells``, or what
    holds several of them), or several such folders.

    Args:
        path: the folder, or the folders.
        ids: of these cells only (default: all).
        newest: of several versions of a cell in one folder keep the newest; else all.

    Columns are those of `analysis.columns`. ``run`` says from which of the folders a row is, ``file`` from which file below it.
    Of a problem of the user's own, the results of its newest version alone are kept in a folder: another version is another problem.
    Within one folder, of results that differ in the registered estimator, the version of the code or the length of the path only,
    the newest is kept (of those in ``ids``); between folders all are. An estimator that a sweep gave several values of a field is
    several, "cg(solver.steps=5)" and so on; ``name`` is what it is registered as.

    ``frame.attrs`` has ``folders`` (run: folder as given), ``skipped`` ("run/file": why it was left out: damaged, foreign, of a newer
    version), ``studies`` (files that are for `studies.load`), and, if it was asked there, ``limits``: what the last `advise` had to keep to.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folders = labelled([path] if isinstance(path, (str, Path)) else path)
    rows, skipped, asked, of_studies = [], {}, [], []
    for run, folder in folders.items():
        for file, content in _contents(folder):
            place = file.relative_to(folder).as_posix()
            try:
                if isinstance(content, Exception):
                    raise content
                if file.parent.name == "sweeps":  # how they were asked for, not what was found
                    if content["grid"].get("kind") == "advice":
                        asked.append((content["began"], content["grid"]["meta"]["limits"][0]))
                elif isinstance(content, dict) and "study" in content:  # for `studies.load`
                    of_studies.append(f"{run}/{place}")
                else:
                    rows.append({"run": run, "file": place, **_row(content)})
            except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
                skipped[f"{run}/{place}"] = _why(error)
    frame = _table(rows, ids, newest)
    frame.attrs |= {
        "folders": {run: str(folder) for run, folder in folders.items()},
        "skipped": skipped,
        "studies": of_studies,
    }
    if asked:
        frame.attrs["limits"] = max(asked, key=lambda entry: entry[0])[1]
    return frame


def labelled(paths: Sequence[Path | str]) -> dict[str, Path]:
    """Folders by name; those of the same name by as much of their path as tells them apart.

    Raises:
        FileNotFoundError: one is not there, or there are none.
    """
    folders = [Path(p) for p in paths]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is a file: give the folder" if folder.exists() else f"there is no folder {folder}"
            )
    if not folders:
        raise FileNotFoundError("no folder was given")
    known: dict[Path, Path] = {}
    for folder in folders:
        known.setdefault(folder.resolve(), folder)  # the same one twice is one
    labels: dict[str, Path] = {}
    for depth in range(1, max(len(whole.parts) for whole in known) + 1):
        labels = {"/".join(whole.parts[-depth:]): whole for whole in known}
        if len(labels) == len(known):
            break
    return {label: known[whole] for label, whole in labels.items()}


def _contents(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Every JSON file below ``folder`` with what it holds, or with the error on reading it."""
    for file in sorted(folder.rglob("*.json")):
        if file.is_dir():
            continue
        try:
            if (size := file.stat().st_size) > LARGEST:
                raise ValueError(f"no result file: it has {size} bytes")
            yield file, json.loads(file.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            yield file, error


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"damaged: no JSON at line {error.lineno}, column {error.colno} ({error.msg})"
    if isinstance(error, UnicodeDecodeError):
        return "damaged: no text"
    if isinstance(error, RecursionError):
        return "no result file: nested too deeply"
    if isinstance(error, KeyError):
        return f"damaged: it has no {error.args[0]}"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return str(error) if type(error) is ValueError else f"damaged: {type(error).__name__}: {error}"


def _table(rows: Sequence[Mapping[str, Any]], ids: Collection[str] | None, newest: bool) -> pd.DataFrame:
    """The rows sorted, with the newest of each alone and with names for what was swept."""
    frame = pd.DataFrame(rows, columns=[c.name for c in COLUMNS])
    if ids is not None:
        frame = frame[frame["id"].isin(set(ids))].copy()
    for column in COLUMNS:
        if column.kind in ("number", "count"):
            frame[column.name] = pd.to_numeric(frame[column.name])
    given = {run: i for i, run in enumerate(dict.fromkeys(row["run"] for row in rows))}
    frame = frame.sort_values("finished", kind="stable", na_position="first")
    if newest:
        last = frame.groupby(["run", "problem"])["problem_version"].transform("last")
        frame = frame[frame["problem_version"].isna() | frame["problem_version"].eq(last)].drop_duplicates(
            SAME, keep="last"
        )
    swept = frame.groupby("name")["fields"].transform("nunique") > 1
    frame.loc[swept, "estimator"] = frame["name"] + frame["fields"].map(lambda text: f"({text})" if text else "")
    rank = {name: i for i, name in enumerate(order(frame["estimator"]))}
    frame = frame.assign(_rank=frame["estimator"].map(rank), _given=frame["run"].map(given)).sort_values(
        ["kind", "problem", "cond", "case", "_rank", "seed", "_given"], kind="stable", na_position="last"
    )
    return frame.drop(columns=["_rank", "_given"]).reset_index(drop=True)


def _row(content: Any) -> dict[str, Any]:
    """What one file says, by column.

    Raises:
        ValueError, KeyError, TypeError: it is damaged or no result of ours.
    """
    content = upgraded(content)
    row = {column.name: _value(content, column) for column in READ}
    needed = [*NEEDED, *(("method", "products_or_steps") if row["kind"] == "peers" else ())]
    if missing := [name for name in needed if row[name] is None]:
        raise ValueError(f"damaged: it has no {', '.join(missing)}")
    if row["status"] not in STATUSES:
        raise ValueError(f"damaged: status is {row['status']!r}, none of {', '.join(STATUSES)}")
    for split in ("memory_split", "plain_split"):
        if not all(type(part) in (int, float) for part in (row[split] or {}).values()):
            raise ValueError(f"damaged: {split} holds what is no number")
    config = content["config"]
    settings = _listed(config["settings"])
    row["name"], row["fields"] = config["estimator"], _listed(config["fields"])
    row["case"] = f"{config['problem']} ({settings})" if settings else config["problem"]
    row["setting"] = _listed({k: v for k, v in config["settings"].items() if k != "unroll"})
    unroll = config["settings"].get("unroll")
    row["unroll"] = unroll if row["unroll"] is None and isinstance(unroll, int) else row["unroll"]
    row["task"] = _listed(config["meta"]) if config["kind"] == "peers" else None
    pullbacks = content.get("pullbacks") or []
    row["outcome"] = ", ".join(p["outcome"].lower().replace("_", " ") for p in pullbacks) or None
    row["outcome_text"] = "; ".join(dict.fromkeys(p["text"] for p in pullbacks)) or None
    row["outcomes"] = {p["outcome"].lower().replace("_", " "): p["text"] for p in pullbacks}
    row["residual"] = max((p["residual"] for p in pullbacks if p["residual"] is not None), default=None)
    row["curvature"] = min((p["curvature"] for p in pullbacks if p["curvature"] is not None), default=None)
    return {c.name: checked(c, row[c.name]) for c in COLUMNS if c.name in row}


def _value(content: Mapping[str, Any], column: Column) -> Any:
    value = _at(content, column.where)
    if not column.where.startswith("config.settings."):
        return checked(column, value)
    try:  # settings are the problem's own: a "size" of another problem may be anything
        return checked(column, value)
    except ValueError:
        return None


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())


def _at(content: Any, where: str) -> Any:
    for key in where.split("."):
        if not isinstance(content, dict) or key not in content:
            return None
        content = content[key]
    return content
