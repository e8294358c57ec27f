"""What SAMA's paper measured: ratios of its Tables 2, 8 and 9, to be shown beside ours. Other hardware, other code.

Source: Choe et al. 2023, "Making Scalable Meta Learning Practical" (NeurIPS), Tables 2, 8 and 9: BERT-base on noisy labels, ten
steps a meta step. Table 8 is AGNews, Table 9 IMDB; Table 2 has a global batch of 48 on V100 GPUs. They print samples a second
and GB; the ratios of 8 and 9 are those to their own row of plain fine-tuning, and costs in base steps 10 (1 / ratio - 1).
"""

from __future__ import annotations

from collections.abc import Mapping
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


class Printed(NamedTuple):
    """A row of Tables 8 and 9 as it stands there.

    Attributes:
        accuracy: on the test set, in percent.
        throughput: samples a second.
        memory: GB.
    """

    accuracy: float
    throughput: float
    memory: float


AGNEWS = {
    None: Printed(85.79, 169.16, 7.77),
    Row("unroll"): Printed(85.78, 28.07, 22.94),
    Row("cg"): Printed(86.78, 65.14, 22.03),
    Row("neumann"): Printed(86.65, 67.03, 19.70),
    Row("t1t2", 1): Printed(86.36, 43.69, 10.81),
    Row("sama-na"): Printed(86.55, 137.90, 10.30),
    SAMA: Printed(89.05, 134.56, 11.12),
    Row("sama", 10, 2): Printed(88.85, 226.27, 8.00),
    Row("sama", 10, 4): Printed(89.02, 298.28, 6.46),
}
"""Table 8. None: plain fine-tuning on one GPU."""

IMDB = {
    None: Printed(78.16, 144.39, 6.60),
    Row("unroll"): Printed(80.25, 24.24, 22.03),
    Row("cg"): Printed(81.01, 56.27, 21.92),
    Row("neumann"): Printed(79.92, 57.85, 19.75),
    Row("t1t2", 1): Printed(80.47, 37.53, 10.35),
    Row("sama-na"): Printed(81.92, 117.86, 9.93),
    SAMA: Printed(84.31, 116.94, 10.84),
    Row("sama", 10, 2): Printed(85.18, 196.48, 7.84),
    Row("sama", 10, 4): Printed(84.19, 263.74, 6.39),
}
"""Table 9."""

V100 = {
    Row("neumann"): (82.9, 26.0),
    Row("cg"): (82.1, 28.4),
    Row("sama-na"): (144.1, 13.7),
    SAMA: (142.0, 14.3),
    Row("sama", 10, 2): (241.2, 10.4),
    Row("sama", 10, 4): (396.7, 7.4),
}
"""Table 2: samples a second, and GB."""


def _to_plain(rows: Mapping[Row | None, Printed]) -> dict[Row, Ratio]:
    one = rows[None]
    return {k: Ratio(r.throughput / one.throughput, r.memory / one.memory) for k, r in rows.items() if k is not None}


TABLE_8 = _to_plain(AGNEWS)

TABLE_9 = _to_plain(IMDB)

TABLE_2 = {row: Ratio(t / V100[SAMA][0], m / V100[SAMA][1]) for row, (t, m) in V100.items()}
"""Relative to SAMA on one GPU."""


def find(workload: str, estimator: str, unroll: int, workers: int) -> Row | None:
    """The paper's row for one of ours, None if it has none."""
    row = Row(estimator, unroll, workers)
    return row if workload == WORKLOAD and row in NAMES else None
