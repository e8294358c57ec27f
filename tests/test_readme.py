"""The README's examples run, and its links and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from estimators import Outcome, Unroll, estimate, registry

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_run_and_cg_agrees_with_the_unroll() -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert code
    g, problem = names["g"], names["problem"]
    assert g.outcomes == (Outcome.CONVERGED,)  # type: ignore[attr-defined]
    unrolled = estimate(problem, Unroll()).hparams["log_penalty"]  # type: ignore[arg-type]
    found = g.hparams["log_penalty"]  # type: ignore[attr-defined]
    assert float((found - unrolled).norm() / unrolled.norm()) < 1e-3  # float32


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def _is_ours(estimator: object) -> bool:
    """Not one that a test before this one has loaded as a plugin."""
    if isinstance(estimator, tuple):
        return all(map(_is_ours, estimator))
    return type(estimator).__module__.startswith("estimators.")


def test_every_registered_name_is_in_the_table() -> None:
    names = [name for name, entry in registry.items() if _is_ours(entry.estimator)]
    assert len(names) >= 24
    for name in names:
        assert f"`{name}`" in TEXT
