"""What a cell of a sweep is, the name of its file, and how a file is written so that no crash can spoil it."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

SCHEMA = 2
"""Version of the result files; raised whenever a field changes its meaning."""

FINISHED = ("ok", "failed", "refused")

Kind = Literal["point", "path", "meta", "peers", "advice"]

TOGETHER = ("meta", "peers")
"""Kinds whose cells of one instance can share a process and be timed in turns."""

Failure = Literal["oom", "crash", "timeout", "nan", "error"]
"""Why a cell failed: memory ran out, its process died, it took too long, something became NaN or infinite, or it raised."""

AUTOCAST = "bfloat16-autocast"
"""The ``dtype`` of a cell whose losses run under `torch.autocast` in bfloat16, with parameters in float32."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One estimator at one instance of one problem: a *point*, a *path* of meta steps from it, the cost of one *meta* step, or
    one library's way of a task beside its *peers*, or what `advise` needs to know.

    Attributes:
        estimator: registered name.
        problem: registered name, of a workload for "meta"; or the user's own, ``file.py:function``, for "point" and "advice".
        settings: what ``make`` is called with beside seed, dtype and device.
        seed: of the problem.
        dtype: "float64", "float32", or `AUTOCAST`.
        kind: "point" measures one hypergradient; "path" follows it with a meta optimizer (Figure 5 of SAMA); "meta" takes the
            throughput and the memory of a whole meta step of a workload; "peers" is `benchmarks.peers`; "advice" takes error and
            cost of one hypergradient on any problem of one stage.
        meta: for a path, the meta optimizer's ``steps`` and ``lr``; for "meta", the ``kernel``; for "peers", the task; for a point on
            a problem of the user's, the kind of its ``reference`` and the ``version`` of its file; for "advice", the id of the ``reference``, and whether ``costs`` are taken, or what it is a reference ``of``.
        device: "cpu", "cuda", "cuda:1", ...
        fields: of the estimator, in place of what is registered, dotted: ``{"solver.steps": 5}``.
        workers: data-parallel processes ("meta" only).
        built: the estimator itself as text, so that a change of its fields makes another cell.
        code: hash of the sources that measure it, so that a change of the code makes another cell, too.
    """

    estimator: str
    problem: str
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "float64"
    kind: Kind = "point"
    meta: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    fields: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    built: str = ""
    code: str = ""

    @property
    def config(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def id(self) -> str:
        """Hash of everything that decides the result."""
        text = json.dumps({"schema": SCHEMA, **self.config}, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def instance(self) -> tuple[str, ...]:
        """Cells that agree in this share a problem or a workload, its run and its truth."""
        kind, meta = (self.kind, self.meta) if self.kind in TOGETHER else ("", {})
        place = self.problem, self.settings, self.seed, self.dtype, self.device, self.workers, meta
        return (kind, *(json.dumps(x, sort_keys=True) for x in place))

    @property
    def label(self) -> str:
        """Short, for progress lines."""
        fields, settings = (",".join(f"{k}={v}" for k, v in d.items()) for d in (self.fields, self.settings))
        who = f"{self.estimator}({fields})" if fields else self.estimator
        what = f"{self.problem}({settings})" if settings else self.problem
        rest = f" {self.meta.get('method', self.kind)}" * (self.kind != "point") + f" {self.device}" * (
            self.device != "cpu"
        )
        rest += f" {self.dtype}" * (self.dtype != "float64") + f" {self.workers} workers" * (self.workers > 1)
        return f"{who} on {what} seed {self.seed}{rest}"

    def file(self, out: Path) -> Path:
        return cells_folder(out) / f"{self.id}.json"


def cells_folder(out: Path) -> Path:
    return out / "cells"


def built_as(thing: Any) -> str:
    """A description of an estimator that is the same in every process (a function's repr holds its address)."""
    if is_dataclass(thing) and not isinstance(thing, type):
        inside = ", ".join(f"{f.name}={built_as(getattr(thing, f.name))}" for f in fields(thing))
        return f"{type(thing).__name__}({inside})"
    if isinstance(thing, (tuple, list)):
        return "[" + ", ".join(map(built_as, thing)) + "]"
    if isinstance(thing, (int, float, str, bool, type(None))):
        return repr(thing)
    if isinstance(thing, Callable) and hasattr(thing, "__qualname__"):  # type: ignore[arg-type]
        return str(thing.__qualname__)
    return type(thing).__name__


def code_version(thing: Any, make: Any = None, kind: Kind = "point") -> str:
    """Hash of what a result was made by: the library, the measuring, and the files of the estimator and the problem.

    Args:
        thing: the estimator; the classes of what it holds (a solver, a product) count as well.
        make: the problem's or the workload's maker.
        kind: of the cell; what measures a point does not measure a meta step.
    """
    root = Path(__file__).resolve().parent
    files = set(root.parent.joinpath("estimators").rglob("*.py")) | _sources(thing)
    files = files.union(*map(_imported, _sources(make)), root.joinpath("measure").rglob("*.py"))
    if kind in ("meta", "advice"):
        files |= {
            f for name in ("meta_cells", "meta_step", "throughput", "ranks") if (f := root / f"{name}.py").is_file()
        }
        files.add(root / "workloads" / "base.py")
        files |= {root / "accuracy.py", *root.joinpath("advise").glob("*.py")} if kind == "advice" else set()
    elif kind == "peers":
        files = files.union(root.joinpath("peers").rglob("*.py"), [root / "meta_step.py"])
    else:
        files |= {root / f"{name}.py" for name in ("accuracy", "certified", "path", "point", "theory")}
        files.add(root / "problems" / "reference.py")
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.as_posix()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def problem_version(make: Any) -> str:
    """Hash of the files that a problem is written in alone: results of two versions are not of one problem."""
    digest = hashlib.sha256()
    for file in sorted(set[Path]().union(*map(_imported, _sources(make))), key=lambda f: f.as_posix()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _sources(thing: Any) -> set[Path]:
    """Files in which ``thing``, a function or an estimator with all that it holds, is written."""
    if isinstance(thing, (tuple, list)):
        return set().union(*map(_sources, thing)) if thing else set()
    if isinstance(thing, functools.partial):
        return _sources(thing.func)
    found: set[Path] = set()
    if is_dataclass(thing) and not isinstance(thing, type):
        found = found.union(*(_sources(getattr(thing, f.name)) for f in fields(thing)))
    try:
        own = inspect.getsourcefile(thing if inspect.isroutine(thing) else type(thing))
    except TypeError:  # built in
        own = None
    return found | ({Path(own)} if own and Path(own).is_file() else set())


@functools.cache
def _imported(file: Path) -> frozenset[Path]:
    """``file`` and what it imports from beside it (``from .common import ...``, ``import helper``), with what that imports, and so
    on."""
    found, waiting = set[Path](), [file]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ImportFrom):  # absolute ones, too: a user's file may import what lies beside it
                folder = file.parents[max(node.level - 1, 0)]
                module = folder.joinpath(*filter(None, (node.module or "").split(".")))
                waiting += [module.with_name(f"{module.name}.py"), *(module / f"{a.name}.py" for a in node.names)]
            elif isinstance(node, ast.Import):
                for a in node.names:
                    module = file.parent.joinpath(*a.name.split("."))
                    waiting += [module.with_name(f"{module.name}.py"), module / "__init__.py"]
    return frozenset(found)


def strict(value: Any, where: str = "") -> tuple[Any, list[str]]:
    """``value`` as strict JSON, and the places where a NaN or an infinity was replaced by null."""
    if isinstance(value, Mapping):
        parts = {str(k): strict(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
        return {k: v for k, (v, _) in parts.items()}, [p for _, ps in parts.values() for p in ps]
    if isinstance(value, (list, tuple)):
        items = [strict(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return [v for v, _ in items], [p for _, ps in items for p in ps]
    if isinstance(value, float) and not math.isfinite(value):
        return None, [where]
    return value, []


def write(path: Path, row: Mapping[str, Any]) -> None:
    """Write one result; ``nonfinite`` names the places where null stands for a NaN or an infinity."""
    clean, lost = strict(row)
    write_json(path, clean | {"nonfinite": lost})


def write_json(path: Path, content: Any) -> None:
    """A reader sees the whole file or none, whatever is killed when."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as f:
            json.dump(content, f, allow_nan=False, indent=1)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def unwritable(out: Path) -> str | None:
    """Why results cannot be written to ``out``, which is made if it is not there; None if they can."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return None
    except OSError as error:
        return f"nothing can be written to {out}: {error.strerror or error}"


def finished(cell: Cell, out: Path) -> str | None:
    """Status of a result that is already there and belongs to exactly this cell, else None."""
    try:
        row = json.loads(cell.file(out).read_text())
        same = row["schema"] == SCHEMA and row["config"] == json.loads(json.dumps(cell.config))
        return row["status"] if same and row["status"] in FINISHED else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: it is measured again


def forget_failed(todo: Iterable[Cell], out: Path, kinds: Collection[Failure] | None = None) -> None:
    """Remove the rows of cells that failed, in one of these ways if they are given, so that they are measured again."""
    for cell in todo:
        if finished(cell, out) == "failed" and (
            kinds is None or json.loads(cell.file(out).read_text())["failure"] in kinds
        ):
            cell.file(out).unlink(missing_ok=True)


def row(
    cell: Cell, status: str, reason: str | None = None, failure: Failure | None = None, **content: Any
) -> dict[str, Any]:
    """The frame that every result file has.

    Args:
        cell: whose result it is.
        status: one of `FINISHED`.
        reason: in words, unless it is "ok".
        failure: of a "failed" one, see `Failure`.
        content: what was measured.
    """
    return {
        "schema": SCHEMA, "id": cell.id, "config": cell.config, "status": status, "reason": reason,
        "failure": failure, **content,
    }  # fmt: skip
