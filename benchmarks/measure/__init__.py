"""What a measurement rests on: a synchronised clock, exact peak memory, counters, and a note of where it was taken.

Time, memory and counts are never measured in the same pass: watching operations slows every one of them down.
"""

from .allocator import allocator_peak_bytes, cuda_memory
from .clock import Overhead, Stopwatch, overhead, synchronise
from .counters import Counter, Counts, counting
from .environment import busy, environment, load_average
from .live_bytes import peak_bytes
from .of_meta_step import counts_of, memory_of
from .order_statistics import Summary, median_interval, summary
from .split import CATEGORIES, Category, Memory, Meter, peak
from .timing import LONG_SAMPLE, Timing, interleaved, paired_timing

__all__ = [
    "CATEGORIES",
    "LONG_SAMPLE",
    "Category",
    "Counter",
    "Counts",
    "Memory",
    "Meter",
    "Overhead",
    "Stopwatch",
    "Summary",
    "Timing",
    "allocator_peak_bytes",
    "busy",
    "counting",
    "counts_of",
    "cuda_memory",
    "environment",
    "interleaved",
    "load_average",
    "median_interval",
    "memory_of",
    "overhead",
    "paired_timing",
    "peak",
    "peak_bytes",
    "summary",
    "synchronise",
]
