"""The noisy quadratic: where a short horizon misjudges the learning rate (Wu et al. 2018).

    inner  L_t(w) = sum_i h_i (w_i - c_ti)^2 / 2,   c_ti ~ N(0, sigma_i^2) drawn anew in every step
    outer  M(w) = E_c L(w) = sum_i h_i (w_i^2 + sigma_i^2) / 2
    h_i = 1 / i^decay,   sigma_i^2 = noise / h_i:  gradient noise with covariance noise * H

run by a rule whose rate is base exp(log_lr) and whose momentum (beta1) is sigmoid(raw_momentum), both hyperparameters.
A large rate lowers M faster in flat directions and keeps it higher in steep ones, where noise sets the floor. Over a few
steps only the floor is felt: hence the bias towards small rates.

Three exact derivatives of the run, forwards and coordinate by coordinate, with Z = dw/dlam and g = h (w - c), Zg = h Z:

    momentum  b' = mu b + g,  Zb' = mu Zb + Zg + (0, mu(1-mu) b),  Z' = Z - lr Zb' - (lr b', 0)
    averaged  b' = mu b + (1-mu) g,  Zb' = mu Zb + (1-mu) Zg + (0, mu(1-mu) (b - g)),  Z' as above;  b_1 = g_1 in both
    adam      m' = b1 m + (1-b1) g,  Zm' = b1 Zm + (1-b1) Zg + (0, b1(1-b1) (m - g)),  Zs' = b2 Zs + 2 (1-b2) g Zg,
              u = lr m' / (k den),  k = 1 - b1^t,  den = sqrt(s'/(1-b2^t)) + eps,
              Zu = lr Zm'/(k den) - u Zs' / (2 sqrt(s'(1-b2^t)) den) + (u, u t b1^t (1-b1) / k)

For "lamb" and "adafactor" (flax's order of momentum) there is none here. The expected loss has no dependence on either
hyperparameter at its optimum, so implicit estimators refuse this problem, and `exact` is `exact_run`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from estimators import Problem, Stage

from .common import Tree, closed_form, generator, normal, of_number, require, require_positive, store
from .tuned_rule import BETA2, EPS, raw, tuned_rule

CITATION = "after Wu et al. 2018"
ABOUT = f"quadratic with gradient noise; learning rate and momentum are the hyperparameters ({CITATION})"

BASE = {"momentum": 0.1, "averaged": 1.0, "adam": 0.05, "lamb": 0.02, "adafactor": 0.05}
"""Learning rate at log_lr = 0, by rule."""


def make(
    *,
    seed: int = 0,
    rule: str = "momentum",
    steps: int = 20,
    dim: int = 20,
    decay: float = 1.0,
    noise: float = 1.0,
    log_lr: float = 0.0,
    momentum: float = 0.9,
    base: float | None = None,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Problem:
    """Build the problem.

    Args:
        seed: of the start and of the noise of every step.
        rule: "momentum", "averaged", "adam", "lamb" or "adafactor"; see `tuned_rule`.
        steps: at least 2: a momentum has no influence on the first step.
        dim: number of parameters.
        decay: exponent of the curvatures' power law, not negative.
        noise: variance of the gradient noise relative to the curvature, not negative.
        log_lr: where the hypergradient is wanted.
        momentum: likewise, as the momentum itself, between 0 and 1; its logit is the hyperparameter.
        base: learning rate at log_lr = 0; None: see `BASE`.
        dtype: of the data, the start and the hyperparameters.
        device: likewise.

    Raises:
        ValueError: a setting that has no such problem.
    """
    require(rule in BASE, f"rule={rule!r}: choose one of {', '.join(BASE)}")
    tuned = tuned_rule(rule, rate := BASE[rule] if base is None else base)
    require_positive(dim=dim)
    require(steps >= 2, f"steps={steps}: must be at least 2, for a momentum has no influence on the first")
    require(decay >= 0 and noise >= 0, f"decay={decay}, noise={noise}: must not be negative")

    curvatures = torch.arange(1, dim + 1, dtype=torch.float64) ** -decay
    h_run, h = store(curvatures, dtype, device)
    sigma_run, sigma = store((noise / curvatures).sqrt(), dtype, device)
    start_run, start = store(normal(generator(seed), dim) / curvatures.sqrt(), dtype, device)

    def centre(t: int) -> Tensor:
        return sigma * normal(of_number(seed, t), dim)

    def stream(t: int) -> tuple[Tensor]:
        return (centre(t).to(device=device, dtype=dtype),)

    def loss(params: Tree, hparams: Tree, batch: tuple[Tensor]) -> Tensor:
        w = params["w"]
        return (h_run.to(w.dtype) * (w - batch[0].to(w.dtype)).square()).sum() / 2

    def outer(params: Tree, hparams: Tree) -> Tensor:
        w = params["w"]
        return (h_run.to(w.dtype) * (w.square() + sigma_run.to(w.dtype).square())).sum() / 2

    def exact_run(hparams: Tree) -> Tree:
        lr, beta = rate * torch.exp(hparams["log_lr"]), 1 / (1 + torch.exp(-hparams["raw_momentum"]))
        noises = [stored(centre(t)) for t in range(steps)]
        w, z = SENSITIVITIES[rule](h, start, noises, lr, beta)
        return dict(zip(("log_lr", "raw_momentum"), z @ (h * w), strict=True))

    def stored(x: Tensor) -> Tensor:
        return store(x, dtype, device)[1]

    exact = closed_form(exact_run) if rule in SENSITIVITIES else None
    return Problem(
        name="noisy_quadratic",
        stages=[Stage(loss=loss, rule=tuned, stream=stream, steps=steps)],
        outer=outer,
        start={"w": start_run},
        hparams=raw(start_run, log_lr, momentum),
        exact=exact,
        exact_run=exact,
        hessian=lambda params: torch.diag(h_run),
        about=ABOUT,
        settings={
            "seed": seed, "rule": rule, "steps": steps, "dim": dim, "decay": decay, "noise": noise, "base": rate,
            "log_lr": log_lr, "momentum": momentum, "beta2": BETA2, "eps": EPS,
            "lambda_max": float(h.max()), "lambda_min": float(h.min()),
        },
    )  # fmt: skip


def _momentum(
    h: Tensor, w: Tensor, centres: list[Tensor], lr: Tensor, mu: Tensor, averaged: bool = False
) -> tuple[Tensor, Tensor]:
    """(w_T, (2, d) derivatives by log_lr and by raw_momentum); see the top of this file."""
    z, b, zero = torch.zeros(2, len(w), dtype=w.dtype), torch.zeros_like(w), torch.zeros_like(w)
    zb = torch.zeros_like(z)
    for t, c in enumerate(centres):
        g, fresh = h * (w - c), 1 - mu if averaged and t else 1
        zb = mu * zb + fresh * h * z + torch.stack([zero, mu * (1 - mu) * (b - g if averaged and t else b)])
        b = mu * b + fresh * g
        z = z - lr * zb - torch.stack([lr * b, zero])
        w = w - lr * b
    return w, z


def _adam(h: Tensor, w: Tensor, centres: list[Tensor], lr: Tensor, b1: Tensor) -> tuple[Tensor, Tensor]:
    """As `_momentum`."""
    z, m, s, zero = torch.zeros(2, len(w), dtype=w.dtype), torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w)
    zm, zs = torch.zeros_like(z), torch.zeros_like(z)
    for t, c in enumerate(centres, start=1):
        g, zg = h * (w - c), h * z
        zm = b1 * zm + (1 - b1) * zg + torch.stack([zero, b1 * (1 - b1) * (m - g)])
        zs = BETA2 * zs + 2 * (1 - BETA2) * g * zg
        m, s = b1 * m + (1 - b1) * g, BETA2 * s + (1 - BETA2) * g * g
        k, k2 = 1 - b1**t, 1 - BETA2**t
        den = (s / k2).sqrt() + EPS
        u = lr * m / (k * den)
        zu = lr * zm / (k * den) - u * zs / (2 * (s * k2).sqrt() * den)
        w, z = w - u, z - zu - torch.stack([u, u * t * b1**t * (1 - b1) / k])
    return w, z


SENSITIVITIES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "momentum": _momentum,
    "averaged": partial(_momentum, averaged=True),
    "adam": _adam,
}
"""rule -> the run and its derivative."""
