"""A note of where a number was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment(*, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Where a number was measured: enough to compare machines, nothing that names a user, a host or a path."""
    commit, dirty = _commit()
    kind = torch.device(device).type
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if kind == "cuda" else kind,
        "dtype": str(dtype).removeprefix("torch."),
        "load_average": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "commit": commit,
        "dirty": dirty,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


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
