"""A small problem that is no special case: several leaves (one 0-d, one not contiguous), several hyperparameters
(scalar, vector, matrix), batches that change by step, a loss that is neither quadratic nor symmetric in anything."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from estimators import SGD, MultiTask, Problem, Rule, Stage, Tree


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


def toy_tasks(rule: Rule | None = None, steps: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
    """Three tasks of unlike length and difficulty on a shared body, each with a head of another shape; whole batches."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    sizes = {"end": 2, "near": 1, "far": 3}
    inputs, targets = draw(40, 3), {k: draw(40, n) * (1 + i) for i, (k, n) in enumerate(sizes.items())}
    start = {"body.weight": 0.5 * draw(4, 3).T, "body.bias": 0.1 * draw(4), "scale": draw().abs() * 0.1 + 1.0}
    start |= {f"{k}.weight": 0.5 * draw(4, n) for k, n in sizes.items()}

    def error(task: str, params: Tree, rows: Tensor) -> Tensor:
        features = params["scale"] * torch.tanh(inputs[rows] @ params["body.weight"] + params["body.bias"])
        return (features @ params[f"{task}.weight"] - targets[task][rows]).square().mean()

    def outer(params: Tree, hparams: Tree) -> Tensor:
        return error("end", params, torch.arange(30, 40)) + 0.01 * hparams["task_logits"].square().sum()

    loss = MultiTask({k: partial(error, k) for k in sizes}, penalty=lambda params: 0.05 * _squares(params))
    stage = Stage(loss, rule or SGD(lr=0.1), lambda t: (torch.arange(10) + 7 * t) % 30, steps)
    hparams = {"task_logits": torch.tensor([0.4, -0.7, 0.1], dtype=dtype)}
    return Problem("toy_tasks", [stage], outer, start, hparams, settings={"steps": steps})
