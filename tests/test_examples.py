"""The scripts in examples/ do what they say, at a small size."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(p.stem for p in (ROOT / "examples").glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_tested_here_and_shown_on_its_page() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    for name in SCRIPTS:
        assert f'load("{name}")' in here and f"examples/{name}.py" in page


def test_closed_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "angles.svg"
    found = load("closed_forms").main(["--conds", "2", "30", "--seeds", "1", "--figure", str(figure)])
    assert max(a for angles in found["unroll"] for a in angles) < 1e-6
    for name in ("CG, 5 products", "Neumann, 20", "SAMA, exact product"):
        (well,), (badly,) = found[name]
        assert well < badly  # a worse condition, a larger angle
    assert figure.stat().st_size > 10_000
    assert "condition number" in capsys.readouterr().out


def test_clean_noisy_labels(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = load("clean_noisy_labels").main(["--steps", "300", "--seeds", "1"])
    assert row["auroc"] > 0.7 and row["clean"] > row["noisy"]
    assert "AUROC" in capsys.readouterr().out


def test_tune_learning_rate(capsys: pytest.CaptureFixture[str]) -> None:
    script = load("tune_learning_rate")
    (greedy,) = script.main(["--start", "0.01", "--steps", "150"])
    assert greedy["tuned"] > greedy["fixed"] + 0.1 and greedy["largest"] > 0.05
    (longer,) = script.main(["--start", "0.01", "--steps", "150", "--horizon", "5", "--meta-lr", "0.15"])
    assert longer["tuned"] > longer["fixed"] + 0.1
    assert longer["largest"] != greedy["largest"]
    assert "held-out digits" in capsys.readouterr().out
