"""Cells that go wrong are rows: what the reasons are, and the trial of a whole sweep that is killed half way."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import failures, limits
from estimators import NonFiniteError

from .faulty_sweep import trial


def test_sixty_cells_with_planted_faults_and_a_kill_half_way(tmp_path: Path) -> None:
    """Several cells a process, or torch's import would take minutes; `tests.faulty_sweep` as a script has one each."""
    rows = {r["config"]["estimator"]: r for r in trial(tmp_path, per_process=20, seconds=8.0)}
    assert "DefaultCPUAllocator" in rows["hog"]["reason"]
    assert rows["hog"]["asked_bytes"] == 2**24
    assert rows["hog"]["process"]["memory_limit"] == 2**30
    assert "SIGSEGV" in rows["segfault"]["reason"]
    assert "killed after 8 s" in rows["hang"]["reason"]
    assert rows["raise"]["reason"] == "RuntimeError: this estimator is broken"
    for row in rows.values():  # those that the parent had to write, too
        assert row["environment"]["torch"] == torch.__version__
        assert row["environment"]["disturbed"] is False
    assert rows["hang"]["seconds"] >= 8.0
    assert all(rows[name]["process"]["peak_rss_bytes"] > 2**26 for name in ("steady", "hog", "segfault", "hang"))


@pytest.mark.parametrize(
    ("error", "failure", "asked"),
    [
        (MemoryError(), "oom", None),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"), "oom", 20 * 2**20),
        (RuntimeError("CUDA out of memory. Tried to allocate 1.50 GiB (GPU 0"), "oom", 3 * 2**29),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."), "oom", 4096),
        (RuntimeError("std::bad_alloc"), "oom", None),
        (ValueError("out of memory"), "error", None),  # words of an argument check, say
        (NonFiniteError("the estimate is NaN"), "nan", None),
        (ZeroDivisionError("division by zero"), "error", None),
    ],
)
def test_errors_are_told_apart(error: Exception, failure: str, asked: int | None) -> None:
    found = failures.of_error(error)
    assert (found.failure, found.asked_bytes) == (failure, asked)
    assert found.reason.startswith(type(error).__name__)


@pytest.mark.parametrize(
    ("code", "late", "said", "failure", "words"),
    [
        (-signal.SIGKILL, True, [], "timeout", "killed after 5 s"),
        (-signal.SIGKILL, False, [], "crash", "SIGKILL (out of memory?)"),
        (-signal.SIGSEGV, False, ["noise"], "crash", "SIGSEGV"),
        (
            -signal.SIGABRT,
            False,
            ["terminate called", "what():  std::bad_alloc"],
            "oom",
            "SIGABRT: what():  std::bad_alloc",
        ),
        (3, False, ["the last words"], "crash", "exit code 3: the last words"),
        (1, False, [], "crash", "it said nothing"),
    ],
)
def test_ends_of_processes_are_told_apart(code: int, late: bool, said: list[str], failure: str, words: str) -> None:
    found = failures.of_exit(code, late=late, limit=5.0, said=said)
    assert found.failure == failure
    assert words in found.reason


def test_sizes_of_memory() -> None:
    assert limits.size("4GiB") == 4 * 2**30
    assert limits.size("1.5 GB") == 1_500_000_000
    assert limits.size(2**30) == 2**30
    for wrong, words in (("4 gigs", "KiB"), ("-1GiB", "no size"), ("10MiB", "at least 512MiB"), (True, "no size")):
        with pytest.raises(ValueError, match=words):
            limits.size(wrong)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory")
def test_a_memory_limit_ends_with_its_block() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limits.memory(2**40), limits.memory(None):
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 2**40
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_on_cuda_the_limit_is_a_share_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 8 * 2**30

    said: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties())
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, index: said.append((share, index)))
    with limits.memory(2 * 2**30, "cuda:1"):
        assert said == [(0.25, 1)]
    assert said == [(0.25, 1), (1.0, 1)]
    with limits.memory(16 * 2**30, "cuda"):
        assert said[-1] == (1.0, 0)
