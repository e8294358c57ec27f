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
        (loss, start). The outer loss of a problem is built alike, once:
        ``validate = from_module(module, outer_criterion).loss``, then
        ``outer=lambda params, hparams: validate(params, hparams, validation_batch)``.

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
    canonical = {id(p): k for k, p in module.named_parameters()}

    def tensors(params: Tree) -> Tree:
        """One entry for every attribute of every distinct submodule: tied parameters share a tensor.

        Spelled out because `functional_call`'s own tying swaps an attribute of a submodule that is registered twice
        twice, and then leaves the module changed.
        """
        out: Tree = {}
        for prefix, part in module.named_modules():
            at = f"{prefix}." if prefix else ""
            for k, p in part.named_parameters(recurse=False, remove_duplicate=False):
                out[at + k] = params[canonical[id(p)]] if p.requires_grad else p
            for k, b in part.named_buffers(recurse=False, remove_duplicate=False):
                # no detach where there is nothing to cut: `CentralDifference` pays for every one with a forward pass
                out[at + k] = (b.detach() if b.requires_grad else b).clone()
        return out

    def loss(params: Tree, hparams: Tree, batch: Batch) -> Tensor:
        if params.keys() != start.keys():
            raise HypergradientError(
                f"params hold {sorted(params)}, but the trainable parameters of {type(module).__name__} are "
                f"{sorted(start)}: start from the `start` that from_module returned"
            )

        def model(*args: Any, **kwargs: Any) -> Any:
            return functional_call(module, tensors(params), args, kwargs, tie_weights=False)

        return criterion(model, hparams, batch)

    return ModuleLoss(loss, start)
