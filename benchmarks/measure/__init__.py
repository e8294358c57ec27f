"""What a measurement rests on: a synchronised clock, exact peak memory, and a note of where it was taken.

Time and memory are never measured in the same pass: counting storages slows every operation down.
"""

from .environment import environment
from .live_bytes import peak_bytes
from .meta_memory import memory_of_meta_step, memory_of_training
from .split import CATEGORIES, Category, Memory, Meter, peak
from .timing import LONG_SAMPLE, Timing, paired_timing, synchronise

__all__ = [
    "CATEGORIES",
    "LONG_SAMPLE",
    "Category",
    "Memory",
    "Meter",
    "Timing",
    "environment",
    "memory_of_meta_step",
    "memory_of_training",
    "paired_timing",
    "peak",
    "peak_bytes",
    "synchronise",
]
