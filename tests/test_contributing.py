"""The example in CONTRIBUTING.md: complete, short, right, and registered in both of the ways that it shows."""

from __future__ import annotations

import re
import sys
import tomllib
import types
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from estimators import SGD, Momentum, NotApplicableError, Problem, Stage, Unroll, estimate, registry
from estimators.registry import ENTRY_POINTS, Registry
from estimators.tree import flatten

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE, REGISTRATION = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.M | re.S)
STEPS, LR = 7, 0.05
F64 = torch.float64


@pytest.fixture
def drmad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The example as a module, from a file."""
    path = tmp_path / "drmad.py"
    path.write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = spec_from_file_location("drmad", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "drmad", module)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def data() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    a = torch.randn(5, 5, generator=g, dtype=F64)
    rows = {k: torch.randn(5, generator=g, dtype=F64) for k in ("start", "lam", "target")}
    return {"a": a @ a.T / 5, "b": torch.randn(STEPS, 5, generator=g, dtype=F64), **rows}


def quartic(rule) -> Problem:
    """L_t = w'Aw/2 + sum(exp(lam) w^2)/2 + sum(w^4)/4 - b_t'w: H and M depend on w, the batch on t; two leaves of w."""
    d = data()

    def loss(params, hparams, b):
        w = torch.cat([params["head"], params["body"]])
        return w @ d["a"] @ w / 2 + (hparams["lam"].exp() * w**2).sum() / 2 + (w**4).sum() / 4 - b @ w

    def outer(params, hparams):
        return (torch.cat([params["head"], params["body"]]) - d["target"]).square().sum() / 2

    start = {"head": d["start"][:2], "body": d["start"][2:]}
    return Problem("quartic", [Stage(loss, rule, lambda t: d["b"][t], STEPS)], outer, start, {"lam": d["lam"]})


def definition() -> torch.Tensor:
    """DrMAD of `quartic`, from its paper, with the derivatives by hand."""
    d = data()
    w = start = d["start"]
    for t in range(STEPS):
        w = w - LR * (d["a"] @ w + d["lam"].exp() * w + w**3 - d["b"][t])
    c, total = w - d["target"], torch.zeros(5, dtype=F64)
    for t in range(STEPS - 1, -1, -1):
        x = start + (w - start) * t / STEPS
        total = total - LR * d["lam"].exp() * x * c
        c = c - LR * (d["a"] + torch.diag(d["lam"].exp() + 3 * x**2)) @ c
    return total


def test_the_example_is_one_file_under_60_lines_and_one_registration() -> None:
    assert len(EXAMPLE.splitlines()) < 60
    assert REGISTRATION.count("register(") == 1


def test_the_registered_example_is_its_definition(drmad, monkeypatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))  # other tests shall not see it
    exec(REGISTRATION, {"ENTRY": drmad.ENTRY})
    assert registry["drmad"].claim.refuses(quartic(SGD(lr=LR))) is None
    found = estimate(quartic(SGD(lr=LR)), "drmad")
    torch.testing.assert_close(found.hparams["lam"], definition(), rtol=1e-12, atol=1e-14)
    assert found.cost.products == STEPS
    assert found.cost.kept_bytes == 5 * 8  # one state, not seven
    unrolled = estimate(quartic(SGD(lr=LR)), Unroll()).hparams["lam"]
    assert not torch.allclose(found.hparams["lam"], unrolled, rtol=1e-3)  # the problem can tell them apart


def test_the_example_is_exact_where_it_says_so(drmad) -> None:
    """Second derivatives that do not depend on theta: a quadratic pulled towards lam, in two stages."""
    d = data()

    def loss(params, hparams, b):
        w = params["w"]
        return w @ d["a"] @ w / 2 + (w - hparams["lam"]).square().sum() - b @ w

    stage = Stage(loss, SGD(lr=LR), lambda t: d["b"][t], STEPS)
    problem = Problem("pulled", [stage, stage], lambda p, h: p["w"].pow(3).sum(), {"w": d["start"]}, {"lam": d["lam"]})
    found, truth = estimate(problem, drmad.DrMAD()), estimate(problem, Unroll())
    torch.testing.assert_close(flatten(found.hparams), flatten(truth.hparams), rtol=1e-12, atol=1e-14)


def test_the_example_refuses_what_it_cannot_do(drmad) -> None:
    with pytest.raises(NotApplicableError, match="use Unroll"):
        estimate(quartic(Momentum(lr=LR)), drmad.DrMAD())


def test_the_entry_point_registers_the_example(drmad, tmp_path: Path) -> None:
    (shown,) = re.findall(r"^ *```toml\n(.*?)^ *```$", TEXT, flags=re.M | re.S)
    ((name, target),) = tomllib.loads(shown)["project"]["entry-points"][ENTRY_POINTS].items()
    info = tmp_path / "your_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: your-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{name} = {target.removeprefix('your_package.')}\n")
    assert Registry()[name].estimator == drmad.DrMAD()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|estimators|benchmarks|analysis)/[\w/.]*)`", TEXT))))
def test_the_paths_that_the_page_names_exist(path: str) -> None:
    assert (ROOT / path).exists()
