"""What asv collects, and nothing else: it imports every file here and takes every name that starts with ``time_``,
``track_``, ``mem_`` or ``peakmem_`` for a benchmark, imported ones too."""
