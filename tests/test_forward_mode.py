"""Every operation that `reverse_over_forward` trusts, against double backward; and what it does not, refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from estimators import NotApplicableError, Tree, reverse_over_forward, reverse_over_reverse
from estimators.forward_mode import VERIFIED, node_names

D = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


X, Y, CLASSES = draw(8, 6, seed=1), draw(8, seed=2), torch.tensor([0, 3, 1, 2, 2, 0, 1, 3])
IMAGES = draw(4, 2, 6, 6, seed=5)
PARAMS = {"w": draw(4, 6, seed=3), "v": draw(4, seed=4), "g": 1 + 0.1 * draw(4, seed=5), "k": draw(4, 2, 3, 3, seed=8),
          "e": draw(10, 4, seed=12)}  # fmt: skip
HPARAMS = {"a": draw(8, seed=6), "m": draw(6, 6, seed=61)}
TANGENT = {k: draw(*x.shape, seed=7) for k, x in PARAMS.items()}

Operation = Callable[[Tensor, Tree], Tensor]
"""(z, params) -> (8, 4) or (4, 4): an operation on z, (8, 4), that depends on params and hparams alike."""


def conv(p: Tree) -> Tensor:
    return F.conv2d(IMAGES * 0.5, p["k"])


def pooled(z: Tensor, x: Tensor) -> Tensor:
    return z + x.tanh().mean((2, 3)).repeat(2, 1)


def spd(z: Tensor) -> Tensor:
    return z.T @ z + torch.eye(4, dtype=D)


def unary(name: str, module: Any, before: Callable[[Tensor], Tensor]) -> Operation:
    return lambda z, p: cast(Tensor, getattr(module, name)(before(z)))


TRUSTED: dict[str, Operation] = {
    **{name: unary(name, torch, lambda z: 0.3 * z) for name in
       ("exp", "expm1", "tanh", "sigmoid", "relu", "sin", "cos", "abs", "square", "neg", "erf", "sinh", "cosh", "atan")},
    **{name: unary(name, torch, lambda z: z**2 + 1) for name in
       ("log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal")},
    **{name: unary(name, F, lambda z: z) for name in
       ("leaky_relu", "softplus", "elu", "selu", "gelu", "hardtanh", "hardswish", "logsigmoid", "normalize")},
    "gelu tanh": lambda z, p: F.gelu(z, approximate="tanh"),
    "prelu": lambda z, p: F.prelu(z, p["g"]),
    "rms_norm": lambda z, p: F.rms_norm(z, (4,), p["g"]),
    "clamp": lambda z, p: z * z.clamp(-0.5, 0.5) + z.clamp_min(0.1),
    "pow": lambda z, p: (z**2 + 1) ** 1.5 + (z**2 + 1) ** p["g"],
    "div": lambda z, p: z / (z**2 + 1) + 1 / (z**2 + 1) + (1 - z) + (z - p["g"]),
    "where": lambda z, p: torch.where(z > 0, z, z**2) + torch.maximum(z, p["g"]) + torch.minimum(z, p["v"]),
    "masked_fill": lambda z, p: z.masked_fill(X[:, :4] > 0, 0.3),
    "lerp": lambda z, p: torch.lerp(z, p["g"].expand(8, 4), 0.3),
    "addcmul": lambda z, p: torch.addcmul(z, z, p["g"]) + torch.addcdiv(z, p["g"], z**2 + 1),
    "cat": lambda z, p: torch.cat([z, z**2])[::2] + torch.stack([z, z**2]).sum(0),
    "split": lambda z, p: torch.cat(z.split(2, 1)[::-1], 1) + torch.stack(z.unbind(1), 1),
    "index": lambda z, p: z * z[0] + z[:, :2].repeat(1, 2) + z[[1, 0, 3, 2, 5, 4, 7, 6]],
    "index_select": lambda z, p: z.index_select(0, torch.arange(8).flip(0)) + z.flip(0) + z.roll(1, 0),
    "index_add": lambda z, p: torch.zeros(8, 4, dtype=D).index_add(0, CLASSES, z)
    + torch.zeros(8, 4, dtype=D).scatter_add(0, CLASSES[:, None].expand(8, 4), z),
    "gather": lambda z, p: p["e"].gather(0, CLASSES[:, None].expand(8, 4)) * z + F.embedding(CLASSES, p["e"]),
    "triangles": lambda z, p: z.tril() + z.triu(1) ** 2 + z * (p["w"] @ p["w"].T).diagonal() * (p["w"] @ p["w"].T).trace(),
    "diag": lambda z, p: z @ torch.diag_embed(p["g"]),
    "shapes": lambda z, p: z.unsqueeze(1).squeeze(1) + z.permute(1, 0).permute(1, 0) + z.T.reshape(8, 4)
    + z.view(2, 16).view(8, 4) + z.transpose(0, 1).contiguous().T.clone() + z.as_strided((8, 4), (4, 1)) + F.pad(z, (1, 0))[:, 1:],
    "sums": lambda z, p: z * z.sum(0) * z.mean(0) + z.mean() + z.cumsum(0) + z.tanh().cumprod(0) + z.tanh().prod(1, keepdim=True),
    "max": lambda z, p: z - z.amax(1, keepdim=True) + z.max(1).values[:, None] ** 2 + z.sort(0).values,
    "norm": lambda z, p: z * torch.linalg.vector_norm(z, dim=-1, keepdim=True),
    "std": lambda z, p: z / z.std(0) + z * torch.std_mean(z, 0)[1],
    "products": lambda z, p: torch.bmm(z.view(2, 4, 4), (p["w"] @ p["w"].T).expand(2, 4, 4)).reshape(8, 4)
    + torch.addmv(Y, z, p["v"])[:, None] + p["g"].dot(p["v"]) * (z @ p["g"])[:, None] + torch.outer(z[:, 0], p["g"]),
    "baddbmm": lambda z, p: torch.baddbmm(z.view(2, 4, 4), z.view(2, 4, 4), (p["w"] @ p["w"].T).expand(2, 4, 4)).reshape(8, 4),
    "einsum": lambda z, p: torch.einsum("ij,kj->ik", z, p["w"][:, :4]),
    "linear": lambda z, p: F.linear(z, p["w"][:, :4], p["g"]) + F.linear(z.view(2, 4, 4), p["w"][:, :4], p["v"]).reshape(8, 4),
    "conv": lambda z, p: pooled(z, conv(p)),
    "pool": lambda z, p: pooled(z, F.max_pool2d(conv(p), 2)) + pooled(z, F.avg_pool2d(conv(p), 2)),
    "adaptive pool": lambda z, p: pooled(z, F.adaptive_max_pool2d(conv(p), 2)) + pooled(z, F.adaptive_avg_pool2d(conv(p), 2)),
    "interpolate": lambda z, p: pooled(z, F.interpolate(conv(p), scale_factor=2, mode="bilinear")),
    "unfold": lambda z, p: z + F.unfold(conv(p), 2).mean(-1)[:, :4].repeat(2, 1),
    "group_norm": lambda z, p: F.group_norm(z, 2, p["g"], p["v"]),
    "mse": lambda z, p: z * F.mse_loss(z @ p["v"], Y * p["g"].sum()),
    "smooth l1": lambda z, p: z * F.smooth_l1_loss(z @ p["v"], Y * p["g"].sum()),
    "bce": lambda z, p: z * F.binary_cross_entropy_with_logits(z @ p["v"], (Y > 0).to(D), reduction="none")[:, None],
    "to": lambda z, p: z.float().double(),
    "inverse": lambda z, p: z @ torch.linalg.inv(spd(z)) + z @ torch.linalg.cholesky(spd(z)),
}  # fmt: skip

REFUSED: dict[str, Operation] = {
    "layer_norm": lambda z, p: F.layer_norm(z, (4,), p["g"], p["v"]),
    "batch_norm": lambda z, p: F.batch_norm(z, None, None, p["g"], p["v"], training=True),
    "softmax": lambda z, p: torch.softmax(z, -1),
    "cross_entropy": lambda z, p: z * F.cross_entropy(z, CLASSES),
    "silu": lambda z, p: F.silu(z),
    "solve": lambda z, p: z * torch.linalg.solve(spd(z), p["v"]),
    "det": lambda z, p: z * torch.linalg.det(spd(z)),
}


def loss_of(operation: Operation) -> Callable[[Tree, Tree], Tensor]:
    def loss(p: Tree, h: Tree) -> Tensor:
        out = operation(X @ h["m"] @ p["w"].T, p)
        return (torch.sigmoid(h["a"][: len(out)]) * (torch.tanh(out) @ p["v"] - Y[: len(out)]) ** 2).mean()

    return loss


def gap(a: Tree, b: Tree) -> float:
    assert a.keys() <= b.keys()
    return max(float((a.get(k, torch.zeros_like(x)) - x).norm() / x.norm()) for k, x in b.items() if x.any())


@pytest.mark.parametrize("name", TRUSTED)
def test_a_trusted_operation_agrees_with_double_backward(name: str) -> None:
    loss = loss_of(TRUSTED[name])
    wrt = {"wrt_params": PARAMS, "wrt_hparams": HPARAMS}
    got = reverse_over_forward(loss, PARAMS, HPARAMS, TANGENT, **wrt)
    want = reverse_over_reverse(loss, PARAMS, HPARAMS, TANGENT, **wrt)
    # "to" goes through float32 on purpose
    assert max(gap(a, b) for a, b in zip(got, want, strict=True)) < (1e-4 if name == "to" else 1e-10)


def test_no_name_is_trusted_without_a_test() -> None:
    theta, lam = ({k: x.clone().requires_grad_() for k, x in a.items()} for a in (PARAMS, HPARAMS))
    seen = set().union(*(node_names(loss_of(op)(theta, lam)) for op in TRUSTED.values()))
    assert seen == VERIFIED


@pytest.mark.parametrize("name", REFUSED)
def test_other_operations_are_refused_when_they_matter(name: str) -> None:
    loss = loss_of(REFUSED[name])
    with pytest.raises(NotApplicableError, match=r"not known to be right through \[.*use reverse_over_reverse"):
        reverse_over_forward(loss, PARAMS, HPARAMS, TANGENT, wrt_params=PARAMS)


# silu: torch 2.13 has no forward mode for its backward, which double numbers need even here
@pytest.mark.parametrize("name", [n for n in REFUSED if n != "silu"])
def test_they_do_not_matter_upstream_of_what_is_wanted(name: str) -> None:
    """theta is detached when only M'v is asked for: an operation before lam is then a constant with a tangent."""
    loss = loss_of(REFUSED[name])
    (_, got), (_, want) = (
        form(loss, PARAMS, HPARAMS, TANGENT, wrt_hparams=["a"]) for form in (reverse_over_forward, reverse_over_reverse)
    )
    assert gap(got, want) < 1e-10
