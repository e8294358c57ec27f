"""AMSGrad (Reddi et al. 2018). Arithmetic of `torch.optim.Adam(amsgrad=True)`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from .adam import Adam


@dataclass(frozen=True, kw_only=True, eq=False)
class AMSGrad(Adam):
    """`Adam` that divides by the root of the largest second moment so far: the same as ``Adam(amsgrad=True)``."""

    amsgrad: bool = field(default=True, init=False)
    diagonal: ClassVar[bool] = True
    derivative = Adam.derivative
    step_ = Adam.step_
