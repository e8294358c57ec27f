"""What results say: reads result files only, and never imports torch."""

from .results import load

__all__ = ["load"]
