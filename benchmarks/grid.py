"""A sweep file: the grid of cells that it spans, checked entry by entry before anything runs."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
import itertools
import math
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from . import limits
from .cells import AUTOCAST, Cell
from .devices import misnamed
from .plan import UnknownName, fitted, made, takes, with_fields


class SweepError(ValueError):
    """A sweep file, or a flag in its place, is wrong; the message says where and what to write instead."""


TABLES = ("settings", "fields", "meta", "limits", "effort", "slurm", "ray")
KINDS = {"point": ("float64", "float32"), "meta": ("float32", "float64", AUTOCAST)}
"""kind -> the dtypes that it can be measured in, its default first."""
KERNELS = ("best", "math")
EFFORT = {"width": float, "budget": float, "patience": float, "least": int, "most": int}
EXECUTORS = ("local", "slurm", "ray")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A sweep, as resolved from a file and flags; every list is swept over, and cells are their product.

    Attributes:
        name: of the sweep; its results go to ``results/NAME`` unless told otherwise.
        about: what it is for, in words.
        kind: "point" (error and cost of one hypergradient) or "meta" (throughput and memory of a meta step); "advice" is no
            sweep, but what `hypergradbench advise` saves.
        estimators: registered names.
        problems: registered names, of workloads for "meta"; or ``file.py:function`` of the user's for "point".
        seeds: of the problems.
        dtypes: "float64", "float32", or for "meta" `AUTOCAST`.
        devices: "cpu", "cuda", "cuda:1", ...
        workers: numbers of data-parallel processes; above 1 for "meta" only.
        settings: setting -> values, for all problems.
        own_settings: problem -> setting -> values, before those for all.
        fields: estimator -> dotted field -> values, see `plan.with_fields`.
        meta: for "meta": ``kernel`` -> values; for "advice": ``limits``.
        seconds: that a cell may take.
        memory: bytes that its process may take, or None.
        effort: how long the clock may run: fields of `benchmarks.point.Effort` or `benchmarks.throughput.Effort`.
        threads: of torch in every process.
        per_process: cells a process.
        together: the "meta" cells of one instance share a process and are timed in turns.
        plugins: modules or files that register more.
        executor: one of `EXECUTORS`.
        slurm, ray: settings of those executors.
    """

    name: str
    about: str = ""
    kind: typing.Literal["point", "meta", "advice"] = "point"
    estimators: tuple[str, ...]
    problems: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    dtypes: tuple[str, ...] = ("float64",)
    devices: tuple[str, ...] = ("cpu",)
    workers: tuple[int, ...] = (1,)
    settings: dict[str, list[Any]] = field(default_factory=dict)
    own_settings: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    fields: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    meta: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 600.0
    memory: int | None = None
    effort: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    per_process: int = 1
    together: bool = False
    plugins: tuple[str, ...] = ()
    executor: typing.Literal["local", "slurm", "ray"] = "local"
    slurm: dict[str, Any] = field(default_factory=dict)
    ray: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def cells(self) -> list[Cell]:
        """The product: the cells of one instance, that is all estimators there, are neighbours."""
        found = [
            Cell(
                estimator=estimator, problem=problem, settings=settings, seed=seed, dtype=dtype, kind=self.kind, meta=meta,
                device=device, fields=fields, workers=workers, **made(estimator, problem, self.kind, fields),
            )
            for problem in self.problems
            for settings in _product(self.settings | self.own_settings.get(problem, {}))
            for seed, dtype, device, workers in itertools.product(self.seeds, self.dtypes, self.devices, self.workers)
            for meta in _product(self.meta)
            for estimator in self.estimators
            for fields in _product(self.fields.get(estimator, {}))
        ]  # fmt: skip
        return list({cell.id: cell for cell in found}.values())


def _product(lists: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))


def read(file: Path | None, flags: Mapping[str, Any] | None = None) -> Grid:
    """Resolve a sweep.

    Args:
        file: TOML; None if flags say everything.
        flags: what the command line says instead, by the name of the flag without its dashes; None or () is "not given".

    Raises:
        SweepError: something is unknown, missing, empty or of the wrong type.
        ImportError: a plugin cannot be loaded.
    """
    raw: dict[str, Any] = {}
    if file is not None:
        try:
            raw = tomllib.loads(file.read_text("utf-8-sig"))  # some editors begin a file with a mark
        except (OSError, UnicodeDecodeError) as error:
            raise SweepError(f"the sweep file {file} cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise SweepError(f"{file} is no valid TOML: {error}") from error
    given = {k: v for k, v in (flags or {}).items() if v is not None and v != ()}
    return _Reader(raw, given, file).grid()


class _Reader:
    """Takes entries out of a file, or the flags that stand in their place, and checks them."""

    def __init__(self, raw: dict[str, Any], flags: Mapping[str, Any], file: Path | None) -> None:
        self.raw, self.flags, self.file = raw, flags, file
        self.where = file.name if file is not None else "the command line"

    def grid(self) -> Grid:
        from estimators import registry

        from .plugins import load

        self.only(self.raw, [f.name for f in fields_of(Grid) if f.name not in _INNER] + ["device", "limits"], "")
        for table in TABLES:
            if not isinstance(self.raw.get(table, {}), dict):
                self.fail(table, f"must be a table: write [{table}] and its entries below")
        self.finite(self.raw, "")
        plugins = tuple(self.items("plugins", str, default=()))
        load(plugins)
        from .problems import PROBLEMS
        from .workloads import WORKLOADS

        kind = self.choice("kind", tuple(KINDS), "point")
        among: Mapping[str, Any] = WORKLOADS if kind == "meta" else PROBLEMS | self.own_problems()
        estimators = self.names("estimators", registry, "estimator")
        problems = self.names("problems", among, "workload" if kind == "meta" else "problem")
        makes = {p: among[p].make for p in problems}
        for p in problems:
            for module in getattr(among[p], "needs", ()):
                if importlib.util.find_spec(module) is None:
                    self.fail("problems", f"{p} needs {module}: pip install -e '.[models]'")
        settings, own = self.settings(makes, among)
        found = Grid(
            name=self.word("name", self.file.stem if self.file is not None else "sweep"),
            about=self.word("about", ""),
            kind=kind,
            estimators=estimators,
            problems=problems,
            seeds=tuple(self.items("seeds", int, default=(0,))),
            dtypes=tuple(self.items("dtypes", str, default=KINDS[kind][:1])),
            devices=tuple(self.items("device", str, default=("cpu",))),
            workers=tuple(self.items("workers", int, default=(1,))),
            settings=settings,
            own_settings=own,
            fields=self.fields(estimators, registry),
            meta=self.meta(kind),
            **self.limits(),
            effort=self.effort(),
            threads=self.count("threads"),
            per_process=self.count("per_process"),
            together=self.switch("together"),
            plugins=plugins,
            executor=self.choice("executor", EXECUTORS, "local"),
            slurm=self.raw.get("slurm", {}),
            ray=self.raw.get("ray", {}),
        )
        self.check(found)
        return found

    # What an entry is, one way of reading each.

    def fail(self, key: str, what: str) -> typing.NoReturn:
        """Say that what stands at ``key``, "" for the file itself, is wrong."""
        flag = _FLAG.get(key, key)
        place = f"--{flag.replace('_', '-')}" if flag in self.flags else f"{self.where}: {key}" if key else self.where
        raise SweepError(f"{place}: {what}")

    def only(self, table: Mapping[str, Any], known: Iterable[str], key: str) -> None:
        known = list(known)
        for name in table:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                self.fail(f"[{key}]" if key else "", f"unknown key {name!r}{hint}; there are: {', '.join(known)}")

    def finite(self, value: Any, key: str) -> None:
        """No NaN nor infinity: no result could be filed under it."""
        if isinstance(value, dict):
            for name, x in value.items():
                self.finite(x, f"{key}.{name}" if key else name)
        elif isinstance(value, list):
            for x in value:
                self.finite(x, key)
        elif isinstance(value, float) and not math.isfinite(value):
            table, _, name = key.rpartition(".")
            self.fail(f"[{table}] {name}" if table else key, f"{value!r} is no finite number")

    def get(self, key: str, default: Any) -> Any:
        flag = _FLAG.get(key, key)
        return self.flags[flag] if flag in self.flags else self.raw.get(key, default)

    def items(self, key: str, kind: type, default: Sequence[Any]) -> list[Any]:
        value = self.get(key, list(default))
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not values and key != "plugins":
            hint = "; leave it out for the default" if default else ""
            self.fail(key, f"is an empty list: there would be no cell{hint}")
        for x in values:
            if not isinstance(x, kind) or isinstance(x, bool):
                self.fail(key, f"{x!r} is no {_WORDS[kind]}")
        return list(dict.fromkeys(values))

    def names(self, key: str, among: Mapping[str, Any], what: str) -> tuple[str, ...]:
        if self.get(key, None) is None:
            self.fail("", f'{key} is missing: name them, or write {key} = "all"; there are: {", ".join(among)}')
        names = self.items(key, str, ())
        if names == ["all"]:
            return tuple(among)
        for name in names:
            if name not in among:
                self.fail(key, f"no {what} is called {name!r}; there are: {', '.join(among)}")
        return tuple(names)

    def own_problems(self) -> dict[str, Any]:
        """name -> entry, of those that are functions in files of the user's."""
        from .own_problem import find, is_own
        from .problems import ProblemEntry

        asked = self.get("problems", [])
        names = [n for n in ([asked] if isinstance(asked, str) else asked) if isinstance(n, str) and is_own(n)]
        try:
            return {n: ProblemEntry(find(n).function, n, "") for n in names}
        except UnknownName as error:
            self.fail("problems", str(error))

    def word(self, key: str, default: str) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            self.fail(key, f"{value!r} is no text")
        if key == "name" and (value.startswith(".") or re.fullmatch(r"[^/\\\x00-\x1f]{1,100}", value) is None):
            self.fail(key, f"{value!r} cannot name a folder")
        return value

    def choice(self, key: str, among: Sequence[str], default: str) -> Any:
        value = self.get(key, default)
        if value not in among:
            self.fail(key, f"{value!r} is none of: {', '.join(among)}")
        return value

    def count(self, key: str) -> int:
        value = self.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.fail(key, f"{value!r} is no whole number of at least 1")
        return value

    def switch(self, key: str) -> bool:
        value = self.get(key, False)
        if not isinstance(value, bool):
            self.fail(key, f"{value!r} is neither true nor false")
        return value

    # The tables.

    def settings(
        self, makes: Mapping[str, Any], among: Mapping[str, Any]
    ) -> tuple[dict[str, list[Any]], dict[str, dict[str, list[Any]]]]:
        shared: dict[str, list[Any]] = {}
        own: dict[str, dict[str, list[Any]]] = {}
        for name, value in self.raw.get("settings", {}).items():
            if not isinstance(value, dict):
                shared[name] = self.swept(f"[settings] {name}", value)
            elif name not in among:
                self.fail(f"[settings.{name}]", f"no problem is called {name!r}; there are: {', '.join(among)}")
            elif name in makes:  # else the flags left the problem out
                own[name] = {k: self.swept(f"[settings.{name}] {k}", v) for k, v in value.items()}
        for flag, name in (("sizes", "size"), ("unroll", "unroll")):
            if flag in self.flags:
                shared[name] = list(dict.fromkeys(self.flags[flag]))
                own = {p: {k: v for k, v in chosen.items() if k != name} for p, chosen in own.items()}
        if "data" in self.flags:
            if not Path(self.flags["data"]).is_dir():
                self.fail("data", f"there is no folder {self.flags['data']}")
            readers = [p for p, make in makes.items() if "data" in settings_of(make)]
            if not readers:
                able = [p for p, entry in among.items() if "data" in settings_of(entry.make)]
                self.fail("data", f"none of these problems reads data; those that do: {', '.join(able) or 'none'}")
            for p in readers:
                own[p] = own.get(p, {}) | {"data": [str(self.flags["data"])]}
        for p, make in makes.items():
            for name, values in (shared | own.get(p, {})).items():
                fitting = self.setting(p, make, name, values, f"settings.{p}" if name in own.get(p, {}) else "settings")
                sizes = getattr(among[p], "sizes", ())
                for value in values if name == "size" and sizes else ():
                    if value not in sizes:
                        self.fail("[settings] size", f"{p} has no size {value!r}; it has: {', '.join(sizes)}")
                if fitting != values or list(map(type, fitting)) != list(map(type, values)):
                    own.setdefault(p, {})[name] = fitting
        return shared, own

    def setting(self, problem: str, make: Any, name: str, values: Sequence[Any], table: str) -> list[Any]:
        """The values as the problem takes them."""
        known = settings_of(make)
        if name not in known:
            hint = "" if "." in table else f"; for one problem alone write [settings.NAME] {name} = ..."
            self.fail(
                f"[{table}] {name}", f"{problem} takes no such setting; it takes: {', '.join(known) or 'none'}{hint}"
            )
        found = [fitted(known[name], value) for value in values]
        for value in found:
            if not takes(known[name], value):
                self.fail(f"[{table}] {name}", f"{problem} takes {_hint(known[name])} there, not {value!r}")
        return found

    def swept(self, key: str, value: Any) -> list[Any]:
        """The values of an entry: those of a list, or the one that is given."""
        if value == []:
            self.fail(key, "is an empty list: there would be no cell")
        return value if isinstance(value, list) else [value]

    def fields(self, chosen: Sequence[str], registry: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
        found: dict[str, dict[str, list[Any]]] = {}
        for name, table in self.raw.get("fields", {}).items():
            key = f"[fields.{name}]"
            if name not in registry:
                self.fail(key, f"no estimator is called {name!r}; there are: {', '.join(registry)}")
            if not isinstance(table, dict):
                self.fail(key, "must be a table: write the field below it, as in solver.steps = [5, 10]")
            if name not in chosen:
                if "estimators" in self.flags:
                    continue
                self.fail(key, f"{name} is not among the estimators of this sweep")
            swept = {path: self.swept(f"{key} {path}", value) for path, value in _flat(table)}
            for values in _product(swept):
                try:
                    with_fields(registry[name].estimator, values)
                except UnknownName as error:
                    self.fail(key, str(error))
            found[name] = swept
        return found

    def meta(self, kind: str) -> dict[str, list[Any]]:
        table = self.raw.get("meta", {})
        if kind != "meta":
            if table:
                self.fail("[meta]", 'is for kind = "meta" only')
            return {}
        self.only(table, ("kernel",), "meta")
        kernels = self.swept("[meta] kernel", table.get("kernel", "best"))
        for kernel in kernels:
            if kernel not in KERNELS:
                self.fail("[meta] kernel", f"{kernel!r} is none of: {', '.join(KERNELS)}")
        return {"kernel": kernels}

    def limits(self) -> dict[str, Any]:
        table = self.raw.get("limits", {})
        self.only(table, ("seconds", "memory"), "limits")
        seconds = self.flags.get("limit_seconds", table.get("seconds", 600.0))
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 < seconds < float("inf"):
            self.fail("[limits] seconds", f"{seconds!r} is no positive number")
        memory = self.flags.get("limit_memory", table.get("memory"))
        try:
            return {"seconds": float(seconds), "memory": None if memory is None else limits.size(memory)}
        except ValueError as error:
            self.fail("[limits] memory", str(error))

    def effort(self) -> dict[str, Any]:
        table = self.raw.get("effort", {})
        self.only(table, [k for k in EFFORT if k != "patience" or self.get("kind", "point") == "meta"], "effort")
        for name, value in table.items():
            if not takes(EFFORT[name], value) or value <= 0:
                self.fail(f"[effort] {name}", f"{value!r} is no positive {'whole ' * (EFFORT[name] is int)}number")
        if table.get("least", 0) > table.get("most", math.inf):
            self.fail("[effort] least", f"{table['least']} is more than most = {table['most']}")
        return dict(table)

    def check(self, grid: Grid) -> None:
        """What only shows when entries are seen together."""
        for dtype in grid.dtypes:
            if dtype not in KINDS[grid.kind]:
                self.fail(
                    "dtypes", f"kind {grid.kind!r} is not measured in {dtype!r}, but in: {', '.join(KINDS[grid.kind])}"
                )
        for workers in grid.workers:
            if workers < 1 or (workers > 1 and grid.kind != "meta"):
                self.fail("workers", f'{workers}: at least 1, and more than 1 for kind = "meta" only')
        for device in grid.devices:
            if wrong := misnamed(device):
                self.fail("device", wrong)
            if grid.memory is not None and not limits.supported(device):
                self.fail(
                    "[limits] memory", "this system cannot limit the memory of a process: only Linux can; leave it out"
                )
        if grid.together and grid.kind != "meta":
            self.fail("together", 'is for kind = "meta" only: points are timed against a gradient of their own')


_INNER = ("devices", "own_settings", "seconds", "memory")
"""Attributes of `Grid` that a file spells otherwise."""
_FLAG = {
    "[settings] size": "sizes", "[settings] unroll": "unroll", "[limits] seconds": "limit_seconds",
    "[limits] memory": "limit_memory",
}  # fmt: skip
"""place -> the flag that may stand for it, where its name is another."""
_WORDS = {int: "whole number", str: "text"}


def settings_of(make: Any) -> dict[str, Any]:
    """setting -> annotation, of those that a sweep may choose."""
    fixed: set[str] = set()
    while isinstance(make, functools.partial):
        fixed |= set(make.keywords)
        make = make.func
    try:
        hints = typing.get_type_hints(make)
    except (NameError, TypeError):  # annotations that cannot be read here are not checked
        hints = {}
    own = {"seed", "dtype", "device", *fixed}
    return {name: hints.get(name, Any) for name in inspect.signature(make).parameters if name not in own}


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """TOML reads ``solver.steps = 5`` as a table in a table."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _hint(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def shard(todo: Sequence[Cell], which: str | None, together: bool = False) -> list[Cell]:
    """One of n parts that have no cell in common and are the whole together, for machines that know nothing of each other.

    Args:
        todo: all cells, in the order of the grid: the parts are the same wherever the file and the code are.
        which: "i/n" with 1 <= i <= n; None for all.
        together: cells that are timed together stay so.

    Raises:
        SweepError: it is no such thing.
    """
    if which is None:
        return list(todo)
    i, slash, n = which.partition("/")
    if not slash or not i.isdecimal() or not n.isdecimal() or not 1 <= int(i) <= int(n):
        raise SweepError(f"--shard {which}: write i/n with i from 1 to n, such as 1/4")
    groups: dict[Any, list[Cell]] = {}
    for cell in todo:
        groups.setdefault(cell.instance if together and cell.kind == "meta" else cell.id, []).append(cell)
    return [cell for group in list(groups.values())[int(i) - 1 :: int(n)] for cell in group]
