"""A run that records nothing is the loop that one would write with `torch.optim`: the same numbers in the same bytes.

Its time is `python -m benchmarks.plain_loop`'s to measure.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from benchmarks.measure import peak
from benchmarks.plain_loop import OURS, TorchLoop, loops
from benchmarks.workloads import WORKLOADS, Workload

TRANSFORMER = pytest.param(
    "gpt_mixture", marks=pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
)
RULES = ["sgd", "momentum", "adam", "adamw", "amsgrad", "adagrad"]


def workload(name: str) -> Workload:
    return WORKLOADS[name].make(size="base", batch=32) if name == "mlp_decay" else WORKLOADS[name].make(size="tiny")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["mlp_decay", TRANSFORMER])
def test_numbers_and_bytes(name: str, rule: str) -> None:
    works = loops(workload(name), rule, steps=2)
    ours, theirs = works[OURS], works["torch.optim, fused"]
    bytes_of = {name: peak(work, work.resident).peak for name, work in works.items()}
    assert bytes_of[OURS] <= 1.03 * min(bytes_of.values())
    assert isinstance(theirs, TorchLoop)
    found, want = ours.resident["parameters"], theirs.params
    for k, x in found.items():
        torch.testing.assert_close(x, want[k].detach(), rtol=1e-5, atol=1e-6)
