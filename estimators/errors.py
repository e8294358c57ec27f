"""The errors this library raises on purpose: each says what was wrong, where, and what to do instead."""

from __future__ import annotations


class HypergradientError(ValueError):
    """Base class: a problem, a run or an estimator was asked for something that has no right answer."""


class NonFiniteError(HypergradientError):
    """A loss, a parameter or a gradient became NaN or infinite. It is never replaced by zero."""


class NotApplicableError(HypergradientError):
    """The estimator cannot answer for this stage (no last step, a rule without derivative, ...)."""
