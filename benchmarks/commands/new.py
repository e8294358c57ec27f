"""``hypergradbench new``: a problem or an estimator to begin with."""

from __future__ import annotations

import importlib.util
import keyword
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


@dataclass(frozen=True, kw_only=True)
class New:
    """Write NAME.py, a commented example that works as it is, and test_NAME.py, its tests; what to change is marked CHANGE.

    docs/own_problem.md goes through it.
    """

    kind: Positional[Literal["problem", "estimator"]]
    """What to begin."""
    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Of the file, without .py: my_problem, adjoint_descent."""
    out: Annotated[Path, arg(metavar="DIR", help_behavior_hint="(default: here)")] = Path()
    """Folder to write to."""
    force: Annotated[bool, FlagCreatePairsOff] = False
    """Write over files that are there."""


def new(command: New) -> int:
    """`new`.

    Returns:
        Exit status: 0; 2 if the name cannot be taken, or the files are there.
    """
    name = command.name.removesuffix(".py")
    files = [command.out / f"{name}.py", command.out / f"test_{name}.py"]
    if wrong := _wrong(command.kind, name, files, command.force):
        print(f"hypergradbench: {wrong}", file=sys.stderr)
        return 2
    names = _names(command.kind, name)
    try:
        command.out.mkdir(parents=True, exist_ok=True)
        for file, template in zip(files, (f"my_{command.kind}.py", f"test_my_{command.kind}.py"), strict=True):
            text = (TEMPLATES / template).read_text(encoding="utf-8")
            for old, this in names.items():
                text = text.replace(old, this)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"hypergradbench: nothing can be written to {command.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"written: {files[0]} and {files[1]}. They work as they are; what to change is marked CHANGE.")
    print(f"Next: pytest {files[1]}")
    if command.kind == "problem":
        print(f"      hypergradbench check {files[0]}:make")
        print(f"      hypergradbench run {files[0]}:make --estimators all")
    else:
        called = names["my-estimator"]
        print(
            f"      hypergradbench run --plugins {files[0]} --estimators {called} cg sama unroll --problems log_ridge --out results/{name}"
        )
    return 0


def _names(kind: str, name: str) -> dict[str, str]:
    """What a template calls itself -> what it is to be called."""
    if kind == "problem":
        return {"my_problem": name}
    words = name.split("_")
    return {
        "my_estimator": name,
        "my-estimator": "-".join(words),
        "MyEstimator": "".join(w[:1].upper() + w[1:] for w in words),
    }


def _wrong(kind: str, name: str, files: list[Path], force: bool) -> str | None:
    if not name.isidentifier() or keyword.iskeyword(name) or not name.strip("_"):
        return f"{name!r} is no name for a module: write letters, digits and _, such as my_{kind}"
    if not force and (there := [str(f) for f in files if f.exists()]):
        return (
            f"{' and '.join(there)} {'are' if len(there) > 1 else 'is'} there already: choose another name, or --force"
        )
    if not any(f.exists() for f in files) and importlib.util.find_spec(name) is not None:
        return f"{name!r} is the name of a module that is installed: choose another one"
    if kind == "estimator":
        from estimators import registry

        if (called := _names(kind, name)["my-estimator"]) in registry:
            return f"an estimator called {called!r} is registered already: choose another name"
    return None
