"""The trial of a sweep: 60 cells, five of which go wrong, and a kill -9 of the whole half way; then the same command again.

The tests run it with several cells a process; ``python -m tests.faulty_sweep`` with a fresh process a cell, which takes minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "tests" / "faulty_estimators.py"
FAULTS = ("hog", "segfault", "hang", "nan", "raise")

FILE = """
estimators = ["nan", "steady", "hog", "segfault", "raise", "hang"]
problems = "weighted_ridge"
plugins = "{plugin}"
per_process = {per_process}

[fields.steady]
number = {numbers}

[limits]
seconds = {seconds}
memory = "1GiB"

[effort]
budget = 0.001
least = 1
most = 1
"""


def wait_until(holds, what: str, seconds: float = 120.0) -> None:
    """Poll; a generous bound, so that a failure is a message and not a hanging test."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs: one that is dead but not yet waited for does not."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@dataclass
class Trial:
    """A sweep in a folder of its own, run from outside as a user would."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start(self, file: Path, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchmarks", "sweep", str(file), "--out", str(self.out), "--figures", "False"]
        env = os.environ | {"FAULTY_LOG": str(self.folder / "log"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, *flags], cwd=self.folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def rows(self) -> list[dict]:
        """All of them; a damaged one raises."""
        return [json.loads(p.read_text()) for p in sorted(self.out.glob("cells/*.json"))]

    def measured(self) -> list[tuple[str, int]]:
        """(cell, process that measured it), each once."""
        try:
            lines = (self.folder / "log").read_text().splitlines()
        except FileNotFoundError:
            return []
        return sorted({(name, int(pid)) for name, pid in map(str.split, lines)})


def trial(folder: Path, *, per_process: int, seconds: float, numbers: Sequence[int] = range(55)) -> list[dict]:
    """Run it, and check what must hold.

    Returns:
        The rows.
    """
    run = Trial(folder)
    file = folder / "faults.toml"
    text = FILE.format(plugin=PLUGIN, per_process=per_process, numbers=list(numbers), seconds=seconds)
    file.write_text(text)
    count = len(numbers) + len(FAULTS)

    first = run.start(file)
    wait_until(lambda: len(run.rows()) >= count // 2 or first.poll() is not None, "half of the cells are there")
    assert first.poll() is None, first.communicate()[0]
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    wait_until(lambda: not any(alive(pid) for _, pid in run.measured()), "the children of the killed sweep have ended")
    before = {row["id"]: row for row in run.rows()}  # raises if one is not whole
    assert count // 2 <= len(before) < count
    assert len(run.measured()) <= len(before) + 1, "more than the cell in flight was lost"

    again = run.start(file)
    said, _ = again.communicate()
    assert again.returncode == 1, said  # some cells failed, as planned
    rows = run.rows()
    assert len(rows) == count == len({(r["config"]["estimator"], str(r["config"]["fields"])) for r in rows}), said
    assert all(before[row["id"]] == row for row in rows if row["id"] in before), "a row was measured again"
    measured = run.measured()
    assert len({name for name, _ in measured}) == count
    assert len(measured) <= count + 1, "more than the cell in flight was measured twice"
    failures = {r["config"]["estimator"]: r["failure"] for r in rows if r["status"] == "failed"}
    expected = {"hog": "oom", "segfault": "crash", "hang": "timeout", "nan": "nan", "raise": "error"}
    assert failures == expected, said
    assert {r["status"] for r in rows if r["config"]["estimator"] == "steady"} == {"ok"}
    return rows


if __name__ == "__main__":
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        found = trial(Path(name), per_process=1, seconds=30.0)
    print(
        f"{len(found)} rows of 60, none lost, none twice, with a fresh process a cell: {time.monotonic() - begin:.0f} s"
    )
    for row in found:
        if row["status"] != "ok":
            print(f"  {row['failure']}: {row['reason']}")
