"""Where a sweep's processes run. One a file; the rows are the same whichever it is."""

from .base import Executor
from .local import Local

__all__ = ["Executor", "Local"]
