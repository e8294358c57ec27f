"""What the allocators say: a second opinion on the exact count, with the scratch that kernels take for themselves."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], Any]


def allocator_peak_bytes(fn: Work) -> int:
    """Largest number of bytes that torch's CPU allocator had given out to ``fn`` at any one time.

    Every allocation and release is an event of `torch.profiler`; the peak is that of their running sum. It sees the scratch
    inside kernels, to which `peak_bytes` is blind, and so depends on the number of threads and on the machine's instructions.
    It does not see memory that is not torch's.

    Args:
        fn: what to measure, called once before (what is only made once belongs to nobody); its result counts, what it is
            given does not.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes of itself to standard error
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            fn()
    finally:
        if enabled:
            gc.enable()
    results: Any = profiler.profiler
    changes = [
        (event.start_ns(), event.nbytes())
        for event in results.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    ]
    now = highest = 0
    for _, nbytes in sorted(changes, key=lambda change: change[0]):  # stable: equal times keep their order
        now += nbytes
        highest = max(highest, now)
    return highest


def cuda_memory(fn: Work, device: torch.device | str) -> dict[str, int] | None:
    """What the caching allocator of a CUDA device says of ``fn``; None on any other device.

    Args:
        fn: what to measure, called once before, so that workspaces and autotuning are not its own.
        device: which.

    Returns:
        bytes, each peak with all that was there before:
        requested_bytes: what was asked for, without rounding: comparable with `peak_bytes`, and between GPUs.
        allocated_bytes: blocks of 512 bytes and more.
        reserved_bytes: segments taken from the driver: what decides whether memory runs out, though it depends on what
            ran before.
        before_bytes: allocated when ``fn`` began.
        and two counts: alloc_retries, of times that the cache was emptied to make room (the time of such work is not its
        own), and ooms, of allocations that failed.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_stats(device)
    fn()
    torch.cuda.synchronize(device)
    after = torch.cuda.memory_stats(device)
    return {
        "requested_bytes": after["requested_bytes.all.peak"],
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
        "before_bytes": before["allocated_bytes.all.current"],
        "alloc_retries": after["num_alloc_retries"] - before["num_alloc_retries"],
        "ooms": after["num_ooms"] - before["num_ooms"],
    }
