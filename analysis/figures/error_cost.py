"""What accuracy costs in time: error against the time of the hypergradient."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from .tradeoff import Cost, data_of, draw_of

ABOUT = "Error of the direction against the time that the hypergradient takes, a panel a problem, and what nothing beats in both."
COST = Cost("time_ratio", "time of the hypergradient, run not\nincluded / one training gradient")


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell."""
    return data_of(frame, COST)


def draw(frame: pd.DataFrame) -> Figure | None:
    """A panel a problem."""
    return draw_of(frame, COST)
