"""The weights that META-TARTAN gives to auxiliary tasks, with the end task's own head and with separate ones.

On `digits_tasks`: Algorithm 1 with the model's own step as the lookahead (the outer gradient is that after the step, the
tasks' gradients are those of the step). Arms: cosine or dot product; and where the outer loss is read: the end task's own
head (eq. 6), a ridge head, or a head trained by ten AdamW steps at one of two rates (eq. 7). A separate head that was
barely trained gives nearly uniform weights for that reason alone, so the head's own loss is recorded beside them. The
"useful" task is one of two: more of the end task's digits under other names, or other digits, of little use.
"""

from __future__ import annotations

from math import log
from typing import Any

import pandas as pd
import torch

from estimators import HypergradientError, MetaHead, MultiTask, State, Tree, per_stage

from ..online import train_online
from ..problems import digits_tasks
from .base import Claimed, Row

ABOUT = "weights of useful and useless auxiliary tasks: same head against separate ones, cosine against dot product"
CITATION = "Dery et al. 2022 (META-TARTAN), sec. 5.4, Fig. 3"
QUICK = {"seeds": (0,), "steps": 20, "every": 10}

HEADS = ("same", "ridge", "trained", "barely")
WEIGHTS = [f"weight_{task}" for task in digits_tasks.TASKS]
FIXED = "fixed"
"""The form of the arm without meta steps: MT-TARTAN, equal weights."""
CHANCE = {"ridge": 1 - 1 / digits_tasks.CLASSES, "steps": log(digits_tasks.CLASSES)}
"""Loss of an outer head that answers the same for every image: squared error, cross-entropy."""


def run(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    steps: int = 300,
    every: int = 10,
    lr: float = 1e-2,
    meta_lr: float = 0.05,
    dot_meta_lr: float = 20.0,
    head_lr: float = 1e-2,
    low_head_lr: float = 1e-3,
) -> list[Row]:
    """Train every arm.

    Args:
        seeds: of split, start and batches.
        steps: of Adam, with a meta step after each.
        every: a row every so many steps.
        lr: of Adam.
        meta_lr: of the logits' gradient descent, for cosines.
        dot_meta_lr: the same for dot products, which carry ``lr`` and the gradients' lengths.
        head_lr: of a head trained by steps.
        low_head_lr: of another; the paper's.

    Returns:
        One row for each arm, seed and recorded step. ``weight_TASK`` is the weight that the step was taken with;
        ``head_loss`` is of the outer head after it, on the examples that it was fitted to (None: the end task's own head), and
        ``head_chance`` that of a head that knows nothing.
    """
    made: dict[str, dict[str, Any]] = {
        "same": {"head": "same"},
        "ridge": {"head": "ridge"},
        "trained": {"head": "steps", "head_lr": head_lr},
        "barely": {"head": "steps", "head_lr": low_head_lr},
    }
    rates = {FIXED: 0.0, "cosine": meta_lr, "dot": dot_meta_lr}
    arms = [(FIXED, "same", a) for a in digits_tasks.AUXILIARY]
    arms += [("cosine", head, a) for a in digits_tasks.AUXILIARY for head in HEADS]
    arms += [("dot", head, "renamed") for head in HEADS[:2]]
    rows: list[Row] = []
    for seed in seeds:
        for form, head, auxiliary in arms:
            arm = {"form": form, "head": head, "auxiliary": auxiliary, "seed": seed}
            rows += _trained(arm, made[head], steps, every, lr, rates[form])
    return rows


def _trained(arm: Row, head: dict[str, Any], steps: int, every: int, lr: float, rate: float) -> list[Row]:
    seed, auxiliary = arm["seed"], arm["auxiliary"]
    problem = digits_tasks.make(seed=seed, auxiliary=auxiliary, rule="adam", lr=lr, steps=steps, **head)
    loss, outer, s = problem.stages[0].loss, problem.outer, problem.settings
    assert isinstance(loss, MultiTask)
    sizes = {k: s[k] for k in ("n_train", "n_valid", "n_aux")}
    test = digits_tasks.split(seed=seed, auxiliary=auxiliary, **sizes).test
    rows: list[Row] = []

    def observe(state: State, lam: Tree) -> dict[str, Any]:
        if state.step % every == 0 or state.step == steps:
            weights = zip(loss.tasks, loss.weights(lam).tolist(), strict=True)
            rows.append(
                arm
                | {"status": "ok", "reason": None, "step": state.step}
                | {f"weight_{task}": w for task, w in weights}
                | {"head_loss": outer.losses(state.params)[0] if isinstance(outer, MetaHead) else None}
                | {"head_chance": CHANCE.get(s["head"])}
                | {"test_accuracy": digits_tasks.accuracy(state.params, test)}
            )
        return {}

    estimator = per_stage("tartan-dot" if arm["form"] == "dot" else "tartan", 1)[0]
    try:
        train_online(
            problem, estimator, lambda leaves: torch.optim.SGD(leaves, lr=rate), steps=steps, observe=observe,
            update_hparams=arm["form"] != FIXED,
        )  # fmt: skip
    except HypergradientError as error:
        rows.append(arm | {"status": "failed", "reason": str(error), "step": None})
    return rows


def claims(rows: list[Row]) -> list[Claimed]:
    """What the rows show; thresholds from seeds 0 to 4, held by seeds 5 to 9 as well."""
    frame = pd.DataFrame(rows)
    failed = int((frame["status"] != "ok").sum())
    trained = Claimed("Every arm trains to its end.", f"{failed} of {_arms(frame)} arms failed", failed == 0)
    if failed:
        return [trained]
    recorded = sorted({int(t) for t in frame["step"]})
    last = recorded[-1]
    early, late = (min(recorded, key=lambda t: abs(t - part * last)) for part in (1 / 3, 2 / 3))
    cosine = frame[frame["form"] == "cosine"]
    little, useful = cosine[cosine["auxiliary"] == "other"], cosine[cosine["auxiliary"] == "renamed"]
    end = {head: _values(little, head, late, "weight_end") for head in HEADS}
    loss = {head: _values(little, head, None, "head_loss") for head in HEADS[1:]}
    ends = ", ".join(f"{head} {x.median():.2f}" for head, x in end.items())
    below = {head: _lower(useful, head, last, "weight_useless", "weight_useful") for head in HEADS}
    own = useful[useful["head"] == "same"]
    over = _lower(useful, "same", last, "weight_end", "weight_useful")
    accuracy = frame[frame["step"] == last].pivot_table("test_accuracy", ["form", "head", "auxiliary"], "seed")
    fixed = accuracy.loc[FIXED].droplevel("head").reindex(accuracy.index.get_level_values("auxiliary"))
    against = (accuracy - fixed.to_numpy()).median(axis=1)
    moved = {form: _moved(frame, form, early, last) for form in ("cosine", "dot")}
    seeds = frame["seed"].nunique()
    return [
        trained,
        Claimed(
            f"Beside tasks of little use, the same head drives the end task's weight up and a separate one delays that: median "
            f"at step {late} above 0.7 with the same head, below 0.5 with a ridge head.",
            ends,
            end["same"].median() > 0.7 and end["ridge"].median() < 0.5,
        ),
        Claimed(
            "Ten steps at the higher rate make a separate head that delays it less than ridge: median between those two, above "
            f"0.5. At the paper's rate the weights stay near a third too (median below 0.5 at step {late}), but then the head "
            f"knows nothing: its loss stays above 1.2, chance being {CHANCE['steps']:.2f}.",
            f"{ends}; lowest loss: barely {loss['barely'].min():.2f}, trained {loss['trained'].min():.2f}",
            0.5 < end["trained"].median() < end["same"].median()
            and end["barely"].median() < 0.5
            and loss["barely"].min() > 1.2,
        ),
        Claimed(
            "Beside a useful task, the useless one ends below it in every seed with the same head and with the trained one.",
            ", ".join(f"{head} {n} of {seeds}" for head, n in below.items()),
            below["same"] == below["trained"] == seeds,
        ),
        Claimed(
            "The same head does not always drive the end task's weight to 1: beside a useful task it stays below 0.95 in every "
            "seed, and the useful task overtakes it in at least two of five.",
            f"largest {own['weight_end'].max():.2f}; overtaken in {over} of {seeds}",
            own["weight_end"].max() < 0.95 and over >= 0.4 * seeds,
        ),
        Claimed(
            f"The cosine goes on when the gradients have become small, the dot product does not: from step {early} on a weight "
            "moves by at least 0.05 in every seed with cosines, by at most 0.05 with dot products (same head, useful task).",
            f"cosine {moved['cosine'].min():.3f} to {moved['cosine'].max():.3f}, "
            f"dot {moved['dot'].min():.3f} to {moved['dot'].max():.3f}",
            moved["cosine"].min() >= 0.05 >= moved["dot"].max(),
        ),
        Claimed(
            "Accuracies are equal within noise: no arm's median over seeds differs from equal weights (MT-TARTAN) by more than "
            "0.01.",
            f"differences from {against.min():+.4f} to {against.max():+.4f}",
            against.abs().max() <= 0.01,
        ),
    ]


def _arms(frame: pd.DataFrame) -> int:
    return len(frame[["form", "head", "auxiliary", "seed"]].drop_duplicates())


def _values(frame: pd.DataFrame, head: str, step: int | None, column: str) -> pd.Series:
    mine = frame[frame["head"] == head]
    return (mine if step is None else mine[mine["step"] == step]).set_index("seed")[column].astype(float)


def _lower(frame: pd.DataFrame, head: str, step: int, lower: str, upper: str) -> int:
    """In how many seeds one weight lies below another."""
    return int((_values(frame, head, step, lower) < _values(frame, head, step, upper)).sum())


def _moved(frame: pd.DataFrame, form: str, first: int, last: int) -> pd.Series:
    """Largest change of a weight between two steps, by seed."""
    mine = frame[(frame["form"] == form) & (frame["head"] == "same") & (frame["auxiliary"] == "renamed")]
    at = [mine[mine["step"] == t].set_index("seed")[WEIGHTS] for t in (first, last)]
    return (at[1] - at[0]).abs().max(axis=1)
