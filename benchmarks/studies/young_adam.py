"""Where Adam's adaptation is no guide: just after a reset, and where no gradient ever came.

D = -du/dg of Adam's t-th update, by differentiating the update. The moments start at 0, so the first change is nearly a
sign, whose derivative vanishes, and the next ones are dominated by single gradients: entries of D are negative, which a
settled D hardly has. On digits (noisy labels, minibatches) and on stationary gradient noise.

A row of an embedding that no training example reads has g = m = v = 0, and the formula gives D = lr (1 - b1) / ((1 - b1^t) eps)
there, orders of magnitude above the rest. This library defines D as 0 there. What that is worth is measured with a table of which a part
is unused in training and read by the outer loss: where ||D c||^2 lies, and what it does to SAMA's central difference, whose
perturbation alpha D c / ||D c|| is then spent on rows that the loss does not read.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import embedding

from estimators import Adam, CentralDifference, Stage, State, Tree, gradients, reverse_over_reverse, tree
from estimators import run as train
from estimators.adaptation import adapt, pull_rule

from ..accuracy import compare
from ..problems import digits_reweighting
from ..problems.common import cross_entropy, generator, normal, of_number
from .base import Claimed, Row
from .point import rounded

CITATION = "Kingma & Ba 2015; Choe et al. 2023 (SAMA), sec. 3.2; ours"
ABOUT = "Adam's adaptation just after a reset, and on rows of an embedding that never received a gradient"
USED = 64
"""Rows of the embedding that training reads."""

QUICK = {"seeds": (0,), "steps": (1, 2, 5, 10, 30), "horizon": 40, "coordinates": 500, "unused": (8,)}
NEEDS = {"steps": (2, 10, 30)}


def run(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    steps: tuple[int, ...] = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100),
    horizon: int = 300,
    coordinates: int = 4000,
    unused: tuple[int, ...] = (1, 8, 64),
) -> list[Row]:
    """Rows of two parts. "young": seed, gradients ("digits" or "noise, mean r"), t, negative (share of the entries of D),
    norm (of D, by that at ``horizon``). "unused": seed, unused (rows), masked, share (of ||D c||^2 on them), dtype,
    relative_error and cosine of SAMA's product at alpha = 1e-2 ||theta||.

    Args:
        seeds: of the problems, and of the noise.
        steps: t; the claims read 2, 10 and 30.
        horizon: t at which D has settled.
        coordinates: of the noise.
        unused: rows of the embedding that no training example reads.
    """
    rows = []
    for seed in seeds:
        rows += _digits(seed, steps, horizon)
        for mean in (0.0, 1.0):
            rows += _noise(seed, mean, steps, horizon, coordinates)
        for count in unused:
            rows += _unused(seed, count)
    return rows


def _digits(seed: int, steps: tuple[int, ...], horizon: int) -> list[Row]:
    problem = digits_reweighting.make(seed=seed, space="wide", lr=1e-3, steps=horizon)
    (stage,), lam = problem.stages, problem.hparams
    states = train(stage, problem.start, lam, tail=None).states

    def diagonal(t: int) -> Tensor:
        before = states[t - 1]
        _, grads, _ = gradients(stage.objective(t - 1), before.params, lam, wrt_params=before.params)
        return _diagonal(stage, before, grads)

    return _young(seed, "digits", {t: diagonal(t) for t in (*steps, horizon)}, horizon)


def _noise(seed: int, mean: float, steps: tuple[int, ...], horizon: int, coordinates: int) -> list[Row]:
    rule, source = Adam(), generator(seed)
    stage = Stage(loss=lambda p, h, b: p["x"].sum(), rule=rule, stream=lambda t: None, steps=horizon)
    param = torch.zeros(coordinates, dtype=torch.float64)
    state = stage.initial({"x": param}, {})
    found = {}
    for t in range(1, horizon + 1):
        grad = mean + normal(source, coordinates)
        if t in (*steps, horizon):
            found[t] = _diagonal(stage, state, {"x": grad})
        _, slots = rule.update(grad, state.slots["x"], t, param)
        state = state._replace(slots={"x": slots}, step=t)
    return _young(seed, f"noise, mean {mean:g}", found, horizon)


def _diagonal(stage: Stage, before: State, grads: Tree) -> Tensor:
    """D's entries: Adam works coordinate by coordinate, so a cotangent of ones gives them all."""
    ones = tree.map_tree(torch.ones_like, grads)
    return -tree.flatten(pull_rule(stage, before, {}, grads, ones, {}).grads)


def _young(seed: int, gradients: str, found: dict[int, Tensor], horizon: int) -> list[Row]:
    settled = found[horizon].norm()
    return [
        {
            "part": "young", "seed": seed, "gradients": gradients, "t": t,
            "negative": float((d[d != 0] < 0).double().mean()), "norm": float(d.norm() / settled),
        }
        for t, d in found.items()
    ]  # fmt: skip


def _unused(seed: int, count: int) -> list[Row]:
    stage, outer, start, lam = _bags_of_words(seed, count)
    record = train(stage, start, lam, tail=0)
    params, loss, rule = record.end.params, stage.objective(record.end.step - 1), stage.bind(lam)
    assert isinstance(rule, Adam)
    _, cotangent, _ = gradients(outer, params, lam, wrt_params=params)
    live = adapt(stage, record, lam, cotangent)
    as_derived = rule.lr * (1 - rule.beta1) / ((1 - rule.beta1**record.end.step) * rule.eps)
    everywhere = {**live, "table": torch.where(_used(params), live["table"], -as_derived * cotangent["table"])}
    rows: list[Row] = []
    for masked, adapted in ((True, live), (False, everywhere)):
        dead = adapted["table"][USED:].square().sum() / tree.norm(adapted).square()
        _, exact = reverse_over_reverse(loss, params, lam, adapted, wrt_hparams=lam)
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            theta, weights, v = (rounded(a, dtype) for a in (params, lam, adapted))
            _, found = CentralDifference(alpha=1e-2, relative=True)(loss, theta, weights, v, wrt_hparams=lam)
            errors = compare(found, exact)
            rows.append(
                {
                    "part": "unused", "seed": seed, "unused": count, "masked": masked, "dtype": name,
                    "share": float(dead), "relative_error": errors["relative_error"], "cosine": errors["cosine"],
                }
            )  # fmt: skip
    return rows


def _used(params: Tree) -> Tensor:
    return (torch.arange(len(params["table"])) < USED)[:, None]


def _bags_of_words(seed: int, unused: int) -> tuple[Stage, Callable[[Tree, Tree], Tensor], Tree, Tree]:
    """Examples of 5 tokens, classified by the mean of their embeddings, each weighted by a logit; only the outer loss's
    examples hold tokens from ``USED`` on. (stage, outer loss, start, hyperparameters)"""
    source, train_size, batch, words, dim, classes = generator(seed), 200, 50, 5, 8, 4
    truth = normal(source, USED + unused, classes)

    def examples(size: int, tokens: int) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(tokens, (size, words), generator=source)
        return drawn, (truth[drawn].mean(1) + 0.3 * normal(source, size, classes)).argmax(1)

    inner, valid = examples(train_size, USED), examples(train_size, USED + unused)

    def losses(params: Tree, tokens: Tensor, labels: Tensor) -> Tensor:
        logits = embedding(tokens, params["table"]).mean(1) @ params["head"]
        return cross_entropy(logits, labels)

    def stream(t: int) -> Tensor:
        return torch.randint(train_size, (batch,), generator=of_number(seed, t))

    def loss(params: Tree, hparams: Tree, index: Tensor) -> Tensor:
        return (hparams["logits"][index].sigmoid() * losses(params, inner[0][index], inner[1][index])).mean()

    stage = Stage(loss=loss, rule=Adam(lr=1e-2), stream=stream, steps=50)
    start = {"table": normal(source, USED + unused, dim), "head": normal(source, dim, classes)}
    return stage, lambda params, hparams: losses(params, *valid).mean(), start, {"logits": normal(source, train_size)}


def claims(rows: list[Row]) -> list[Claimed]:
    """See `Study`."""
    frame = pd.DataFrame(rows)
    young, unused = frame[frame["part"] == "young"], frame[frame["part"] == "unused"]
    negative, noise = young.groupby("t")["negative"], young[young["gradients"] != "digits"].groupby("t")["norm"]
    single = unused[unused["dtype"] == "float32"].groupby("masked")
    share, error = unused.groupby("masked")["share"], single["relative_error"]
    return [
        Claimed(
            "At step 2 of Adam 15 to 40 % of the entries of D are negative, in every run",
            f"{negative.min()[2]:.1%} to {negative.max()[2]:.1%}",
            negative.min()[2] > 0.15 and negative.max()[2] < 0.4,
        ),
        Claimed(
            "... at step 10 below 5 %, and at step 30 below 0.1 %",
            f"at most {negative.max()[10]:.1%} and {negative.max()[30]:.2%}",
            negative.max()[10] < 0.05 and negative.max()[30] < 0.001,
        ),
        Claimed(
            "On stationary noise ||D|| is more than 5 times too large at step 2, and within 10 % of its settled value at step 30",
            f"{noise.min()[2]:.1f} to {noise.max()[2]:.1f} times; {noise.min()[30]:.2f} to {noise.max()[30]:.2f}",
            noise.min()[2] > 5 and noise.min()[30] > 0.9 and noise.max()[30] < 1.1,
        ),
        Claimed(
            "Without the mask more than 99.99 % of ||D c||^2 lies on rows that never received a gradient, even if it is one row "
            f"of {USED + 1}; with it nothing",
            f"all but {1 - share.min()[False]:.0e} of it at most; {share.max()[True]:g}",
            share.min()[False] > 0.9999 and share.max()[True] == 0,
        ),
        Claimed(
            "... which costs SAMA's difference in float32 more than 2 % of error (alpha = 0.01 ||theta||), against less than "
            "0.2 % with the mask",
            f"{error.min()[False]:.0%} to {error.max()[False]:.0%}, cosine down to {single['cosine'].min()[False]:.2f}; at most "
            f"{error.max()[True]:.2%}",
            error.min()[False] > 0.02 and error.max()[True] < 0.002,
        ),
    ]
