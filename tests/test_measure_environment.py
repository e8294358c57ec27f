"""The note of where a number was measured."""

from __future__ import annotations

import getpass
import importlib
import json
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.measure import busy, environment
from benchmarks.measure.environment import SETTINGS


def test_it_names_the_machine_and_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    found = environment(dtype=torch.bfloat16)
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["dtype"] == "bfloat16"
    assert found["settings"]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert "NVIDIA_TF32_OVERRIDE" not in found["settings"]
    assert found["matmul_precision"] in ("highest", "high", "medium")
    assert (found["deterministic"], found["cudnn_benchmark"], found["tf32_matmul"]) == (False, False, False)
    assert (found["device"], found["driver"], found["cuda"], found["cudnn"]) == ("cpu", None, None, None)
    assert found["memory_bytes"] is None or 2**28 < found["memory_bytes"] < 2**45
    json.dumps(found, allow_nan=False)


def test_settings_that_change_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "are_deterministic_algorithms_enabled", lambda: True
    )  # to switch it on imports a compiler
    torch.set_float32_matmul_precision("high")
    try:
        found = environment()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (found["matmul_precision"], found["deterministic"]) == ("high", True)
    assert environment()["matmul_precision"] == "highest"


def test_it_names_nobody() -> None:
    text = json.dumps(environment())
    for secret in (str(Path.home()), os.getcwd(), str(Path(__file__).parent)):
        assert secret not in text
    for name in (getpass.getuser(), platform.node()):
        assert f'"{name}"' not in text


def test_a_busy_machine_is_called_so() -> None:
    assert busy(2.1, cpus=2)
    assert not busy(2.0, cpus=2)
    assert not busy(0.0)
    assert busy(1e6)


def test_an_nvidia_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("benchmarks.measure.environment")
    properties = SimpleNamespace(name="NVIDIA X", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\nGCC version:  gcc 12.2.0\n"
    monkeypatch.setattr(module.Path, "read_text", lambda self: text)
    assert module._accelerator(torch.device("cuda")) == {
        "device": "NVIDIA X", "device_memory_bytes": 8 * 2**30, "driver": "580.95.05", "cuda": "13.0", "cudnn": 91002,
    }  # fmt: skip
    assert all(name.isupper() for name in SETTINGS)
