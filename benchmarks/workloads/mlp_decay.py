"""Learned weight decay of a wide multilayer perceptron: the smallest workload, made of torch alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from estimators import Adam, Problem, Stage, Tree, from_module
from estimators.module import Call
from estimators.stage import Batch

from ..problems.common import of_number, require, require_positive
from .base import GENERATED, Workload

ABOUT = "a 4-layer MLP on random data, one learned weight decay a leaf"
CITATION = "Lorraine et al. 2020"


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
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Workload:
    """Build it.

    Args:
        size: one of `SIZES`.
        unroll: steps before a meta step.
        batch: examples a step; the size's own if None.
        width: of the hidden layers; the size's own if None.
        seed: of the weights and the data.
        dtype, device: of everything.

    Raises:
        ValueError: no such size, or a number below 1.
    """
    require(size in SIZES, f"size={size!r}: choose one of {', '.join(SIZES)}")
    n = SIZES[size].batch if batch is None else batch
    w = SIZES[size].width if width is None else width
    require_positive(unroll=unroll, batch=n, width=w)
    source = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # the leaves are the only copy of the weights
        net = nn.Sequential(
            nn.Linear(w, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 10)
        )

    def error(model: Call, _: Tree, xy: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(xy[0]), xy[1])

    fit, shapes = from_module(net, error)
    start = {
        k: (torch.randn(x.shape, generator=source) / max(x.shape[-1], 1) ** 0.5).to(device=device, dtype=dtype)
        for k, x in shapes.items()
    }
    hparams = {f"log_decay.{k}": torch.full((), -8.0, dtype=dtype, device=device) for k in start}

    def drawn(number: int) -> Batch:
        own = of_number(seed, number)
        x = torch.randn(n, w, generator=own)
        return x.to(device=device, dtype=dtype), torch.randint(10, (n,), generator=own).to(device)

    validation = drawn(-1)

    def loss(params: Tree, hparams: Tree, xy: Batch) -> Tensor:
        decay = sum(hparams[f"log_decay.{k}"].exp() * x.square().sum() for k, x in params.items())
        return fit(params, hparams, xy) + decay

    return Workload(
        problem=Problem(
            name="mlp_decay",
            stages=[Stage(loss, Adam(lr=1e-3), drawn, unroll)],
            outer=lambda params, hparams: fit(params, hparams, validation),
            start=start,
            hparams=hparams,
            about=ABOUT,
        ),
        samples=n,
        plain=lambda params, xy: fit(params, {}, xy),
        optimizer=lambda leaves: torch.optim.Adam(leaves, lr=1e-3),
        meta=lambda leaves: torch.optim.Adam(leaves, lr=1e-2),
        data=f"{GENERATED}: random inputs and labels",
        settings={"size": size, "unroll": unroll, "batch": n, "width": w, "seed": seed, "optimizer": "adam"},
    )
