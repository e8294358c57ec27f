"""Biased regression: ridge regression pulled towards lam, with a prescribed spectrum.

Choe et al. 2023 (SAMA), Appendix E; Grazzi et al. 2020, section 5.1.

    inner  L(w, lam) = ||X w - y||^2 + beta ||w - lam||^2           (sums, not means)
    outer  M(w)      = ||X' w - y'||^2

With G = X^T X + beta I the Hessian is H = 2 G (the appendix calls G itself the base Jacobian), B = -2 beta I, and

    w*   = G^-1 (X^T y + beta lam)
    dM   = 2 beta G^-1 X'^T (X' w* - y')                            (twice the appendix's expression)
    lam* = argmin ||A lam - b||,  A = beta X' G^-1,  b = y' - X' G^-1 X^T y

The published beta "0.1^5" is 0.1 with a footnote mark. B is a multiple of the identity, so an estimator that takes
H^-1 for the identity still vanishes exactly at lam*: what it costs shows in the direction on the way, as a function of
cond(G) alone. For a problem whose fixed point moves see `weighted_ridge`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from estimators import Problem, Stage

from .common import Tree, closed_form, generator, normal, require, require_positive, store
from .descent import Response, fewest_steps, sensitivities, tuned

CITATION = "Choe et al. 2023, Appendix E; Grazzi et al. 2020"
ABOUT = f"ridge regression pulled towards lam, prescribed spectrum ({CITATION})"


def make(
    *,
    seed: int = 0,
    cond: float = 10.0,
    spectrum: Sequence[float] | None = None,
    dim: int = 10,
    n_train: int = 20,
    n_valid: int = 20,
    beta: float = 0.1,
    rule: str = "momentum",
    steps: int | None = None,
    tolerance: float = 1e-10,
    split: bool = False,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Problem:
    """Build the problem.

    Args:
        seed: of the data and of lam.
        cond: largest over smallest eigenvalue of G; they lie in geometric progression above 2 beta.
        spectrum: the eigenvalues of G themselves, each at least beta; ``cond`` and ``dim`` are then ignored.
        dim: number of parameters, and of hyperparameters.
        n_train: rows of X, at least ``dim``.
        n_valid: rows of X'.
        beta: strength of the pull.
        rule: "momentum", Polyak's heavy ball, or "sgd", gradient descent, both at their best for this spectrum.
        steps: length of the run; None: the fewest for which theory bounds the relative error of the run's
            hypergradient by ``tolerance``.
        tolerance: see ``steps``.
        split: hold w and lam as two leaves each, "w0", "w1" and "lam0", "lam1", instead of "w" and "lam".
        dtype: of the data, the start and lam.
        device: likewise.

    Raises:
        ValueError: a setting that has no such problem.
    """
    eigenvalues = _spectrum(cond, spectrum, dim, beta)
    dim = len(eigenvalues)
    require_positive(n_valid=n_valid)
    require(n_train >= dim, f"n_train={n_train}: must be at least dim={dim}, or G cannot have the spectrum asked for")
    require(not split or dim >= 2, "split=True needs dim of at least 2")
    require(steps is None or steps >= 0, f"steps={steps}: must not be negative")

    source = generator(seed)
    left = torch.linalg.qr(normal(source, n_train, dim)).Q
    right = torch.linalg.qr(normal(source, dim, dim)).Q
    x_run, x = store(left @ torch.diag((eigenvalues - beta).clamp_min(0).sqrt()) @ right.T, dtype, device)
    y_run, y = store(x @ normal(source, dim) + 0.1 * normal(source, n_train), dtype, device)
    xv_run, xv = store(normal(source, n_valid, dim), dtype, device)
    yv_run, yv = store(xv @ normal(source, dim) + 0.1 * normal(source, n_valid), dtype, device)
    lam_run, lam = store(normal(source, dim), dtype, device)

    sizes = [dim // 2, dim - dim // 2] if split else [dim]

    def leaves(vector: Tensor, name: str) -> Tree:
        return {f"{name}{i}" if split else name: part for i, part in enumerate(vector.split(sizes))}

    def joined(a: Tree, name: str) -> Tensor:
        return torch.cat([a[f"{name}0"], a[f"{name}1"]]) if split else a[name]

    def loss(params: Tree, hparams: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        w, (inputs, targets) = joined(params, "w"), batch
        fit = (inputs.to(w.dtype) @ w - targets.to(w.dtype)).square().sum()
        return fit + beta * (w - joined(hparams, "lam")).square().sum()

    def outer(params: Tree, hparams: Tree) -> Tensor:
        w = joined(params, "w")
        return (xv_run.to(w.dtype) @ w - yv_run.to(w.dtype)).square().sum()

    gram = x.T @ x + beta * torch.eye(dim, dtype=torch.float64)

    def optimum_of(at: Tensor) -> Tensor:
        return torch.linalg.solve(gram, x.T @ y + beta * at)

    def exact(hparams: Tree) -> Tree:
        slope = xv.T @ (xv @ optimum_of(joined(hparams, "lam")) - yv)
        return leaves(2 * beta * torch.linalg.solve(gram, slope), "lam")

    method = tuned(rule, 2 * float(eigenvalues.min()), 2 * float(eigenvalues.max()))
    mixed = -2 * beta * torch.eye(dim, dtype=torch.float64)
    w_star = optimum_of(lam)
    response = Response(
        hessian=2 * gram,
        mixed=mixed,
        mixed_slope=0.0,
        cotangent=2 * xv.T @ (xv @ w_star - yv),
        outer_hessian=2 * xv.T @ xv,
        distance=float(torch.linalg.vector_norm(w_star)),
    )
    bound = response.bound(method)
    length = fewest_steps(bound, tolerance) if steps is None else steps

    def exact_run(hparams: Tree) -> Tree:
        at = joined(hparams, "lam")
        side = x.T @ y + beta * at
        w, z = sensitivities(
            method, length, torch.zeros_like(at), lambda w: 2 * (gram @ w - side), 2 * gram, lambda w: mixed
        )
        return leaves(z.T @ (2 * xv.T @ (xv @ w - yv)), "lam")

    # lstsq: the normal equations would square a condition number that is large already
    influence = beta * torch.linalg.solve(gram, xv.T).T
    offset = yv - xv @ torch.linalg.solve(gram, x.T @ y)
    best = torch.linalg.lstsq(influence, offset[:, None], driver="gelsd").solution[:, 0]

    return Problem(
        name="biased_regression",
        stages=[Stage(loss=loss, rule=method.rule, stream=lambda t: (x_run, y_run), steps=length)],
        outer=outer,
        start=leaves(torch.zeros_like(lam_run), "w"),
        hparams=leaves(lam_run, "lam"),
        exact=closed_form(exact),
        exact_run=closed_form(exact_run),
        optimum=leaves(best.to(lam_run), "lam"),
        hessian=lambda params: (2 * gram).to(lam_run),
        about=ABOUT,
        settings={
            "seed": seed, "dim": dim, "n_train": n_train, "n_valid": n_valid, "beta": beta, "split": split,
            "spectrum": eigenvalues.tolist(), **method.settings(2 * eigenvalues, length, tolerance, bound),
        },
    )  # fmt: skip


def _spectrum(cond: float, spectrum: Sequence[float] | None, dim: int, beta: float) -> Tensor:
    require(beta > 0, f"beta={beta}: must be positive")
    if spectrum is None:
        require_positive(dim=dim)
        require(cond >= 1, f"cond={cond}: must be at least 1")
        require(dim >= 2 or cond == 1, f"cond={cond} with dim=1: one eigenvalue has condition number 1")
        return 2 * beta * cond ** torch.linspace(1, 0, dim, dtype=torch.float64)
    require(len(spectrum) >= 1, "spectrum=[]: give at least one eigenvalue of G")
    low = min(spectrum)
    require(low >= beta, f"spectrum holds {low}: eigenvalues of G = X^T X + beta I are at least beta={beta}")
    return torch.tensor(list(spectrum), dtype=torch.float64)
