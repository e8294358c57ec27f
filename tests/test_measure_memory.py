"""The split of the peak against cases counted by hand, to the byte.

B is the size of one vector of N numbers in float64; a 0-d tensor has 8 bytes and a vector of truth values N.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import limits
from benchmarks.measure import CATEGORIES, Meter, counting, memory_of, peak, peak_bytes
from benchmarks.measure.allocator import allocator_peak_bytes, cuda_memory
from benchmarks.measure.split import Memory
from benchmarks.meta_step import MetaStep, PlainTraining, copied, settled
from benchmarks.workloads import WORKLOADS, Workload
from estimators import CG, SAMA, SGD, Adam, Implicit, Problem, Stage, Unroll, hypergradient, run
from estimators.multitask import MultiTask
from estimators.rules import AnyRule
from estimators.tartan import Tartan

N = 1000
B = 8 * N


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Every measurement begins with a collection, which need not walk through torch and pytest."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def vector(value: float = 1.0) -> Tensor:
    return torch.full((N,), value, dtype=torch.float64)


def split(**bytes_by_category: int) -> dict[str, int]:
    return dict.fromkeys(CATEGORIES, 0) | bytes_by_category


X = vector(2.0)
CHECK = 38  # the extremes of the losses or of the parameters and what is found of them
HPARAMS = {"h": torch.zeros((), dtype=torch.float64)}


def linear(rule: AnyRule, steps: int, stream: Callable[[int], Tensor] = lambda t: X) -> Stage:
    """<w, x>. Forward: the products (B), until their sum (8) is made. Backward: a one (8), and the gradient (B)."""
    return Stage(lambda p, h, x: (p["w"] * x).sum(), rule, stream, steps)


def measured_run(stage: Stage, start: Any, **options: Any) -> Memory:
    meter = Meter()
    meter.resident(
        {"parameters": start} if isinstance(start, dict) else {"parameters": start.params, "slots": start.slots}
    )
    with meter.measuring():
        run(meter.stage(stage), start, HPARAMS, watch=meter.state, **options)
    return meter.memory()


def test_steps_of_gradient_descent() -> None:
    start = {"w": vector()}
    two = measured_run(linear(SGD(lr=0.1), 2), start, tail=0)
    # steps write over a copy of the start, and need no memory; so the peak is in the check that the end is finite: the end;
    # the start, which the caller still holds; the gradient that the record keeps, two losses; they in one tensor
    assert two.split == split(parameters=B, recorded=B, graph=B + 2 * 8, buffers=2 * 8 + CHECK)
    assert two.peak == 3 * B + 4 * 8 + CHECK
    assert two.resident == B
    # of every further step only its loss is kept
    assert measured_run(linear(SGD(lr=0.1), 5), start, tail=0).peak == two.peak + 3 * (8 + 8)


@pytest.mark.parametrize("donate", [False, True])
def test_a_start_that_nobody_holds_is_gone_after_the_first_step(donate: bool) -> None:
    meter, held = Meter(), [{"w": vector()}]
    meter.resident({"parameters": held})
    with meter.measuring():
        run(meter.stage(linear(SGD(lr=0.1), 2)), held.pop(), HPARAMS, tail=0, watch=meter.state, donate=donate)
    if donate:
        assert meter.memory().split == split(parameters=B, graph=B + 2 * 8, buffers=2 * 8 + CHECK)
    else:  # in the first step, while the start is copied
        assert meter.memory().split == split(parameters=2 * B, graph=B + 8)


def test_a_single_step_needs_nothing_to_see_that_it_is_finite() -> None:
    one = measured_run(linear(SGD(lr=0.1), 1), {"w": vector()}, tail=0)
    # the start and its successor; the gradient and the loss, which is also in the tensor of all losses
    assert one.split == split(parameters=B, recorded=B, graph=B + 8, buffers=8 + CHECK)


def test_batches_are_data() -> None:
    made = measured_run(linear(SGD(lr=0.1), 1, lambda t: vector(2.0)), {"w": vector()}, tail=0)
    there = measured_run(linear(SGD(lr=0.1), 1), {"w": vector()}, tail=0)
    assert made.peak == there.peak  # the batch is gone before the peak
    held = [X]
    meter = Meter()
    meter.resident({"parameters": held})
    with meter.measuring():
        meter.stage(linear(SGD(lr=0.1), 1, lambda t: vector(2.0))).objective(0)({"w": X}, HPARAMS)
    assert meter.memory().split == split(parameters=B, data=B, graph=B + 8)


@pytest.mark.parametrize(("steps", "every", "recorded"), [(3, 1, 3), (6, 1, 6), (8, 3, 3), (8, 9, 1)])
def test_a_run_of_adam_and_what_it_records(steps: int, every: int, recorded: int) -> None:
    start = run(linear(Adam(lr=0.1), 1), {"w": vector()}, HPARAMS).end
    found = measured_run(linear(Adam(lr=0.1), steps), start, tail=None, every=every)
    # The check that the end is finite, as above; the states that were recorded, of which the start is one
    assert found.split == split(
        parameters=B, slots=2 * B, recorded=recorded * 3 * B, graph=B + steps * 8, buffers=steps * 8 + CHECK
    )
    assert found.peak == sum(found.split.values())


def test_what_conjugate_gradients_hold() -> None:
    diagonal = torch.linspace(1.0, 2.0, N, dtype=torch.float64)
    meter = Meter()
    matvec = meter.loss(lambda v: {"w": v["w"] * diagonal})
    with meter.measuring():
        CG(steps=3)(matvec, {"w": X})
    # While <p, H p> is taken, from the second product on: x, r and p; H p was made by the loss. Nineteen numbers: the unit, ||b||,
    # <b, b>, <r, r>, its goal, two curvatures, ||x||, <x, p>; of the step before a, beta, <p, H p>, <p, p> and three that ||x||
    # takes; three on the way to the sum. Four truth values: indefinite, solved, negative, active.
    assert meter.memory().split == split(graph=B, buffers=3 * B + 19 * 8 + 4)


def quadratic(estimator: Any, steps: int, rule: AnyRule) -> int:
    """Peak of a run and a hypergradient of sum d (w - h)^2 / 2."""
    diagonal = torch.linspace(0.1, 0.2, N, dtype=torch.float64)
    stage = Stage(lambda p, h, x: (diagonal * (p["w"] - h["h"]) ** 2).sum() / 2, rule, lambda t: None, steps)
    start = {"w": vector()}

    def work() -> None:
        record = run(stage, start, HPARAMS, tail=estimator.tail)
        hypergradient(lambda p, h: (p["w"] ** 2).sum(), [stage], [estimator], [record], HPARAMS)

    return peak_bytes(work)


def test_an_unroll_grows_with_the_steps_and_an_implicit_gradient_does_not() -> None:
    def growth(estimator: Any, rule: AnyRule) -> list[int]:
        peaks = [quadratic(estimator, steps, rule) for steps in (4, 6, 10)]
        return [b - a for a, b in zip(peaks, peaks[1:], strict=False)]

    # a state more, and its loss
    assert growth(Unroll(), SGD(lr=0.1)) == [2 * (B + 8), 4 * (B + 8)]
    # only the losses
    assert growth(Implicit(CG(steps=2)), SGD(lr=0.1)) == [2 * 8, 4 * 8]


def test_repeats_to_the_byte() -> None:
    workload = WORKLOADS["mlp_decay"].make(unroll=3)
    state = settled(workload)
    found = []
    for step in (MetaStep(workload, SAMA(), state), MetaStep(workload, SAMA(), state)):
        step()
        found.append(memory_of(step))
    found.append(memory_of(step))
    assert found[0] == found[1] == found[2]
    numbers = sum(x.numel() for x in state.params.values())
    # parameters and two moments in float32; eight hyperparameters, for each of which the meta optimizer keeps two moments and
    # a count of its steps
    assert found[0].resident == 3 * 4 * numbers + 4 * 8 * (1 + 2 + 1)
    assert found[0].split["hyperparameters"] >= 4 * 8 * 4
    assert sum(found[0].split.values()) == found[0].peak


def bare(optimizer: Callable[..., torch.optim.Optimizer], steps: int) -> Workload:
    """Nothing but <w, x>, whose batch is made by the stream."""
    stage = linear(SGD(lr=0.1), steps, lambda t: vector(2.0))
    problem = Problem(
        name="bare", stages=[stage], outer=lambda p, h: (p["w"] * h["h"]).sum(), start={"w": vector()}, hparams=HPARAMS
    )
    return Workload(
        problem=problem,
        samples=1,
        plain=lambda p, x: (p["w"] * x).sum(),
        optimizer=optimizer,
        meta=lambda leaves: torch.optim.SGD(leaves, lr=0.1),
        data="generated: twos",
    )


@pytest.mark.parametrize("steps", [1, 4])
def test_plain_training(steps: int) -> None:
    sgd = bare(lambda leaves: torch.optim.SGD(leaves, lr=0.1, foreach=False), steps)
    plain = PlainTraining(sgd, settled(sgd))
    plain()
    # in the backward pass: the parameters, the batch; the loss and the gradient; the one that the pass is called with
    assert memory_of(plain) == Memory(3 * B + 16, split(parameters=B, data=B, graph=B + 8, buffers=8), B)
    momentum = bare(lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9, foreach=False), steps)
    plain = PlainTraining(momentum, settled(momentum))
    plain()
    assert memory_of(plain) == Memory(4 * B + 16, split(parameters=B, slots=B, data=B, graph=B + 8, buffers=8), 2 * B)


@pytest.mark.parametrize("steps", [3, 5])
def test_the_states_of_a_meta_step(steps: int) -> None:
    workload = bare(lambda leaves: torch.optim.SGD(leaves, lr=0.1), steps)
    step = MetaStep(workload, Unroll(), copied(settled(workload)), onward=True)
    step()
    found = memory_of(step).split
    # the end; the states before every step; the one hyperparameter; no batch, since the graphs are there
    assert (found["parameters"], found["recorded"], found["hyperparameters"]) == (B, steps * B, 8)
    assert (found["data"], found["slots"]) == (0, 0)


def test_the_update_of_the_hyperparameters_is_theirs() -> None:
    many = 20 * B
    workload = bare(lambda leaves: torch.optim.SGD(leaves, lr=0.1), 2)
    problem = replace(
        workload.problem,
        hparams={"h": torch.ones(20 * N, dtype=torch.float64)},
        outer=lambda p, h: (h["h"] ** 2).sum() + p["w"].sum(),
    )
    workload = replace(workload, problem=problem, meta=lambda leaves: torch.optim.Adam(leaves, foreach=False))
    step = MetaStep(workload, Unroll(), copied(settled(workload)), onward=True)
    step()
    # they themselves, both moments, the root and the denominator that the update makes; the count of updates in float32
    assert memory_of(step).split["hyperparameters"] == 5 * many + 4


def test_categories_are_given_by_the_last_word_before_the_peak() -> None:
    meter = Meter()
    held: dict[str, Tensor] = {}
    with meter.measuring():
        with meter.phase("data"):
            held["a"] = vector()
            with meter.phase("hyperparameters"):
                held["b"] = vector()
        held["c"] = vector()
        meter.tag(held["c"], "recorded")
        held["d"] = vector()
        meter.tag(held["d"], "slots")  # after the peak, but the first word on it
        meter.tag(held["c"], "slots")  # after the peak, and not the first
        held.clear()
    assert meter.memory().split == split(data=B, hyperparameters=B, recorded=B, slots=B)
    with pytest.raises(ValueError, match="no category 'gradients': there are parameters, slots"):
        meter.tag({}, "gradients")  # type: ignore[arg-type]


def test_residents_count_until_they_are_released() -> None:
    given = [vector()]
    meter = Meter()
    meter.resident({"parameters": given})
    with meter.measuring():
        a = X + 1
        given.clear()
        b = X + 1
        assert meter.now == 2 * B
        c = X + 1
    del a, b, c
    assert meter.memory() == Memory(3 * B, split(buffers=3 * B), B)
    assert peak(lambda: X + 1).peak == peak_bytes(lambda: X + 1) == B
    assert peak(lambda: X + 1, {"slots": [X[:3], X]}) == Memory(2 * B, split(slots=B, buffers=B), B)


def test_a_backward_pass_is_graph_wherever_it_runs() -> None:
    x = vector().requires_grad_()
    found = peak(lambda: torch.autograd.grad(x.exp().sum(), x))
    # exp(x) and its sum are made outside any loss; the one is made by the call; what the pass itself makes is the product
    assert found.split == split(graph=B, buffers=B + 8 + 8)


def test_fake_tensors_are_counted_as_real_ones_are() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def chain(x: Tensor) -> object:
        x.requires_grad_()
        y = (x + 1) * x
        return torch.autograd.grad((y @ y).exp() * x[:1].sum(), x)

    x = vector()
    expected = peak(lambda: chain(x), {"data": x})
    with FakeTensorMode():
        fake = torch.empty(N, dtype=torch.float64)
        assert peak(lambda: chain(fake), {"data": fake}) == expected
    assert expected.split["graph"] > B


def test_a_multitask_loss_is_watched_and_stays_one() -> None:
    tasks = {"a": lambda p, x: (p["w"] * x).sum(), "b": lambda p, x: (p["w"] ** 2 * x).sum()}
    stage = Stage(MultiTask(tasks), SGD(lr=0.1), lambda t: X, 2)
    hparams = {"task_logits": torch.zeros(2, dtype=torch.float64)}
    problem = Problem(
        name="tasks", stages=[stage], outer=lambda p, h: p["w"].sum(), start={"w": vector()}, hparams=hparams
    )
    with counting() as counter:
        watched = counter.problem(problem)
        record = run(watched.stages[0], watched.start, hparams, tail=1)
        found = hypergradient(watched.outer, watched.stages, [Tartan()], [record], hparams)
    plain = hypergradient(problem.outer, problem.stages, [Tartan()], [record], hparams)
    assert torch.equal(found.hparams["task_logits"], plain.hparams["task_logits"])
    # two steps, the outer loss, and the tasks once more, together; a backward pass a step, one of the outer loss, one a task
    assert (counter.counts().forwards, counter.counts().backwards) == (4, 5)


def test_the_profiler_agrees_where_kernels_need_no_scratch() -> None:
    a, b = torch.rand(40, 40, dtype=torch.float64), torch.rand(40, 40, dtype=torch.float64)

    def plain() -> Tensor:
        c = (a @ b).relu()
        d = c * b
        del c
        return (d + a).tanh() * d

    assert peak_bytes(plain) == allocator_peak_bytes(plain) == 3 * 8 * 40 * 40
    x = vector().requires_grad_()

    def backward() -> object:
        return torch.autograd.grad((x.sigmoid() * x).sum(), x)

    backward()
    assert 0 <= allocator_peak_bytes(backward) - peak_bytes(backward) <= 4 * 8


def test_the_profiler_agrees_on_whole_meta_steps() -> None:
    """Products of matrices take no scratch; what differs are numbers in 0-d tensors, and inputs that an operation gives up."""
    workload = WORKLOADS["mlp_decay"].make(unroll=2)
    state = settled(workload)
    for estimator in (SAMA(), Implicit(CG(steps=3)), Unroll()):
        step = MetaStep(workload, estimator, state)
        step()
        assert allocator_peak_bytes(step) == pytest.approx(peak_bytes(step), rel=5e-3)


def test_the_profiler_sees_scratch_that_the_count_does_not() -> None:
    m = torch.rand(30, 30)
    torch.linalg.svd(m)
    assert allocator_peak_bytes(lambda: torch.linalg.svd(m)) > peak_bytes(lambda: torch.linalg.svd(m))


def test_process_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = limits.peak_rss()
    assert found is None or 2**26 < found < 2**40  # torch alone needs some hundred MiB
    for platform, expected in (("darwin", 7), ("linux", 7 * 1024)):
        monkeypatch.setattr(limits.sys, "platform", platform)
        assert limits.rss_of(7) == expected


def test_cuda_figures_come_from_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_memory(lambda: None, "cpu") is None
    calls: list[str] = []
    before = {"allocated_bytes.all.current": 100, "num_alloc_retries": 3, "num_ooms": 1}
    after = {"requested_bytes.all.peak": 900, "num_alloc_retries": 5, "num_ooms": 1}
    stats = iter([before, after])

    def says(name: str, value: object = None) -> Callable[..., object]:
        return lambda *_: (calls.append(name), value)[1]

    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, says(name))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: next(stats))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", says("allocated", 1024))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", says("reserved", 2**21))
    assert cuda_memory(says("work"), "cuda") == {
        "requested_bytes": 900, "allocated_bytes": 1024, "reserved_bytes": 2**21, "before_bytes": 100, "alloc_retries": 2,
        "ooms": 0,
    }  # fmt: skip
    # the queue is empty before the peak is reset, and again before it is read
    assert calls == [
        "synchronize",
        "empty_cache",
        "reset_peak_memory_stats",
        "work",
        "synchronize",
        "allocated",
        "reserved",
    ]


def test_a_watch_sees_every_state_of_a_run() -> None:
    seen = list[tuple[int, Tensor]]()
    record = run(
        linear(SGD(lr=0.1), 3),
        {"w": vector()},
        HPARAMS,
        watch=lambda s: seen.append((s.step, s.params["w"])),
        tail=None,
    )
    assert [t for t, _ in seen] == [0, 1, 2, 3]
    for t, w in seen:  # w moves by -lr x, and x is two
        torch.testing.assert_close(w, vector(1 - 0.2 * t), rtol=1e-14, atol=0)
    assert seen[-1][1] is record.end.params["w"]
