"""What SAMA's paper measured: ratios of its Tables 2, 8 and 9, to be shown beside ours. Other hardware, other code.

Source: Choe et al. 2023, "Making Scalable Meta Learning Practical" (NeurIPS), Tables 2, 8 and 9: BERT-base on noisy labels, ten
steps a meta step. Table 8 is AGNews, Table 9 IMDB; Table 2 has a global batch of 48 on V100 GPUs. They print samples a second
and GB; the ratios of 8 and 9 are those to their own row of plain fine-tuning, and costs in base steps 10 (1 / ratio - 1).
"""

from __future__ import annotations

from typing import NamedTuple

CITATION = "Choe et al. 2023"
WORKLOAD = "bert_noisy"
"""Our workload that is theirs, but for generated data."""


class Ratio(NamedTuple):
    """Relative to plain fine-tuning on one GPU (in `TABLE_2`: to SAMA on one).

    Attributes:
        throughput: samples a second, relative.
        memory: peak, relative.
    """

    throughput: float
    memory: float


class Row(NamedTuple):
    """Whose figures a row of the paper holds, in our words.

    Attributes:
        estimator: registered name.
        unroll: steps before a meta step.
        workers: GPUs.
    """

    estimator: str
    unroll: int = 10
    workers: int = 1


SAMA = Row("sama")

NAMES = {
    Row("unroll"): "iterative differentiation",
    Row("cg"): "conjugate gradient",
    Row("neumann"): "Neumann series",
    Row("t1t2", 1): "DARTS",
    Row("sama-na"): "SAMA-NA",
    SAMA: "SAMA",
    Row("sama", 10, 2): "SAMA, 2 GPUs",
    Row("sama", 10, 4): "SAMA, 4 GPUs",
}
"""DARTS is T1-T2 by a central difference. It fits into memory with one step a meta step only, so that its low throughput is the
number of its meta updates, not their cost."""

TABLE_8 = {
    Row("unroll"): Ratio(0.166, 2.95),
    Row("cg"): Ratio(0.385, 2.84),
    Row("neumann"): Ratio(0.396, 2.54),
    Row("t1t2", 1): Ratio(0.258, 1.39),
    Row("sama-na"): Ratio(0.815, 1.33),
    SAMA: Ratio(0.795, 1.43),
    Row("sama", 10, 2): Ratio(1.34, 1.03),
    Row("sama", 10, 4): Ratio(1.76, 0.83),
}
"""AGNews."""

TABLE_9 = {
    Row("unroll"): Ratio(0.168, 3.34),
    Row("cg"): Ratio(0.390, 3.32),
    Row("neumann"): Ratio(0.401, 2.99),
    Row("t1t2", 1): Ratio(0.260, 1.57),
    Row("sama-na"): Ratio(0.816, 1.51),
    SAMA: Ratio(0.810, 1.64),
    Row("sama", 10, 2): Ratio(1.36, 1.19),
    Row("sama", 10, 4): Ratio(1.83, 0.97),
}
"""IMDB."""

TABLE_2 = {
    Row("neumann"): Ratio(0.584, 1.82),
    Row("cg"): Ratio(0.578, 1.99),
    Row("sama-na"): Ratio(1.015, 0.96),
    SAMA: Ratio(1.0, 1.0),
    Row("sama", 10, 2): Ratio(1.70, 0.73),
    Row("sama", 10, 4): Ratio(2.79, 0.52),
}
"""Relative to SAMA on one GPU."""

UNITS = {SAMA: (2.57, 2.35), Row("sama-na"): (2.27, 2.25), Row("neumann"): (15.2, 15.0), Row("cg"): (16.0, 15.7)}
"""Cost of one meta step in base steps, from Tables 8 and 9."""


def find(workload: str, estimator: str, unroll: int, workers: int) -> Row | None:
    """The paper's row for one of ours, None if it has none."""
    row = Row(estimator, unroll, workers)
    return row if workload == WORKLOAD and row in NAMES else None
