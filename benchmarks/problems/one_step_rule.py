"""Hyperparameters that sit in the inner optimizer: a learning-rate scalar and a momentum.

The setting of guided hyperparameter tuning (gradient-based tuning of the learning rate during training; Baydin et al.
2018, hypergradient descent, is the case of one step and no momentum):

    inner  L(w) = w^T A w / 2 - b^T w,   T steps of heavy ball from w_0 != w*
           lr = base exp(log_lr),  mu = sigmoid(raw_momentum)
    outer  M(w) = ||w - w'||^2 / 2

With b_{t+1} = mu b_t + g_t, w_{t+1} = w_t - lr b_{t+1}, the derivatives carried forward are

    Z^b = mu Z^b + A Z^w + (0, mu (1 - mu) b_t),   Z^w = Z^w - lr Z^b - (lr b_{t+1}, 0).

The inner optimum does not depend on either hyperparameter, so implicit estimators refuse this problem, and `exact` is
`exact_run`: the derivative of the steps. Momentum has no effect on a first step from rest, so for steps=1 there is only
"log_lr"; with more steps, one-step estimators see only part of the truth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import Momentum, Problem, Stage

from .common import Tree, closed_form, generator, normal, require, require_positive, store

CITATION = "Baydin et al. 2018; Franceschi et al. 2017"
ABOUT = f"quadratic whose learning rate and momentum are the hyperparameters ({CITATION})"


def make(
    *,
    seed: int = 0,
    steps: int = 3,
    dim: int = 6,
    cond: float = 10.0,
    base: float = 0.1,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Problem:
    """Build the problem.

    Args:
        seed: of A's eigenvectors, b, w_0 and w'.
        steps: T >= 1.
        dim: number of parameters.
        cond: condition number of A, whose eigenvalues run from 1 to 1 / cond.
        base: learning rate at log_lr = 0; below 2, where gradient descent diverges.
        dtype: of the data, the start and the hyperparameters.
        device: likewise.

    Raises:
        ValueError: a setting that has no such problem.
    """
    require_positive(dim=dim, steps=steps)
    require(cond >= 1, f"cond={cond}: must be at least 1")
    require(0 < base < 2, f"base={base}: must lie between 0 and 2, where the descent is stable")

    source = generator(seed)
    basis = torch.linalg.qr(normal(source, dim, dim)).Q
    eigenvalues = cond ** -torch.linspace(0, 1, dim, dtype=torch.float64)
    a_run, a = store(basis @ torch.diag(eigenvalues) @ basis.T, dtype, device)
    b_run, b = store(normal(source, dim), dtype, device)
    target_run, target = store(normal(source, dim), dtype, device)
    start_run, start = store(normal(source, dim), dtype, device)

    def loss(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        w, (matrix, side) = params["w"], batch
        return w @ matrix.to(w.dtype) @ w / 2 - side.to(w.dtype) @ w

    def outer(params: Tree, hparams: Tree) -> Tensor:
        w = params["w"]
        return (w - target_run.to(w.dtype)).square().sum() / 2

    def rule(hparams: Tree) -> Momentum:
        lr = base * hparams["log_lr"].exp()
        return Momentum(lr=lr, momentum=hparams["raw_momentum"].sigmoid() if steps > 1 else 0.0)

    def exact_run(hparams: Tree) -> Tree:
        lr = base * torch.exp(hparams["log_lr"])
        mu = 1 / (1 + torch.exp(-hparams.get("raw_momentum", torch.tensor(-torch.inf, dtype=torch.float64))))
        w, buffer = start, torch.zeros_like(start)
        on_lr, on_lr_buffer, on_mu, on_mu_buffer = (torch.zeros_like(start) for _ in range(4))
        for _ in range(steps):
            on_lr_buffer = mu * on_lr_buffer + a @ on_lr
            on_mu_buffer = mu * on_mu_buffer + a @ on_mu + mu * (1 - mu) * buffer
            buffer = mu * buffer + a @ w - b
            on_lr = on_lr - lr * on_lr_buffer - lr * buffer
            on_mu = on_mu - lr * on_mu_buffer
            w = w - lr * buffer
        slope = w - target
        return {"log_lr": on_lr @ slope, "raw_momentum": on_mu @ slope}

    hparams = {"log_lr": start_run.new_tensor(0.1)}
    if steps > 1:
        hparams["raw_momentum"] = start_run.new_tensor(-0.3)
    return Problem(
        name="one_step_rule",
        stages=[Stage(loss=loss, rule=rule, stream=lambda t: (a_run, b_run), steps=steps)],
        outer=outer,
        start={"w": start_run},
        hparams=hparams,
        exact=closed_form(exact_run),
        exact_run=closed_form(exact_run),
        hessian=lambda params: a_run,
        about=ABOUT,
        settings={
            "seed": seed, "steps": steps, "dim": dim, "cond": cond, "base": base, "lambda_max": 1.0,
            "lambda_min": 1 / cond,
        },
    )  # fmt: skip
