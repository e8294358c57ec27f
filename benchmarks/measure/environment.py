"""A note of where a number was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

BUSY = 1.0
"""Load per CPU above which a machine is called busy."""

SETTINGS = (
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)
"""Environment variables that change memory or speed. They hold settings, no names and no paths."""


def environment(*, device: torch.device | str = "cpu", dtype: torch.dtype | str = torch.float64) -> dict[str, Any]:
    """Where a number was measured: enough to compare machines, nothing that names a user, a host or a path.

    Args:
        device: that of the measurement.
        dtype: likewise; a word for what is no dtype, such as autocast.
    """
    commit, dirty = _commit()
    load = load_average()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "memory_bytes": _memory(),
        "threads": torch.get_num_threads(),
        **_accelerator(torch.device(device)),
        "dtype": str(dtype).removeprefix("torch."),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "load_average": load,
        "busy": None if load is None else busy(load[0]),
        "commit": commit,
        "dirty": dirty,
    }


def load_average() -> list[float] | None:
    """Processes that ran or waited, on average over the last 1, 5 and 15 minutes; None where the system does not say."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None


def busy(load: float, cpus: int | None = None) -> bool:
    """Whether more processes want to run than there are CPUs, so that times of this moment are not to be trusted.

    Args:
        load: average number of processes that run or wait.
        cpus: how many there are; this machine's if None.
    """
    return load > BUSY * (cpus or os.cpu_count() or 1)


def _accelerator(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": device.type, "device_memory_bytes": None, "driver": None, "cuda": None, "cudnn": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_bytes": properties.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    """Version of the NVIDIA driver: torch does not know it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        words = []
    versions = [w for w in words if w[0].isdigit() and w.count(".") >= 1]
    if versions:
        return versions[0]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] if found else None


def _cpu_name() -> str:
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or "unknown"


def _memory() -> int | None:
    """Of the machine, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the code that runs and whether it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent.parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=20).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != here:
            return None, None  # installed inside some other project's checkout
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None
