"""A small problem that is no special case: several leaves (one 0-d, one not contiguous), several hyperparameters
(scalar, vector, matrix), batches that change by step, a loss that is neither quadratic nor symmetric in anything."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import SGD, Problem, Rule, Stage, Tree


def _squares(params: Tree) -> Tensor:
    return torch.stack([p.square().sum() for p in params.values()]).sum()


def toy(rule: Rule | None = None, steps: int = 12, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    inputs, targets = draw(40, 3), draw(40, 2)
    start = {"w": 0.3 * draw(2, 3).T, "b": 0.1 * draw(2), "scale": draw().abs() * 0.1 + 1.0}
    hparams = {"decay": draw() * 0.3 - 1.0, "shift": 0.3 * draw(2), "mix": 0.2 * draw(3, 3)}

    def predict(params: Tree, x: Tensor) -> Tensor:
        return params["scale"] * torch.tanh(x @ params["w"] + params["b"])

    def loss(params: Tree, hparams: Tree, batch: Tensor) -> Tensor:
        x = inputs[batch] + inputs[batch] @ hparams["mix"]
        fit = (predict(params, x) - targets[batch] - hparams["shift"]).square().mean()
        return fit + hparams["decay"].exp() * _squares(params)

    def outer(params: Tree, hparams: Tree) -> Tensor:
        fit = (predict(params, inputs[30:]) - targets[30:]).pow(2).mean()
        return fit + 0.01 * hparams["shift"].square().sum() + 0.1 * params["w"].sin().sum()

    def stream(t: int) -> Tensor:
        return (torch.arange(10) + 7 * t) % 30

    return Problem(
        "toy", [Stage(loss, rule or SGD(lr=0.1), stream, steps)], outer, start, hparams,
        settings={"steps": steps},
    )  # fmt: skip
