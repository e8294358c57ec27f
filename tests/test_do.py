"""do.py: what it says and how it ends when the machine is not as it should be. No network, no real installation."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def do(tmp_path: Path) -> ModuleType:
    """A fresh copy of the module that believes it lives in an empty project."""
    spec = importlib.util.spec_from_file_location("do", ROOT / "do.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    module.ROOT = str(tmp_path)
    module.VENV = str(tmp_path / ".venv")
    for name in ("PYTHON", "STAMP", "LOG"):
        setattr(module, name, str(tmp_path / ".venv" / Path(getattr(module, name)).relative_to(ROOT / ".venv")))
    return module


class Calls:
    """Stands in for subprocess.call: notes every command, and ends those that hold a given word with status 1."""

    def __init__(self, do: ModuleType, fail: str = "", say: str = "") -> None:
        self.do, self.fail, self.say = do, fail, say
        self.commands: list[str] = []
        self.environment: dict[str, str] = {}

    def __call__(self, command: list[str], *, env: dict[str, str] | None = None, **options: object) -> int:
        line = " ".join(command)
        self.commands.append(line)
        self.environment = env or {}
        if "-m venv" in line:
            Path(self.do.PYTHON).parent.mkdir(parents=True, exist_ok=True)
            Path(self.do.PYTHON).touch()
        if self.fail and self.fail in line:
            if self.say:
                options["stdout"].write(self.say)  # type: ignore[attr-defined]
            return 1
        return 0

    def ran(self, words: str) -> list[str]:
        return [line for line in self.commands if words in line]


def record(monkeypatch: pytest.MonkeyPatch, do: ModuleType, fail: str = "", say: str = "") -> Calls:
    calls = Calls(do, fail, say)
    monkeypatch.setattr(do.subprocess, "call", calls)
    return calls


def only_line(capsys: pytest.CaptureFixture[str], progress: int = 0) -> str:
    """The one line on stderr, after ``progress`` lines that say what is being done."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == progress + 1, lines
    assert lines[-1].startswith("do.py: ")
    return lines[-1]


def test_an_old_python_can_parse_it() -> None:
    source = (ROOT / "do.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__" not in source  # `annotations` is a syntax error in 3.6


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 10, 13), (2, 7, 18)])
def test_an_old_python_gets_one_line(do, monkeypatch, capsys, version) -> None:
    calls = record(monkeypatch, do)
    monkeypatch.setattr(do.sys, "version_info", version)
    assert do.main(["test"]) == 1
    line = only_line(capsys)
    assert "Hypergradbench needs Python 3.11 or newer, this is {}.{}.{}:".format(*version) in line
    assert not calls.commands


def test_a_missing_venv_module_gets_one_line(do, monkeypatch, capsys) -> None:
    calls = record(monkeypatch, do, fail="import venv, ensurepip")
    assert do.main(["demo"]) == 1
    assert "apt install python3-venv" in only_line(capsys)
    assert not calls.ran("pip install")


def test_a_venv_that_cannot_be_made_gets_one_line_and_leaves_nothing(do, monkeypatch, capsys) -> None:
    record(monkeypatch, do, fail="-m venv")
    assert do.main(["demo"]) == 1
    assert "apt install python3-venv" in only_line(capsys)
    assert not Path(do.VENV).exists()


def test_a_failing_pip_gets_one_line_with_its_reason_and_the_log(do, monkeypatch, capsys) -> None:
    said = "Collecting torch\nERROR: No matching distribution found for torch\n"
    calls = record(monkeypatch, do, fail="pip install", say=said)
    assert do.main(["test"]) == 1
    line = only_line(capsys, progress=1)
    assert "no network?" in line and "No matching distribution found for torch" in line and do.LOG in line
    assert Path(do.LOG).read_text() == said
    assert do.installed() is None and not calls.ran("-m pytest")


def test_a_second_start_installs_nothing(do, monkeypatch, capsys) -> None:
    calls = record(monkeypatch, do)
    monkeypatch.setattr(do.os, "cpu_count", lambda: 2)
    assert do.main(["test"]) == 0
    assert len(calls.ran("pip install")) == 1 and "-c constraints.txt -e .[test]" in calls.ran("pip install")[0]
    calls.commands.clear()
    assert do.main(["test"]) == 0 and do.main(["demo"]) == 0  # what the demo needs is part of what the tests need
    assert calls.commands == [f"{do.PYTHON} -m pytest -n2 --dist=loadfile", f"{do.PYTHON} -m benchmarks run"]
    assert do.main(["check"]) == 0
    assert "-e .[dev]" in calls.ran("pip install")[0]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_install_again(do, monkeypatch, tmp_path, name) -> None:
    calls = record(monkeypatch, do)
    do.main(["test"])
    (tmp_path / name).write_text("changed")
    do.main(["test"])
    assert len(calls.ran("pip install")) == 2
    assert len(calls.ran("-m venv")) == 1  # but the environment itself is kept


def test_a_moved_project_installs_again(do, monkeypatch, tmp_path) -> None:
    record(monkeypatch, do)
    do.main(["test"])
    do.ROOT = str(tmp_path.parent)  # the editable installation still points to the old place
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path.parent / name).write_text("")
    assert do.installed() is None


def test_an_interrupted_installation_leaves_no_stamp(do, monkeypatch, capsys) -> None:
    calls = record(monkeypatch, do)
    do.main(["demo"])

    def interrupted(command: list[str], **options: object) -> int:
        if "install" in command:
            raise KeyboardInterrupt
        return calls(command)

    monkeypatch.setattr(do.subprocess, "call", interrupted)
    capsys.readouterr()
    assert do.main(["test"]) == 130
    assert "interrupted" in only_line(capsys, progress=1)
    assert do.installed() is None


def test_arguments_exit_status_and_threads_are_passed_on(do, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    calls = record(monkeypatch, do, fail="-m pytest")
    assert do.main(["test", "-k", "cg", "--speed"]) == 1
    assert calls.commands[-1] == f"{do.PYTHON} -m pytest -n0 --dist=loadfile -k cg --benchmark-enable"  # timed alone
    assert calls.environment["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert do.main(["demo", "--seeds", "0"]) == 0
    assert calls.commands[-1].endswith("-m benchmarks run --seeds 0")
    assert calls.environment["OMP_NUM_THREADS"] == "3"


def test_studies_are_all_unless_some_are_named(do, monkeypatch) -> None:
    calls = record(monkeypatch, do)
    for arguments, words in ((["--quick"], "--all --quick"), (["a", "b", "--quick"], "a b --quick"), ([], "--all")):
        assert do.main(["studies", *arguments]) == 0
        assert calls.commands[-1] == f"{do.PYTHON} -m benchmarks study {words}"


def test_check_runs_every_tool_and_fails_if_one_does(do, monkeypatch) -> None:
    calls = record(monkeypatch, do, fail="ruff check")
    assert do.main(["check"]) == 1
    assert calls.ran("mypy") and calls.ran("ruff format --check")


def test_docs_are_built_with_warnings_as_errors_and_it_says_where(do, monkeypatch, capsys) -> None:
    calls = record(monkeypatch, do)
    assert do.main(["docs", "-E"]) == 0
    assert calls.ran("-m sphinx") and "--fail-on-warning" in calls.commands[-1] and "-E docs" in calls.commands[-1]
    assert str(Path(do.ROOT, "build", "docs", "index.html")) in capsys.readouterr().err
    failing = record(monkeypatch, do, fail="-m sphinx")
    assert do.main(["docs"]) == 1 and failing.ran("-m sphinx")
    assert "open" not in capsys.readouterr().err


def test_bench_without_a_commit_gets_one_line(do, monkeypatch, capsys) -> None:
    record(monkeypatch, do)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", os.path.dirname(do.ROOT))
    assert do.main(["bench"]) == 1
    assert "git" in only_line(capsys, progress=1)


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["nonsense"], 2), (["--help"], 0)])
def test_usage_names_every_command_from_any_directory(argv: list[str], status: int, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "do.py"), *argv], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status
    assert re.findall(r"python3 do\.py (\w+) ", done.stdout + done.stderr)[:6] == [
        "demo", "studies", "test", "bench", "check", "docs",
    ]  # fmt: skip
