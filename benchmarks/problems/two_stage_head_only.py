"""Weighted pre-training of a body, then K steps of fine-tuning of a head on the frozen body.

Raghu et al. 2021, *Meta-Learning to Improve Pre-Training*, whose released code fine-tunes the head alone. Here the body
W is a linear map from inputs to m features, pre-trained to predict m targets, and the head psi reads the features:

    pre-training  L_1(W, phi)  = sum_i c_i ||W^T x_i - y_i||^2 + beta ||W||_F^2,  c_i = 2 sigmoid(phi_i)
    fine-tuning   L_2(psi, W)  = ||Z W psi - u||^2, K gradient steps on psi; W is read and left as it is
    outer         M(psi, W)    = ||Z' W psi - u'||^2

Pre-training does not read the head, so it leaves it alone. With F = Z W, r_k = F psi_k - u, r' = Z' W psi_K - u' and
a_K = 2 (Z' W)^T r', the cotangent on W is

    dW = 2 Z'^T r' psi_K^T - 2 eta sum_k Z^T (r_k a_{k+1}^T + F a_{k+1} psi_k^T),   a_k = a_{k+1} - 2 eta F^T F a_{k+1}

and with A = X^T diag(c) X + beta I, W* = A^-1 X^T diag(c) Y, R = X W* - Y,

    dM_i = -c'_i x_i^T A^-1 dW R_i.

`exact` has pre-training at its optimum and the K steps as they are run. The Hessian is left out: there are two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import SGD, Problem, Stage

from .common import Tree, closed_form, generator, normal, require, require_positive, store
from .descent import fewest_steps, sensitivities, tuned

CITATION = "Raghu et al. 2021, with its released code's head-only fine-tuning"
ABOUT = f"linear body pre-trained by weighted ridge, then K gradient steps on a head ({CITATION})"


def make(
    *,
    seed: int = 0,
    k: int = 5,
    n_train: int = 30,
    n_tune: int = 12,
    n_valid: int = 20,
    dim: int = 6,
    features: int = 3,
    beta: float = 2.0,
    rule: str = "momentum",
    steps: int | None = None,
    tolerance: float = 1e-10,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Problem:
    """Build the problem.

    Args:
        seed: of the data, the head's start and phi.
        k: steps of fine-tuning.
        n_train: pre-training examples, and hyperparameters.
        n_tune: rows of Z.
        n_valid: rows of Z'.
        dim: inputs; the body has dim x features parameters.
        features: outputs of the body, targets of pre-training, and parameters of the head.
        beta: ridge penalty of pre-training.
        rule: of pre-training: "momentum" (heavy ball) or "sgd".
        steps: of pre-training; None: the fewest after which both the distance to its optimum and what the steps'
            own derivatives add are below ``tolerance``, relative to where it starts. (The outer loss is a polynomial
            in W, so the sharper bound of the quadratic problems does not apply.)
        tolerance: see ``steps``.
        dtype: of the data, the start and phi.
        device: likewise.

    Raises:
        ValueError: a setting that has no such problem.
    """
    require_positive(n_train=n_train, n_tune=n_tune, n_valid=n_valid, dim=dim, features=features)
    require(k >= 0, f"k={k}: must not be negative")
    require(beta > 0, f"beta={beta}: must be positive")
    require(steps is None or steps >= 0, f"steps={steps}: must not be negative")

    source = generator(seed)
    truth, direction = normal(source, dim, features), normal(source, features)
    task = truth @ direction + 0.5 * normal(source, dim)
    x_run, x = store(normal(source, n_train, dim), dtype, device)
    y_run, y = store(x @ truth + normal(source, n_train, features), dtype, device)
    z_run, z = store(normal(source, n_tune, dim), dtype, device)
    u_run, u = store(z @ task + 0.1 * normal(source, n_tune), dtype, device)
    zv_run, zv = store(normal(source, n_valid, dim), dtype, device)
    uv_run, uv = store(zv @ task + 0.1 * normal(source, n_valid), dtype, device)
    phi_run, phi = store(0.5 * normal(source, n_train), dtype, device)
    # not zero: with psi_0 = 0 and K = 0 the hypergradient is exactly 0
    psi_run, psi_0 = store(0.5 * normal(source, features), dtype, device)

    def pretraining(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        body, (inputs, targets) = params["body"], batch
        c = 2 * torch.sigmoid(hparams["phi"])
        residual = inputs.to(body.dtype) @ body - targets.to(body.dtype)
        return (c * residual.square().sum(1)).sum() + beta * body.square().sum()

    def predict(params: Tree, inputs: Tensor) -> Tensor:
        return inputs.to(params["body"].dtype) @ params["body"] @ params["head"]

    def finetuning(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return (predict(params, inputs) - targets.to(params["head"].dtype)).square().sum()

    def outer(params: Tree, hparams: Tree) -> Tensor:
        return (predict(params, zv_run) - uv_run.to(params["head"].dtype)).square().sum()

    identity = torch.eye(dim, dtype=torch.float64)

    def system(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(A, X^T diag(c) Y, c') of pre-training."""
        s = 1 / (1 + torch.exp(-at))
        return x.T @ (2 * s[:, None] * x) + beta * identity, x.T @ (2 * s[:, None] * y), 2 * s * (1 - s)

    matrix_0, side_0, _ = system(phi)
    tuned_on = z @ torch.linalg.solve(matrix_0, side_0)
    eta = 0.5 / float(torch.linalg.matrix_norm(tuned_on, 2)) ** 2  # 1 / lambda_max of fine-tuning at the first phi

    def pulled(body: Tensor) -> Tensor:
        """(dim, features): the cotangent dW on the pre-trained body."""
        f, psi, before = z @ body, psi_0, []
        for _ in range(k):
            before.append(psi)
            psi = psi - 2 * eta * f.T @ (f @ psi - u)
        residual = zv @ body @ psi - uv
        a, total = 2 * (zv @ body).T @ residual, 2 * torch.outer(zv.T @ residual, psi)
        for psi in reversed(before):
            total = total - 2 * eta * z.T @ (torch.outer(f @ psi - u, a) + torch.outer(f @ a, psi))
            a = a - 2 * eta * f.T @ (f @ a)
        return total

    def exact(hparams: Tree) -> Tree:
        matrix, side, derivative = system(hparams["phi"])
        body = torch.linalg.solve(matrix, side)
        rows = x @ torch.linalg.solve(matrix, pulled(body))
        return {"phi": -derivative * (rows * (x @ body - y)).sum(1)}

    # c < 2: no phi leaves this interval
    method = tuned(rule, 2 * beta, 2 * (2 * float(torch.linalg.matrix_norm(x, 2)) ** 2 + beta))
    stretch = float(2 * torch.linalg.matrix_norm(x, 2) * torch.linalg.vector_norm(x, dim=1).max())

    def bound(steps: int) -> float:
        return method.remaining(steps) + method.lr * stretch * method.echoes(steps)

    length = fewest_steps(bound, tolerance) if steps is None else steps

    def exact_run(hparams: Tree) -> Tree:
        matrix, side, derivative = system(hparams["phi"])
        # row-major flattening of W: the Hessian is 2 A (x) I
        hessian = 2 * torch.kron(matrix, torch.eye(features, dtype=torch.float64))

        def mixed(w: Tensor) -> Tensor:
            residual = x @ w.reshape(dim, features) - y
            return 2 * torch.einsum("i,id,im->dmi", derivative, x, residual).reshape(dim * features, n_train)

        w, through = sensitivities(
            method, length, torch.zeros(dim * features, dtype=torch.float64),
            lambda w: hessian @ w - 2 * side.reshape(-1), hessian, mixed,
        )  # fmt: skip
        return {"phi": through.T @ pulled(w.reshape(dim, features)).reshape(-1)}

    spectrum = 2 * torch.linalg.eigvalsh(matrix_0)
    return Problem(
        name="two_stage_head_only",
        stages=[
            Stage(loss=pretraining, rule=method.rule, stream=lambda t: (x_run, y_run), steps=length),
            Stage(
                loss=finetuning,
                rule=SGD(lr=eta),
                stream=lambda t: (z_run, u_run),
                steps=k,
                frozen=frozenset({"body"}),
            ),
        ],
        outer=outer,
        start={"body": phi_run.new_zeros(dim, features), "head": psi_run},
        hparams={"phi": phi_run},
        exact=closed_form(exact),
        exact_run=closed_form(exact_run),
        about=ABOUT,
        settings={
            "seed": seed, "k": k, "head_only": True, "dim": dim, "features": features, "n_train": n_train,
            "n_tune": n_tune, "n_valid": n_valid, "beta": beta, "lr_tune": eta,
            **method.settings(spectrum, length, tolerance, bound),
        },
    )  # fmt: skip
