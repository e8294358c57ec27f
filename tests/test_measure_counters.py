"""Passes, FLOPs and collectives against numbers known by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.func import grad, vjp
from torch.nn.functional import linear
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.measure import Counts, counting, counts_of
from benchmarks.meta_step import MetaStep, PlainTraining, settled
from benchmarks.workloads import WORKLOADS
from estimators import CG, SGD, T1T2, CentralDifference, Implicit, Neumann, Problem, Stage, Tree, Unroll, estimate
from estimators.estimator import Estimator

M, K, C = 5, 7, 3


def problem(steps: int = 4, reduce: object = None) -> Problem:
    """Least squares with C outputs from K inputs on M examples, and a learned decay: one product of matrices a loss."""
    x, y = torch.rand(M, K, dtype=torch.float64), torch.rand(M, C, dtype=torch.float64)

    def loss(p: Tree, h: Tree, batch: object) -> Tensor:
        return ((linear(x, p["w"]) - y) ** 2).mean() + h["decay"].exp() * (p["w"] ** 2).sum()

    return Problem(
        name="least_squares",
        stages=[Stage(loss, SGD(lr=0.1), lambda t: None, steps, **({"reduce": reduce} if reduce else {}))],
        outer=lambda p, h: ((linear(x, p["w"]) - y) ** 2).mean(),
        start={"w": torch.rand(C, K, dtype=torch.float64)},
        hparams={"decay": torch.zeros((), dtype=torch.float64)},
    )


def test_flops_of_linear_layers() -> None:
    x, w = torch.rand(M, K), torch.rand(C, K, requires_grad=True)
    one = 2 * M * K * C
    with counting() as counter:
        linear(x, w)
    assert counter.counts() == Counts(forwards=0, backwards=0, flops=one, collectives=0, collective_bytes=0)
    with counting() as counter:
        linear(x, w).square().sum().backward()  # x needs no gradient: one product forwards, one back
    assert counter.counts().flops == 2 * one
    x.requires_grad_()
    with counting() as counter:
        torch.autograd.grad(linear(x, w).square().sum(), [x, w])
    assert counter.counts().flops == 3 * one


def test_plain_passes() -> None:
    w = torch.rand(K, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return (x**3).sum()

    def count(work: object) -> tuple[int, int]:
        with counting() as counter:
            work(counter.loss(loss))  # type: ignore[operator]
        return counter.counts().forwards, counter.counts().backwards

    assert count(lambda f: f(w)) == (1, 0)
    assert count(lambda f: f(w).backward()) == (1, 1)
    assert count(lambda f: [f(w), torch.autograd.grad(f(w), w)]) == (2, 1)
    assert count(lambda f: torch.autograd.grad(torch.autograd.grad(f(w), w, create_graph=True)[0].sum(), w)) == (1, 2)
    assert count(lambda f: grad(f)(w)) == (1, 1)
    assert count(lambda f: vjp(f, w)[1](torch.ones(()))) == (1, 1)
    assert count(lambda f: torch.func.jvp(f, (w,), (w,))) == (1, 0)
    before = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        count(lambda f: 1 / 0)
    assert torch.autograd._engine_run_backward is before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("estimator", "forwards", "backwards"),
    [
        # the loss is linearised once, a forward and a backward pass; a product pulls back two parts of the gradient that share
        # nothing, the fit's and the penalty's ...
        (Implicit(CG(steps=3)), 1, 1 + 2 * 3),
        # ... and the last term of the series, of which the mixed product alone is wanted, that of the penalty
        (Implicit(Neumann(steps=5, lr=0.1)), 1, 1 + 2 * 5 + 1),
        # as a central difference two of each a product
        (Implicit(CG(steps=3), product=CentralDifference(alpha=1e-3)), 2 * 3, 2 * 3),
        # the pull of a step, which the run has linearised, and the rule's own derivative, a backward pass without a loss
        (Unroll(), 0, 2 * 4 + 4),
        # ... and where it has kept no graph but the last, the step again
        (Unroll(checkpoint=1), 3, 3 + 2 * 4 + 4),
        # one product
        (T1T2(), 1, 2),
    ],
)
def test_passes_of_estimators(estimator: Estimator, forwards: int, backwards: int) -> None:
    with counting() as counter:
        estimate(counter.problem(problem(steps=4)), estimator)
    # the run, the outer loss, the pullback
    assert counter.counts().forwards == 4 + 1 + forwards
    assert counter.counts().backwards == 4 + 1 + backwards


def test_counts_of_a_meta_step_and_of_plain_training() -> None:
    workload = WORKLOADS["mlp_decay"].make(unroll=4, width=6, batch=5)
    state = settled(workload)
    step, plain = MetaStep(workload, Implicit(Neumann(steps=2, lr=1e-3)), state), PlainTraining(workload, state)
    # of n examples forwards: three layers of 6 by 6 and one of 6 by 10; backwards twice that but for the first layer, whose
    # input needs no gradient
    n, layers = 5, 3 * 6 * 6 + 6 * 10
    expected = 4 * 2 * n * (layers + 2 * layers - 6 * 6)
    assert counts_of(plain) == Counts(forwards=4, backwards=4, flops=expected, collectives=0, collective_bytes=0)
    counts = counts_of(step)
    # one linearisation; two products pull back the network's part of the gradient and five of the penalty's, the mixed one
    # these five alone
    assert (counts.forwards, counts.backwards) == (4 + 1 + 1, 4 + 1 + 1 + 2 * (1 + 5) + 5)
    assert counts.flops > expected


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_collectives_and_their_bytes() -> None:
    x = torch.ones(3, 4)
    with counting() as counter:
        dist.all_reduce(x)
        dist.all_reduce(x.double(), async_op=True).wait()
        dist.broadcast(x, 0)
        dist.barrier()  # sends nothing
    assert (counter.counts().collectives, counter.counts().collective_bytes) == (3, 48 + 96 + 48)


def test_what_a_process_puts_in_counts_and_not_what_it_gets() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        x = torch.ones(3, 4)
        with counting() as counter:
            dist.all_gather([torch.empty_like(x) for _ in range(4)], x)
            dist.reduce_scatter(x, [torch.empty_like(x) for _ in range(4)])
            dist.reduce_scatter(x, [torch.empty_like(x) for _ in range(4)])
    finally:
        dist.destroy_process_group()
    assert (counter.counts().collectives, counter.counts().collective_bytes) == (3, 48 + 2 * 4 * 48)


@pytest.mark.usefixtures("group")
def test_the_users_own_reduction_is_seen_as_it_is() -> None:
    """One call of `Stage.reduce` may send nothing, or one message of all leaves, or one a leaf in half precision."""

    def mean(a: Tree) -> Tree:
        for x in a.values():
            dist.all_reduce(x)
        return a

    with counting() as counter:
        estimate(counter.problem(problem(reduce=mean)), T1T2())
    # leaves: the gradients of four steps and of the outer loss; numbers: the outer loss and M^T v
    leaf, scalar = 8 * K * C, 8
    assert counter.counts().collectives == 4 + 1 + 1 + 1
    assert counter.counts().collective_bytes == 5 * leaf + 2 * scalar

    def half(a: Tree) -> Tree:
        if a:
            dist.all_reduce(torch.cat([x.reshape(-1) for x in a.values()]).half())
        return a

    with counting() as counter:
        estimate(counter.problem(problem(reduce=half)), T1T2())
    assert counter.counts().collective_bytes == (5 * leaf + 2 * scalar) // 4
