"""Conjugate gradient (Hestenes & Stiefel 1952; Nocedal & Wright, Algorithm 5.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .. import tree
from ..errors import HypergradientError
from ..tree import Tree
from .base import Matvec, Outcome, Preconditioner, Solution


@dataclass(frozen=True)
class CG:
    """Solve (H + damping I) x = b from x = 0.

        r = p = b;  then  a = <r, r> / <p, Hp>,  x += a p,  s = r - a Hp,  p = s + (<s, s> / <r, r>) p,  r = s

    With a preconditioner D > 0, <r, r> is <r, Dr> and p = Dr at first, Ds + ... later (Algorithm 5.3). Where D is zero
    (coordinates that never had a gradient) x stays zero.

    Where libraries go wrong, and what happens here: the iterate is stored before convergence is tested; the
    direction uses the new residual; a zero right-hand side gives zero; scaling b scales x; a direction of
    non-positive curvature ends the iteration at the last iterate that minimised anything, and is reported.

    On an accelerator with ``rtol=0`` nothing is read back until the end: finished iterations are masked. On tensors without
    values (see `tree.has_values`) all ``steps`` are taken.

    Args:
        steps: largest number of products, >= 1.
        rtol: stop once ||b - Hx|| <= rtol ||b|| (in the norm of D, if there is one). 0 uses all steps, or ends when the residual is rounding.
        damping: added to H, >= 0.

    Raises:
        HypergradientError: a field is out of range.
    """

    steps: int = 20
    rtol: float = 0.0
    damping: float = 0.0
    takes_preconditioner: ClassVar[str] = "symmetric"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rtol < 0 or self.damping < 0:
            raise HypergradientError(f"{self}: steps must be at least 1, rtol and damping not negative")

    def __call__(self, matvec: Matvec, b: Tree, preconditioner: Preconditioner | None = None) -> Solution:
        apply: Matvec = dict if preconditioner is None else preconditioner.apply
        unit = tree.power_of_two(b)  # squares of tiny cotangents would underflow
        r, dtype = tree.scale(b, 1 / unit), tree.dtype_of(b)
        x, p = tree.zeros_like(b), apply(r)
        bb = tree.dot(r, p)
        rr, goal = bb, max(self.rtol, torch.finfo(bb.dtype).eps) ** 2 * bb
        lowest, highest = torch.full_like(rr, torch.inf), torch.zeros_like(rr)
        indefinite = torch.zeros_like(rr, dtype=torch.bool)
        solved, negative = rr <= goal, rr < 0
        waits = tree.has_values(rr) and (self.rtol > 0 or reads_are_free(rr.device))
        matvecs = 0
        for _ in range(self.steps):
            if waits and bool(solved | indefinite | ~torch.isfinite(rr)):
                break
            hp = matvec(p)
            matvecs += 1
            if self.damping:
                hp = tree.axpy(self.damping, p, hp)
            php, pp = tree.dot(p, hp), tree.dot(p, p)
            active = ~(solved | indefinite)
            lowest = torch.where(active, torch.minimum(lowest, php / pp), lowest)
            highest = torch.where(active, torch.maximum(highest, php / pp), highest)
            indefinite = indefinite | (active & (php <= 0))
            active = active & ~(php <= 0)  # a NaN goes on into x, where it is seen
            a = torch.where(active, rr / php, 0.0)
            x, r = tree.axpy(a.to(dtype), p, x), tree.axpy(-a.to(dtype), hp, r)
            z = apply(r)
            new = torch.where(active, tree.dot(r, z), rr)
            p = tree.axpy(torch.where(active, new / rr, 0.0).to(dtype), p, z)
            rr = new
            negative = negative | (rr < 0)
            solved = solved | (rr <= goal)
        # The recurrence for r goes to 0 whatever x does; ||b - Hx|| cannot fall below the rounding of Hx.
        rounding = torch.finfo(rr.dtype).eps * highest * tree.norm(x)
        left = rr.sqrt() if preconditioner is None else tree.norm(r)
        whole = bb.sqrt() if preconditioner is None else tree.norm(b) / unit
        if not tree.has_values(rr):
            outcome = Outcome.UNREAD if self.rtol > 0 else Outcome.BUDGET
            return Solution(tree.scale(x, unit), outcome, matvecs, None, None)
        residual = float(torch.maximum(left, rounding) / whole) if matvecs and bool(whole) else 0.0
        curvature = float(lowest) if matvecs and bool(torch.isfinite(lowest)) else None
        if not bool(torch.isfinite(rr)):
            outcome = Outcome.NONFINITE
        elif bool(negative):
            outcome = Outcome.NOT_POSITIVE
        elif bool(indefinite):
            flat = abs(float(lowest)) <= 100 * torch.finfo(rr.dtype).eps * float(highest)
            outcome = Outcome.SINGULAR if flat else Outcome.INDEFINITE
        elif bool(solved):
            outcome = Outcome.CONVERGED
        else:
            outcome = Outcome.MISSED if self.rtol > 0 else Outcome.BUDGET
        return Solution(tree.scale(x, unit), outcome, matvecs, residual, curvature)


def reads_are_free(device: torch.device) -> bool:
    """Whether a value can be looked at without waiting for a queue of kernels."""
    return device.type == "cpu"
