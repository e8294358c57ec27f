"""Optimizers that rules are held to, none of them ours: `torch.optim` in float64 throughout, and where torch has none the
pseudocode of the paper in NumPy.

(The package pytorch_optimizer has a LAMB, but not the paper's: it bounds the norm by 10, adds eps to the trust ratio and
corrects no bias. Its Lion would do; it is not worth a dependency.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

Reference = Callable[[Sequence[Tensor]], Any]
"""Parameters -> an object whose ``step()`` moves them by their ``grad``."""


class InFloat64:
    """A `torch.optim` optimizer whose own scalars (NAdam's product of momenta) are float64 as well."""

    def __init__(self, kind: type[torch.optim.Optimizer], params: Sequence[Tensor], **options: Any) -> None:
        self.inner = kind(params, **options)

    def step(self) -> None:
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            self.inner.step()
        finally:
            torch.set_default_dtype(default)


class MuonInOwnDtype(InFloat64):
    """`torch.optim.Muon` with its cast to bfloat16 taken out."""

    def __init__(self, params: Sequence[Tensor], **options: Any) -> None:
        super().__init__(torch.optim.Muon, params, **options)

    def step(self) -> None:
        with mock.patch.object(torch.Tensor, "bfloat16", lambda x: x.clone()):
            super().step()


class InNumpy:
    """An optimizer written in NumPy from a paper; a parameter without gradient is left alone, with its own count."""

    def __init__(self, params: Sequence[Tensor], **options: Any) -> None:
        self.params = list(params)
        self.memory: list[dict[str, Any]] = [{"t": 0} for _ in self.params]
        self.o: Any = SimpleNamespace(**options)

    def step(self) -> None:
        for p, memory in zip(self.params, self.memory, strict=True):
            if p.grad is not None:
                memory["t"] += 1
                moved = self.moved(p.detach().numpy(), p.grad.numpy(), memory)
                p.data.copy_(torch.as_tensor(moved))

    def moved(self, x: np.ndarray, g: np.ndarray, memory: dict[str, Any]) -> np.ndarray:
        raise NotImplementedError


class PaperLAMB(InNumpy):
    """You et al. 2020, algorithm 2, phi(z) = z; ratio 1 if a norm is 0."""

    def moved(self, x: np.ndarray, g: np.ndarray, memory: dict[str, Any]) -> np.ndarray:
        beta1, beta2 = self.o.betas
        t = memory["t"]
        memory["m"] = beta1 * memory.get("m", 0.0) + (1.0 - beta1) * g
        memory["v"] = beta2 * memory.get("v", 0.0) + (1.0 - beta2) * np.square(g)
        ratio = (memory["m"] / (1.0 - beta1**t)) / (np.sqrt(memory["v"] / (1.0 - beta2**t)) + self.o.eps)
        direction = ratio + self.o.weight_decay * x
        length, size = np.sqrt(np.sum(direction**2)), np.sqrt(np.sum(x**2))
        trust = size / length if size > 0 and length > 0 else 1.0
        return x - self.o.lr * trust * direction


class PaperLion(InNumpy):
    """Chen et al. 2023, algorithm 2."""

    def moved(self, x: np.ndarray, g: np.ndarray, memory: dict[str, Any]) -> np.ndarray:
        beta1, beta2 = self.o.betas
        m = memory.get("m", np.zeros_like(x))
        update = np.sign(beta1 * m + (1.0 - beta1) * g)
        memory["m"] = beta2 * m + (1.0 - beta2) * g
        return x - self.o.lr * (update + self.o.weight_decay * x)


class FlaxAdafactor(InNumpy):
    """flax.optim.Adafactor's order (factored from two dimensions on, over the last two, as torch does)."""

    def moved(self, x: np.ndarray, g: np.ndarray, memory: dict[str, Any]) -> np.ndarray:
        t = memory["t"]
        decay = 1.0 - float(t) ** -self.o.decay_rate
        scale = self.o.lr * max(np.sqrt(np.mean(x * x)), self.o.epsilon2)
        q = g * g + self.o.epsilon1
        if x.ndim > 1:
            memory["row"] = decay * memory.get("row", 0.0) + (1.0 - decay) * q.mean(-1)
            memory["col"] = decay * memory.get("col", 0.0) + (1.0 - decay) * q.mean(-2)
            row_factor = (memory["row"] / memory["row"].mean(-1, keepdims=True)) ** -0.5
            y = g * row_factor[..., None] * (memory["col"] ** -0.5)[..., None, :]
        else:
            memory["v"] = decay * memory.get("v", 0.0) + (1.0 - decay) * q
            y = g * memory["v"] ** -0.5
        y = scale * y / max(1.0, np.sqrt(np.mean(y * y)) / self.o.threshold)
        if self.o.beta1 is not None:
            y = memory["m"] = self.o.beta1 * memory.get("m", 0.0) + (1.0 - self.o.beta1) * y
        return x - y
