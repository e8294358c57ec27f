"""What every problem needs: seeded draws, checked settings, and closed forms that answer in the caller's dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Tree = dict[str, Tensor]


def require(condition: bool, message: str) -> None:
    """Refuse a setting.

    Raises:
        ValueError: ``condition`` is false; ``message`` says what to give instead.
    """
    if not condition:
        raise ValueError(message)


def require_positive(**sizes: int) -> None:
    """Refuse sizes below 1."""
    for name, value in sizes.items():
        require(value >= 1, f"{name}={value}: must be at least 1")


def generator(seed: int) -> torch.Generator:
    """Every draw of a problem comes from one of these, on the CPU, so that devices see the same data."""
    return torch.Generator().manual_seed(seed)


def of_number(seed: int, number: int) -> torch.Generator:
    """The generator of one batch of a stream, of its own whatever was drawn before."""
    return generator(1_000_003 * (seed + 1) + number)


def normal(source: torch.Generator, *shape: int) -> Tensor:
    """Standard normal draws in float64."""
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def store(x: Tensor, dtype: torch.dtype, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """(what the losses read, the same numbers in float64 on the CPU).

    The closed forms use the second, which is *rounded as the first*: in float32 too they answer for the problem that
    is run, not for a neighbour of it.
    """
    stored = x.to(device=device, dtype=dtype)
    return stored, stored.to(device="cpu", dtype=torch.float64)


def closed_form(answer: Callable[[Tree], Tree]) -> Callable[[Tree], Tree]:
    """``answer``, which works in float64 on the CPU, for hyperparameters of any dtype and device."""

    def converted(hparams: Tree) -> Tree:
        out = answer({k: x.detach().to(device="cpu", dtype=torch.float64) for k, x in hparams.items()})
        return {k: out[k].reshape(x.shape).to(x) for k, x in hparams.items()}

    return converted


def linear_layer(source: torch.Generator, name: str, inputs: int, outputs: int) -> Tree:
    """Weight and bias, in float64, drawn as `torch.nn.Linear`'s: uniform within inputs^-1/2."""

    def uniform(*shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=source, dtype=torch.float64) - 1) / inputs**0.5

    return {f"{name}.weight": uniform(outputs, inputs), f"{name}.bias": uniform(outputs)}


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """(b,) losses. Not torch's own: the forward derivative of its log_softmax and logsumexp (2.13) writes in place over
    what the backward pass through it needs, so that reverse over forward mode raises for the rows of the Hessian."""
    top = logits.amax(1, keepdim=True)  # its derivative cancels
    spread = (logits - top).exp().sum(1).log() + top[:, 0]
    return spread - logits.gather(1, classes[:, None])[:, 0]
