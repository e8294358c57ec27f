"""Task weights on real data: a small end task on digits, trained beside a useful auxiliary task and a useless one.

    inner  L(theta, w) = sum_i softmax(w)_i L_i(theta) + l2 ||theta||^2 / 2          (`MultiTask`)
    outer  M(theta)    = loss of the end task on validation examples

- "end": the digits 0 to 4, few of them labelled;
- "useful": more of the same digits, their names permuted, so that only a head of its own can use them; or, with
  `auxiliary` "other", the digits 5 to 9, from which the body learns little that the end task needs;
- "useless": the images of "useful" with labels drawn at random, once.

One hidden layer is the shared body, and each task has a linear head. What the outer loss reads is `head`:

- "same": the end task's own head (Dery et al. 2022, eq. 6), cross-entropy;
- "ridge": a head fitted to the end task's training examples in closed form (eq. 7), squared error on one-hot labels;
- "steps": one fitted by a few steps of AdamW (eq. 7 as in the paper), cross-entropy.

The last two are constants to the outer gradient (`MetaHead`), and so the hypergradient is not the derivative of the outer
*value*: finite differences of training agree with it for "same" only. There is no closed form; the reference is a float64
full unroll.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot

from estimators import SGD, Adam, AdamW, MetaHead, MultiTask, Problem, RidgeFit, Stage, StepsFit
from estimators.estimator import Outer

from .common import Tree, cross_entropy, generator, linear_layer, of_number, require, require_positive, store

CITATION = "after Dery et al. 2022 (META-TARTAN); digits: UCI, bundled with scikit-learn"
ABOUT = f"a five-way end task on digits with a useful and a useless auxiliary task, weights of the tasks ({CITATION})"
TASKS = ("end", "useful", "useless")
HEADS = ("same", "ridge", "steps")
AUXILIARY = ("renamed", "other")
RULES = {"sgd": SGD, "adam": Adam}
PIXELS, CLASSES = 64, 5

Batch = dict[str, Tensor]
"""task -> indices (b,) into its training examples"""

Examples = tuple[Tensor, Tensor]
"""(images (n, 64), labels (n,))"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """The examples, in the problem's dtype.

    Attributes:
        train: task -> examples.
        valid: of the end task, for the outer loss.
        test: of the end task, all that are left.
    """

    train: dict[str, Examples]
    valid: Examples
    test: Examples


def make(
    *,
    seed: int = 0,
    head: str = "same",
    auxiliary: str = "renamed",
    n_train: int = 100,
    n_valid: int = 200,
    n_aux: int = 200,
    hidden: int = 32,
    steps: int = 60,
    batch: int = 50,
    rule: str = "sgd",
    lr: float = 0.5,
    l2: float = 1e-3,
    head_steps: int = 10,
    head_lr: float = 1e-2,
    head_penalty: float = 1.0,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Problem:
    """Build the problem.

    Args:
        seed: of the split, the random labels, the batches and the start.
        head: "same", "ridge" or "steps"; see above.
        auxiliary: what the useful task is about, "renamed" or "other"; see above.
        n_train: labelled examples of the end task.
        n_valid: its validation examples.
        n_aux: examples of each auxiliary task.
        hidden: width of the body.
        steps: inner steps.
        batch: examples of each task a step, drawn with replacement.
        rule: "sgd" or "adam".
        lr: of the rule.
        l2: penalty l2 ||theta||^2 / 2 in the inner loss, outside of the tasks.
        head_steps: steps of the outer head ("steps").
        head_lr: their AdamW's learning rate ("steps"; the paper's is 1e-3).
        head_penalty: of the outer head ("ridge").
        dtype: of the data, the start and the hyperparameters.
        device: likewise.

    Raises:
        ValueError: a setting that has no such problem.
    """
    require(head in HEADS, f"head={head!r}: choose one of {', '.join(HEADS)}")
    require(rule in RULES, f"rule={rule!r}: choose one of {', '.join(RULES)}")
    require_positive(hidden=hidden, steps=steps, batch=batch, head_steps=head_steps)
    require(min(lr, head_lr) > 0, f"lr={lr}, head_lr={head_lr}: must be positive")
    require(head_penalty > 0, f"head_penalty={head_penalty}: must be positive")
    require(l2 >= 0, f"l2={l2}: must not be negative")

    source = generator(seed)
    sizes = {"n_train": n_train, "n_valid": n_valid, "n_aux": n_aux}
    examples = split(seed=seed, auxiliary=auxiliary, **sizes, dtype=dtype, device=device)
    start = linear_layer(source, "body", PIXELS, hidden)
    for task in TASKS:
        start |= linear_layer(source, task, hidden, CLASSES)

    def task_loss(task: str, params: Tree, index: Tensor) -> Tensor:
        x, y = examples.train[task]
        return cross_entropy(outputs(params, task, x[index]), y[index]).mean()

    def penalty(params: Tree) -> Tensor:
        return l2 / 2 * torch.stack([p.square().sum() for p in params.values()]).sum()

    def stream(t: int) -> Batch:
        draws = of_number(seed, t)
        return {k: torch.randint(len(y), (batch,), generator=draws).to(device) for k, (_, y) in examples.train.items()}

    multitask = MultiTask({task: partial(task_loss, task) for task in TASKS}, penalty=penalty)
    return Problem(
        name="digits_tasks",
        stages=[Stage(loss=multitask, rule=RULES[rule](lr=lr), stream=stream, steps=steps)],
        outer=_outer(head, examples, seed=seed, steps=head_steps, lr=head_lr, penalty=head_penalty),
        start={k: v.to(device=device, dtype=dtype) for k, v in start.items()},
        hparams={multitask.logits: torch.zeros(len(TASKS), dtype=dtype, device=device)},
        about=ABOUT,
        settings={
            "seed": seed, "head": head, "auxiliary": auxiliary, **sizes, "hidden": hidden, "steps": steps, "batch": batch,
            "rule": rule, "lr": lr, "l2": l2, "head_steps": head_steps, "head_lr": head_lr, "head_penalty": head_penalty,
            "dim": sum(v.numel() for v in start.values()), "outer_dim": len(TASKS),
        },
    )  # fmt: skip


def split(
    *,
    seed: int,
    n_train: int,
    n_valid: int,
    n_aux: int,
    auxiliary: str = "renamed",
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Split:
    """The examples that `make` uses with these settings.

    Raises:
        ValueError: there are not as many digits, or no such auxiliary task.
    """
    require(auxiliary in AUXILIARY, f"auxiliary={auxiliary!r}: choose one of {', '.join(AUXILIARY)}")
    # here, not above: scikit-learn takes a second to import, and the other problems do without
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, names = load_digits(return_X_y=True)
    images, _ = store(torch.as_tensor(pixels, dtype=torch.float64) / 16, dtype, device)
    labels = torch.as_tensor(names)
    own, other = ([int(i) for i in chosen.nonzero()] for chosen in (labels < CLASSES, labels >= CLASSES))
    renamed = auxiliary == "renamed"
    most = len(own) - CLASSES
    require(
        min(n_train, n_valid, n_aux) >= CLASSES and n_train + n_valid + renamed * n_aux <= most,
        f"n_train={n_train}, n_valid={n_valid}, n_aux={n_aux}: at least {CLASSES} each, and at most {most} together"
        + ", n_aux apart" * (not renamed),
    )
    require(renamed or n_aux <= len(other) - CLASSES, f"n_aux={n_aux}: at most {len(other) - CLASSES}")

    def part(index: list[int], size: int) -> tuple[list[int], list[int]]:
        first, rest = train_test_split(index, train_size=size, random_state=seed, stratify=labels[index])
        return first, rest

    train, own = part(own, n_train)
    valid, own = part(own, n_valid)
    aux, left = part(own if renamed else other, n_aux)
    at_random = torch.randint(CLASSES, (n_aux,), generator=generator(seed + 1))

    def taken(index: list[int]) -> Examples:
        return images[index], (labels[index] % CLASSES).to(device)

    x, y = taken(aux)
    tasks = {"end": taken(train), "useful": (x, (y + 2) % CLASSES), "useless": (x, at_random.to(device))}
    return Split(train=tasks, valid=taken(valid), test=taken(left if renamed else own))


def features(params: Tree, images: Tensor) -> Tensor:
    """(n, 64) images -> (n, hidden): the shared body."""
    return torch.tanh(linear(images.to(params["body.weight"].dtype), params["body.weight"], params["body.bias"]))


def outputs(params: Tree, task: str, images: Tensor) -> Tensor:
    """(n, 64) images -> (n, 5) logits of a task's own head."""
    return linear(features(params, images), params[f"{task}.weight"], params[f"{task}.bias"])


def accuracy(params: Tree, examples: Examples) -> float:
    """Share of right answers of the end task's own head."""
    images, labels = examples
    return float((outputs(params, "end", images).argmax(1) == labels).double().mean())


def _mean_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return cross_entropy(logits, classes).mean()


def _squared_error(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().sum(1).mean()


def _outer(head: str, examples: Split, *, seed: int, steps: int, lr: float, penalty: float) -> Outer:
    images, labels = examples.valid
    if head == "same":
        return lambda params, hparams: _mean_cross_entropy(outputs(params, "end", images), labels)
    train = examples.train["end"]
    if head == "steps":
        rule = AdamW(lr=lr, weight_decay=0.1)
        fit = StepsFit(outputs=CLASSES, loss=_mean_cross_entropy, steps=steps, rule=rule, seed=seed)
        return MetaHead(features=features, fit=fit, loss=_mean_cross_entropy, train=train, valid=examples.valid)
    coded: Callable[[Examples], Examples] = lambda pair: (pair[0], one_hot(pair[1], CLASSES).to(pair[0]))  # noqa: E731
    return MetaHead(
        features=features, fit=RidgeFit(penalty=penalty), loss=_squared_error, train=coded(train),
        valid=coded(examples.valid),
    )  # fmt: skip
