"""Gradient descent and heavy ball on quadratics, in dense float64 algebra: tuning, error bounds, derivatives.

Nothing here uses autograd or `estimators` (but for naming the rule that a stage runs): it is what the estimators are
judged by.

With H the inner Hessian, e_t = w_t - w* = P_t(H) e_0, and a unit change of one gradient moves the parameters s + 1
steps later by -lr q_s(H). Both methods have lr (q_0 + ... + q_{T-1}) = H^-1 (I - P_T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import sqrt

import torch
from torch import Tensor

from estimators import SGD, Momentum, Rule

from .common import require

RULES = ("momentum", "sgd")
MOST_STEPS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Descent:
    """An inner method tuned to curvatures in [low, high].

    Attributes:
        name: "momentum" (Polyak 1964, heavy ball) or "sgd" (gradient descent).
        lr: learning rate.
        momentum: 0 for gradient descent.
        rho: contraction per step.
    """

    name: str
    lr: float
    momentum: float
    rho: float

    @property
    def rule(self) -> Rule:
        """The inner optimizer that a stage runs. Momentum's first step sets b = g: the heavy ball from rest."""
        return Momentum(lr=self.lr, momentum=self.momentum) if self.name == "momentum" else SGD(lr=self.lr)

    def remaining(self, t: int) -> float:
        """Bound on ||P_t(H)||. Gradient descent: rho^t. Heavy ball: (t + 1 + rho t) rho^t.

        Heavy ball: all roots of z^2 - (1 + momentum - lr h) z + momentum have modulus rho, so the solution from rest
        is P_t = s_t - rho^2 s_{t-1} with s_t = rho^t U_t (Chebyshev, second kind), and |U_t| <= t + 1.
        """
        return self.rho**t * (t + 1 + self.rho * t if self.name == "momentum" else 1)

    def echoes(self, steps: int) -> float:
        """Bound on the sum over t < steps of ||P_t|| ||q_{steps-1-t}||, with |q_s| <= (s + 1) rho^s or rho^s."""
        t = steps
        if self.name == "momentum":
            return self.rho ** (t - 1) * (t * (t + 1) * (t + 2) + self.rho * (t - 1) * t * (t + 1)) / 6
        return t * self.rho ** (t - 1)

    def settings(
        self, spectrum: Tensor, steps: int, tolerance: float, bound: Callable[[int], float]
    ) -> dict[str, str | int | float]:
        """What a problem records of its run: the spectrum of H that it meets, this method, and what theory bounds."""
        low, high = float(spectrum.min()), float(spectrum.max())
        return {
            "cond": high / low, "lambda_max": high, "lambda_min": low, "rule": self.name, "lr": self.lr,
            "momentum": self.momentum, "rho": self.rho, "steps": steps, "tolerance": tolerance, "bound": bound(steps),
        }  # fmt: skip


def tuned(name: str, low: float, high: float) -> Descent:
    """The best fixed learning rate (and momentum) for curvatures in [low, high] (Polyak 1964).

    Raises:
        ValueError: an unknown name.
    """
    require(name in RULES, f"rule={name!r}: choose one of {', '.join(RULES)}")
    require(0 < low <= high, f"curvatures in [{low}, {high}]: the inner problem must be strongly convex")
    if name == "sgd":
        return Descent(name=name, lr=2 / (low + high), momentum=0.0, rho=(high - low) / (high + low))
    rho = (sqrt(high) - sqrt(low)) / (sqrt(high) + sqrt(low))
    return Descent(name=name, lr=4 / (sqrt(low) + sqrt(high)) ** 2, momentum=rho**2, rho=rho)


def fewest_steps(bound: Callable[[int], float], tolerance: float) -> int:
    """The smallest number of steps, at least 1, whose bound lies below ``tolerance``.

    Raises:
        ValueError: a tolerance that is not positive, or out of reach.
    """
    require(tolerance > 0, f"tolerance={tolerance}: must be positive")
    for steps in count(1):
        if bound(steps) < tolerance:
            return steps
        require(steps < MOST_STEPS, f"tolerance={tolerance}: not reached in {MOST_STEPS} steps; lower the condition")
    raise AssertionError("unreachable")


@dataclass(frozen=True, kw_only=True)
class Response:
    """A quadratic inner problem at its optimum w*, seen by an outer loss that is quadratic in w.

    Attributes:
        hessian: (d, d) H, constant in w.
        mixed: (d, n) B = d2L / dw dlam at w*; affine in w.
        mixed_slope: bound on ||B(w* + e) - B(w*)|| / ||e||.
        cotangent: (d,) v, the outer gradient at w*.
        outer_hessian: (d, d) V, constant in w.
        distance: ||w_0 - w*||.
    """

    hessian: Tensor
    mixed: Tensor
    mixed_slope: float
    cotangent: Tensor
    outer_hessian: Tensor
    distance: float

    def hypergradient(self) -> Tensor:
        """(n,) -B^T H^-1 v: the implicit function theorem."""
        return -self.mixed.T @ torch.linalg.solve(self.hessian, self.cotangent)

    def bound(self, method: Descent) -> Callable[[int], float]:
        """steps -> bound on ||g_T - g|| / ||g||, g_T the derivative of T steps of ``method`` and g the one above.

        From g_T - g = B^T H^-1 (P_T v_T - V e_T) - lr sum_t (B(w_t) - B)^T q_{T-1-t} v_T and v_T = v + V e_T.
        """
        inverse = torch.linalg.solve(self.hessian, self.mixed).T  # (n, d)
        length = _length(self.hypergradient())
        gain, through = _spectral(inverse), _spectral(inverse @ self.outer_hessian)
        outer, v = _spectral(self.outer_hessian), _length(self.cotangent)

        def relative(steps: int) -> float:
            left = method.remaining(steps)
            v_end = v + outer * left * self.distance
            error = left * (gain * v_end + through * self.distance)
            error += method.lr * self.mixed_slope * self.distance * v_end * method.echoes(steps)
            return error / length

        return relative


def sensitivities(
    method: Descent,
    steps: int,
    start: Tensor,
    gradient: Callable[[Tensor], Tensor],
    hessian: Tensor,
    mixed: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """T steps of ``method`` and their derivative, carried forward (Franceschi et al. 2017, algorithm 2).

    b' = momentum b + g(w), w' = w - lr b';  Zb' = momentum Zb + H Zw + B(w), Zw' = Zw - lr Zb'.

    Args:
        method: gradient descent or heavy ball.
        steps: T.
        start: (d,), independent of lam.
        gradient: w -> (d,).
        hessian: (d, d), constant in w.
        mixed: w -> (d, n).

    Returns:
        (w_T, (d, n) dw_T/dlam).
    """
    w, buffer = start, torch.zeros_like(start)
    z = torch.zeros_like(mixed(start))
    z_buffer = torch.zeros_like(z)
    for _ in range(steps):
        z_buffer = method.momentum * z_buffer + hessian @ z + mixed(w)
        buffer = method.momentum * buffer + gradient(w)
        w, z = w - method.lr * buffer, z - method.lr * z_buffer
    return w, z


def _length(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _spectral(x: Tensor) -> float:
    return float(torch.linalg.matrix_norm(x, 2))
