"""Studies: each regenerates one claim from one command. One file each, and one line in `STUDIES`."""

from __future__ import annotations

from . import (
    ablation,
    adapted_series,
    appendix_c,
    difference,
    error_bound,
    extra_update,
    greedy_digits,
    greedy_quadratic,
    horizon,
    memory_growth,
    randomness,
    rules,
    tartan,
    young_adam,
)
from .base import Claimed, Row, Study, study

__all__ = ["STUDIES", "Claimed", "Row", "Study", "study"]

STUDIES: dict[str, Study] = {
    "ablation": study(ablation),
    "adapted_series": study(adapted_series),
    "difference": study(difference),
    "error_bound": study(error_bound),
    "extra_update": study(extra_update),
    "randomness": study(randomness),
    "appendix_c": study(appendix_c),
    "young_adam": study(young_adam),
    "greedy_quadratic": study(greedy_quadratic),
    "greedy_digits": study(greedy_digits),
    "horizon": study(horizon),
    "tartan": study(tartan),
    "memory_growth": study(memory_growth),
    "rules": study(rules),
}
"""name -> the study. `hypergradbench study NAME` runs it, `hypergradbench claims` writes what was found to the docs."""
