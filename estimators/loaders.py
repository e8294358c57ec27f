"""A problem from what a training script has already: a module, two losses and two loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .errors import HypergradientError
from .estimator import MeanOf, Outer
from .module import Call, from_module
from .problem import Problem
from .rules import AnyRule
from .stage import Batch, Stage
from .tree import Tree

Criterion = Callable[[Call, Tree, Batch], Tensor]
"""(model, hparams, batch) -> scalar, as `from_module` takes it."""


def from_loaders(
    module: nn.Module,
    inner: Criterion,
    outer: Criterion,
    train: Iterable[Batch],
    valid: Iterable[Batch],
    *,
    hparams: Tree,
    rule: AnyRule | Callable[[Tree], AnyRule],
    steps: int,
    validated: nn.Module | None = None,
    seed: int | None = None,
    name: str = "",
) -> Problem:
    """Build a problem of one stage.

    Args:
        module: the network; it is left as it is, in the mode (train or eval) that it has when it is evaluated.
        inner: (model, hparams, batch) -> the training loss, where ``model(x)`` calls the module.
        outer: the validation loss, likewise.
        train: batches, such as a `torch.utils.data.DataLoader`. It is gone through once, here, and its batches are kept, on the
            module's device: estimators replay steps, so step t must see the same batch again. Step t gets batch t modulo their
            number. A loader that shuffles gives the order of this one time.
        valid: batches, likewise; the outer loss is the mean over them, each with the same weight.
        hparams: where the hypergradient is wanted.
        rule: the inner optimizer, or a function of hparams.
        steps: number of steps.
        validated: what ``outer`` evaluates, if not ``module`` as it is: ``copy.deepcopy(module).eval()`` for one without dropout.
            Its parameters have the same names.
        seed: see `Stage`: needed if a loss draws (dropout).
        name: for tables; the module's class if "".

    Raises:
        HypergradientError: a loader has no batch; and as `from_module` and `Stage`.

    Example:
        >>> from estimators import SGD, estimate, from_loaders
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> problem = from_loaders(
        ...     nn.Linear(3, 1),
        ...     lambda model, hparams, xy: hparams["scale"] * (model(xy[0]) - xy[1]).square().mean(),
        ...     lambda model, hparams, xy: (model(xy[0]) - xy[1]).square().mean(),
        ...     [(x, y)],
        ...     [(x, -y)],
        ...     hparams={"scale": torch.tensor(1.0)},
        ...     rule=SGD(lr=0.1),
        ...     steps=5,
        ... )
        >>> sorted(estimate(problem, "unroll").hparams)
        ['scale']
    """
    loss, start = from_module(module, inner)
    device = next(iter(start.values())).device
    batches, parts = (_kept(loader, what, device) for loader, what in ((train, "train"), (valid, "valid")))
    evaluate = from_module(validated if validated is not None else module, outer).loss

    def on(batch: Batch) -> Outer:
        return lambda params, lam: evaluate(params, lam, batch)

    return Problem(
        name=name or type(module).__name__,
        stages=[Stage(loss, rule, stream=lambda step: batches[step % len(batches)], steps=steps, seed=seed)],
        outer=MeanOf([on(part) for part in parts]) if len(parts) > 1 else on(parts[0]),
        start=start,
        hparams=hparams,
        settings={"steps": steps},
    )


def _kept(loader: Iterable[Batch], what: str, device: torch.device) -> list[Any]:
    batches = [tree_map_only(Tensor, lambda x: x.to(device), batch) for batch in loader]
    if not batches:
        raise HypergradientError(
            f"the loader {what!r} has no batch: is it an iterator that was used up, or drop_last with few rows?"
        )
    return batches
