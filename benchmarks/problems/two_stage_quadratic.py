"""Weighted pre-training, then K steps of fine-tuning, all quadratic.

Raghu et al. 2021, *Meta-Learning to Improve Pre-Training*, sections 3 and 5.1, with linear models:

    pre-training  L_1(theta, phi) = sum_i c_i (x_i . theta - y_i)^2 + beta ||theta||^2,  c_i = 2 sigmoid(phi_i)
    fine-tuning   L_2(theta)      = ||Z theta - u||^2,  K gradient steps from the pre-trained theta
    outer         M(theta)        = ||Z' theta - u'||^2

phi = 0 gives every example the weight 1. With H = 2 (X^T diag(c) X + beta I), B[:, i] = 2 c'_i r_i x_i and
R = I - 2 eta Z^T Z, the hypergradient with pre-training at its optimum is

    dM = -B^T H^-1 (R^K)^T 2 Z'^T (Z' theta_K - u').

`exact` is that: pre-training converged, the K steps of fine-tuning as they are run. An implicit estimate of *both*
stages would differentiate another problem, in which fine-tuning has forgotten where it began. The Hessian is left out,
since there are two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import SGD, Problem, Stage

from . import two_stage_head_only
from .common import Tree, closed_form, generator, normal, require, require_positive, store
from .descent import Response, fewest_steps, sensitivities, tuned

CITATION = "Raghu et al. 2021, sections 3 and 5.1"
ABOUT = f"weighted ridge pre-training, then K gradient steps of fine-tuning ({CITATION})"


def make(
    *,
    seed: int = 0,
    k: int = 5,
    head_only: bool = False,
    n_train: int = 30,
    n_tune: int = 12,
    n_valid: int = 20,
    dim: int = 6,
    beta: float = 2.0,
    rule: str = "momentum",
    steps: int | None = None,
    tolerance: float = 1e-10,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Problem:
    """Build the problem.

    Args:
        seed: of the data and of phi.
        k: steps of fine-tuning; 0 leaves the pre-trained model as it is.
        head_only: fine-tune a head on a frozen body instead; see `two_stage_head_only`.
        n_train: pre-training examples, and hyperparameters.
        n_tune: rows of Z.
        n_valid: rows of Z'.
        dim: number of parameters (of inputs, if ``head_only``).
        beta: ridge penalty of pre-training.
        rule: of pre-training: "momentum" (heavy ball) or "sgd".
        steps: of pre-training; None: the fewest for which theory bounds the relative error that stopping there makes
            in the hypergradient by ``tolerance``.
        tolerance: see ``steps``.
        dtype: of the data, the start and phi.
        device: likewise.

    Raises:
        ValueError: a setting that has no such problem.
    """
    if head_only:
        return two_stage_head_only.make(
            seed=seed, k=k, n_train=n_train, n_tune=n_tune, n_valid=n_valid, dim=dim, beta=beta, rule=rule,
            steps=steps, tolerance=tolerance, dtype=dtype, device=device,
        )  # fmt: skip
    require_positive(n_train=n_train, n_tune=n_tune, n_valid=n_valid, dim=dim)
    require(k >= 0, f"k={k}: must not be negative")
    require(beta > 0, f"beta={beta}: must be positive")
    require(steps is None or steps >= 0, f"steps={steps}: must not be negative")

    source = generator(seed)
    truth = normal(source, dim)
    task = truth + 0.5 * normal(source, dim)  # related to what pre-training learns, not equal
    x_run, x = store(normal(source, n_train, dim), dtype, device)
    y_run, y = store(x @ truth + normal(source, n_train), dtype, device)
    z_run, z = store(normal(source, n_tune, dim), dtype, device)
    u_run, u = store(z @ task + 0.1 * normal(source, n_tune), dtype, device)
    zv_run, zv = store(normal(source, n_valid, dim), dtype, device)
    uv_run, uv = store(zv @ task + 0.1 * normal(source, n_valid), dtype, device)
    phi_run, phi = store(0.5 * normal(source, n_train), dtype, device)

    def pretraining(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        theta, (inputs, targets) = params["theta"], batch
        c = 2 * torch.sigmoid(hparams["phi"])
        residual = inputs.to(theta.dtype) @ theta - targets.to(theta.dtype)
        return (c * residual.square()).sum() + beta * theta.square().sum()

    def finetuning(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        theta, (inputs, targets) = params["theta"], batch
        return (inputs.to(theta.dtype) @ theta - targets.to(theta.dtype)).square().sum()

    def outer(params: Tree, hparams: Tree) -> Tensor:
        theta = params["theta"]
        return (zv_run.to(theta.dtype) @ theta - uv_run.to(theta.dtype)).square().sum()

    identity = torch.eye(dim, dtype=torch.float64)
    eta = 0.5 / float(torch.linalg.matrix_norm(z, 2)) ** 2  # 1 / lambda_max of fine-tuning
    step = identity - 2 * eta * z.T @ z
    shrink = torch.linalg.matrix_power(step, k)

    def pulled(theta: Tensor) -> Tensor:
        """The cotangent on the pre-trained theta: (R^K)^T dM(theta_K)."""
        for _ in range(k):
            theta = step @ theta + 2 * eta * z.T @ u
        return shrink.T @ (2 * zv.T @ (zv @ theta - uv))

    def system(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(H, X^T diag(c) y, c') of pre-training."""
        s = 1 / (1 + torch.exp(-at))
        return 2 * (x.T @ (2 * s[:, None] * x) + beta * identity), x.T @ (2 * s * y), 2 * s * (1 - s)

    def mixed_at(theta: Tensor, derivative: Tensor) -> Tensor:
        return 2 * x.T * (derivative * (x @ theta - y))

    def response(at: Tensor) -> Response:
        hessian, side, derivative = system(at)
        theta = torch.linalg.solve(hessian, 2 * side)
        rows, stretch = torch.linalg.vector_norm(x, dim=1), torch.linalg.matrix_norm(x, 2)
        return Response(
            hessian=hessian,
            mixed=mixed_at(theta, derivative),
            mixed_slope=float(2 * stretch * rows.max() * derivative.max()),
            cotangent=pulled(theta),
            outer_hessian=shrink.T @ (2 * zv.T @ zv) @ shrink,
            distance=float(torch.linalg.vector_norm(theta)),
        )

    def exact(hparams: Tree) -> Tree:
        return {"phi": response(hparams["phi"]).hypergradient()}

    # c < 2: no phi leaves this interval
    method = tuned(rule, 2 * beta, 2 * (2 * float(torch.linalg.matrix_norm(x, 2)) ** 2 + beta))
    bound = response(phi).bound(method)
    length = fewest_steps(bound, tolerance) if steps is None else steps

    def exact_run(hparams: Tree) -> Tree:
        hessian, side, derivative = system(hparams["phi"])
        theta, through = sensitivities(
            method, length, torch.zeros(dim, dtype=torch.float64), lambda w: hessian @ w - 2 * side, hessian,
            lambda w: mixed_at(w, derivative),
        )  # fmt: skip
        return {"phi": through.T @ pulled(theta)}

    spectrum = torch.linalg.eigvalsh(response(phi).hessian)
    return Problem(
        name="two_stage_quadratic",
        stages=[
            Stage(loss=pretraining, rule=method.rule, stream=lambda t: (x_run, y_run), steps=length),
            Stage(loss=finetuning, rule=SGD(lr=eta), stream=lambda t: (z_run, u_run), steps=k),
        ],
        outer=outer,
        start={"theta": phi_run.new_zeros(dim)},
        hparams={"phi": phi_run},
        exact=closed_form(exact),
        exact_run=closed_form(exact_run),
        about=ABOUT,
        settings={
            "seed": seed, "k": k, "head_only": False, "dim": dim, "n_train": n_train, "n_tune": n_tune,
            "n_valid": n_valid, "beta": beta, "lr_tune": eta, **method.settings(spectrum, length, tolerance, bound),
        },
    )  # fmt: skip
