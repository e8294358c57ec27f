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
