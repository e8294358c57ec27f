"""Data pruning by meta-learned weights (SAMA, section 4.3): what `resnet18_pruning` and `resnet50_pruning` share.

    inner  L(theta, lam) = mean_i w(l_i, u_i; lam) l_i(theta)
    outer  M(theta)      = mean_i l_i(theta) on other examples of the same training set

l_i is the cross-entropy of example i and w a Meta-Weight-Net that reads it beside the uncertainty u_i, "the difference
between the predictions of the current model and the exponentially-moving-averaged model" (appendix B.3). Here u_i is
the divergence KL(average || current) of the two predicted distributions: 0 where they agree, and smooth there. There is
no clean set: the meta level sees training data too, as the paper has it, and a small weight means "prune".

Both inputs of w enter *not* detached, so that the derivative of the run is what differences of runs give;
``detach=True`` is what the released code does. It also averages the last layer only; here the whole network is averaged,
as the text says, at the cost of one more forward pass an evaluation. Plain training has neither weights nor average.

The average sits in the state as frozen leaves, "ema." and the name of what it follows, and moves in `Workload.between`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, log_softmax

from estimators import Momentum, Problem, Stage, State, Tree
from estimators.stage import Batch

from ..problems.common import generator, require
from .base import Workload
from .resnet import drawn_weights
from .weigh import two_layers, weights

CITATION = "Choe et al. 2023 (SAMA), section 4.3; Shu et al. 2019 (Meta-Weight-Net)"
EMA, WEIGHT = "ema.", "weight"
"""What the names of leaves begin with: of the averaged weights, and of the Meta-Weight-Net."""
MOMENTUM = 0.9
"""Of SGD. The paper's tables say "SGD" only; this is the released code's."""


def pruning(
    name: str,
    about: str,
    net: Callable[[], nn.Module],
    drawn: Callable[[int], Batch],
    *,
    data: str,
    batch: int,
    unroll: int,
    lr: float,
    weight_decay: float,
    ema: float,
    detach: bool,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
    settings: dict[str, Any],
) -> Workload:
    """Build the workload.

    Args:
        name: of the problem.
        about: one line.
        net: makes the network, without buffers; (b, ...) images -> (b, classes) logits.
        drawn: number -> (images, labels) of one batch, a pure function; steps are counted from 0, -1 is the meta batch.
        data: what ``drawn`` draws from, see `Workload`.
        batch: examples a step, and of the meta batch.
        unroll: steps before a meta step.
        lr, weight_decay: of SGD with momentum.
        ema: what the average keeps of itself at a meta step, in [0, 1).
        detach: the weight net reads loss and uncertainty as constants.
        seed: of the weights of both networks.
        dtype, device: of everything.
        settings: what decides the sizes, for the records.

    Raises:
        ValueError: ``ema``, ``lr`` or ``weight_decay`` is out of range.
    """
    require(0 <= ema < 1, f"ema={ema}: must be at least 0 and below 1")
    require(lr > 0, f"lr={lr}: must be positive")
    require(weight_decay >= 0, f"weight_decay={weight_decay}: must not be negative")
    source = generator(seed)
    with torch.device("meta"):  # the leaves are the only copy of the weights
        model = net()
    model.requires_grad_(False)
    theta = drawn_weights(model, source, dtype, device)
    names = tuple(theta)
    average = {EMA + k: x.clone() for k, x in theta.items()}
    hparams = two_layers(WEIGHT, 2, 1, source=source, dtype=dtype, device=device)
    seen = drawn(-1)

    def predict(params: Tree, images: Tensor) -> Tensor:
        return functional_call(model, {k: params[k] for k in names}, (images,))

    def averaged(params: Tree) -> Tree:
        # Constants for every estimator, also for those that differentiate by frozen leaves, so that no graph is kept.
        # Not by detach() or no_grad(): what these cut, central differences would record at theta and hold, at the
        # price of one more evaluation, and the average is no function of theta.
        return {k: nn.Parameter(params[EMA + k], requires_grad=False) for k in names}

    def plain(params: Tree, xy: Batch) -> Tensor:
        return cross_entropy(predict(params, xy[0]), xy[1])

    def loss(params: Tree, hparams: Tree, xy: Batch) -> Tensor:
        images, labels = xy
        before = log_softmax(predict(averaged(params), images), 1)  # first: no activation is kept while it goes
        logits = predict(params, images)
        each, now = cross_entropy(logits, labels, reduction="none"), log_softmax(logits, 1)
        uncertainty = (before.exp() * (before - now)).sum(1)
        known = torch.stack([each, uncertainty], 1)
        return (weights(hparams, known.detach() if detach else known, WEIGHT) * each).mean()

    def between(state: State) -> State:
        moved = {EMA + k: torch.lerp(state.params[EMA + k], state.params[k], 1 - ema) for k in names}
        return state._replace(params={**state.params, **moved})

    return Workload(
        problem=Problem(
            name=name,
            stages=[
                Stage(
                    loss,
                    Momentum(lr=lr, momentum=MOMENTUM, weight_decay=weight_decay),
                    drawn,
                    unroll,
                    frozen=frozenset(average),
                )
            ],
            outer=lambda params, _: plain(params, seen),
            start={**theta, **average},
            hparams=hparams,
            about=about,
        ),
        samples=batch,
        plain=plain,
        optimizer=lambda leaves: torch.optim.SGD(leaves, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay),
        meta=lambda leaves: torch.optim.Adam(leaves, lr=1e-5),
        data=data,
        between=between,
        left_out=frozenset(average),
        settings={
            **settings, "unroll": unroll, "batch": batch, "seed": seed, "optimizer": "sgd", "lr": lr,
            "momentum": MOMENTUM, "weight_decay": weight_decay, "ema": ema, "detach": detach, "normalisation": "batch statistics",
        },
    )  # fmt: skip
