"""One penalty a feature, on a log scale.

    inner  L(w, phi) = ||X w - y||^2 + sum_j exp(phi_j) w_j^2
    outer  M(w)      = ||X' w - y'||^2

A = X^T X + diag(exp phi), w* = A^-1 X^T y, H = 2 A, B = 2 diag(exp(phi) w), and

    dM_j = -exp(phi_j) w*_j (A^-1 v)_j,   v = 2 X'^T (X' w* - y').

H depends on phi, B on both phi and w. Half of the features carry no signal, so that penalties matter.
After Pedregosa 2016, section 5, and Lorraine et al. 2020, section 5 (a weight decay for every weight).
"""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

from estimators import Problem, Stage

from .common import Tree, closed_form, generator, normal, require, require_positive, store
from .descent import Response, fewest_steps, sensitivities, tuned

CITATION = "after Pedregosa 2016; Lorraine et al. 2020"
ABOUT = f"ridge regression with one log-penalty per feature ({CITATION})"


def make(
    *,
    seed: int = 0,
    n_train: int = 30,
    n_valid: int = 30,
    dim: int = 8,
    reach: float = 3.0,
    rule: str = "momentum",
    steps: int | None = None,
    tolerance: float = 1e-10,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Problem:
    """Build the problem.

    Args:
        seed: of the data and of phi.
        n_train: rows of X.
        n_valid: rows of X'.
        dim: features: parameters, and hyperparameters.
        reach: the rule is tuned to converge for every phi with all |phi_j| <= reach.
        rule: "momentum" (heavy ball) or "sgd".
        steps: length of the run; None: the fewest for which theory bounds the relative error of the run's
            hypergradient at the problem's phi by ``tolerance``.
        tolerance: see ``steps``.
        dtype: of the data, the start and phi.
        device: likewise.

    Raises:
        ValueError: a setting that has no such problem.
    """
    require_positive(n_train=n_train, n_valid=n_valid, dim=dim)
    require(reach > 0, f"reach={reach}: must be positive")
    require(steps is None or steps >= 0, f"steps={steps}: must not be negative")

    source = generator(seed)
    truth = normal(source, dim) * (torch.arange(dim) % 2 == 0)
    x_run, x = store(normal(source, n_train, dim), dtype, device)
    y_run, y = store(x @ truth + normal(source, n_train), dtype, device)
    xv_run, xv = store(normal(source, n_valid, dim), dtype, device)
    yv_run, yv = store(xv @ truth + 0.1 * normal(source, n_valid), dtype, device)
    phi_run, phi = store(normal(source, dim).clamp(-reach, reach), dtype, device)

    def loss(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        w, (inputs, targets) = params["w"], batch
        fit = (inputs.to(w.dtype) @ w - targets.to(w.dtype)).square().sum()
        return fit + (hparams["phi"].exp() * w.square()).sum()

    def outer(params: Tree, hparams: Tree) -> Tensor:
        w = params["w"]
        return (xv_run.to(w.dtype) @ w - yv_run.to(w.dtype)).square().sum()

    def slope(w: Tensor) -> Tensor:
        return 2 * xv.T @ (xv @ w - yv)

    def response(at: Tensor) -> Response:
        penalty = torch.exp(at)
        matrix = x.T @ x + torch.diag(penalty)
        w = torch.linalg.solve(matrix, x.T @ y)
        return Response(
            hessian=2 * matrix,
            mixed=2 * torch.diag(penalty * w),
            mixed_slope=2 * float(penalty.max()),
            cotangent=slope(w),
            outer_hessian=2 * xv.T @ xv,
            distance=float(torch.linalg.vector_norm(w)),
        )

    def exact(hparams: Tree) -> Tree:
        return {"phi": response(hparams["phi"]).hypergradient()}

    data = torch.linalg.eigvalsh(x.T @ x)
    method = tuned(rule, 2 * (max(float(data[0]), 0.0) + exp(-reach)), 2 * (float(data[-1]) + exp(reach)))
    bound = response(phi).bound(method)
    length = fewest_steps(bound, tolerance) if steps is None else steps

    def exact_run(hparams: Tree) -> Tree:
        penalty = torch.exp(hparams["phi"])
        matrix, side = x.T @ x + torch.diag(penalty), x.T @ y
        w, z = sensitivities(
            method, length, torch.zeros(dim, dtype=torch.float64), lambda w: 2 * (matrix @ w - side), 2 * matrix,
            lambda w: 2 * torch.diag(penalty * w),
        )  # fmt: skip
        return {"phi": z.T @ slope(w)}

    spectrum = torch.linalg.eigvalsh(response(phi).hessian)
    return Problem(
        name="log_ridge",
        stages=[Stage(loss=loss, rule=method.rule, stream=lambda t: (x_run, y_run), steps=length)],
        outer=outer,
        start={"w": phi_run.new_zeros(dim)},
        hparams={"phi": phi_run},
        exact=closed_form(exact),
        exact_run=closed_form(exact_run),
        hessian=lambda params: response(phi).hessian.to(phi_run),
        about=ABOUT,
        settings={
            "seed": seed, "dim": dim, "n_train": n_train, "n_valid": n_valid, "reach": reach,
            **method.settings(spectrum, length, tolerance, bound),
        },
    )  # fmt: skip
