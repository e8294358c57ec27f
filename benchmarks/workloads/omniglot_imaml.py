"""Few-shot learning of characters by implicit MAML, with a 4-layer CNN of variable width.

    inner  L(theta, theta_0) = mean cross-entropy on the support set + lam/2 ||theta - theta_0||^2
    outer  M(theta)          = mean cross-entropy on the query set of the same task

The hyperparameters are the initialisation theta_0, leaf by leaf those of theta (Rajeswaran et al. 2019; SAMA, appendix D
and Figure 4, which varies the width). At an inner optimum dtheta/dtheta_0 = (I + H/lam)^-1, H the Hessian of the
cross-entropy alone. The derivative comes through the proximal term only: that training also *starts* at theta_0 is left
out, as iMAML leaves it out, for unrolled estimators too.

One workload is one task, and its seed draws it; a meta batch of B tasks costs B times as much. All steps see the whole
support set. Network: 4 blocks of a 3x3 convolution of stride 2 without bias, BatchNorm and ReLU (64 channels; strides
instead of pooling, as MAML's for Omniglot), the mean over what is left of the image, and a linear layer. BatchNorm uses
the statistics of its batch, of the query set too ("transductive", as in MAML); see `resnet`.

With ``data``, classes and examples of the task are drawn from an idx folder (EMNIST is nearest to Omniglot, which is not
distributed in this format).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from estimators import SGD, Adam, Problem, Stage, Tree
from estimators.rules import AnyRule
from estimators.stage import Batch

from ..data.folder import DataError
from ..data.idx import READS, read_idx_folder
from ..data.images import LabelledImages
from ..problems.common import generator, of_number, require, require_positive
from .base import GENERATED, Workload
from .images import noisy, patterns
from .resnet import drawn_weights, normalised_convolution

__all__ = ["ABOUT", "CITATION", "READS", "SIZES", "make"]

ABOUT = "a 4-layer CNN on few examples of each character, drawn to its learned initialisation"
CITATION = "Rajeswaran et al. 2019 (iMAML); Choe et al. 2023 (SAMA), appendix D"
BLOCKS, SIDE = 4, 28


@dataclass(frozen=True)
class Size:
    """Channels, classes of a task, and examples of each in the support and in the query set."""

    width: int
    ways: int
    shots: int
    queries: int


SIZES = {"tiny": Size(4, 5, 2, 3), "base": Size(64, 20, 5, 15), "large": Size(512, 20, 5, 15)}


def make(
    *,
    size: str = "tiny",
    unroll: int = 16,
    batch: int | None = None,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    width: int | None = None,
    lam: float = 2.0,
    optimizer: str = "sgd",
    lr: float | None = None,
    data: str | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Workload:
    """Build it.

    Args:
        size: one of `SIZES`.
        unroll: steps on the support set; iMAML's are 16.
        batch: examples in the support set, another way to give ``shots``: a multiple of ``ways``.
        ways: classes of a task; the size's own if None.
        shots: examples of each class in the support set; the size's own if None.
        queries: examples of each class in the query set; the size's own if None.
        width: channels; the size's own if None.
        lam: strength of the proximal term; iMAML's is 2.
        optimizer: of the inner steps, "sgd" or "adam".
        lr: its learning rate; 0.1 for "sgd" and 1e-3 for "adam" if None.
        data: an idx folder (see `READS`); generated characters of 28x28 if None.
        seed: of the weights and the task.
        dtype, device: of everything.

    Raises:
        ValueError: no such size or optimizer, a number out of range, or ``batch`` and ``shots`` that disagree.
        DataError: ``data`` is no idx folder, or has too few classes or examples for the task.
    """
    require(size in SIZES, f"size={size!r}: choose one of {', '.join(SIZES)}")
    own = SIZES[size]
    ways = own.ways if ways is None else ways
    queries = own.queries if queries is None else queries
    width = own.width if width is None else width
    require_positive(unroll=unroll, ways=ways, queries=queries, width=width)
    if batch is not None:
        require_positive(batch=batch)
        require(batch % ways == 0, f"batch={batch}: must be a multiple of ways={ways}, or give shots")
        require(
            shots in (None, batch // ways),
            f"batch={batch} is {batch // ways} of each class, not shots={shots}: give one",
        )
        shots = batch // ways
    shots = own.shots if shots is None else shots
    require_positive(shots=shots)
    require(min(ways * shots, ways * queries) >= 2, "one example alone: BatchNorm needs at least 2")
    require(lam >= 0, f"lam={lam}: must not be negative")
    require(optimizer in ("sgd", "adam"), f"optimizer={optimizer!r}: choose sgd or adam")
    lr = (0.1 if optimizer == "sgd" else 1e-3) if lr is None else lr
    require(lr > 0, f"lr={lr}: must be positive")

    if data is None:
        described = f"{GENERATED}: characters of {SIDE}x{SIDE}, a pattern each and noise"
        support, query = _generated(ways, shots, queries, seed, dtype, device)
    else:
        found = read_idx_folder(data)
        described = found.name
        support, query = _task(found, ways, shots, queries, seed, dtype, device)

    with torch.device("meta"):  # theta and theta_0 are the only copies of the weights
        net = _network(width, ways)
    net.requires_grad_(False)
    start = drawn_weights(net, generator(seed), dtype, device)

    def fit(params: Tree, xy: Batch) -> Tensor:
        return cross_entropy(functional_call(net, params, (xy[0],)), xy[1])

    def loss(params: Tree, hparams: Tree, xy: Batch) -> Tensor:
        apart = torch.stack([(x - hparams[k]).square().sum() for k, x in params.items()]).sum()
        return fit(params, xy) + lam / 2 * apart

    rule: AnyRule = SGD(lr=lr) if optimizer == "sgd" else Adam(lr=lr)

    def plain_optimizer(leaves: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(leaves, lr=lr) if optimizer == "sgd" else torch.optim.Adam(leaves, lr=lr)

    return Workload(
        problem=Problem(
            name="omniglot_imaml",
            stages=[Stage(loss, rule, lambda _: support, unroll)],
            outer=lambda params, _: fit(params, query),
            start=start,
            hparams={k: x.clone() for k, x in start.items()},
            about=ABOUT,
        ),
        samples=ways * shots,
        plain=fit,
        optimizer=plain_optimizer,
        meta=lambda leaves: torch.optim.Adam(leaves, lr=1e-3),
        data=described,
        settings={
            "size": size, "unroll": unroll, "batch": ways * shots, "ways": ways, "shots": shots, "queries": queries,
            "width": width, "lam": lam, "optimizer": optimizer, "lr": lr, "data": described, "seed": seed,
            "side": SIDE if data is None else support[0].shape[-1], "normalisation": "batch statistics",
            "full_batch": True,
        },
    )  # fmt: skip


def _network(width: int, ways: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(BLOCKS):
        layers += [normalised_convolution(1 if i == 0 else width, width, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, ways))


def _generated(
    ways: int, shots: int, queries: int, seed: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[Batch, Batch]:
    """Support and query set of one task: (images (ways * each, 1, 28, 28), labels)."""
    source = of_number(seed, 0)
    shared = patterns(ways, 1, source)

    def examples(each: int) -> Batch:
        labels = torch.arange(ways).repeat_interleave(each)
        return noisy(shared[labels], SIDE, source, dtype, device), labels.to(device)

    return examples(shots), examples(queries)


def _task(
    images: LabelledImages,
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[Batch, Batch]:
    """As `_generated`, of classes and examples drawn without replacement; grey levels are scaled to [0, 1].

    Raises:
        DataError: not enough classes, or not enough examples of one that was drawn.
    """
    classes, counts = np.unique(images.labels, return_counts=True)
    enough = classes[counts >= shots + queries]
    if len(enough) < ways:
        raise DataError(
            f"{images.name} has {len(enough)} classes of at least {shots + queries} examples, the task needs ways={ways}: give "
            "fewer ways, shots or queries, or a larger set"
        )
    source = np.random.default_rng(seed)
    drawn = [
        source.permutation(np.flatnonzero(images.labels == c))[: shots + queries]
        for c in source.choice(enough, ways, replace=False)
    ]

    def examples(part: slice, each: int) -> Batch:
        chosen = np.concatenate([d[part] for d in drawn])
        pixels = torch.from_numpy(images.images[chosen]).to(device=device, dtype=dtype) / 255
        return pixels, torch.arange(ways, device=device).repeat_interleave(each)

    return examples(slice(shots), shots), examples(slice(shots, None), queries)
