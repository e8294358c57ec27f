"""Tune a learning rate while the network trains, from first derivatives alone.

    python examples/tune_learning_rate.py
    python examples/tune_learning_rate.py --start 0.3 --horizon 10

Greedy learning (Baydin et al. 2018; Lichtarge et al. 2022) asks after every step: would a larger rate have made the loss on
guidance examples smaller? It sees one step ahead, so with noisy labels or noisy gradients it shrinks a rate too early; a
longer horizon (unrolled, `--horizon 10`) costs second derivatives and is less short-sighted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.online import train_online
from estimators import SGD, Greedy, Problem, Stage, Unroll, from_module

GUIDANCE, TEST, BATCH = 200, 500, 50


def problem(rate: float, seed: int) -> tuple[Problem, nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A network of one hidden layer on digits, SGD whose rate is exp(log_lr), and the held-out examples."""
    images, labels = (torch.as_tensor(x) for x in load_digits(return_X_y=True))
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=g)
    images, labels = images[order].float() / 16, labels[order]
    guide, test, train = slice(GUIDANCE), slice(GUIDANCE, GUIDANCE + TEST), slice(GUIDANCE + TEST, None)
    x, y = images[train], labels[train]

    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    loss, start = from_module(net, lambda model, hparams, rows: cross_entropy(model(x[rows]), y[rows]))
    outer = from_module(net, lambda model, hparams, _: cross_entropy(model(images[guide]), labels[guide])).loss

    def batch(step: int) -> torch.Tensor:
        return torch.randint(len(y), (BATCH,), generator=torch.Generator().manual_seed(1000 * seed + step))

    stage = Stage(loss, lambda hparams: SGD(lr=hparams["log_lr"].exp()), stream=batch, steps=1)
    hparams = {"log_lr": torch.tensor(rate).log()}
    found = Problem("learning rate", [stage], lambda p, h: outer(p, h, None), start, hparams)
    return found, net, (images[test], labels[test])


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=float, nargs="+", default=[0.001, 0.01, 0.1, 1.0], help="rates to start from")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--horizon", type=int, default=1, help="steps that are differentiated; 1 is greedy")
    parser.add_argument("--meta-lr", type=float, default=0.03, help="of Adam, on the logarithm of the rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    estimator = Greedy() if options.horizon == 1 else Unroll()
    rows = []
    print(f"{options.steps} steps of SGD on digits; accuracy on {TEST} held-out digits\n")
    print(f"{'rate at start':>14}{'fixed':>9}{'tuned':>9}{'rate at the end':>17}{'largest':>9}")
    for rate in options.start:
        task, net, (x, y) = problem(rate, options.seed)

        def accuracy(params: dict[str, torch.Tensor], net: nn.Module = net, x=x, y=y) -> float:
            return float((torch.func.functional_call(net, params, (x,)).argmax(1) == y).float().mean())

        fixed = train_online(task, estimator, steps=options.steps, horizon=options.horizon, update_hparams=False)
        meta = lambda leaves: torch.optim.Adam(leaves, lr=options.meta_lr)  # noqa: E731
        tuned = train_online(task, estimator, meta, steps=options.steps, horizon=options.horizon)
        rates = [float(block.hparams["log_lr"].exp()) for block in tuned.blocks]
        row = {
            "start": rate, "fixed": accuracy(fixed.end.params), "tuned": accuracy(tuned.end.params),
            "end": rates[-1], "largest": max(rates),
        }  # fmt: skip
        print(f"{rate:14g}{row['fixed']:9.3f}{row['tuned']:9.3f}{row['end']:17.3g}{row['largest']:9.3g}")
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
