"""A user's own `torch.nn.Module` as a loss on trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from .errors import HypergradientError
from .stage import Batch
from .tree import Tree

Call = Callable[..., Any]


class ModuleLoss(NamedTuple):
    """What `from_module` returns.

    Attributes:
        loss: (params, hparams, batch) -> scalar, as `Stage` takes it.
        start: copies of the module's trainable parameters.
    """

    loss: Callable[[Tree, Tree, Batch], Tensor]
    start: Tree


def from_module(module: nn.Module, criterion: Callable[[Call, Tree, Batch], Tensor]) -> ModuleLoss:
    """Build a stage's loss from a module, without touching it.

    Args:
        module: parameters with ``requires_grad=False`` and buffers are constants. Buffers are copied for every
            evaluation, so that BatchNorm's statistics stay as they are however often an estimator evaluates.
        criterion: (model, hparams, batch) -> scalar, where ``model(*inputs)`` calls the module with the current
            parameters.

    Returns:
        (loss, start). The outer loss of a problem is built alike:
        ``lambda params, hparams: from_module(module, outer_criterion).loss(params, hparams, validation_batch)``.

    Raises:
        HypergradientError: the module has no trainable parameter.

    Example:
        >>> net = nn.Linear(3, 1)
        >>> loss, start = from_module(net, lambda model, hparams, xy: ((model(xy[0]) - xy[1]) ** 2).mean())
        >>> sorted(start)
        ['bias', 'weight']
    """
    start = {k: p.detach().clone() for k, p in module.named_parameters() if p.requires_grad}
    if not start:
        raise HypergradientError(
            f"{type(module).__name__} has no parameter with requires_grad=True: there is nothing to train"
        )

    def loss(params: Tree, hparams: Tree, batch: Batch) -> Tensor:
        buffers = {k: b.detach().clone() for k, b in module.named_buffers()}
        frozen = {k: p.detach() for k, p in module.named_parameters() if not p.requires_grad}

        def model(*args: Any, **kwargs: Any) -> Any:
            return functional_call(module, {**frozen, **buffers, **params}, args, kwargs)

        return criterion(model, hparams, batch)

    return ModuleLoss(loss, start)
