"""Which hyperparameters a run reads at all, asked of autograd and of first derivatives alone."""

from __future__ import annotations

import torch

from .adaptation import rule_hparams
from .products import leaves
from .stage import Record, Stage
from .tree import Tree


def loss_hparams(stage: Stage, params: Tree, hparams: Tree, step: int) -> list[str]:
    """The hyperparameters that the loss of one step reads; what it detaches does not count."""
    with torch.enable_grad():
        lam = leaves(hparams, hparams)
        value = stage.objective(step)(params, lam)
        if not value.requires_grad:
            return []
        found = torch.autograd.grad(value, list(lam.values()), allow_unused=True)
    return [k for k, d in zip(lam, found, strict=True) if d is not None]


def influential(stage: Stage, record: Record, hparams: Tree) -> tuple[list[str], int]:
    """The hyperparameters that sit in the rule or that the loss of some step reads.

    Batches may differ in what they read, so steps are asked, the last one first, until every hyperparameter was seen.

    Returns:
        (their names in the order of ``hparams``, number of steps asked).
    """
    end, asked = record.end, 0
    names = set(rule_hparams(stage, end, hparams))
    while len(names) < len(hparams) and asked < stage.steps:
        asked += 1
        names |= set(loss_hparams(stage, end.params, hparams, end.step - asked))
    return [k for k in hparams if k in names], asked
