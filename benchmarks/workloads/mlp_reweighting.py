"""A multilayer perceptron whose examples are weighted by a network that sees them: what libraries are compared on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from estimators import SGD, Adam, Problem, Stage, Tree, from_module
from estimators.module import Call
from estimators.rules import Rule
from estimators.stage import Batch

from ..problems.common import generator, of_number, require, require_positive
from .base import GENERATED, Optimizer, Workload, in_micro_batches
from .weigh import two_layers, weights

ABOUT = "a 4-layer MLP on noisy labels, examples weighted by a network of inputs and label"
CITATION = "Ren et al. 2018; Shu et al. 2019"

CLASSES = 10
NOISE = 0.4
"""Share of the training labels that are drawn anew."""
RATES = {"sgd": 0.1, "adam": 1e-3}
"""optimizer -> learning rate by default."""


@dataclass(frozen=True)
class Size:
    width: int
    batch: int


SIZES = {"tiny": Size(32, 16), "base": Size(512, 256), "large": Size(4096, 1024)}


def make(
    *,
    size: str = "tiny",
    unroll: int = 10,
    batch: int | None = None,
    width: int | None = None,
    optimizer: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 0.1,
    outer_micro: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Workload:
    """Build it.

    A network with one hidden layer of 100 sees an example and its label and gives it a weight in (0, 1): 100 (width + 12) + 1
    hyperparameters.

    Args:
        size: one of `SIZES`.
        unroll: steps before a meta step.
        batch: examples a step; the size's own if None.
        width: of the inputs and the hidden layers; the size's own if None, at least 10.
        optimizer: "sgd" or "adam".
        lr: learning rate; that of `RATES` if None.
        weight_decay: mu of the L2 term mu ||theta||^2 of the loss. At the default conjugate gradient meets no negative curvature
            after some 30 steps of SGD.
        outer_micro: equal parts in which the clean batch is evaluated, one after another.
        seed: of the weights and the data.
        dtype, device: of everything.

    Raises:
        ValueError: no such size or optimizer, or a number out of its range.
    """
    require(size in SIZES, f"size={size!r}: choose one of {', '.join(SIZES)}")
    require(optimizer in RATES, f"optimizer={optimizer!r}: choose one of {', '.join(RATES)}")
    n = SIZES[size].batch if batch is None else batch
    w = SIZES[size].width if width is None else width
    rate = RATES[optimizer] if lr is None else lr
    require_positive(unroll=unroll, batch=n, width=w)
    require(w >= CLASSES, f"width={w}: must be at least {CLASSES}, since the classes are told by the first inputs")
    require(rate > 0, f"lr={rate}: must be positive")
    require(weight_decay >= 0, f"weight_decay={weight_decay}: must not be negative")
    source = generator(seed)
    with torch.device("meta"):  # the leaves are the only copy of the weights
        net = nn.Sequential(
            nn.Linear(w, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, CLASSES)
        )
    numbers = torch.arange(CLASSES, device=device)

    def weighted(model: Call, hparams: Tree, xy: Batch) -> Tensor:
        x, y = xy
        each = nn.functional.cross_entropy(model(x), y, reduction="none")
        given = (y[:, None] == numbers).to(x.dtype)
        return (weights(hparams, torch.cat([x, given], dim=1)) * each).mean()

    def unweighted(model: Call, _: Tree, xy: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(xy[0]), xy[1])

    fit, shapes = from_module(net, weighted)
    plain = from_module(net, unweighted).loss
    start = {
        k: (torch.randn(x.shape, generator=source) / max(x.shape[-1], 1) ** 0.5).to(device=device, dtype=dtype)
        for k, x in shapes.items()
    }
    hparams = two_layers("weight", w + CLASSES, 1, source=source, dtype=dtype, device=device)

    def drawn(number: int, noise: float = NOISE) -> Batch:
        own = of_number(seed, number)
        x = torch.randn(n, w, generator=own)
        wrong = torch.rand(n, generator=own) < noise
        y = torch.where(wrong, torch.randint(CLASSES, (n,), generator=own), x[:, :CLASSES].argmax(1))
        return x.to(device=device, dtype=dtype), y.to(device)

    clean = drawn(-1, noise=0.0)

    def decay(params: Tree) -> Tensor:
        return weight_decay * torch.stack([x.square().sum() for x in params.values()]).sum()

    rules: dict[str, Rule] = {"sgd": SGD(lr=rate), "adam": Adam(lr=rate)}
    plainly: dict[str, Optimizer] = {
        "sgd": lambda leaves: torch.optim.SGD(leaves, lr=rate),
        "adam": lambda leaves: torch.optim.Adam(leaves, lr=rate),
    }
    return Workload(
        problem=Problem(
            name="mlp_reweighting",
            stages=[Stage(lambda p, h, xy: fit(p, h, xy) + decay(p), rules[optimizer], drawn, unroll)],
            outer=in_micro_batches(lambda params, xy: plain(params, {}, xy), clean, outer_micro),
            start=start,
            hparams=hparams,
            about=ABOUT,
        ),
        samples=n,
        plain=lambda params, xy: plain(params, {}, xy) + decay(params),
        optimizer=plainly[optimizer],
        meta=lambda leaves: torch.optim.Adam(leaves, lr=1e-3),
        data=f"{GENERATED}: random inputs, the largest of the first ten is the class; {NOISE:.0%} of the labels random",
        settings={
            "size": size, "unroll": unroll, "batch": n, "width": w, "optimizer": optimizer, "lr": rate,
            "weight_decay": weight_decay, "outer_micro": outer_micro, "seed": seed,
        },
    )  # fmt: skip
