"""What accuracy costs in second-order products: the count that no machine changes."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from .tradeoff import Cost, data_of, draw_of

ABOUT = "Error of the direction against the second-order products that the hypergradient takes, a panel a problem."
COST = Cost(
    "products",
    "second-order products (count)",
    note="First-order gradients are not counted; those that take nothing else are at 0, and on no front.",
    zero=True,
)


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell."""
    return data_of(frame, COST)


def draw(frame: pd.DataFrame) -> Figure | None:
    """A panel a problem."""
    return draw_of(frame, COST)
