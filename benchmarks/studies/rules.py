"""Every inner optimizer beside its reference: trajectory, derivative, and what kind of derivative it is.

- `trajectory_error`: 50 steps on a nonlinear loss with batches that change, against the reference optimizer.
- `autograd_error`: the adaptation as estimators take it, from the state after a step (rewound where the rule can), against autograd
  of the update from the recorded state before it.
- `difference_error`: the same against central differences of the *reference* optimizer's own step, along random directions.
- `off_diagonal_share`: share of the Frobenius norm of d(change)/dg, dense, that is off its diagonal.
- `negative_at_2`, `negative_at_10`, `negative_settled` (after `settles` updates, at least 10): share of negative entries on the diagonal of -d(change)/dg under gradients of mean 1 and deviation 1.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import jacrev

from estimators import RULES, Rule, Stage, Tree, adapt, tree
from estimators import run as train

from ..rule_references import InFloat64, MuonInOwnDtype, PaperLAMB, PaperLion, Reference
from .base import Claimed, Row

ABOUT = "Every rule against its reference optimizer, and its derivative against autograd and finite differences"
CITATION = "torch.optim; You et al. 2020 (LAMB), algorithm 2; Chen et al. 2023 (Lion), algorithm 2"
QUICK = {"seeds": (0,), "steps": 12, "size": 6}
NEEDS = {"steps": 2}  # at the first one there is no derivative to compare

F64 = torch.float64
LOOKS = (2, 10, 50)
"""Steps at which derivatives are compared; at the first one most vanish."""

optim = torch.optim
REFERENCES: dict[str, tuple[str, Reference]] = {
    "sgd": ("torch.optim.SGD", partial(InFloat64, optim.SGD, lr=0.02)),
    "momentum": ("torch.optim.SGD(momentum=0.9)", partial(InFloat64, optim.SGD, lr=0.02, momentum=0.9)),
    "adam": ("torch.optim.Adam", partial(InFloat64, optim.Adam, lr=0.02)),
    "adamw": ("torch.optim.AdamW", partial(InFloat64, optim.AdamW, lr=0.02)),
    "amsgrad": ("torch.optim.Adam(amsgrad=True)", partial(InFloat64, optim.Adam, lr=0.02, amsgrad=True)),
    "nadam": ("torch.optim.NAdam", partial(InFloat64, optim.NAdam, lr=0.02)),
    "radam": ("torch.optim.RAdam", partial(InFloat64, optim.RAdam, lr=0.02)),
    "adamax": ("torch.optim.Adamax", partial(InFloat64, optim.Adamax, lr=0.02)),
    "rmsprop": ("torch.optim.RMSprop", partial(InFloat64, optim.RMSprop, lr=0.02)),
    "adagrad": ("torch.optim.Adagrad", partial(InFloat64, optim.Adagrad, lr=0.02)),
    "adadelta": ("torch.optim.Adadelta", partial(InFloat64, optim.Adadelta, lr=0.02)),
    "adafactor": ("torch.optim.Adafactor", partial(InFloat64, optim.Adafactor, lr=0.02)),
    "lamb": ("the paper, in NumPy", partial(PaperLAMB, lr=0.02, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)),
    "lion": ("the paper, in NumPy", partial(PaperLion, lr=0.02, betas=(0.9, 0.99), weight_decay=0.0)),
    "muon": ("torch.optim.Muon, NS in float64", partial(MuonInOwnDtype, lr=0.02)),
}
"""rule -> (name, optimizer) at the default settings of both and lr 0.02."""


def run(*, seeds: tuple[int, ...] = (0, 1, 2), steps: int = 50, size: int = 12) -> list[Row]:
    """Rows: one a rule, the worst over the seeds; derivative columns are None for a rule that has none.

    Args:
        seeds: of start, data and noise.
        steps: of training; derivatives are compared at steps 2, 10 and 50, as far as there are.
        size: rows and columns of the matrix whose dense derivative is looked at.
    """
    rows = []
    for name, kind in RULES.items():
        rule: Any = kind(lr=0.02)
        differentiable = getattr(rule, "differentiable", True)
        found = [_compare(name, rule, seed, steps, differentiable) for seed in seeds]
        dense = [_dense(rule, seed, size, max(10, rule.settles + 1)) for seed in seeds] if differentiable else []
        rows.append(
            {
                "rule": name,
                "reference": REFERENCES[name][0],
                "seeds": len(seeds),
                "trajectory_error": _most(found, "trajectory_error"),
                "autograd_error": _most(found, "autograd_error") if differentiable else None,
                "difference_error": _most(found, "difference_error") if differentiable else None,
                "diagonal": rule.diagonal,
                "off_diagonal_share": max(d["off_diagonal_share"] for d in dense) if dense else None,
                "rewind": hasattr(rule, "rewind"),
                "settles": rule.settles,
                "negative_at_2": max(d[2] for d in dense) if dense else None,
                "negative_at_10": max(d[10] for d in dense) if dense else None,
                "negative_settled": max(d["settled"] for d in dense) if dense else None,
            }
        )
    return rows


def _most(found: list[dict[str, float]], column: str) -> float | None:
    return max((f[column] for f in found if column in f), default=None)


def claims(rows: list[Row]) -> list[Claimed]:
    """Of a run with the default settings. What was not measured (None, where a rule has a derivative) holds nothing."""
    smooth = [r for r in rows if r["off_diagonal_share"] is not None]
    mixing = {r["rule"] for r in smooth if r["off_diagonal_share"] > 0}
    said = {r["rule"] for r in smooth if not r["diagonal"]}
    return [
        _worst(rows, "trajectory_error", 1e-12, "every rule walks the trajectory of its reference to 1e-12 in float64"),
        _worst(smooth, "autograd_error", 1e-9, "the adaptation is the derivative of the step that was taken, to 1e-9"),
        _worst(
            smooth, "difference_error", 1e-6, "and that of the reference's own step, by central differences, to 1e-6"
        ),
        Claimed(
            "the adaptation mixes coordinates for exactly the rules that say so: it is no diagonal",
            f"{', '.join(sorted(mixing))} (off-diagonal share {min((r['off_diagonal_share'] for r in smooth if r['rule'] in mixing), default=0.0):.2f} and more)",
            bool(mixing) and mixing == said,
        ),
        _worst(smooth, "negative_settled", 0.06, "after `settles` updates at most 6 % of the diagonal is negative"),
    ]


def _worst(rows: list[Row], column: str, bound: float, text: str) -> Claimed:
    measured = [r for r in rows if r[column] is not None]
    if not measured or len(measured) < len(rows):
        return Claimed(text, f"not measured for {len(rows) - len(measured)} of {len(rows)} rules", False)
    worst = max(measured, key=lambda r: r[column])
    return Claimed(text, f"worst {worst[column]:.1e}, {worst['rule']}", worst[column] < bound)


def _problem(rule_name: str, seed: int) -> tuple[Any, Tree]:
    """(loss, start): a matrix, and for all rules but Muon a vector and a scalar too."""
    source = torch.Generator().manual_seed(seed)
    data = torch.randn(60, 5, dtype=F64, generator=source)
    targets = torch.randn(60, 3, dtype=F64, generator=source)
    start = {"w": torch.randn(5, 3, dtype=F64, generator=source)}
    if rule_name != "muon":
        start |= {"b": torch.randn(3, dtype=F64, generator=source), "s": torch.randn((), dtype=F64, generator=source)}

    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        rows = (torch.arange(10) + 7 * t) % 60
        out = torch.tanh(data[rows] @ p["w"] + p.get("b", 0.0)) * p.get("s", 1.0)
        return (3 * out - h["shift"] * targets[rows]).square().mean() + 0.1 * p["w"].square().mean()

    return loss, start


def _compare(name: str, rule: Rule, seed: int, steps: int, differentiable: bool) -> dict[str, float]:
    loss, start = _problem(name, seed)
    hparams = {"shift": torch.tensor(1.0, dtype=F64)}
    record = train(Stage(loss, rule, lambda t: t, steps), start, hparams)
    path = [record.states[t].params for t in range(1, steps)] + [record.end.params]
    params = {k: x.clone().requires_grad_() for k, x in start.items()}
    optimizer = REFERENCES[name][1](list(params.values()))
    worst: dict[str, float] = {}
    for t, ours in enumerate(path, start=1):
        for p in params.values():
            p.grad = None
        loss(params, hparams, t - 1).backward()
        if differentiable and t in LOOKS:
            until = train(Stage(loss, rule, lambda t: t, t), start, hparams, tail=0)
            source = torch.Generator().manual_seed(seed)
            c, *directions = (
                {k: torch.randn(x.shape, dtype=F64, generator=source) for k, x in start.items()} for _ in range(4)
            )
            adapted = adapt(Stage(loss, rule, lambda t: t, t), until, hparams, c)
            assert until.grad is not None
            before = record.states[t - 1]
            direct = {k: _pull(rule, until.grad[k], before.slots[k], t, before.params[k], c[k]) for k in start}
            worst["autograd_error"] = max(worst.get("autograd_error", 0.0), _relative(adapted, direct))
            for d in directions:
                slope, size = _difference(params, optimizer, c, d), float(tree.norm(adapted) * tree.norm(d))
                worst["difference_error"] = max(
                    worst.get("difference_error", 0.0), abs(slope - float(tree.dot(adapted, d))) / size
                )
        optimizer.step()
        gap = max(float((ours[k] - p.detach()).abs().max() / p.detach().abs().max()) for k, p in params.items())
        worst["trajectory_error"] = max(worst.get("trajectory_error", 0.0), gap)
    return worst


def _relative(a: Tree, b: Tree) -> float:
    return float(tree.norm(tree.axpy(-1.0, a, b)) / tree.norm(b))


def _pull(rule: Rule, g: Tensor, slots: dict[str, Tensor], t: int, param: Tensor, c: Tensor) -> Tensor:
    leaf = g.clone().requires_grad_()
    return torch.autograd.grad(rule.update(leaf, slots, t, param)[0], leaf, c)[0]


def _difference(params: Tree, optimizer: Any, c: Tree, direction: Tree) -> float:
    """d<c, end of the reference's step> / d(gradient) along a direction; fourth order."""
    h, total = 1e-5, 0.0  # small against what a kink (a maximum that changes hands) is away
    grads = tree.map_tree(lambda p: cast(Tensor, p.grad), params)
    for move, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
        moved, stepping = copy.deepcopy((params, optimizer))
        for k, p in moved.items():
            p.grad = grads[k] + move * h * direction[k]
        stepping.step()
        total += weight * sum(float((c[k] * p.detach()).sum()) for k, p in moved.items())
    return total / (12 * h)


def _dense(rule: Rule, seed: int, size: int, settled: int) -> dict[Any, float]:
    """What d(change)/dg of a matrix looks like after 2, 10 and ``settled`` noisy gradients."""
    source = torch.Generator().manual_seed(seed)
    theta = torch.randn(size, size, dtype=F64, generator=source)
    slots = rule.init(theta)
    found: dict[Any, float] = {}
    for t in range(1, settled + 1):
        g = 1 + torch.randn(size, size, dtype=F64, generator=source)
        if t in (2, 10, settled):
            dense = jacrev(lambda x, s=slots, t=t: rule.update(x, s, t, theta)[0])(g).reshape(size**2, size**2)
            share = float((dense.diagonal() > 0).double().mean())
            found[t] = share
            if t == settled:
                found["settled"] = share
            found["off_diagonal_share"] = float((dense - dense.diag().diag()).norm() / dense.norm())
        _, slots = rule.update(g, slots, t, theta)
    return found
