"""`benchmarks/gpu.sh` and the sweep files that it runs; the measuring itself is tested elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.grid import read

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = [f for f in sorted((ROOT / "benchmarks" / "sweeps").glob("*.toml")) if read(f).kind == "meta"]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"

STUB = """#!/bin/sh
# Instead of Python: notes what it is asked, and answers that there is no GPU.
echo "$@" >>"$NOTES"
case "$*" in
    *is_available*) echo cpu ;;
    *"sweep"*) exit "${SWEEP_STATUS:-0}" ;;
esac
"""


@pytest.mark.parametrize("file", SWEEPS, ids=lambda f: f.stem)
def test_a_shipped_sweep_reads_and_shrinks_by_a_flag(file: Path) -> None:
    grid = read(file)
    assert grid.together and grid.cells()
    small = read(file, {"sizes": ("tiny",), "device": "cpu"})
    assert {c.settings["size"] for c in small.cells()} == {"tiny"}
    assert {c.device for c in small.cells()} == {"cpu"}


def test_table_8_is_set_up_as_the_paper() -> None:
    grid = read(ROOT / "benchmarks" / "sweeps" / "table8.toml")
    assert {c.settings["unroll"] for c in grid.cells()} == {10}
    darts = read(ROOT / "benchmarks" / "sweeps" / "table8.toml", {"estimators": ("t1t2",), "unroll": (1,)})
    (cell,) = darts.cells()
    assert cell.settings["unroll"] == 1
    assert cell.fields == {"product": "central-difference"}


def test_figure_1_goes_from_60_million_to_a_billion_parameters() -> None:
    grid = read(ROOT / "benchmarks" / "sweeps" / "figure1.toml")
    assert [c.settings["size"] for c in grid.cells() if c.estimator == "sama"] == ["small", "base", "large", "xl"]


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    (tmp_path / "notes").write_text("")
    return os.environ | {"PYTHON": str(python), "NOTES": str(tmp_path / "notes")}


def script(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run([bash, str(SCRIPT), *args], capture_output=True, text=True, env=env)


def commands(env: dict[str, str]) -> list[str]:
    lines = Path(env["NOTES"]).read_text().splitlines()
    return [line.split("-m benchmarks ")[1] for line in lines if "-m benchmarks " in line]


def test_without_a_gpu_it_says_so_and_runs_the_tiny_sizes(stub: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = script(str(out), env=stub)
    assert done.returncode == 0, done.stderr
    assert "no GPU here" in done.stdout
    table8, darts, figure1, table, figures = commands(stub)
    assert "table8.toml" in table8 and "--sizes tiny" in table8 and "--device cpu" in table8
    assert "--estimators t1t2 --unroll 1 --sizes tiny" in darts
    assert "figure1_small.toml" in figure1
    assert (table, figures) == (f"table {out}", f"figures {out}")


def test_flags_are_passed_on(stub: dict[str, str], tmp_path: Path) -> None:
    args = ("--device", "cuda", "--sizes", "base", "large", "--dtypes", "bfloat16-autocast")
    done = script(str(tmp_path / "out"), *args, env=stub)
    assert done.returncode == 0, done.stderr
    assert "no GPU" not in done.stdout
    table8, _, figure1, *_ = commands(stub)
    assert "--device cuda --dtypes bfloat16-autocast" in table8 and table8.endswith("--sizes base")
    assert "figure1.toml" in figure1 and figure1.endswith("--sizes base large")


def test_a_failed_cell_is_in_its_status_and_the_tables_are_still_drawn(stub: dict[str, str], tmp_path: Path) -> None:
    done = script(str(tmp_path / "out"), env=stub | {"SWEEP_STATUS": "1"})
    assert done.returncode == 1
    assert len(commands(stub)) == 5


def test_no_time_is_said_and_nothing_is_measured(stub: dict[str, str], tmp_path: Path) -> None:
    """A minute is 30 s of measuring: 18 for Table 8, and 9 for DARTS, which is not worth starting."""
    done = script(str(tmp_path / "out"), "--minutes", "1", env=stub)
    assert done.returncode == 1
    assert "out of time: table8.toml --estimators t1t2" in done.stderr
    assert [line.split()[1].split("/")[-1] for line in commands(stub)[:2]] == ["table8.toml", "figure1_small.toml"]


@pytest.mark.parametrize(
    ("args", "message"),
    [((), "bash benchmarks/gpu.sh OUT"), (("out", "--fast"), "unknown option --fast"), (("a", "b"), "one folder")],
)
def test_a_wrong_command_line_is_refused(args: tuple[str, ...], message: str, stub: dict[str, str]) -> None:
    done = script(*args, env=stub)
    assert done.returncode == 2
    assert message in done.stderr
    assert commands(stub) == []
