"""Data reweighting with a closed form: ridge regression with one weight an example.

    inner  L(w, lam) = sum_i s_i (x_i . w - y_i)^2 + beta ||w||^2,   s = sigmoid(lam) or softmax(lam)
    outer  M(w)      = ||X' w - y'||^2,  clean data

A = X^T diag(s) X + beta I, w* = A^-1 X^T diag(s) y, r = X w* - y, H = 2 A, S = ds/dlam, B = 2 X^T diag(r) S, and

    dM = -S (r * (X A^-1 v)),   v = 2 X'^T (X' w* - y').

B depends on r: here, unlike in `biased_regression`, an estimator that takes H^-1 for the identity has other zeros than
the truth, so its bias shows in where outer descent ends. Half of the training targets are corrupted, and the features
have scales from 1 to 1/4, so that the curvatures differ.
The rule is tuned to an interval that holds the spectrum of H for every lam, so it converges wherever lam goes.

After Ren et al. 2018 and Shu et al. 2019 (Meta-Weight-Net), with a linear model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import Problem, Stage

from .common import Tree, closed_form, generator, normal, require, require_positive, store
from .descent import Response, fewest_steps, sensitivities, tuned

CITATION = "after Ren et al. 2018; Shu et al. 2019"
ABOUT = f"ridge regression with one weight per example, half of the targets corrupted ({CITATION})"
WEIGHTS = ("sigmoid", "softmax")


def make(
    *,
    seed: int = 0,
    n_train: int = 40,
    n_valid: int = 30,
    dim: int = 6,
    beta: float = 1.0,
    weights: str = "sigmoid",
    rule: str = "momentum",
    steps: int | None = None,
    tolerance: float = 1e-10,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Problem:
    """Build the problem.

    Args:
        seed: of the data and of lam.
        n_train: examples, and hyperparameters.
        n_valid: rows of X'.
        dim: number of parameters.
        beta: ridge penalty.
        weights: "sigmoid", each weight by itself, or "softmax", weights that sum to 1.
        rule: "momentum" (heavy ball) or "sgd", tuned as the text above says.
        steps: length of the run; None: the fewest for which theory bounds the relative error of the run's
            hypergradient at the problem's lam by ``tolerance``.
        tolerance: see ``steps``.
        dtype: of the data, the start and lam.
        device: likewise.

    Raises:
        ValueError: a setting that has no such problem.
    """
    require_positive(n_train=n_train, n_valid=n_valid, dim=dim)
    require(beta > 0, f"beta={beta}: must be positive")
    require(weights in WEIGHTS, f"weights={weights!r}: choose one of {', '.join(WEIGHTS)}")
    require(steps is None or steps >= 0, f"steps={steps}: must not be negative")

    source = generator(seed)
    truth = normal(source, dim)
    scales = 4.0 ** -torch.linspace(0, 1, dim, dtype=torch.float64)
    x_run, x = store(normal(source, n_train, dim) * scales, dtype, device)
    corrupted = torch.arange(n_train) % 2 == 1
    noise = torch.where(corrupted, 3.0, 0.1) * normal(source, n_train)
    y_run, y = store(x @ truth + noise, dtype, device)
    xv_run, xv = store(normal(source, n_valid, dim) * scales, dtype, device)
    yv_run, yv = store(xv @ truth + 0.1 * normal(source, n_valid), dtype, device)
    lam_run, lam = store(0.5 * normal(source, n_train), dtype, device)

    def loss(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        w, (inputs, targets) = params["w"], batch
        at = hparams["lam"]
        s = torch.sigmoid(at) if weights == "sigmoid" else torch.softmax(at, 0)
        return (s * (inputs.to(w.dtype) @ w - targets.to(w.dtype)).square()).sum() + beta * w.square().sum()

    def outer(params: Tree, hparams: Tree) -> Tensor:
        w = params["w"]
        return (xv_run.to(w.dtype) @ w - yv_run.to(w.dtype)).square().sum()

    def weighting(at: Tensor) -> tuple[Tensor, Tensor]:
        """(s, S): the weights, (n,), and their Jacobian, (n, n)."""
        if weights == "sigmoid":
            s = 1 / (1 + torch.exp(-at))
            return s, torch.diag(s * (1 - s))
        s = torch.exp(at - at.max())
        s = s / s.sum()
        return s, torch.diag(s) - torch.outer(s, s)

    def system(s: Tensor) -> Tensor:
        return x.T @ (s[:, None] * x) + beta * torch.eye(dim, dtype=torch.float64)

    def mixed_at(w: Tensor, jacobian: Tensor) -> Tensor:
        return 2 * x.T @ ((x @ w - y)[:, None] * jacobian)

    def slope(w: Tensor) -> Tensor:
        return 2 * xv.T @ (xv @ w - yv)

    def response(at: Tensor) -> Response:
        s, jacobian = weighting(at)
        w = torch.linalg.solve(system(s), x.T @ (s * y))
        rows, stretch = torch.linalg.vector_norm(x, dim=1), torch.linalg.matrix_norm(x, 2)
        return Response(
            hessian=2 * system(s),
            mixed=mixed_at(w, jacobian),
            mixed_slope=float(2 * stretch * rows.max() * torch.linalg.matrix_norm(jacobian, 2)),
            cotangent=slope(w),
            outer_hessian=2 * xv.T @ xv,
            distance=float(torch.linalg.vector_norm(w)),
        )

    def exact(hparams: Tree) -> Tree:
        return {"lam": response(hparams["lam"]).hypergradient()}

    # s < 1 each, or s sums to 1: no lam leaves this interval
    top = torch.linalg.matrix_norm(x, 2) ** 2 if weights == "sigmoid" else x.square().sum(1).max()
    low, high = 2 * beta, 2 * (float(top) + beta)
    method = tuned(rule, low, high)
    bound = response(lam).bound(method)
    length = fewest_steps(bound, tolerance) if steps is None else steps

    def exact_run(hparams: Tree) -> Tree:
        s, jacobian = weighting(hparams["lam"])
        matrix, side = system(s), x.T @ (s * y)
        w, z = sensitivities(
            method, length, torch.zeros(dim, dtype=torch.float64), lambda w: 2 * (matrix @ w - side), 2 * matrix,
            lambda w: mixed_at(w, jacobian),
        )  # fmt: skip
        return {"lam": z.T @ slope(w)}

    spectrum = torch.linalg.eigvalsh(response(lam).hessian)
    return Problem(
        name="weighted_ridge",
        stages=[Stage(loss=loss, rule=method.rule, stream=lambda t: (x_run, y_run), steps=length)],
        outer=outer,
        start={"w": lam_run.new_zeros(dim)},
        hparams={"lam": lam_run},
        exact=closed_form(exact),
        exact_run=closed_form(exact_run),
        hessian=lambda params: response(lam).hessian.to(lam_run),
        about=ABOUT,
        settings={
            "seed": seed, "dim": dim, "n_train": n_train, "n_valid": n_valid, "beta": beta, "weights": weights,
            **method.settings(spectrum, length, tolerance, bound),
        },
    )  # fmt: skip
