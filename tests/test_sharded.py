"""Sharded over ranks equals whole: `Stage.reduce` is the only thing that an estimator needs to know of ranks."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from estimators import Adam, Problem, Stage, Tree, estimate, registry
from estimators.tree import flatten

from .toy import toy, toy_tasks

RANKS = 2
TASKS = [n for n in registry if registry[n].claim.tasks_only]
NAMES = [n for n in registry if registry[n].claim.refuses(toy()) is None] + TASKS


def whole_problem(name: str) -> Problem:
    return (toy_tasks if name in TASKS else toy)(Adam(lr=0.05, betas=(0.7, 0.9)), steps=12)


def _mean(a: Tree) -> Tree:
    out = {}
    for k, x in a.items():
        y = x.contiguous().clone()
        dist.all_reduce(y)
        out[k] = y / RANKS
    return out


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)

    def half(whole: Problem) -> Problem:
        (stage,) = whole.stages
        share = Stage(stage.loss, stage.rule, lambda t: stage.stream(t)[rank::RANKS], stage.steps, reduce=_mean)
        return Problem("half", [share], whole.outer, whole.start, whole.hparams)

    torch.save({n: flatten(estimate(half(whole_problem(n)), n).hparams) for n in NAMES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank, args=(port, str(folder)), nprocs=RANKS)
    return [torch.load(Path(folder) / f"{r}.pt") for r in range(RANKS)]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_equal_one(name: str, answers: list[dict[str, torch.Tensor]]) -> None:
    whole = flatten(estimate(whole_problem(name), name).hparams)
    for got in answers:
        # sama's central difference is a nonlinear function of a mean over the shards: the same, up to rounding
        assert float((got[name] - whole).norm()) <= 1e-9 * float(whole.norm())
