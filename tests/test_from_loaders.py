"""A problem from a module, two losses and two loaders: that of writing it out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from estimators import SGD, HypergradientError, Problem, Stage, Unroll, estimate, from_loaders, from_module

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


X, Y = randn(10, 3, seed=1), randn(10, 1, seed=2)
XV, YV = randn(6, 3, seed=3), randn(6, 1, seed=4)
LAM = {"weights": randn(10, seed=5)}


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 1)).double()


def weighted(model, h, batch):
    x, y, i = batch
    return (torch.sigmoid(h["weights"])[i, None] * (model(x) - y) ** 2).mean()


def plain(model, h, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def loaders(size=3):
    return (
        DataLoader(TensorDataset(X, Y, torch.arange(10)), batch_size=4),
        DataLoader(TensorDataset(XV, YV), batch_size=size),
    )


def test_it_is_the_problem_written_out():
    """Batches of 4, 4 and 2, round and round; a validation loss that is a mean of two parts."""
    module = net()
    before = copy.deepcopy(module.state_dict())
    train, valid = loaders()
    made = from_loaders(module, weighted, plain, train, valid, hparams=LAM, rule=SGD(lr=0.1), steps=7)
    assert made.name == "Sequential"
    loss, start = from_module(module, weighted)
    outer, _ = from_module(module, plain)
    rows = [torch.arange(4), torch.arange(4, 8), torch.arange(8, 10)]
    stage = Stage(loss, SGD(lr=0.1), lambda t: (X[rows[t % 3]], Y[rows[t % 3]], rows[t % 3]), 7)
    by_hand = Problem("p", [stage], lambda p, h: outer(p, h, (XV, YV)), start, LAM)
    one, two = (estimate(p, Unroll()).hparams["weights"] for p in (made, by_hand))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)
    assert bool(one.ne(0).all())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_loader_is_gone_through_once():
    train, valid = loaders()
    generators = (batch for batch in train), (batch for batch in valid)
    made = from_loaders(net(), weighted, plain, *generators, hparams=LAM, rule=SGD(lr=0.1), steps=7)
    (stage,) = made.stages
    assert torch.equal(stage.stream(4)[0], X[4:8]) and torch.equal(stage.stream(1)[0], X[4:8])
    with pytest.raises(HypergradientError, match="'train' has no batch"):
        from_loaders(net(), weighted, plain, *generators, hparams=LAM, rule=SGD(lr=0.1), steps=7)


def test_dropout_inside_only():
    module = net(0.5)
    train, valid = loaders(6)
    made = from_loaders(
        module, weighted, plain, train, valid, hparams=LAM, rule=SGD(lr=0.1), steps=3, seed=0,
        validated=copy.deepcopy(module).eval(), name="dropped",
    )  # fmt: skip
    assert made.name == "dropped" and made.stages[0].seed == 0
    one, two = (estimate(made, Unroll()).hparams["weights"] for _ in range(2))
    assert torch.equal(one, two)
    assert float(made.outer(made.start, LAM)) == float(made.outer(made.start, LAM))
    assert module.training
