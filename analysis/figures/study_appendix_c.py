"""SAMA's Appendix C as extracted: the meta-gradient that it gives along training, and its diagonal on pure noise."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..style import ARMS, WIDTH
from .common import band, better

SPACES = {"mwn": "Meta-Weight-Net", "example": "a logit an example"}


def draw(rows: pd.DataFrame) -> Figure | None:
    """Medians and whole ranges over seeds."""
    training, noise = rows[rows["part"] == "training"], rows[rows["part"] == "noise"]
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    (mwn, example), (error, signs) = figure.subplots(2, 2)
    for axes, (space, title) in zip((mwn, example), SPACES.items(), strict=True):
        mine = training[training["space"] == space]
        printed = mine[mine["formula"] == "as extracted"]
        for (lr, found), look in zip(printed.groupby("lr"), ARMS[1:], strict=False):
            band(axes, found, "t", "cosine", look, f"as extracted, learning rate {lr:g}")
        band(axes, mine[mine["formula"] == "released code"], "t", "cosine", ARMS[0], "released code")
        band(axes, mine[mine["formula"] == "identity"], "t", "cosine", ARMS[5], "identity (SAMA-NA)")
        axes.axhline(0, color="#888888", linewidth=0.7)
        axes.set(xscale="log", xlabel="step $t$ of Adam", ylabel="cosine to the exact", ylim=(-1.08, 1.08))
        axes.set_title(title, loc="left")
        better(axes, "up")
    for axes, value, title in (
        (error, "relative_error", "stationary noise: error of the diagonal"),
        (signs, "sign_agreement", "stationary noise: signs that agree"),
    ):
        for formula, label, look in (
            ("as extracted", "as extracted, any learning rate", ARMS[3]),
            ("released code", "released code", ARMS[0]),
        ):
            band(axes, noise[noise["formula"] == formula], "mean", value, look, label)
        axes.set(xlabel="mean of the gradient / its standard deviation", ylim=(0, 1.05))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title(title, loc="left")
    better(error, "down")
    better(signs, "up")
    for axes in figure.axes:
        axes.grid()
    handles = [*mwn.get_legend_handles_labels()[0], error.get_legend_handles_labels()[0][0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
