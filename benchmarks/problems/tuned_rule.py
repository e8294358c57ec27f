"""Inner optimizers whose learning rate and momentum are the hyperparameters, as guided learning has them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from estimators import LAMB, Adafactor, Adam, Momentum, Rule

from .common import Tree, require

BETA2, EPS = 0.99, 1e-8
"""Of Adam and LAMB."""

RULES: dict[str, Callable[[Tensor, Tensor], Rule]] = {
    "momentum": lambda lr, mu: Momentum(lr=lr, momentum=mu),
    "averaged": lambda lr, mu: Momentum(lr=lr, momentum=mu, dampening=mu),
    "adam": lambda lr, b1: Adam(lr=lr, betas=(b1, BETA2), eps=EPS),
    "lamb": lambda lr, b1: LAMB(lr=lr, betas=(b1, BETA2), eps=EPS),
    "adafactor": lambda lr, b1: Adafactor(lr=lr, eps=(1e-30, 1e-3), eps_inside=True, relative_step=False, momentum=b1),
}
"""name -> (learning rate, momentum or beta1) -> rule. "momentum" is the heavy ball, whose momentum multiplies the rate by
1 / (1 - mu) in the long run; "averaged" the same on averages of gradients, whose momentum does not; "adafactor" has
flax's order of momentum."""


def tuned_rule(name: str, base: float) -> Callable[[Tree], Rule]:
    """hparams -> rule with the rate base exp(log_lr) and the momentum sigmoid(raw_momentum).

    Raises:
        ValueError: an unknown name, or ``base`` is not positive.
    """
    require(name in RULES, f"rule={name!r}: choose one of {', '.join(RULES)}")
    require(base > 0, f"base={base}: must be positive")
    return lambda hparams: RULES[name](base * hparams["log_lr"].exp(), hparams["raw_momentum"].sigmoid())


def raw(like: Tensor, log_lr: float, momentum: float) -> Tree:
    """The hyperparameters, in the dtype and on the device of ``like``.

    Raises:
        ValueError: ``momentum`` does not lie between 0 and 1.
    """
    require(0 < momentum < 1, f"momentum={momentum}: must lie between 0 and 1")
    logit = torch.tensor(momentum, dtype=torch.float64).logit()
    return {"log_lr": like.new_tensor(log_lr), "raw_momentum": logit.to(like)}
