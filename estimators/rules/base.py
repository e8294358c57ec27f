"""What an inner optimizer is: a pure function of one leaf."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import HypergradientError

Slots = dict[str, Tensor]
Scalar = float | Tensor


@runtime_checkable
class Rule(Protocol):
    """An inner optimizer, one leaf at a time.

    A rule is pure: ``update`` returns new tensors, and gradients flow through all its arguments and through
    any of its own fields that is a tensor.

    Optional members that estimators use when they are there:

    - ``rewind(grad, slots, t, param) -> (slots, param)``: the inverse of ``update`` and of ``param + change``, given
      the gradient of that update. With it the *adaptation* (the derivative of the last change with respect to its
      gradient) needs no copy from before the step. Without it `run` keeps that copy.
    - ``step_(params, grads, slots, t) -> None``: the step of ``update`` and ``param + change``, to rounding, written over
      ``params`` and ``slots``, of many leaves at once (three lists of one length). It is asked only if every field is a
      number and all tensors are contiguous and of one dtype and device; it must not change ``grads``, and work on tensors
      without values too. `run` takes it; derivatives are of ``update``. Read from the class itself: a subclass with
      another update does not inherit it. Without it a step is ``update`` and an addition.
    - ``gradient_step``: the learning rate of plain gradient descent with the same limit of stability on a quadratic;
      None or absent for adaptive rules. The series solvers use it when their ``lr`` is None.
    - ``linear``: True if the change is linear in (gradient, slots, leaf), so that its pullback needs no gradient. It is read
      from the class itself: a subclass with another update does not inherit the promise.
    - ``differentiable``: False for rules whose derivative is zero almost everywhere (sign methods).
    - ``diagonal``: True if the change of a coordinate depends on that coordinate of gradient, slots and leaf alone, so that
      a leaf can be looked at piece by piece. Read from the class itself, too.
    - ``derivative(grad, slots, t, param) -> Tensor | Scalar``: d(change)/d(grad) of a ``diagonal`` rule, a number if it is one
      and the same for all coordinates. It is given what ``rewind`` is given: slots and leaf *after* the step. What the class
      itself does not define is taken from ``update`` by autograd.
    - ``pull(grad, slots, t, param, on_change, on_slots) -> (on_grad, on_slots, on_param) | None``: the pullback of ``update`` of a
      ``diagonal`` rule whose fields are numbers, for cotangents on the change and on the slots after it (missing ones are
      zero), in closed form; ``on_param`` is what comes through the change alone, None for nothing. New tensors, or None for
      "ask autograd". What the class
      itself does not define is taken from ``update`` by autograd.
    - ``settles``: how many first updates after a reset have a derivative of little use, mostly sign noise (Adam) or
      vanishing (g / |g|), at default decay rates: the share of negative entries of -d(change)/dg under noisy gradients
      falls below 6 %.
    - ``weight_decay`` and ``decoupled_weight_decay``: decay that the rule, not the loss, applies.
    """

    @property
    def lr(self) -> float | Tensor: ...

    def init(self, param: Tensor) -> Slots:
        """The slots before the first step, for a leaf shaped as ``param``.

        Estimators take them for constants: they must depend neither on the values of ``param`` nor on a field that is
        a hyperparameter (`Stage` refuses them if they do).
        """
        ...

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        """One step.

        Args:
            grad: gradient of the loss at ``param``, same shape.
            slots: the optimizer state of this leaf before the step.
            t: number of this step, from 1.
            param: the leaf before the step.

        Returns:
            (change, slots after the step); the leaf becomes ``param + change``.
        """
        ...


def check_fields(rule: Any, *, at_least: dict[str, float], below: dict[str, float] | None = None) -> None:
    """Refuse numbers that the rule cannot work with. Tensors are hyperparameters and are left alone.

    Raises:
        HypergradientError: a field lies outside its range.
    """
    for name, low in at_least.items():
        value = getattr(rule, name)
        if not isinstance(value, Tensor) and not value >= low:
            raise HypergradientError(f"{type(rule).__name__}({name}={value}): must be at least {low}")
    for name, high in (below or {}).items():
        value = getattr(rule, name)
        if not isinstance(value, Tensor) and not value < high:
            raise HypergradientError(f"{type(rule).__name__}({name}={value}): must be below {high}")


def declares(rule: object, promise: str) -> bool:
    """Whether the rule's own class makes the promise: a subclass with another update does not inherit it."""
    return bool(vars(type(rule)).get(promise, False))


def in_pieces(rule: Rule, slots: Slots, param: Tensor) -> bool:
    """Whether a leaf of a ``diagonal`` rule can be looked at piece by piece: slots are shaped as the leaf or are numbers, and no
    setting differs by coordinate."""
    settings = [y for x in vars(rule).values() for y in (x if isinstance(x, tuple) else (x,)) if isinstance(y, Tensor)]
    return all(x.dim() == 0 for x in settings) and all(x.dim() == 0 or x.shape == param.shape for x in slots.values())


def undo(average: Tensor, added: Tensor, decay: Scalar) -> Tensor:
    """x with ``average = decay x + added``; with decay 0, where x has no influence, zeros."""
    if isinstance(decay, Tensor):
        lost = decay == 0
        return torch.where(lost, 0.0, (average - added) / torch.where(lost, 1.0, decay))
    return torch.zeros_like(average) if decay == 0 else (average - added) / decay
