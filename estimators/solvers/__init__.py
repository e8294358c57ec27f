"""Solvers of H x = b: one a file, called as ``solver(matvec, b) -> Solution``, registered in `SOLVERS`."""

from .base import Combination, Formed, Matvec, Outcome, Preconditioner, Solution, Solver
from .cg import CG
from .dense import Dense
from .fixed_point import FixedPoint
from .identity import Identity
from .neumann import Neumann
from .nystrom import Nystrom

SOLVERS: dict[str, type] = {
    "identity": Identity,
    "neumann": Neumann,
    "cg": CG,
    "nystrom": Nystrom,
    "fixed-point": FixedPoint,
    "dense": Dense,
}
"""Every solver by name: adding one here is what lists and tests it."""

__all__ = [
    "CG", "SOLVERS", "Combination", "Dense", "FixedPoint", "Formed", "Identity", "Matvec", "Neumann", "Nystrom", "Outcome",
    "Preconditioner", "Solution", "Solver",
]  # fmt: skip
