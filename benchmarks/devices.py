"""Devices by name, as flags and files give them."""

from __future__ import annotations


def misnamed(device: str) -> str | None:
    """Why ``device`` is no name of a device; None if it is one."""
    kind, _, index = device.partition(":")
    if kind in ("cpu", "cuda") and (not index or index.isdecimal()) and device != "cpu:" and device != "cuda:":
        return None
    return f'{device!r} is no device: write "cpu", "cuda" or "cuda:1"'


def absent(device: str) -> str | None:
    """Why this machine does not have ``device``; None if it has."""
    import torch

    if not device.startswith("cuda"):
        return None
    if not torch.cuda.is_available():
        return f"device {device!r}: torch finds no CUDA device here; use --device cpu"
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        return f"device {device!r}: there are only {torch.cuda.device_count()} CUDA devices here"
    return None
