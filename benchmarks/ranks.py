"""Data-parallel cells: a process a rank, each with its share of every batch; rank 0 measures, the others follow it.

The ranks are started by the worker and meet through its store. All run the same program, and agree between samples on how
many more to take. A rank that dies ends all of them, and so does the worker.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from estimators import NonFiniteError, NotApplicableError, Tree

from . import cells
from .cells import Cell
from .lifeline import die_at_end_of, die_with_parent
from .plugins import LOADED, load

ROOT = Path(__file__).resolve().parent.parent

BUCKET = 25 * 2**20
"""Bytes of gradients that go into one collective call: the default of `torch.nn.parallel.DistributedDataParallel`."""

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for another; a cell's own limit comes first."""

GRACE = 5.0
"""Seconds in which rank 0 may still say what it saw after another rank has ended."""

HOST = "127.0.0.1"


class Mean:
    """The average over ranks, as `Stage.reduce` takes it: buckets of leaves, one `all_reduce` each.

    Every rank must call it with the same leaves in the same order. The leaves are not changed. All buckets go through one
    buffer, which stays: the back end may hold on to what it was given a little longer than the call takes, so that
    buffers of a call's own would make the peak of memory a matter of luck.

    Args:
        world: number of ranks.

    Attributes:
        resident: the buffer, once there is one; for the count of memory.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self.resident: dict[torch.dtype, Tensor] = {}

    def __call__(self, a: Tree) -> Tree:
        out: Tree = {}
        for names in buckets(a):
            parts = [a[k].reshape(-1) for k in names]
            flat = self._buffer(parts[0], sum(x.numel() for x in parts))
            torch.cat(parts, out=flat)
            dist.all_reduce(flat)
            for k, x in zip(names, flat.split([x.numel() for x in parts]), strict=True):
                out[k] = (x / self.world).view(a[k].shape)
        return {k: out[k] for k in a}

    def _buffer(self, like: Tensor, length: int) -> Tensor:
        held = self.resident.get(like.dtype)
        if held is None or len(held) < length:
            held = self.resident[like.dtype] = like.new_empty(length)
        return held[:length]


def buckets(a: Tree) -> list[list[str]]:
    """Names of leaves that share a call: of one dtype, in order, until a bucket holds `BUCKET` bytes."""
    found: list[list[str]] = []
    room, dtype = 0, None
    for k, x in a.items():
        if room <= 0 or x.dtype != dtype:
            found.append([])
            room, dtype = BUCKET, x.dtype
        found[-1].append(k)
        room -= x.nbytes
    return found


class RankError(RuntimeError):
    """A data-parallel rank failed; the message says which, and how."""


RAISED = {error.__name__: error for error in (NotApplicableError, NonFiniteError, torch.OutOfMemoryError)}
"""What keeps its class when rank 0 raises it: rows tell these apart."""


def measured(cell: Cell, effort: Mapping[str, Any]) -> dict[str, Any]:
    """What the row of a cell of several workers says.

    Args:
        effort: fields of `benchmarks.throughput.Effort`.

    Raises:
        NotApplicableError, NonFiniteError, torch.OutOfMemoryError: rank 0 raised it.
        RankError: it raised something else, or a rank died.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.json"
        store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        orders = {
            "cell": cell.config, "effort": dict(effort), "plugins": LOADED, "port": store.port, "parent": os.getpid(),
            "result": str(result), "threads": torch.get_num_threads(),
        }  # fmt: skip
        team = _Team(cell.workers, orders)
        try:
            death = team.wait(result)
        finally:
            team.end()
        said = json.loads(result.read_text()) if result.exists() else None
    if said is not None and "content" in said:
        return said["content"]
    if said is None or (death is not None and death.killed):
        raise RankError("rank 0 ended without a word" if death is None else death.reason)
    raise RAISED.get(said["type"], RankError)(said["text"])


class _Death(NamedTuple):
    reason: str
    killed: bool
    """By a signal: then whatever the other ranks say is its consequence."""


class _Team:
    """The processes of one cell."""

    def __init__(self, world: int, orders: Mapping[str, Any]) -> None:
        threads = str(orders["threads"])
        env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.said: list[IO[str]] = []
        self.ranks: list[subprocess.Popen[str]] = []
        for rank in range(world):
            said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `end`
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ranks"], stdin=subprocess.PIPE, stdout=said, stderr=said, text=True,
                env=env,
            )  # fmt: skip
            self.said.append(said)
            self.ranks.append(process)
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it died at once; `wait` says how
                process.stdin.write(json.dumps({**orders, "rank": rank}) + "\n")
                process.stdin.flush()  # left open: its end tells a rank that this process is gone

    def wait(self, result: Path) -> _Death | None:
        """Wait for rank 0's word, or for the first rank that ends without it."""
        while not result.exists():
            if any(p.poll() not in (None, 0) for p in self.ranks) or self.ranks[0].poll() == 0:
                return self._death(result)
            time.sleep(0.02)
        return self._death(result) if json.loads(result.read_text()).get("content") is None else None

    def _death(self, result: Path) -> _Death | None:
        """Who died first, as far as one can see: a rank that was killed is the reason, also if another noticed first."""
        end = time.monotonic() + GRACE
        while time.monotonic() < end and any(p.poll() is None for p in self.ranks):
            if result.exists() and all(p.poll() is None for p in self.ranks[1:]):
                end = min(end, time.monotonic() + 0.5)  # rank 0 had a reason of its own
            time.sleep(0.02)
        codes = [p.poll() for p in self.ranks]
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
                return _Death(f"rank {rank} of {len(codes)} was killed by {name}", True)
        for rank, code in enumerate(codes):
            if code:
                self.said[rank].seek(0)
                lines = [line.strip() for line in self.said[rank].read()[-4000:].splitlines() if line.strip()]
                last = lines[-1] if lines else "it said nothing"
                return _Death(f"rank {rank} of {len(codes)} ended with exit code {code}: {last}", False)
        return None

    def end(self) -> None:
        for process in self.ranks:
            process.kill()
        for process, said in zip(self.ranks, self.said, strict=True):
            process.wait()
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()
            said.close()


def latest(seconds: float) -> float:
    """The largest of what the ranks say, as `interleaved` takes it to make the same calls on all."""
    x = torch.tensor(seconds, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return float(x)


def rank(orders: Mapping[str, Any]) -> None:
    """What a rank does from its start to its end; rank 0 leaves its word, whatever happens."""
    from . import meta_cells
    from .workloads import of_rank

    cell, number = Cell(**orders["cell"]), orders["rank"]
    torch.set_num_threads(orders["threads"])
    load(orders["plugins"])
    store = dist.TCPStore(HOST, orders["port"], is_master=False, timeout=PATIENCE, wait_for_workers=False)
    try:
        _join(cell, number, store)
        workload = of_rank(meta_cells.workload_of(cell), number, cell.workers, Mean(cell.workers))
        bench = meta_cells.bench_of(cell, workload, orders["effort"])
        meta_cells.enter(bench, cell)
        bench.time(agree=latest)
        word: dict[str, Any] = {"content": meta_cells.content(bench, cell)}
    except Exception as error:
        if number:
            raise
        kept = type(error).__name__ in RAISED
        word = {"type": type(error).__name__, "text": str(error) if kept else f"{type(error).__name__}: {error}"}
    if not number:
        cells.write(Path(orders["result"]), word)


def _join(cell: Cell, number: int, store: dist.Store) -> None:
    """Enter the process group: gloo on CPU; on CUDA NCCL, one device a rank."""
    device = torch.device(cell.device)
    if device.type == "cuda":
        if device.index is not None:
            raise ValueError(f"device={cell.device!r} with {cell.workers} workers: say 'cuda', rank i takes cuda:i")
        if torch.cuda.device_count() < cell.workers:
            raise ValueError(f"{cell.workers} workers need a device each, there are {torch.cuda.device_count()}")
        torch.cuda.set_device(number)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=number, world_size=cell.workers, timeout=PATIENCE
    )


def main() -> None:
    """Read orders, take part, and end with the process that gave them."""
    orders = json.loads(sys.stdin.readline())
    if not die_with_parent(orders["parent"]):
        die_at_end_of(sys.stdin)
    rank(orders)
    sys.stdout.flush()
    os._exit(0)  # tearing the group down may wait for a rank that is gone


if __name__ == "__main__":
    main()
