"""An outer loss with a head of its own: eq. 7 of META-TARTAN (Dery et al. 2022, sec. 3.3 and App. A.1).

Measured through the end task's own head, the end task's gradient agrees with the outer one more than any other task's can,
and its weight is driven to 1. So the outer loss is taken through a head phi* that is fitted anew, at the current body, to
training examples of the end task, and is a constant to the outer gradient:

    M(theta_body) = L_val(theta_body, phi*),    phi* = fit(features(theta_body) on T*_train), detached
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import linear

from .errors import HypergradientError
from .rules import AdamW, Rule
from .stage import Stage, run
from .tree import Tree, detach

Fit = Callable[[Tensor, Tensor], Tree]
"""(features (m, d), targets) -> linear head: "weight" (c, d) and, if it has one, "bias" (c,)."""

OutputLoss = Callable[[Tensor, Tensor], Tensor]
"""(outputs (m, c), targets) -> scalar"""


@dataclass(frozen=True, kw_only=True)
class RidgeFit:
    """phi* = (F'F + c I)^-1 F'Y: the minimum of ||F phi - Y||^2 + c ||phi||^2, targets Y of shape (m, outputs).

    Args:
        penalty: c > 0, of the *sum* of squares.

    Raises:
        HypergradientError: the penalty is not positive and finite. When called: the targets are no matrix of numbers.
    """

    penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.penalty < math.inf:
            raise HypergradientError(
                f"RidgeFit(penalty={self.penalty}): must be positive and finite, F'F alone may be singular"
            )

    def __call__(self, features: Tensor, targets: Tensor) -> Tree:
        if targets.ndim != 2 or len(targets) != len(features):
            raise HypergradientError(
                f"RidgeFit: targets of shape {tuple(targets.shape)} for {len(features)} examples: give a matrix (m, outputs); "
                "class indices as torch.nn.functional.one_hot(targets, classes), a single output as targets[:, None]"
            )
        eye = torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
        gram = features.mT @ features + self.penalty * eye
        return {"weight": torch.linalg.solve(gram, features.mT @ targets.to(features.dtype)).mT}


@dataclass(frozen=True, kw_only=True)
class StepsFit:
    """phi* after a few steps from a fresh start: the paper's, with its defaults (sec. 4: 10 steps, rate 1e-3, decay 0.1).

    The start is drawn as `torch.nn.Linear`'s, from the same seed every time, so that the outer loss is a function. Ten
    steps at the paper's rate barely train a head, and a barely trained head makes the weights nearly uniform by itself:
    look at `MetaHead.losses` before calling it the effect of a separate head.

    Args:
        outputs: of the head.
        loss: which the steps descend on.
        steps: how many, each on all examples.
        rule: the optimizer.
        seed: of the start.
    """

    outputs: int
    loss: OutputLoss
    steps: int = 10
    rule: Rule = field(default_factory=lambda: AdamW(lr=1e-3, weight_decay=0.1))
    seed: int = 0

    def __call__(self, features: Tensor, targets: Tensor) -> Tree:
        width, source = features.shape[1], torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            uniform: Tensor = 2 * torch.rand(*shape, generator=source, dtype=torch.float64) - 1
            return uniform.div(width**0.5).to(features)

        def loss(head: Tree, hparams: Tree, batch: None) -> Tensor:
            return self.loss(_outputs(head, features), targets)

        start = {"weight": draw(self.outputs, width), "bias": draw(self.outputs)}
        nothing = {"none": features.new_zeros(())}  # a run needs some hyperparameter
        return run(Stage(loss, self.rule, lambda t: None, self.steps), start, nothing, tail=0).end.params


@dataclass(frozen=True, kw_only=True, eq=False)
class MetaHead:
    """(params, hparams) -> validation loss through a head fitted to the current features: an outer loss for `Tartan`.

    Its gradient is for the body alone, at fixed phi*. That is not the derivative of the value: how the body moves phi* is
    left out, as the paper does. (Both agree where phi* is a minimum of the very loss that is evaluated.)

    Args:
        features: (params, inputs) -> (m, d), the body.
        fit: what makes the head of features and targets, such as `RidgeFit` or `StepsFit`.
        loss: of its outputs.
        train: (inputs, targets) of the end task that the head is fitted to.
        valid: (inputs, targets) on which the outer loss is taken.
    """

    features: Callable[[Tree, Tensor], Tensor]
    fit: Fit
    loss: OutputLoss
    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]

    def __call__(self, params: Tree, hparams: Tree) -> Tensor:
        inputs, targets = self.valid
        return self.loss(_outputs(self.head(params), self.features(params, inputs)), targets)

    def head(self, params: Tree) -> Tree:
        """phi* at this body, a constant."""
        inputs, targets = self.train
        with torch.no_grad():
            return detach(self.fit(self.features(params, inputs), targets))

    def losses(self, params: Tree) -> tuple[float, float]:
        """Of the fitted head, on what it was fitted to and on the validation examples: to be read beside the weights."""
        head = self.head(params)
        with torch.no_grad():
            fitted, valid = (
                float(self.loss(_outputs(head, self.features(params, x)), y)) for x, y in (self.train, self.valid)
            )
        return fitted, valid


def _outputs(head: Tree, features: Tensor) -> Tensor:
    return linear(features, head["weight"], head.get("bias"))
