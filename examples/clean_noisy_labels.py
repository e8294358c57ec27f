"""Clean noisy labels on digits: learn a weight for each training example, so that a few clean examples are classified well.

    python examples/clean_noisy_labels.py
    python examples/clean_noisy_labels.py --estimator cg --noise 0.6

Half of the training labels are wrong, and 100 examples are known to be right. While a small network trains, SAMA takes the
derivative of the clean examples' loss by each training example's weight, and Adam follows it. Which examples are wrong is used
to judge the result, never to train.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.online import train_online
from estimators import Adam, Problem, Stage, from_module

BATCH, CLEAN, TEST = 100, 100, 500


def digits(noise: float, seed: int) -> dict[str, torch.Tensor]:
    """The digits of scikit-learn, shuffled: training examples with wrong labels among them, clean ones, held-out ones."""
    images, labels = (torch.as_tensor(x) for x in load_digits(return_X_y=True))
    images = images.float() / 16
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=g)
    images, labels = images[order], labels[order]
    train = slice(CLEAN + TEST, None)
    wrong = torch.rand(len(labels[train]), generator=g) < noise
    shift = torch.randint(1, 10, wrong.shape, generator=g)  # to another digit
    return {
        "x": images[train], "y": torch.where(wrong, (labels[train] + shift) % 10, labels[train]), "wrong": wrong,
        "clean_x": images[:CLEAN], "clean_y": labels[:CLEAN],
        "test_x": images[CLEAN : CLEAN + TEST], "test_y": labels[CLEAN : CLEAN + TEST],
    }  # fmt: skip


def weighted(data: dict[str, torch.Tensor], seed: int) -> tuple[Problem, nn.Module]:
    """The problem: a network of one hidden layer, and one logit a training example as hyperparameters."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))

    def criterion(model, hparams, rows):
        losses = cross_entropy(model(data["x"][rows]), data["y"][rows], reduction="none")
        return (hparams["logits"][rows].sigmoid() * losses).mean()

    loss, start = from_module(net, criterion)
    validate = from_module(net, lambda model, hparams, _: cross_entropy(model(data["clean_x"]), data["clean_y"])).loss

    def batch(step: int) -> torch.Tensor:  # a pure function of the step: estimators ask for the same batch again
        return torch.randperm(len(data["y"]), generator=torch.Generator().manual_seed(1000 * seed + step))[:BATCH]

    stage = Stage(loss, Adam(lr=1e-3), stream=batch, steps=10)
    hparams = {"logits": torch.zeros(len(data["y"]))}
    return Problem("clean noisy labels", [stage], lambda p, h: validate(p, h, None), start, hparams), net


def accuracy(net: nn.Module, params: dict[str, torch.Tensor], data: dict[str, torch.Tensor]) -> float:
    found = torch.func.functional_call(net, params, (data["test_x"],)).argmax(1)
    return float((found == data["test_y"]).float().mean())


def once(estimator: str, noise: float, steps: int, seed: int) -> dict[str, float]:
    """Accuracy without and with learned weights, the weights' means, and how well they tell right from wrong."""
    data = digits(noise, seed)
    problem, net = weighted(data, seed)
    plain = train_online(problem, estimator, steps=steps, horizon=10, update_hparams=False)
    meta = lambda leaves: torch.optim.Adam(leaves, lr=0.1)  # noqa: E731
    learned = train_online(problem, estimator, meta, steps=steps, horizon=10, warmup=50)
    weights, wrong = learned.hparams["logits"].sigmoid(), data["wrong"]
    return {
        "plain": accuracy(net, plain.end.params, data),
        "weighted": accuracy(net, learned.end.params, data),
        "clean": float(weights[~wrong].mean()),
        "noisy": float(weights[wrong].mean()),
        "auroc": float(roc_auc_score((~wrong).numpy(), weights.numpy())),
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", default="sama", help="a registered name (default: sama)")
    parser.add_argument("--noise", type=float, default=0.5, help="share of wrong labels")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    rows = [once(options.estimator, options.noise, options.steps, seed) for seed in range(options.seeds)]
    print(f"{options.noise:.0%} of the labels are wrong; weights by {options.estimator}, {options.steps} steps\n")
    print(f"{'seed':8}{'plain':>10}{'weighted':>10}{'w clean':>10}{'w noisy':>10}{'AUROC':>10}")
    keys = ("plain", "weighted", "clean", "noisy", "auroc")
    for seed, row in enumerate(rows):
        print(f"{seed:<8}" + "".join(f"{row[k]:10.3f}" for k in keys))
    print(f"{'median':8}" + "".join(f"{median(r[k] for r in rows):10.3f}" for k in keys))
    return rows


if __name__ == "__main__":
    main()
