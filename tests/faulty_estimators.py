"""A plugin for tests of sweeps: estimators that go wrong, each in its own way, and one that does not.

Each call appends its cell and its process to the file that FAULTY_LOG names, so that measurements can be counted.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from estimators import Claim, Cost, Outcome, Pullback, Record, Stage, Tree, registry


@dataclass(frozen=True)
class Faulty:
    """Zero, unless it does what ``fault`` says.

    Attributes:
        fault: "hog", "segfault", "hang", "nan" or "raise"; anything else for none.
        number: tells cells apart.
        delay: seconds that a call takes.
    """

    fault: str = "none"
    number: int = 0
    delay: float = 0.0
    tail: ClassVar[int | None] = 0

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        if log := os.environ.get("FAULTY_LOG"):
            with open(log, "a") as f:  # one write of a short line: whole, whoever else writes
                f.write(f"{self.fault}-{self.number} {os.getpid()}\n")
        time.sleep(self.delay)
        if self.fault == "hog":
            hoard = []
            while True:
                hoard.append(torch.empty(2**24, dtype=torch.uint8))
        if self.fault == "segfault":
            ctypes.string_at(0)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "raise":
            raise RuntimeError("this estimator is broken")
        fill = torch.nan if self.fault == "nan" else 0.0
        answer = {k: torch.full_like(x, fill) for k, x in hparams.items()}
        return Pullback(hparams=answer, start=None, outcome=Outcome.APPROXIMATE, cost=Cost())


CLAIM = Claim(of="nothing", citation="nobody", target="direction", control=True)
registry.register("steady", Faulty(), CLAIM)
for fault in ("hog", "segfault", "hang", "nan", "raise"):
    registry.register(fault, Faulty(fault), CLAIM)
