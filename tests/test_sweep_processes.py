"""Processes of sweeps: claims that die with their holder, children that die with their parent, and who measures what."""

from __future__ import annotations

import errno
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import cells, isolated, locks, saved, worker
from benchmarks.cells import Cell
from benchmarks.cli import main
from benchmarks.isolated import Orders
from benchmarks.progress import Progress, time_left
from benchmarks.sweep import split, sweep
from benchmarks.worker import Desk, groups
from estimators import registry

from .faulty_sweep import PLUGIN, ROOT, Trial, alive, wait_until

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks and signals")


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


CLAIM = """
import sys
from pathlib import Path
from benchmarks import locks
for cell in sys.argv[2:]:
    print(locks.claim(Path(sys.argv[1]), cell), flush=True)
sys.stdin.read()
"""
A, B = "0123456789abcdef", "fedcba9876543210"


@posix
def test_a_claim_excludes_others_and_dies_with_its_holder(tmp_path: Path) -> None:
    assert locks.supported(tmp_path)
    other = python(CLAIM, str(tmp_path), A)
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    assert not locks.claim(tmp_path, A)
    assert locks.claim(tmp_path, B)
    assert not locks.claim(tmp_path, B), "a claim holds against its own process, too: it has threads"
    rival = python(CLAIM, str(tmp_path), A, B)
    assert rival.stdout is not None
    assert [rival.stdout.readline() for _ in range(2)] == ["False\n"] * 2
    locks.release(tmp_path, A)  # not ours: nothing happens
    assert not locks.claim(tmp_path, A)
    other.kill()
    other.communicate()
    assert locks.claim(tmp_path, A)
    locks.release(tmp_path, A)
    locks.release(tmp_path, B)
    rival.communicate()
    assert python(CLAIM, str(tmp_path), A, B).communicate("")[0].split() == ["True", "True"]


@posix
def test_without_locks_every_claim_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    assert not locks.supported(tmp_path)
    assert locks.claim(tmp_path, A)
    locks.release(tmp_path, A)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(locks.fcntl, "lockf", fail)
    with pytest.raises(OSError, match="broken"):
        locks.claim(tmp_path, A)


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode().strip(), flush=True)
time.sleep(600)
"""
KERNEL = """
import sys, time
from benchmarks.lifeline import die_with_parent
print(die_with_parent(int(sys.argv[1])), flush=True)
time.sleep(600)
"""
PIPE = """
import sys, time
from benchmarks.lifeline import die_at_end_of
die_at_end_of(sys.stdin)
print(True, flush=True)
time.sleep(600)
"""


@posix
@pytest.mark.parametrize("child", [KERNEL, PIPE])
def test_a_child_does_not_survive_its_parent(child: str) -> None:
    if child is KERNEL and not sys.platform.startswith("linux"):
        pytest.skip("only Linux signals it")
    parent = python(PARENT, child)
    assert parent.stdout is not None
    pid, said = parent.stdout.readline().split()
    assert said == "True"
    assert alive(int(pid))
    parent.kill()
    parent.communicate()
    wait_until(lambda: not alive(int(pid)), "the child has ended", 20.0)


@posix
def test_a_parent_that_is_gone_already_is_noticed() -> None:
    code = "from benchmarks.lifeline import die_with_parent; die_with_parent(1); print('still here')"
    if sys.platform.startswith("linux"):
        process = python(code)
        assert process.communicate()[0] == ""
        assert process.returncode == 1


@posix
def test_two_sweeps_in_one_folder_share_the_cells(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text(
        f'estimators = "steady"\nproblems = "weighted_ridge"\nplugins = "{PLUGIN}"\nper_process = 2\n'
        "[fields.steady]\nnumber = [0, 1, 2, 3, 4, 5, 6, 7]\ndelay = 0.05\n[effort]\nbudget = 0.001\nleast = 1\nmost = 1\n"
    )
    run = Trial(tmp_path)
    both = [run.start(file), run.start(file)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(run.rows()) == 8
    assert {r["status"] for r in run.rows()} == {"ok"}
    assert len(run.measured()) == 8, "a cell was measured twice"
    assert len(list((run.out / "sweeps").glob("*.json"))) == 1  # the same configuration


def cell(number: int = 0, **changes: object) -> Cell:
    return Cell(estimator="steady", problem="weighted_ridge", settings={"n": number}, **changes)  # type: ignore[arg-type]


def test_a_cell_that_another_sweep_measures_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one ends with its row for one cell, and gives the other cell up."""
    ours, theirs, given_up = cell(1), cell(2), cell(3)
    monkeypatch.setattr("benchmarks.sweep.POLL", 0.01)
    held = {theirs.id, given_up.id}
    monkeypatch.setattr(locks, "claim", lambda out, i: i not in held)
    monkeypatch.setattr(locks, "release", lambda out, i: None)
    measured: list[Cell] = []

    class Here:
        shares_machine = True

        def run(self, batches, orders, tell) -> None:
            for batch in batches:
                for c in batch:
                    if isolated._claimed(c, orders, tell):
                        measured.append(c)
                        tell("done", c, {"status": "ok"})
            if held and ours in measured:  # the other sweep goes on meanwhile
                cells.write(theirs.file(tmp_path), cells.row(theirs, "ok"))
                held.clear()

    events: list[tuple[str, str]] = []
    todo = [ours, theirs, given_up]
    counts = sweep(todo, Orders(out=tmp_path), lambda event, c, _: events.append((event, c.id)), Here())
    assert counts == {"ok": 2, "kept": 1}
    assert measured == [ours, given_up]
    assert events == [("done", ours.id), ("kept", theirs.id), ("done", given_up.id)]


def test_portions_for_processes() -> None:
    todo = [cell(n, seed=s) for s in (0, 1) for n in range(3)]
    assert [len(b) for b in split(todo, 1, per_process=1)] == [1] * 6
    assert [len(b) for b in split(todo, 1, per_process=4)] == [4, 2]
    assert len(split(todo, 1)) == 1
    meta = [
        Cell(estimator=e, problem="mlp_decay", settings={"unroll": u}, kind="meta", meta={"kernel": "best"})
        for u in (1, 2)
        for e in ("sama", "cg", "t1t2")
    ]
    assert [len(b) for b in split(meta, 1, per_process=1, together=True)] == [3, 3]
    assert [len(b) for b in split(meta, 1, per_process=6, together=True)] == [6]
    assert [len(b) for b in split(meta, 1, per_process=1)] == [1] * 6
    assert [len(g) for g in groups(meta, together=True)] == [3, 3]
    assert [len(g) for g in groups(meta, together=False)] == [1] * 6
    assert [len(g) for g in groups(todo, together=True)] == [1] * 6


def test_cells_that_take_turns_have_each_their_own_time() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    watch = isolated._Watch(process, limit=100.0)
    try:
        for name in ("a", "b", "a", "b"):
            watch.turn(name)
            time.sleep(0.02)
        watch.turn("a")
        used = watch._spent["a"]
        assert 0.04 <= used < watch._since  # two turns of its own
        assert watch._deadline == pytest.approx(watch._since + 100.0 - used)
        watch.turn("c")
        assert watch._deadline == pytest.approx(watch._since + 100.0)
        watch.turn(None)  # between cells it may import and load
        assert watch._deadline >= watch._since + isolated.STARTUP
        assert not watch.late
        watch._limit = used / 2
        watch.turn("a")
        wait_until(lambda: watch.late, "it is late", 20.0)
        assert process.wait() == -signal.SIGKILL
    finally:
        watch.end()
        process.kill()
        process.wait()


FAKE = """
import json, os, signal, subprocess, sys, time
orders = json.loads(sys.stdin.readline())
from benchmarks.cells import Cell
todo = [Cell(**config) for config in orders["cells"]]
def say(event, cell, more=""):
    sys.stdout.write(json.dumps({"event": event, "id": cell.id, "environment": {"torch": "1"}}) + "\\n" + more)
    sys.stdout.flush()
if len(todo) == 3:  # the second dies when its turn comes again, in the middle of a word
    for cell in todo:
        say("start", cell)
    say("at", todo[0])
    say("at", todo[1], '{"event": "at')
    os.kill(os.getpid(), signal.SIGKILL)
if len(todo) == 2:  # the first hangs, and so does what it started
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, file=open(sys.argv[1], "w"), flush=True)
    say("start", todo[0])
    time.sleep(600)
print("its last words", file=sys.stderr)
sys.exit(3)  # the last one does not even start
"""


@posix
def test_the_cell_whose_turn_it_is_gets_the_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "WORKER", ("-c", FAKE, str(tmp_path / "pid")))
    todo = [cell(n) for n in range(3)]
    told: list[tuple[str, int]] = []
    isolated.run_batch(
        todo, Orders(out=tmp_path, timeout=2.0), lambda event, c, _: told.append((event, c.settings["n"]))
    )
    rows = [json.loads(c.file(tmp_path).read_text()) for c in todo]
    assert [r["failure"] for r in rows] == ["timeout", "crash", "crash"]
    assert "SIGKILL (out of memory?)" in rows[1]["reason"]
    assert rows[2]["reason"] == "the process ended with exit code 3: its last words"
    assert [event for event in told if event[0] == "done"] == [("done", 1), ("done", 0), ("done", 2)]
    assert rows[0]["environment"] == rows[1]["environment"] == {"torch": "1"}
    assert rows[2]["environment"] == Orders(out=tmp_path).marks  # nothing else is known
    started = int((tmp_path / "pid").read_text())
    wait_until(lambda: not alive(started), "what a cell started has ended", 20.0)
    assert all(locks.claim(tmp_path, c.id) for c in todo), "a claim was not given back"
    for c in todo:
        locks.release(tmp_path, c.id)


BETWEEN = """
import json, os, signal, subprocess, sys
from pathlib import Path
orders = json.loads(sys.stdin.readline())
from benchmarks import cells
todo = [cells.Cell(**config) for config in orders["cells"]]
def say(event, cell):
    print(json.dumps({"event": event, "id": cell.id, "status": "ok"}), flush=True)
say("start", todo[0])
if len(todo) == 2:  # what it started holds its standard output open, and outlives it
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    os.kill(os.getpid(), signal.SIGSEGV)
cells.write(todo[0].file(Path(orders["out"])), cells.row(todo[0], "ok"))
say("done", todo[0])
if len(todo) == 3:
    os.kill(os.getpid(), signal.SIGKILL)  # before the second is begun
"""


@posix
def test_a_process_that_dies_between_cells_takes_none_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "WORKER", ("-c", BETWEEN))
    todo = [cell(n) for n in range(3)]
    told: list[tuple[str, int]] = []
    orders = Orders(out=tmp_path, timeout=20.0)
    isolated.run_batch(todo, orders, lambda event, c, _: told.append((event, c.settings["n"])))
    assert [n for event, n in told if event == "done"] == [0, 1, 2]
    rows = [json.loads(c.file(tmp_path).read_text()) for c in todo]
    assert [r["status"] for r in rows] == ["ok", "failed", "ok"]
    assert (
        rows[1]["reason"] == "the process was killed by SIGSEGV"
    )  # and not its limit, for which the pipe would be open


SAID = """
import json, os, signal, sys
from pathlib import Path
orders = json.loads(sys.stdin.readline())
from benchmarks import cells
from benchmarks.worker import Desk
def say(event, cell, details):
    print(json.dumps({"event": event, "id": cell.id, **details}), flush=True)
desk = Desk(Path(orders["out"]), say)
first, second = [cells.Cell(**config) for config in orders["cells"]]
desk.start(first)
print("CUDA out of memory, trying again", file=sys.stderr, flush=True)
desk.done(first, {})
desk.start(second)
os.kill(os.getpid(), signal.SIGSEGV)
"""


@posix
def test_what_a_cell_said_is_not_held_against_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "WORKER", ("-c", SAID))
    todo = [cell(n) for n in range(2)]
    isolated.run_batch(todo, Orders(out=tmp_path), lambda *_: None)
    rows = [json.loads(c.file(tmp_path).read_text()) for c in todo]
    assert [(r["status"], r["failure"]) for r in rows] == [("ok", None), ("failed", "crash")]


def test_a_desk_keeps_each_cells_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.worker.time.perf_counter", lambda: now[0])
    said: list[tuple[str, str]] = []
    desk = Desk(tmp_path, lambda event, c, _: said.append((event, c.id)), marks={"jobs": 1})
    a, b = cell(1), cell(2)
    for step, c, seconds in ((desk.start, a, 1.0), (desk.start, b, 2.0), (desk.at, a, 4.0), (desk.at, b, 8.0)):
        step(c)
        now[0] += seconds
    desk.done(b, {"found": 1})
    now[0] += 100.0
    with desk.attempt(a):
        raise ZeroDivisionError("by zero")
    rows = {c.id: json.loads(c.file(tmp_path).read_text()) for c in (a, b)}
    assert (rows[a.id]["seconds"], rows[b.id]["seconds"]) == (5.0, 10.0)
    assert (rows[a.id]["status"], rows[a.id]["failure"]) == ("failed", "error")
    assert rows[b.id]["found"] == 1
    assert rows[b.id]["failure"] is None
    assert [event for event, _ in said] == ["start", "start", "at", "at", "done", "done"]


def test_force_keeps_the_old_row_until_its_turn(tmp_path: Path) -> None:
    c = cell()
    cells.write(c.file(tmp_path), cells.row(c, "ok", marker=1))
    tell: list[str] = []
    assert not isolated._claimed(c, Orders(out=tmp_path), lambda event, *_: tell.append(event))
    assert tell == ["kept"]
    assert isolated._claimed(c, Orders(out=tmp_path, force=True), lambda event, *_: tell.append(event))
    assert c.file(tmp_path).exists(), "a batch is claimed at once: an interruption would lose all of its rows"
    Desk(tmp_path, lambda *_: None).start(c)
    assert not c.file(tmp_path).exists()
    locks.release(tmp_path, c.id)


@posix
def test_a_row_of_before_does_not_stand_for_a_process_that_could_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "WORKER", ("-c", "raise ImportError('no torch')"))
    c = cell()
    cells.write(c.file(tmp_path), cells.row(c, "ok"))
    isolated.run_batch([c], Orders(out=tmp_path, force=True), lambda *_: None)
    row = json.loads(c.file(tmp_path).read_text())
    assert (row["status"], row["reason"]) == ("failed", "the process ended with exit code 1: ImportError: no torch")


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin's estimators are gone afterwards: tests that go through the registry must not meet them."""
    monkeypatch.setattr(registry, "_entries", {name: registry[name] for name in registry})
    yield
    sys.modules.pop(f"hypergradbench_plugin_{PLUGIN.stem}", None)


@posix
@pytest.mark.usefixtures("_own_registry")
def test_what_is_there_is_kept_and_failures_are_tried_again_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAULTY_LOG", str(tmp_path / "log"))
    out = tmp_path / "out"
    words = ["sweep", "--estimators", "steady", "raise", "--problems", "weighted_ridge", "--plugins", str(PLUGIN)]
    words += ["--per-process", "2", "--figures", "False", "--out", str(out)]
    ends = []
    for more in ([], [], ["--retry-failed"], ["--estimators", "steady"], ["--shard", "2/2"]):
        status = main([*words, *more])
        ends.append((status, capsys.readouterr().out.splitlines()[-1].split(". ")[0]))
    assert ends == [
        (1, "2 cells: 1 failed, 1 ok"),
        (1, "2 cells: 2 kept"),
        (1, "2 cells: 1 failed, 1 kept"),
        (0, "1 cells: 1 kept"),
        (1, "1 cells: 1 kept"),
    ]
    names = [name for name, _ in Trial(tmp_path).measured()]
    assert sorted(names) == ["none-0", "raise-0", "raise-0"]
    assert len(saved.load(out)) == 3  # all, steady alone, and the second part


def test_in_80_columns_a_long_label_leaves_room_for_counts_and_time() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, height=24, color_system=None)
    long = [cell(n, fields={f"solver.of.many.words{i}": 0.5 for i in range(9)}) for n in range(1000)]
    with Progress(len(long), console) as progress:
        for c in long[:500]:
            progress.report("start", c, {})
            progress.report("done", c, {"status": "ok", "reason": None, "seconds": 1.0})
        progress._begin -= 3600.0 * 9
        progress.report("start", long[500], {})
        progress.report("done", long[500], {"status": "ok", "reason": None, "seconds": 1.0})
        progress._bar.refresh()
    last = re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", text.getvalue())
    (line,) = {part.rstrip() for part in last if "501/1000" in part}
    assert line.startswith("steady(solver.of.many.wor…")
    assert line.endswith("about 9 h left")
    assert len(line) <= 80


def test_time_left() -> None:
    assert time_left(10.0, 0, 5) == ""
    assert time_left(10.0, 5, 0) == ""
    assert time_left(10.0, 5, 5) == "about 10 s left"
    assert time_left(100.0, 10, 60) == "about 10 min left"
    assert time_left(3600.0, 1, 3) == "about 3 h left"
    assert time_left(86400.0, 1, 3) == "about 3 d left"


def test_whether_the_machine_is_busy_is_said_of_the_same_moment_as_its_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, lambda *_: None)
    for load, expected in ((1e6, True), (0.0, False)):
        monkeypatch.setattr(worker, "load_average", lambda load=load: [load, load, load])
        desk.done(cell(1), {})
        row = json.loads(cell(1).file(tmp_path).read_text())["environment"]
        assert (row["load_average"][0], row["busy"]) == (load, expected)
