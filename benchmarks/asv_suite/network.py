"""The problem whose cost is measured: a small network with one learned decay a leaf. Made of the library's interface
alone, so that it stays the same whatever happens to the problems of the sweep."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from estimators import Adam, Problem, Stage, Tree, from_module

STEPS = 16


def network() -> Problem:
    """64 - 64 - 64 - 10, random data, float32, 16 steps of Adam."""
    source = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    fit, start = from_module(net, lambda model, hparams, batch: (model(batch[0]) - batch[1]).square().mean())
    start = {k: torch.randn(x.shape, generator=source) / 8 for k, x in start.items()}
    inputs = torch.randn(STEPS + 1, 128, 64, generator=source)
    targets = torch.randn(STEPS + 1, 128, 10, generator=source)

    def loss(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        decay = sum(hparams[k].exp() * x.square().sum() for k, x in params.items())
        return fit(params, hparams, batch) + decay

    def outer(params: Tree, hparams: Tree) -> Tensor:
        return fit(params, hparams, (inputs[STEPS], targets[STEPS]))

    stage = Stage(loss, Adam(lr=1e-2), lambda t: (inputs[t % STEPS], targets[t % STEPS]), STEPS)
    return Problem("network", [stage], outer, start, {k: torch.tensor(-6.0) for k in start})
