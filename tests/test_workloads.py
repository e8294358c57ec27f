"""What every workload promises, at its smallest size. `WORKLOADS` is the list: a new one is tested by being in it."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import peak_bytes
from benchmarks.meta_step import MetaStep, settled
from benchmarks.workloads import GENERATED, WORKLOADS, Workload, of_rank, with_autocast
from estimators import T1T2, Outcome, State, Tree, hypergradient, registry, run

F64 = torch.float64
every = pytest.mark.parametrize("name", WORKLOADS)


@cache
def made(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Workload:
    return WORKLOADS[name].make(size="tiny", unroll=3, dtype=dtype, seed=seed)


@cache
def started(name: str) -> State:
    return settled(made(name))


def start_of(w: Workload) -> Tree:
    assert isinstance(w.problem.start, dict)
    return w.problem.start


def gradient(loss: Callable[[Tree], Tensor], params: Tree) -> Tree:
    leaves = {k: x.detach().clone().requires_grad_() for k, x in params.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True)
    return {k: g for k, g in zip(leaves, found, strict=True) if g is not None}


@every
def test_the_entry_says_what_it_is(name: str) -> None:
    entry, w = WORKLOADS[name], made(name)
    assert "tiny" in entry.sizes and len(entry.sizes) > 1
    assert entry.about and entry.citation and w.problem.about
    assert w.problem.name == name
    assert w.data.startswith(GENERATED + ": ")
    assert bool(entry.reads) == ("data" in inspect.signature(entry.make).parameters)


@every
def test_settings_hold_all_that_decides(name: str) -> None:
    w = made(name)
    keywords = set(inspect.signature(WORKLOADS[name].make).parameters) - {"dtype", "device"}
    assert keywords <= w.settings.keys()
    assert w.settings["size"] == "tiny" and w.settings["unroll"] == 3 == w.stage.steps and w.settings["seed"] == 0
    assert w.settings["batch"] == w.samples  # the number that was used, not None


@every
def test_all_leaves_share_dtype(name: str) -> None:
    for dtype in (torch.float32, F64):
        w = made(name, dtype)
        assert {x.dtype for x in [*start_of(w).values(), *w.problem.hparams.values()]} == {dtype}


@every
def test_a_stream_is_a_pure_function_of_the_step(name: str) -> None:
    w = made(name)
    first = w.stage.stream(0)
    assert isinstance(first, tuple) and all(len(x) == w.samples for x in first)
    others = [w.stage.stream(t) for t in (1, 2, 1000)]
    assert all(torch.equal(a, b) for a, b in zip(first, w.stage.stream(0), strict=True))
    for other in others:
        assert [x.shape for x in other] == [x.shape for x in first]
    same = all(torch.equal(a, b) for a, b in zip(first, others[0], strict=True))
    assert same == w.settings.get("full_batch", False)


@every
def test_a_seed_decides_everything(name: str) -> None:
    a, b, other = made(name), WORKLOADS[name].make(size="tiny", unroll=3, seed=0), made(name, seed=1)

    def same(x: Tree, y: Tree) -> bool:
        return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)

    assert same(start_of(a), start_of(b)) and not same(start_of(a), start_of(other))
    assert same(a.problem.hparams, b.problem.hparams)
    assert all(torch.equal(x, y) for x, y in zip(a.stage.stream(5), b.stage.stream(5), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.stage.stream(5), other.stage.stream(5), strict=True))
    values = [w.problem.outer(start_of(w), w.problem.hparams) for w in (a, b, other)]
    assert values[0] == values[1] != values[2]


@every
def test_plain_training_is_torch_optim(name: str) -> None:
    w = made(name, F64)
    stage = replace(w.stage, loss=lambda params, _, batch: w.plain(params, batch), steps=4)
    end = run(stage, start_of(w), w.problem.hparams, tail=0).end.params

    params = {k: x.clone().requires_grad_(k in stage.trained(start_of(w))) for k, x in start_of(w).items()}
    optimizer = w.optimizer([x for x in params.values() if x.requires_grad])
    for t in range(4):
        optimizer.zero_grad()
        w.plain(params, w.stage.stream(t)).backward()
        optimizer.step()
    moved = max(float((params[k] - x).detach().abs().max()) for k, x in start_of(w).items())
    apart = max(float((params[k] - end[k]).detach().abs().max()) for k in end)
    assert moved > 0
    assert apart <= 1e-9 * moved


@every
def test_the_loss_has_a_gradient_for_every_leaf_and_hyperparameter(name: str) -> None:
    w = made(name, F64)
    start, batch = start_of(w), w.stage.stream(0)
    found = gradient(lambda p: w.stage.loss(p, w.problem.hparams, batch), start)
    assert found.keys() == set(w.stage.trained(start))
    assert gradient(lambda h: w.stage.loss(start, h, batch), w.problem.hparams).keys() == w.problem.hparams.keys()


@every
def test_shares_of_ranks_average_to_the_whole(name: str) -> None:
    w = made(name, F64)
    start, hparams = start_of(w), w.problem.hparams
    ranks = [of_rank(w, r, 2, lambda a: a) for r in range(2)]
    assert [r.samples for r in ranks] == [w.samples // 2] * 2

    def at(v: Workload) -> tuple[Tensor, Tensor, Tree]:
        batch = v.stage.stream(1)
        assert all(len(x) == v.samples for x in batch)
        grads = gradient(lambda p: v.stage.loss(p, hparams, batch), start)
        return v.stage.loss(start, hparams, batch), v.plain(start, batch), grads

    whole, (one, two) = at(w), map(at, ranks)
    assert not torch.equal(one[0], two[0])
    if (
        w.settings.get("normalisation") == "batch statistics"
    ):  # BatchNorm: of its share each rank makes another function
        assert abs((one[0] + two[0]) / 2 - whole[0]) > 1e-6
        return
    for i in range(2):
        torch.testing.assert_close((one[i] + two[i]) / 2, whole[i], rtol=1e-12, atol=0)
    for k, g in whole[2].items():
        torch.testing.assert_close((one[2][k] + two[2][k]) / 2, g, rtol=1e-9, atol=1e-12 * float(g.abs().max()))


@every
def test_unroll_is_the_derivative_of_the_whole_training(name: str) -> None:
    """Central differences of outer(training(hparams)) along one direction: nothing of the library's derivatives.

    Not from the first step on: fresh Adam is nearly the sign of the gradient, whose jumps no difference resolves.
    """
    w = made(name, F64)
    state, hparams = settled(w), w.problem.hparams
    source = torch.Generator().manual_seed(1)
    direction = {k: torch.randn(x.shape, generator=source, dtype=F64) for k, x in hparams.items()}
    length = torch.stack([x.square().sum() for x in direction.values()]).sum().sqrt()

    def trained(step: float) -> Tensor:
        moved = {k: x + step / length * direction[k] for k, x in hparams.items()}
        return w.problem.outer(run(w.stage, state, moved, tail=0).end.params, moved)

    def difference(h: float) -> Tensor:
        return (trained(h) - trained(-h)) / (2 * h)

    found = MetaStep(w, registry["unroll"].estimator, state)().hparams
    slope = torch.stack([(found[k] * d).sum() for k, d in direction.items()]).sum() / length
    assert float(slope.abs()) > 0
    # The first is of fourth order and 1e-7 off or less where the function is smooth; deep networks at a high rate have a
    # kink or a bend within it, and are held to a smaller step, which rounding would spoil elsewhere.
    h = 3e-3
    numerical = [(4 * difference(h) - difference(2 * h)) / 3, difference(1e-5), difference(1e-8)]
    assert min(float((slope / x - 1).abs()) for x in numerical) < 1e-5


@every
@pytest.mark.parametrize("kernel", ["best", "math"])
@pytest.mark.parametrize("estimator", ["sama", "sama-exact", "cg", "neumann", "unroll", "t1t2"])
def test_a_meta_step(name: str, estimator: str, kernel: str) -> None:
    w, entry = made(name), registry[estimator]
    refused = entry.claim.refuses(w.problem)
    if refused:
        pytest.skip(refused)
    found = MetaStep(w, entry.estimator, started(name), kernel=kernel)()
    assert found.hparams.keys() == w.problem.hparams.keys()
    assert all(bool(torch.isfinite(x).all()) for x in found.hparams.values())
    # conjugate gradient may meet negative curvature before it has moved, and says so
    assert any(bool(x.any()) for x in found.hparams.values()) or found.pullbacks[0].outcome is Outcome.INDEFINITE


@every
def test_autocast(name: str) -> None:
    w = with_autocast(made(name))
    found = MetaStep(w, registry["sama"].estimator, started(name))()
    assert all(x.dtype == torch.float32 and bool(torch.isfinite(x).all()) for x in found.hparams.values())


class Operations(TorchDispatchMode):
    """The names of what is computed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func.namespace == "aten" and func is not torch.ops.aten.detach.default
        ):  # fake tensors have their own of these
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(w: Workload) -> list[str]:
    """Of the inner loss and its gradients, of plain training's, and of the outer loss."""
    batch = w.stage.stream(0)
    params = {k: x.detach().clone().requires_grad_() for k, x in start_of(w).items()}
    hparams = {k: x.detach().clone().requires_grad_() for k, x in w.problem.hparams.items()}
    with Operations() as seen:
        w.stage.loss(params, hparams, batch).backward()
        w.plain(params, batch).backward()
        w.problem.outer(params, hparams).backward()
    return seen.names


@every
def test_fake_tensors_go_the_same_way(name: str) -> None:
    """Memory is predicted with them: nothing may depend on a value, nor on whether there is one."""
    with FakeTensorMode():
        w = WORKLOADS[name].make(size="tiny", unroll=3)
        leaves = [*start_of(w).values(), *w.problem.hparams.values(), *w.stage.stream(0)]
        assert all(isinstance(x, FakeTensor) for x in leaves)
        predicted = operations(w)
    assert predicted == operations(made(name))


@every
def test_the_outer_loss_draws_nothing(name: str) -> None:
    """Its batch is there, as those of the steps are when they are timed: what making it takes is no cost of a meta step."""
    w = made(name)
    with Operations() as seen:
        w.problem.outer(start_of(w), w.problem.hparams)
    assert not [
        x for x in seen.names if any(draw in x for draw in ("rand", "normal_", "uniform_", "upsample", "index"))
    ]


SMALL_DATA: dict[str, dict[str, int]] = {
    "mlp_decay": {"batch": 1, "width": 128},
    "mlp_reweighting": {"batch": 1, "width": 128},
    "omniglot_imaml": {"width": 64},
    "resnet18_pruning": {"batch": 2},
    "resnet50_pruning": {"batch": 2},
}


@every
def test_one_copy_of_the_weights_is_kept(name: str) -> None:
    """What is alive on the CPU after `make` and was not before: the start, the hyperparameters, some data."""

    def alive() -> dict[int, int]:
        gc.collect()
        tensors = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
        return {x.data_ptr(): x.untyped_storage().nbytes() for x in tensors if x.device.type == "cpu"}

    before = alive()
    w = WORKLOADS[name].make(size="tiny", **SMALL_DATA.get(name, {"batch": 1, "length": 4}))
    new = {k: n for k, n in alive().items() if k not in before}
    leaves = sum(x.nbytes for x in [*start_of(w).values(), *w.problem.hparams.values()])
    assert leaves < sum(new.values()) < leaves + 0.8 * sum(x.nbytes for x in start_of(w).values())
    assert len(w.stage.stream(0)[0]) == w.samples  # it was alive until here


@every
def test_nothing_is_cut_from_the_graph_for_nothing(name: str) -> None:
    """A central difference costs two evaluations of the loss; four if the loss detaches something."""
    w, calls = made(name), []

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return w.stage.loss(*args)

    watched = replace(w, problem=replace(w.problem, stages=[replace(w.stage, loss=counted)]))
    MetaStep(watched, registry["sama"].estimator, started(name))()
    assert len(calls) == w.stage.steps + 2


@every
def test_bad_settings_are_refused(name: str) -> None:
    make = WORKLOADS[name].make
    with pytest.raises(ValueError, match="size='huge': choose one of tiny, "):
        make(size="huge")
    with pytest.raises(ValueError, match="unroll=0"):
        make(unroll=0)
    with pytest.raises(ValueError, match="batch=0"):
        make(batch=0)
    with pytest.raises(ValueError, match=f"{made(name).samples} examples a step cannot be dealt out to 7 workers"):
        of_rank(made(name), 0, 7, lambda a: a)


@pytest.mark.parametrize("name", [k for k, e in WORKLOADS.items() if e.needs])
def test_a_missing_module_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in WORKLOADS[name].needs:
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[models\]'"):
        WORKLOADS[name].make()


@pytest.mark.parametrize(
    ("name", "shape"), [("bert_noisy", {"batch": 64}), ("mlp_reweighting", {"batch": 512, "width": 64})]
)
def test_a_validation_batch_in_parts_is_the_same_loss(name: str, shape: dict[str, int]) -> None:
    """And the activations of one part are there at a time, for a sum of gradients as large as the parameters."""
    settings = {"size": "tiny", "unroll": 2, "dtype": F64, **shape}
    whole, parts = (WORKLOADS[name].make(**settings, outer_micro=k) for k in (1, 8))
    state = settled(whole)
    found = [MetaStep(w, registry["sama"].estimator, state)() for w in (whole, parts)]
    for k, x in found[0].hparams.items():
        torch.testing.assert_close(found[1].hparams[k], x, rtol=1e-9, atol=1e-14)
    step = replace(whole.stage, steps=1)
    peaks = []

    def identity(loss: Any, params: Tree, hparams: Tree, tangent: Tree, **wrt: Any) -> tuple[Tree, Tree]:
        return {}, hparams  # no product: the outer gradient alone

    for w in (whole, parts):
        record = run(step, state, w.problem.hparams, tail=1)
        peaks.append(peak_bytes(lambda w=w, r=record: hypergradient(w.problem.outer, [step], [T1T2(identity)], [r], w.problem.hparams, consume=True)))  # fmt: skip
    assert peaks[1] < 0.75 * peaks[0]
    with pytest.raises(ValueError, match="outer_micro=7: .* validation examples cannot be dealt out evenly"):
        WORKLOADS[name].make(**settings, outer_micro=7)
