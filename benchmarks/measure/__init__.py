"""What a measurement rests on: a synchronised clock, exact peak memory, and a note of where it was taken.

Time and memory are never measured in the same pass: counting storages slows every operation down.
"""

from .environment import environment
from .live_bytes import peak_bytes
from .timing import LONG_SAMPLE, Timing, paired_timing, synchronise

__all__ = ["LONG_SAMPLE", "Timing", "environment", "paired_timing", "peak_bytes", "synchronise"]
