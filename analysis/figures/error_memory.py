"""What accuracy costs in memory: error against exact bytes."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from .tradeoff import Cost, data_of, draw_of

ABOUT = "Error of the direction against the peak memory of the hypergradient with the states kept for it, a panel a problem."
COST = Cost("bytes", "peak memory of the hypergradient and\nstates kept for it (bytes)")


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell."""
    return data_of(frame, COST)


def draw(frame: pd.DataFrame) -> Figure | None:
    """A panel a problem."""
    return draw_of(frame, COST)
