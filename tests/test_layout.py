"""The dependency direction, read from the sources, and what the wheel holds."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import estimators

from .no_torch import NO_TORCH

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("estimators", "benchmarks", "analysis")

# estimators/<name> may import strictly lower layers, and its own folder or layer.
LAYERS = {
    "errors": 0,
    "tree": 1,
    "forward_mode": 1,
    "checkpointing": 1,
    "saved": 1,
    "state": 2,
    "rules": 3,
    "products": 2,
    "solvers": 2,
    "stage": 4,
    "estimator": 5,
    "problem": 6,
    "adaptation": 6,
    "registry": 8,
    "estimate": 9,
    "__init__": 10,
}
FAMILY = 7  # every other file: a family of estimators, or a helper of theirs


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts)


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports anywhere, also inside functions."""
    package = module_name(path).split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            # `from . import tree` names a module, `from .tree import Tree` a member of one
            found |= {
                ".".join([*stem, alias.name]) if is_module([*stem, alias.name]) else ".".join(stem)
                for alias in node.names
            }
    return found


def is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def top(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def part(name: str) -> str:
    """estimators.solvers.cg -> solvers; estimators -> __init__"""
    return [*name.split("."), "__init__"][1]


def layer(name: str) -> int:
    return LAYERS.get(part(name), FAMILY)


def test_the_layers_name_files_that_exist() -> None:
    for name in LAYERS:
        assert is_module(["estimators", name]), name


@pytest.mark.parametrize("path", sources("estimators"), ids=module_name)
def test_estimators_import_downwards_only(path: Path) -> None:
    name = module_name(path)
    for other in imports(path):
        if top(other) != "estimators":
            continue
        same_layer = part(other) == part(name) or (layer(name) == layer(other) == FAMILY)
        assert layer(other) < layer(name) or same_layer, f"{name} imports {other}, which lies above it"


@pytest.mark.parametrize("path", sources("estimators"), ids=module_name)
def test_estimators_need_torch_only(path: Path) -> None:
    foreign = {top(name) for name in imports(path)} - sys.stdlib_module_names - {"torch", "estimators"}
    assert not foreign, f"{module_name(path)} imports {foreign}"


def test_estimators_have_no_import_cycle() -> None:
    graph = {module_name(p): {n for n in imports(p) if top(n) == "estimators"} for p in sources("estimators")}
    graph = {k.removesuffix(".__init__"): v - {k.removesuffix(".__init__")} for k, v in graph.items()}
    while graph:
        leaves = [k for k, needs in graph.items() if not needs & graph.keys()]
        assert leaves, f"a cycle among {sorted(graph)}"
        for k in leaves:
            del graph[k]


@pytest.mark.parametrize("path", sources("analysis"), ids=module_name)
def test_analysis_reads_files_only(path: Path) -> None:
    assert not {top(name) for name in imports(path)} & {"torch", "estimators", "benchmarks", "tests"}


@pytest.mark.parametrize("path", [*sources("estimators"), *sources("benchmarks"), ROOT / "do.py"], ids=module_name)
def test_nothing_imports_the_tests(path: Path) -> None:
    assert "tests" not in {top(name) for name in imports(path)}


def test_analysis_imports_where_there_is_no_torch() -> None:
    modules = sorted({module_name(p).removesuffix(".__init__") for p in sources("analysis")} - {"analysis.__main__"})
    assert "analysis.results" in modules
    code = (
        f"{NO_TORCH}\nimport importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert 'estimators' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_under_test_is_this_one() -> None:
    assert Path(estimators.__file__).resolve().parent == ROOT / "estimators"


def test_the_library_is_typed() -> None:
    assert (ROOT / "estimators" / "py.typed").is_file()


def test_the_wheel_holds_the_library_and_the_harness_but_no_tests(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {top for top, *_ in (n.split("/") for n in names) if not top.endswith(".dist-info")} <= set(SHIPPED)
    assert {"estimators/py.typed", "estimators/solvers/cg.py"} <= set(names)


def test_asv_pins_every_dependency_as_the_constraints_do() -> None:
    """asv installs the project with --no-deps: what it is not told to install is missing, or is another release."""
    text = (ROOT / "asv.conf.json").read_text(encoding="utf-8")
    config = json.loads("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//")))
    required = config["matrix"]["req"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {re.split(r"[^\w-]", d)[0] for d in project["dependencies"]} == required.keys()
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: [pins[name]] for name in required} == required
