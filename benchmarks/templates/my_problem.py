"""Which training examples can be trusted? A third of the labels is wrong, and every example has a weight.

    inner loss    mean over a batch of sigmoid(weights_i) * cross entropy of example i
    outer loss    cross entropy on a small set whose labels are right

The hypergradient says how each weight should change so that training on the weighted examples does better on the clean set.

    hypergradbench check my_problem.py:make                       what is wrong with it, if anything
    hypergradbench run my_problem.py:make --estimators all        table and figures in results/own
    hypergradbench advise my_problem.py:make                      which estimator to use
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from estimators import Momentum, Problem, from_loaders


def examples(source: torch.Generator, n: int, wrong: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two clouds of points, and their labels, of which a share ``wrong`` is flipped: (n, 2), (n,). CHANGE: your data."""
    labels = torch.arange(n) % 2
    points = torch.randn(n, 2, generator=source, dtype=torch.float64) + 2.0 * labels[:, None]
    flipped = torch.arange(n) < round(wrong * n)
    return points.to(dtype), torch.where(flipped, 1 - labels, labels)


def make(
    seed: int = 0,  # with a seed, `run` measures at several: draw everything from it
    n: int = 60,  # settings of your own: `run my_problem.py:make --set n=120 steps=50`
    hidden: int = 8,
    steps: int = 40,
    dtype: torch.dtype = torch.float32,  # with a dtype, everything can also be measured in float64
    device: str = "cpu",
) -> Problem:
    """Build the problem."""
    source = torch.Generator().manual_seed(seed)
    x, y = examples(source, n, 1 / 3, dtype)
    x_clean, y_clean = examples(source, 40, 0.0, dtype)

    # CHANGE: your network. It is never modified.
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2)).to(device=device, dtype=dtype)

    # CHANGE: the training loss. `model(...)` is your network with the parameters that are being trained; hyperparameters are
    # tensors, and must stay so until the loss: no .item(), no .detach().
    def inner(model, hparams, batch):
        inputs, labels, index = batch
        each = cross_entropy(model(inputs), labels, reduction="none")
        return (torch.sigmoid(hparams["weights"])[index] * each).mean()

    # CHANGE: the loss by which hyperparameters are judged, usually without them.
    def outer(model, hparams, batch):
        inputs, labels = batch
        return cross_entropy(model(inputs), labels)

    return from_loaders(
        net,
        inner,
        outer,
        train=DataLoader(TensorDataset(x, y, torch.arange(n)), batch_size=n),  # the index tells which weight is whose
        valid=DataLoader(TensorDataset(x_clean, y_clean), batch_size=40),
        hparams={"weights": torch.zeros(n, dtype=dtype, device=device)},  # CHANGE: what to tune, and where
        rule=Momentum(lr=0.3, momentum=0.9, weight_decay=0.03),  # the optimizer of training
        steps=steps,
        name="my_problem",
    )
