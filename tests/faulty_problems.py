"""Problems with one fault each, for `tests/test_check.py`: functions of a user's file, a section a kind of fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from estimators import SGD, Adam, MeanOf, Problem, Stage, from_module

_g = torch.Generator().manual_seed(0)
X, Y = torch.randn(16, 5, generator=_g), torch.randn(16, generator=_g)
LAM = {"lam": torch.full((5,), -2.0)}
W = {"w": torch.zeros(5)}


def fit(p, h, b):
    return (X @ p["w"] - Y).square().mean() + (h["lam"].exp() * p["w"].square()).sum()


def rows(p, h, b):
    return (X[b] @ p["w"] - Y[b]).square().mean() + (h["lam"].exp() * p["w"].square()).sum()


def validate(p, h):
    return (X @ p["w"] + Y).square().mean()


def problem(
    loss: Callable = fit, outer: Callable = validate, stream: Callable = lambda t: None, start=W, hparams=LAM, seed=None,
    steps=6, rule=None,
):  # fmt: skip
    return Problem("p", [Stage(loss, rule or SGD(lr=0.05), stream, steps, seed=seed)], outer, start, hparams)


def sound():
    return problem()


# --- influence ------------------------------------------------------------------------------------------------------


def weights_detached():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def loss(p, h, b):
        e = (X @ p["w"] - Y).square()
        w = torch.func.functional_call(net, h, (e.detach()[:, None],)).squeeze(1)
        return (torch.sigmoid(w.detach()) * e).mean()

    return problem(loss, hparams={k: x.detach().clone() for k, x in net.named_parameters()})


def partly_detached():
    def loss(p, h, b):
        s = h["lam"].exp()
        return (X @ p["w"] - Y).square().mean() + ((3 * s.detach() + s) * p["w"].square()).sum()

    return problem(loss)


def by_item():
    return problem(lambda p, h, b: (X @ p["w"] - Y).square().mean() + h["lam"].sum().item() * p["w"].square().sum())


def unread():
    return problem(hparams=LAM | {"other": torch.zeros(3)})


def additive():
    return problem(lambda p, h, b: fit(p, h, b) + h["bias"].square().sum(), hparams=LAM | {"bias": torch.ones(2)})


def switched_off():
    return problem(lambda p, h, b: (X @ p["w"] - Y).square().mean() + (F.relu(h["lam"]) * p["w"].square()).sum())


def rate_as_float():
    return problem(
        hparams=LAM | {"lr": torch.tensor(-3.0)}, rule=lambda h: SGD(lr=torch.tensor(h["lr"].exp().tolist()).item())
    )


def some_entries():
    def loss(p, h, b):
        return (torch.sigmoid(h["weights"][b]) * (X[b] @ p["w"] - Y[b]).square()).mean()

    return problem(loss, stream=lambda t: torch.arange(8), hparams={"weights": torch.zeros(16)})


def few_examples_a_step():
    def loss(p, h, b):
        return (torch.sigmoid(h["weights"][b]) * (X[b] @ p["w"] - Y[b]).square()).mean()

    return problem(loss, stream=lambda t: (torch.arange(4) + 4 * t) % 16, hparams={"weights": torch.zeros(16)})


def outer_reads_nothing():
    return problem(outer=lambda p, h: X.sum())


def outer_reads_hparams_only():
    return problem(outer=lambda p, h: h["lam"].sum())


def loss_reads_no_params():
    return problem(lambda p, h, b: (h["lam"].exp() * X[0]).sum())


def idle_leaf():
    return problem(start=W | {"extra": torch.zeros(3)})


# --- purity ---------------------------------------------------------------------------------------------------------


def dropped(p):
    return {"w": F.dropout(p["w"], 0.5)}


def dropout():
    return problem(lambda p, h, b: fit(dropped(p), h, b))


def dropout_with_seed():
    def loss(p, h, b):
        return F.dropout(X @ p["w"] - Y, 0.5).square().mean() + (h["lam"].exp() * p["w"].square()).sum()

    return problem(loss, seed=0)


def dropout_outside():
    return problem(outer=lambda p, h: validate(dropped(p), h))


def iterator():
    batches = iter([torch.arange(8), torch.arange(8, 16)] * 50)
    return problem(rows, stream=lambda t: next(batches))


def short_iterator():
    batches = iter([torch.arange(8)])
    return problem(rows, stream=lambda t: next(batches))


def stream_by_torch():
    return problem(rows, stream=lambda t: torch.randperm(16)[:8])


def stream_by_numpy():
    return problem(rows, stream=lambda t: torch.from_numpy(np.random.permutation(16)[:8]), seed=0)


def counter():
    calls = [0]

    def loss(p, h, b):
        calls[0] += 1
        return fit(p, h, b) * calls[0]

    return problem(loss)


def another_first_order():
    return Problem(
        "p",
        [Stage(fit, SGD(lr=0.05), lambda t: None, 3, first_order=lambda p, h, b: 2 * fit(p, h, b))],
        validate,
        W,
        LAM,
    )


def unseeded():
    return problem(start={"w": torch.randn(5)})


# --- networks -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 8), middle, nn.Linear(8, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(self.first(x)))).squeeze(-1)


class Attention(nn.Module):
    def __init__(self, fused_only: bool) -> None:
        super().__init__()
        self.fused_only = fused_only

    def forward(self, x):
        q = x[None, None]
        if not self.fused_only:
            return F.scaled_dot_product_attention(q, q, q)[0, 0]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, q, q)[0, 0]


def of_net(middle: nn.Module):
    torch.manual_seed(0)
    net = Net(middle)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    loss, start = from_module(net, lambda m, h, b: ((m(X) - Y).square() * torch.sigmoid(h["weights"])).mean())
    outer, _ = from_module(net, lambda m, h, b: (m(X) + Y).square().mean())
    return problem(loss, lambda p, h: outer(p, h, None), start=start, hparams={"weights": torch.zeros(16)})


def batch_norm():
    return of_net(nn.BatchNorm1d(8))


def bias_before_batch_norm():
    made = batch_norm()
    return replace(made, stages=[replace(made.stages[0], rule=Adam(lr=0.01))])


def batch_norm_that_leaks():
    torch.manual_seed(0)
    net = Net(nn.BatchNorm1d(8))

    def call(p, train):
        net.train(train)
        return torch.func.functional_call(net, p, (X,))

    return problem(
        lambda p, h, b: ((call(p, True) - Y).square() * torch.sigmoid(h["weights"])).mean(),
        lambda p, h: (call(p, False) + Y).square().mean(),
        start={k: p.detach().clone() for k, p in net.named_parameters()},
        hparams={"weights": torch.zeros(16)},
    )


def layer_norm():
    return of_net(nn.LayerNorm(8))


def attention():
    return of_net(Attention(fused_only=False))


def fused_attention_alone():
    return of_net(Attention(fused_only=True))


# --- shapes, dtypes, numbers ------------------------------------------------------------------------------------------


def vector_loss():
    return problem(lambda p, h, b: (X @ p["w"] - Y).square())


def part_as_float():
    return problem(outer=MeanOf([validate, lambda p, h: validate(p, h).item()]))


def hparams_in_a_list():
    return problem(hparams=[0.0, 0.0])


def bare_hparams():
    return problem(hparams=torch.zeros(5))


def class_weights():
    def loss(p, h, b):
        return F.cross_entropy(X @ p["w"].reshape(5, 2), (Y > 0).long(), weight=h["lam"].exp())

    return problem(
        loss, lambda p, h: p["w"].square().sum(), start={"w": torch.ones(10)}, hparams={"lam": torch.zeros(2)}
    )


def mixed_in_loss():
    return problem(lambda p, h, b: (X.double() @ p["w"] - Y).square().mean() + h["lam"].sum())


def mixed_leaves():
    return problem(start=W | {"v": torch.zeros(2, dtype=torch.float64)})


def mixed_trees():
    return problem(start={"w": torch.zeros(5, dtype=torch.float64)})


def mixed_devices():
    return problem(start={"w": torch.zeros(5, device="meta")})


def infinite():
    return problem(lambda p, h, b: fit(p, h, b) + p["w"].norm().log())


def root_at_zero():
    return problem(lambda p, h, b: fit(p, h, b) + p["w"].square().sum().sqrt())


def diverging():
    return problem(rule=SGD(lr=50.0), steps=200)


def rising():
    return problem(rule=SGD(lr=0.55), steps=12)


def missing_key():
    return problem(lambda p, h, b: fit(p, {"lam": h["lamda"]}, b))


def no_problem():
    return 3


def needs_width(width):
    return problem()
