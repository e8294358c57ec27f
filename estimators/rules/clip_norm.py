"""Clipping by the global norm (Pascanu et al. 2013). Arithmetic of `torch.nn.utils.clip_grad_norm_`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from .. import tree
from ..errors import HypergradientError
from ..tree import Tree
from .base import Scalar
from .whole import AnyRule, Part, check_leaves, check_rule, parts, transform


@dataclass(frozen=True, eq=False)
class ClipNorm:
    """g <- g min(1, max_norm / (||g|| + 1e-6)), the norm over all leaves; then the rule.

    Its derivative is exact: that the norm depends on every coordinate makes a clipped step's adaptation mix
    coordinates, whatever the rule.

    Args:
        rule: what gets the clipped gradients; a rule or a wrapper (whose own transformation comes after).
        max_norm: > 0.

    Raises:
        HypergradientError: no rule, or ``max_norm`` is not positive.
    """

    rule: AnyRule
    max_norm: Scalar

    def __post_init__(self) -> None:
        check_rule(self.rule, "ClipNorm")
        if not isinstance(self.max_norm, torch.Tensor) and not self.max_norm > 0:
            raise HypergradientError(f"ClipNorm(max_norm={self.max_norm}): must be positive")

    @property
    def transforms(self) -> bool:
        return True

    @property
    def varies(self) -> bool:
        return bool(getattr(self.rule, "varies", False))

    def parts(self, leaves: Collection[str], step: int) -> list[Part]:
        return parts(self.rule, leaves, step)

    def check(self, leaves: Collection[str]) -> None:
        check_leaves(self.rule, leaves)

    def transform(self, grads: Tree) -> Tree:
        square = tree.dot(grads, grads)
        nonzero = square > 0  # the root has an infinite slope at 0, where nothing is clipped
        norm = torch.where(nonzero, torch.where(nonzero, square, 1.0).sqrt(), 0.0)
        scale = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        return transform(self.rule, {k: g * scale.to(g.dtype) for k, g in grads.items()})
