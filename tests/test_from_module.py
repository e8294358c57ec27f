"""A user's own module as a loss: bitwise untouched, whatever an estimator evaluates."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from estimators import (
    CG,
    SAMA,
    SGD,
    T1T2,
    CentralDifference,
    HypergradientError,
    Implicit,
    Momentum,
    Neumann,
    Problem,
    Stage,
    Unroll,
    estimate,
    from_module,
    reverse_over_reverse,
    run,
)

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


X, Y = randn(8, 3, seed=1), randn(8, 1, seed=2)
HPARAMS = {"weights": randn(8, seed=3)}


class Net(nn.Module):
    """BatchNorm, a frozen layer, a non-float buffer; and tied weights: one Parameter in two submodules, or one submodule
    under two names (torch's own functional_call leaves the latter with the last weights it was given)."""

    def __init__(self, tie):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.twice = nn.Linear(4, 4, bias=False)
        self.again = self.twice if tie == "module" else nn.Linear(4, 4, bias=False)
        self.again.weight = self.twice.weight
        self.out = nn.Linear(4, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        hidden = torch.tanh(self.norm(self.first(x)))
        return self.out(torch.tanh(self.again(torch.tanh(self.twice(self.frozen(hidden))))))


def make(train=True, tie="parameter"):
    torch.manual_seed(0)
    net = Net(tie).double().train(train)
    assert net.again.weight is net.twice.weight
    return net


def weighted(model, h, batch):
    return (torch.sigmoid(h["weights"])[:, None] * (model(batch[0]) - batch[1]) ** 2).mean()


def problem(net, rule=None, steps=5):
    loss, start = from_module(net, weighted)
    outer = from_module(net, lambda model, h, batch: ((model(batch[0]) - batch[1]) ** 2).mean())
    stage = Stage(loss, rule or SGD(lr=0.05), lambda t: (X, Y), steps)
    return Problem("net", [stage], lambda p, h: outer.loss(p, h, (X, -Y)), start, HPARAMS)


ESTIMATORS = {
    "unroll": Unroll(),
    "cg": Implicit(CG(steps=3)),
    "neumann": Implicit(Neumann(steps=3)),
    "t1t2": T1T2(),
    "sama": SAMA(),
    "sama-difference": SAMA(product=CentralDifference(alpha=1e-3)),
}


def snapshot(net):
    return {k: (v.clone(), v._version, v.requires_grad) for k, v in net.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("tie", ["parameter", "module"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_module_is_bitwise_unchanged(name, tie, train):
    """betty: num_batches_tracked = 4 after one inner step, two of them at perturbed weights."""
    net = make(train, tie)
    before = snapshot(net)
    tensors = {k: v.data_ptr() for k, v in net.state_dict(keep_vars=True).items()}
    estimate(problem(net), ESTIMATORS[name], throw=False)
    after = snapshot(net)
    for k, (value, version, needs) in before.items():
        assert torch.equal(after[k][0], value), k
        assert after[k][1:] == (version, needs), k
    assert {k: v.data_ptr() for k, v in net.state_dict(keep_vars=True).items()} == tensors
    assert all(p.grad is None for p in net.parameters())
    assert net.training == train


def test_start_holds_copies_of_the_trainable_parameters_once():
    net = make()
    start = from_module(net, weighted).start
    assert set(start) == {
        "first.weight",
        "first.bias",
        "norm.weight",
        "norm.bias",
        "twice.weight",
        "out.weight",
        "out.bias",
    }
    for k, x in start.items():
        assert torch.equal(x, net.get_parameter(k))
        assert x.data_ptr() != net.get_parameter(k).data_ptr()
        assert not x.requires_grad


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("tie", ["parameter", "module"])
def test_training_is_the_ordinary_loop(tie, train):
    """Tied weights get both gradients; frozen parameters stay. In eval mode BatchNorm reads the given statistics; in
    train mode those of the batch."""
    net = make(train, tie)
    twin = copy.deepcopy(net)
    # SGD: the bias before BatchNorm has a gradient of pure rounding, which Adam would blow up to its step size.
    p = problem(net, SGD(lr=0.05), steps=6)
    end = run(p.stages[0], p.start, HPARAMS).end.params
    optimizer = torch.optim.SGD([q for q in twin.parameters() if q.requires_grad], lr=0.05)
    for _ in range(6):
        optimizer.zero_grad()
        weighted(twin, HPARAMS, (X, Y)).backward()
        optimizer.step()
    for k, x in end.items():
        torch.testing.assert_close(x, twin.get_parameter(k).detach(), rtol=1e-9, atol=1e-11)
    assert torch.equal(twin.frozen.weight, net.frozen.weight)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("estimator", [Unroll(), Unroll(checkpoint=2), Unroll(product=reverse_over_reverse)])
def test_unroll_through_the_module_is_the_finite_difference(train, estimator):
    p = problem(make(train), Momentum(lr=0.02), steps=4)
    found = estimate(p, estimator).hparams["weights"]

    def outer(h):
        return float(p.outer(run(p.stages[0], p.start, h).end.params, h))

    direction, step = randn(8, seed=9), 1e-5
    ends = [outer({"weights": HPARAMS["weights"] + s * step * direction}) for s in (1, -1)]
    # rounding 1e-16 / 1e-5 and truncation 1e-10 on a slope of 1e-2
    assert float(found @ direction) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-9)


def test_the_hyperparameters_may_be_a_second_module_s_parameters():
    net, gate = make(), nn.Linear(1, 1).double()
    hparams = {k: v.detach() for k, v in gate.named_parameters()}

    def criterion(model, h, batch):
        errors = (model(batch[0]) - batch[1]) ** 2
        weights = torch.sigmoid(torch.func.functional_call(gate, h, (errors.detach(),)))
        return (weights * errors).mean()

    loss, start = from_module(net, criterion)
    stage = Stage(loss, SGD(lr=0.05), lambda t: (X, Y), steps=3)
    found = estimate(
        Problem("gate", [stage], lambda p, h: F.mse_loss(p["out.weight"], torch.ones(1, 4, dtype=F64)), start, hparams),
        Unroll(),
    )
    assert set(found.hparams) == {"weight", "bias"}
    assert all(bool(x.any()) for x in found.hparams.values())


def test_a_module_with_nothing_to_train_is_refused():
    with pytest.raises(HypergradientError, match=r"Linear has no parameter with requires_grad=True.*nothing to train"):
        from_module(nn.Linear(2, 2).requires_grad_(False), weighted)


@pytest.mark.parametrize("change", ["missing", "misspelt", "extra"])
def test_a_start_with_other_keys_than_the_module_is_refused(change):
    """functional_call would quietly use the module's own tensor for a missing one: a constant nobody asked for."""
    p = problem(make())
    start = dict(p.start)
    if change == "extra":
        start["out.wieght"] = start["out.weight"]
    else:
        moved = start.pop("out.weight")
        if change == "misspelt":
            start["out.wieght"] = moved
    with pytest.raises(HypergradientError, match=r"out\.w(ei|ie)ght"):
        run(p.stages[0], start, HPARAMS)
