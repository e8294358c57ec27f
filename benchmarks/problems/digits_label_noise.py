"""A small network on digits whose labels are partly redrawn: learning rate and momentum guided by clean examples.

    inner  L_t(theta) = mean over a batch of cross-entropy(theta; x_i, y_i), y_i redrawn for a share of the examples
    outer  M(theta)   = mean cross-entropy over examples with right labels (the guidance set)

The rate is base exp(log_lr) and the momentum (beta1) sigmoid(raw_momentum), of one of the rules of `tuned_rule`. Data,
batches, start and outer loss are those of `digits_reweighting` at the same seed, without its weights and its penalty.
There is no closed form: the reference is a float64 full unroll. The loss depends on neither hyperparameter, so implicit
estimators refuse this problem.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from estimators import Problem, Stage

from . import digits_reweighting
from .common import Tree, cross_entropy, require
from .digits_reweighting import Batch, classify
from .tuned_rule import raw, tuned_rule

CITATION = "after Lichtarge et al. 2022; digits: UCI, bundled with scikit-learn"
ABOUT = f"an MLP on noisy digits whose learning rate and momentum are the hyperparameters ({CITATION})"

BASE = {"momentum": 0.05, "averaged": 0.5, "adam": 0.01, "lamb": 0.01, "adafactor": 0.02}
"""Learning rate at log_lr = 0, by rule."""


def make(
    *,
    seed: int = 0,
    rule: str = "momentum",
    noise: float = 0.4,
    n_train: int = 500,
    n_valid: int = 300,
    hidden: int = 32,
    steps: int = 60,
    batch: int = 50,
    log_lr: float = 0.0,
    momentum: float = 0.9,
    base: float | None = None,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Problem:
    """Build the problem.

    Args:
        seed: of the split, the noise, the batches and the start.
        rule: "momentum", "averaged", "adam", "lamb" or "adafactor"; see `tuned_rule`.
        noise: share of the training labels that are redrawn uniformly (a tenth of them stays right by chance).
        n_train: training examples.
        n_valid: guidance examples, with clean labels.
        hidden: width of the network.
        steps: at least 2: a momentum has no influence on the first step.
        batch: examples a step, drawn with replacement.
        log_lr: where the hypergradient is wanted.
        momentum: likewise, as the momentum itself, between 0 and 1; its logit is the hyperparameter.
        base: learning rate at log_lr = 0; None: see `BASE`.
        dtype: of the data, the start and the hyperparameters.
        device: likewise.

    Raises:
        ValueError: a setting that has no such problem.
    """
    require(rule in BASE, f"rule={rule!r}: choose one of {', '.join(BASE)}")
    tuned = tuned_rule(rule, rate := BASE[rule] if base is None else base)
    require(steps >= 2, f"steps={steps}: must be at least 2, for a momentum has no influence on the first")
    source = digits_reweighting.make(
        seed=seed, space="example", noise=noise, n_train=n_train, n_valid=n_valid, hidden=hidden, steps=steps,
        batch=batch, dtype=dtype, device=device,
    )  # fmt: skip
    start = cast(Tree, source.start)

    def loss(params: Tree, hparams: Tree, drawn: Batch) -> Tensor:
        images, labels, _ = drawn
        return cross_entropy(classify(params, images), labels).mean()

    return Problem(
        name="digits_label_noise",
        stages=[Stage(loss=loss, rule=tuned, stream=source.stages[0].stream, steps=steps)],
        outer=source.outer,
        start=start,
        hparams=raw(next(iter(start.values())), log_lr, momentum),
        about=ABOUT,
        settings={
            **{k: source.settings[k] for k in ("seed", "noise", "wrong_labels", "n_train", "n_valid", "hidden", "batch", "dim")},
            "steps": steps, "rule": rule, "base": rate, "log_lr": log_lr, "momentum": momentum,
        },
    )  # fmt: skip
