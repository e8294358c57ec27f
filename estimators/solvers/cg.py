"""Conjugate gradient (Hestenes & Stiefel 1952; Nocedal & Wright, Algorithm 5.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .. import tree
from ..errors import HypergradientError
from ..tree import Tree
from .base import Combination, Formed, Matvec, Outcome, Preconditioner, Solution, taken


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
    combines: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rtol < 0 or self.damping < 0:
            raise HypergradientError(f"{self}: steps must be at least 1, rtol and damping not negative")

    def __call__(
        self, matvec: Matvec, b: Tree, preconditioner: Preconditioner | None = None, *, into: Combination | None = None
    ) -> Solution:
        unit, dtype = tree.power_of_two(b), tree.dtype_of(b)
        formed = Formed()
        x = formed if into is None else into
        r = taken(b, 1 / unit, into)  # squares of tiny cotangents would underflow
        whole = tree.plain_norm(r)
        p = {k: v.clone() for k, v in (r if preconditioner is None else preconditioner.apply(r)).items()}
        bb = tree.dot(r, p)
        rr, goal = bb, max(self.rtol, torch.finfo(bb.dtype).eps) ** 2 * bb
        lowest, highest = torch.full_like(rr, torch.inf), torch.zeros_like(rr)
        length, xp = torch.zeros_like(rr), torch.zeros_like(rr)  # ||x|| and <x, p>, where x itself may never exist
        indefinite = torch.zeros_like(rr, dtype=torch.bool)
        solved, negative = rr <= goal, rr < 0
        waits = tree.has_values(rr) and (self.rtol > 0 or reads_are_free(rr.device))
        matvecs = 0
        for _ in range(self.steps):
            if waits and bool(solved | indefinite | ~torch.isfinite(rr)):
                break
            hp = dict(matvec(p))
            matvecs += 1
            if self.damping:
                hp = {k: torch.add(hp.pop(k), v, alpha=self.damping) for k, v in p.items()}
            php, pp = tree.dot(p, hp), tree.dot(p, p)
            active = ~(solved | indefinite)
            lowest = torch.where(active, torch.minimum(lowest, php / pp), lowest)
            highest = torch.where(active, torch.maximum(highest, php / pp), highest)
            indefinite = indefinite | (active & (php <= 0))
            active = active & ~(php <= 0)  # a NaN goes on into x, where it is seen
            a = torch.where(active, rr / php, 0.0)
            side = pp.sqrt()
            on = torch.minimum(xp / side, length)
            beside = (length - on).sqrt() * (length + on).sqrt()
            on = on + a * side
            length = torch.where(active, torch.hypot(on, beside), length)
            x.add(a, p)
            tree.add_(r, -a, hp)
            del hp
            z = r if preconditioner is None else preconditioner.apply(r)
            new = torch.where(active, tree.dot(r, z), rr)
            beta = torch.where(active, new / rr, 0.0)
            xp = beta * side * on  # x is orthogonal to the new residual (with a preconditioner: about so)
            for k, v in p.items():
                torch.addcmul(z[k], v, beta.to(dtype), out=v)
            rr = new
            negative = negative | (rr < 0)
            solved = solved | (rr <= goal)
        x.scale(unit)
        # The recurrence for r goes to 0 whatever x does; ||b - Hx|| cannot fall below the rounding of Hx.
        rounding = torch.finfo(rr.dtype).eps * highest * length
        left = rr.sqrt() if preconditioner is None else tree.plain_norm(r)
        value = formed.value(b) if into is None else {}
        if not tree.has_values(rr):
            outcome = Outcome.UNREAD if self.rtol > 0 else Outcome.BUDGET
            return Solution(value, outcome, matvecs, None, None)
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
        return Solution(value, outcome, matvecs, residual, curvature)


def reads_are_free(device: torch.device) -> bool:
    """Whether a value can be looked at without waiting for a queue of kernels."""
    return device.type == "cpu"
