"""Fine-tuning of BERT on noisy labels, which a small network weighs and another corrects (SAMA, section 4.1).

    inner  L(theta, lam) = mean_i w(l_i; lam_r) l_i,   l_i = cross-entropy of f(x_i; theta) with c(x_i, y_i; lam_c)
    outer  M(theta)      = mean cross-entropy on a clean batch

w is Meta-Weight-Net (1-100-1). c = softmax(5 onehot(y_i) + MLP(pooled features of x_i, onehot(y_i))), of which the first
summand lets training begin near the labels given. Both networks read what depends on theta *not* detached, so that L is a
function of theta whose gradient is what Adam sees; ``detach=True`` is what released codes do.
Hyperparameters of the paper's Table 4: Adam 1e-5 inside and outside, 10 steps a meta step. Its cosine schedule is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from estimators import Adam, Problem, Stage, Tree, from_module
from estimators.module import Call
from estimators.stage import Batch

from ..data import wrench
from ..data.folder import DataError
from ..data.words import hashed
from ..problems.common import generator, of_number
from .base import GENERATED, Workload, in_micro_batches
from .transformer import (
    CLS,
    FIRST,
    NEEDS,
    PAD,
    POOL,
    SEP,
    Size,
    chosen,
    encoder_shape,
    in_order,
    library,
    sizes,
    start,
    topical,
    without_weights,
)
from .weigh import perceptron, softmax, two_layers, weights

ABOUT = "BERT on noisy labels: examples reweighted, labels corrected"
CITATION = "Choe et al. 2023, section 4.1; Shu et al. 2019; Zheng et al. 2021"
READS = "a WRENCH text classification folder: train.json, valid.json, label.json"
SIZES = sizes(batch=48, length=128)

CLASSES = 4
"""Of the generated data, as AGNews has."""
NOISE = 0.4
"""Share of the generated labels that are wrong."""
GIVEN = 5.0
"""Logit of the given label in a corrected one, beside the network's."""
LR = 1e-5
VOCABULARY = 30522
"""BERT's, uncased."""

__all__ = ["ABOUT", "CITATION", "NEEDS", "READS", "SIZES", "make"]


class _Classifier(nn.Module):
    def __init__(self, body: nn.Module, hidden: int, classes: int) -> None:
        super().__init__()
        self.body, self.classifier = body, nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        features = self.body(tokens, attention_mask=mask).pooler_output
        return features, self.classifier(features)


def make(
    *,
    size: str = "tiny",
    unroll: int = 10,
    batch: int | None = None,
    length: int | None = None,
    correction: bool = True,
    detach: bool = False,
    outer_micro: int = 1,
    data: str | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Workload:
    """Build it.

    Args:
        size: one of `SIZES`.
        unroll: steps before a meta step.
        batch: examples a step, and in the clean batch; the size's own if None.
        length: tokens an example; the size's own if None.
        correction: correct labels too (the paper's R&C); without it R.
        detach: both networks read the loss and the features as constants.
        outer_micro: equal parts in which the clean batch is evaluated, one after another: their gradients' sum is as large as
            the model, but activations are those of one part.
        data: a WRENCH folder; generated tokens if None.
        seed: of the weights, of generated data and of the order of the examples.
        dtype, device: of everything.

    Raises:
        ImportError: `transformers` is missing.
        ValueError: no such size, or a number out of its range.
        DataError: ``data`` is no WRENCH folder.
    """
    s = chosen(SIZES, size, batch, length, unroll=unroll)
    pool, clean, classes, described = _generated(s, seed) if data is None else _read(data, s, seed)
    pool, clean = tuple(x.to(device) for x in pool), tuple(x.to(device) for x in clean)
    transformers = library()
    config: Any = transformers.BertConfig(**encoder_shape(s), vocab_size=s.vocabulary or VOCABULARY)
    module = without_weights(lambda: _Classifier(transformers.BertModel(config), s.hidden, classes), device)

    numbers = torch.arange(classes, device=device)

    def call(model: Call, tokens: Tensor) -> tuple[Tensor, Tensor]:
        # (b, 1, 1, length): a mask of four dimensions goes to the kernel as it is, without a look at its values
        return model(tokens, None if data is None else (tokens != PAD)[:, None, None])

    def unweighted(model: Call, _: Tree, xy: Batch) -> Tensor:
        return cross_entropy(call(model, xy[0])[1], xy[1])

    def weighted(model: Call, hparams: Tree, xy: Batch) -> Tensor:
        features, logits = call(model, xy[0])
        if correction:
            given = (xy[1][:, None] == numbers).to(
                features.dtype
            )  # one_hot would look at the values, and wait for them
            seen = features.detach() if detach else features
            added = perceptron(hparams, "correct", torch.cat([seen, given], dim=1))
            each = -(softmax(GIVEN * given + added) * logits.log_softmax(1)).sum(1)
        else:
            each = cross_entropy(logits, xy[1], reduction="none")
        return (weights(hparams, each.detach() if detach else each) * each).mean()

    loss, shapes = from_module(module, weighted)
    plain = from_module(module, unweighted).loss
    source = generator(seed)
    hparams = two_layers("weight", 1, 1, source=source, dtype=dtype, device=device)
    if correction:
        hparams |= two_layers("correct", s.hidden + classes, classes, source=source, dtype=dtype, device=device)

    return Workload(
        problem=Problem(
            name="bert_noisy",
            stages=[Stage(loss, Adam(lr=LR), in_order(pool, s.batch), unroll)],
            outer=in_micro_batches(lambda params, xy: plain(params, {}, xy), clean, outer_micro),
            start=start(shapes, seed, dtype, device),
            hparams=hparams,
            about=ABOUT,
        ),
        samples=s.batch,
        plain=lambda params, xy: plain(params, {}, xy),
        optimizer=lambda leaves: torch.optim.Adam(leaves, lr=LR),
        meta=lambda leaves: torch.optim.Adam(leaves, lr=1e-5),
        data=described,
        settings={
            "size": size, "unroll": unroll, "batch": s.batch, "length": s.length, "correction": correction,
            "detach": detach, "outer_micro": outer_micro, "data": None if data is None else Path(data).resolve().name, "seed": seed, "optimizer": "adam", "lr": LR, "classes": classes,
        },
    )  # fmt: skip


def _generated(s: Size, seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], int, str]:
    """(noisy examples, clean batch, number of classes, what they are)."""
    vocabulary = s.vocabulary or VOCABULARY
    source = of_number(seed, 0)

    def examples(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (number,), generator=source)
        tokens = topical(labels, CLASSES, vocabulary, s.length, source, share=0.3)
        tokens[:, 0], tokens[:, -1] = CLS, SEP
        return tokens, labels

    tokens, truth = examples(POOL * s.batch)
    wrong = torch.rand(truth.shape, generator=source) < NOISE
    other = (truth + torch.randint(1, CLASSES, truth.shape, generator=source)) % CLASSES
    noisy = torch.where(wrong, other, truth)
    described = (
        f"{GENERATED}: random tokens, a part of them from their class's vocabulary; {NOISE:.0%} of the labels wrong"
    )
    return (tokens, noisy), examples(s.batch), CLASSES, described


def _read(data: str, s: Size, seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], int, str]:
    """The same of a WRENCH folder: votes of its training set, and a batch of its validation set with right labels."""
    found, source = wrench.load(data), of_number(seed, 0)

    def tokens(texts: list[str], order: Tensor) -> Tensor:
        ids = hashed(
            texts, length=s.length, first=FIRST, vocabulary=s.vocabulary or VOCABULARY, begin=CLS, end=SEP, pad=PAD
        )
        return ids[order]

    train = [
        (x, y)
        for x, votes in zip(found.train.texts, found.train.votes, strict=True)
        if (y := wrench.majority(votes)) is not None
    ]
    valid = list(zip(found.valid.texts, found.valid.labels, strict=True))
    for part, examples in (("train.json", train), ("valid.json", valid)):
        if len(examples) < s.batch:
            raise DataError(
                f"{data}: {part} has {len(examples)} examples with a label, fewer than batch={s.batch}: give a smaller batch"
            )

    def shuffled(examples: list[tuple[str, int]], most: int | None = None) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(examples), generator=source)[:most]
        return tokens([x for x, _ in examples], order), torch.tensor([y for _, y in examples])[order]

    silent = len(found.train.texts) - len(train)
    described = f"{found.name}: words hashed to ids, labels by majority vote, {silent} texts without a vote left out"
    return shuffled(train), shuffled(valid, s.batch), len(found.classes), described
