"""What every test shares. Nothing here changes torch's default dtype: a test that wants float64 says so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

# One thread: tensors here are small, and sums do not depend on how they were split.
torch.set_num_threads(1)

# No deadline, since the first call in a process pays for torch's lazy imports. Derandomized, so that a commit cannot
# fail for an example that another commit would have met as well.
settings.register_profile("hypergradbench", deadline=None, derandomize=True)
settings.load_profile("hypergradbench")


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """A fixed seed for every test, and no test may leave a changed default dtype behind."""
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32, "a test changed torch's default dtype: pass dtype= instead"


@pytest.fixture
def f64() -> torch.dtype:
    """The dtype in which estimators are compared with their definitions."""
    return torch.float64


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that is installed; of a module, since playwright's event loop is in other tests' way."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra browser)")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
