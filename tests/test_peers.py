"""Other libraries beside this one: every adapter computes what it says, and whatever goes wrong is a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis import peer_tables, results
from analysis.figures import common
from benchmarks import peer_cells
from benchmarks.accuracy import compare
from benchmarks.cells import Cell
from benchmarks.cli import main
from benchmarks.peers import LIBRARIES, METHODS, Case, Library, Variant, contestants
from benchmarks.peers.base import IMPLICIT
from benchmarks.peers.case import Task, case_of, in_float64
from benchmarks.peers.reference import reference
from benchmarks.worker import Desk, groups, work
from estimators import NotApplicableError

F64 = torch.float64
ROUNDING = 1e-10
STEPS = 5

KNOWN: dict[tuple[str, str, str], tuple[float, float]] = {
    ("sama", "hypergradbench", "SAMA()"): (1e-6, 1.0),  # a difference with the paper's step
    ("cg", "torchopt", "solve_normal_cg"): (0.0, 2.0),  # of another system at as many steps
    ("cg", "betty", "cg"): (1e-5, 10.0),  # 0.1.1: the direction uses the old residual
    ("unroll-adam", "higher", "innerloop_ctx, Adam"): (1e-6, 1.0),  # eps before the bias correction
    ("unroll-adam", "torchopt", "MetaAdam"): (0.0, 1e-3),
    ("unroll-adam", "torchopt", "MetaAdam, accelerated"): (0.0, 0.1),
}
"""Contestants whose answer is not the reference's, and between what their errors lie."""


def task(method: str, **settings: Any) -> Task:
    """A strongly convex one: conjugate gradient meets no negative curvature."""
    settings = {"width": 10, "weight_decay": 1.0, "batch": 8, "lr": 0.05} | settings
    return Task(
        problem="mlp_reweighting", settings=settings, method=method, steps=STEPS, settle=20, lr=0.05, dtype=F64  # type: ignore[arg-type]
    )  # fmt: skip


@cache
def made(method: str) -> tuple[Case, dict[str, torch.Tensor]]:
    case = case_of(task(method))
    return case, reference(in_float64(case, task(method)))


ALL = [(method, library.name, name) for method in METHODS for library, name, _ in contestants(method)]


@pytest.mark.parametrize(("method", "library", "name"), ALL)
def test_every_adapter_computes_the_reference(method: str, library: str, name: str) -> None:
    found = LIBRARIES[library]
    if not found.present:
        pytest.skip(f"{library} is not installed: {found.install}")
    case, true = made(method)
    how = found.variants[method, name]
    call = how.make(case)
    before = [x.clone() for x in [*case.params.values(), *case.hparams.values()]]
    answer, again = call(), call()
    assert all(torch.equal(a, b) for a, b in zip(before, [*case.params.values(), *case.hparams.values()], strict=True))
    if answer is None:
        return
    answer, again = (getattr(a, "hparams", a) for a in (answer, again))
    assert answer.keys() == true.keys()
    assert all(torch.allclose(answer[k], again[k], rtol=1e-12, atol=0) for k in answer)  # every call does the same
    low, high = KNOWN.get((method, library, name), (0.0, ROUNDING))
    error = compare(answer, true)["relative_error"]
    assert low <= error <= high, error


@pytest.mark.parametrize("method", IMPLICIT)
def test_the_reference_is_dense_linear_algebra(method: str) -> None:
    case, true = made(method)
    keys, sizes = list(case.params), [x.numel() for x in case.params.values()]
    at = torch.cat([x.reshape(-1) for x in case.params.values()])
    lam = torch.cat([x.reshape(-1) for x in case.hparams.values()])

    def loss(flat: torch.Tensor, flat_lam: torch.Tensor, of: Callable[..., torch.Tensor]) -> torch.Tensor:
        parts = [x.reshape(case.params[k].shape) for k, x in zip(keys, flat.split(sizes), strict=True)]
        lams = flat_lam.split([x.numel() for x in case.hparams.values()])
        hparams = {k: x.reshape(y.shape) for (k, y), x in zip(case.hparams.items(), lams, strict=True)}
        return of(dict(zip(keys, parts, strict=True)), hparams)

    hessian = torch.autograd.functional.hessian(lambda x: loss(x, lam, case.losses[-1]), at)
    mixed = torch.autograd.functional.jacobian(
        lambda y: torch.autograd.functional.jacobian(lambda x: loss(x, y, case.losses[-1]), at, create_graph=True), lam
    )
    leaf = at.clone().requires_grad_()
    (c,) = torch.autograd.grad(loss(leaf, lam, case.outer), leaf)
    assert float(torch.linalg.eigvalsh(hessian).min()) > 0
    if method == "neumann":
        step = torch.eye(len(at), dtype=F64) - case.lr * hessian
        x = case.lr * sum(torch.linalg.matrix_power(step, j) @ c for j in range(STEPS + 1))
    else:  # the minimiser over the Krylov space, by an orthonormal basis of it
        basis = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(hessian, j) @ c for j in range(STEPS)], 1))[0]
        x = basis @ torch.linalg.solve(basis.T @ hessian @ basis, basis.T @ c)
    expected = -(mixed.T @ x)
    found = torch.cat([true[k].reshape(-1) for k in case.hparams])
    assert float((found - expected).norm() / expected.norm()) < 1e-8


@pytest.mark.parametrize("method", ["unroll", "unroll-adam"])
def test_the_reference_of_whole_trainings(method: str) -> None:
    """Differences of the training that the reference itself makes. (SAMA's is held to by the library's own, exact one.)"""
    case, true = made(method)
    plain = replace(case, method="run" if method == "unroll" else "run-adam")
    name, h = "weight.2.bias", 1e-5

    def outer(by: float) -> float:
        moved = {k: x + by if k == name else x for k, x in case.hparams.items()}
        return float(case.outer(reference(replace(plain, hparams=moved)), moved))

    numerical = (outer(h) - outer(-h)) / (2 * h)
    assert float(true[name]) == pytest.approx(numerical, rel=1e-4)


def cell(name: str, method: str = "neumann", **other: Any) -> Cell:
    chosen = {"problem": "mlp_reweighting", "settings": {"width": 10, "batch": 8}, "dtype": "float64"} | other
    meta = {"method": method, "steps": 2, "settle": 2, "lr": None}
    return Cell(estimator=name, kind="peers", meta=meta, **chosen)


def contender(make: Callable[[Case], Callable[[], Any]], module: str = "json") -> Library:
    return Library(
        name="mine", module=module, install="pip install it", variants={("neumann", "way"): Variant(make, "a remark")}
    )


def rows_of(todo: list[Cell], out: Path) -> list[dict[str, Any]]:
    work(todo, Desk(out, lambda *_: None), {"budget": 0.01, "least": 1, "most": 2}, together=True)
    return [json.loads(c.file(out).read_text()) for c in todo]


def raises(_: Case) -> Callable[[], Any]:
    raise RuntimeError("no such operator")


def moves(case: Case) -> Callable[[], Any]:
    def step() -> Any:
        next(iter(case.params.values())).add_(1.0)
        return case.hparams

    return step


def nan(case: Case) -> Callable[[], Any]:
    return lambda: {k: torch.full_like(x, torch.nan) for k, x in case.hparams.items()}


def zero(case: Case) -> Callable[[], Any]:
    return lambda: {k: torch.zeros_like(x) for k, x in case.hparams.items()}


@pytest.mark.parametrize(
    ("make", "status", "failure", "says"),
    [
        (raises, "failed", "error", "no such operator"),
        (moves, "failed", "error", "it changed the weights"),
        (nan, "failed", "nan", "the answer is NaN or infinite"),
        (zero, "ok", None, None),
    ],
)
def test_whatever_goes_wrong_is_a_row_and_the_others_go_on(
    make: Any, status: str, failure: str | None, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIBRARIES, "mine", contender(make))
    other, ours = rows_of([cell("mine: way"), cell("hypergradbench: Implicit(Neumann)")], tmp_path)
    assert (other["status"], other["failure"]) == (status, failure)
    assert says is None or says in other["reason"]
    if make is not moves:
        assert ours["status"] == "ok" and ours["accuracy"]["relative_error"] < ROUNDING
        assert ours["peers"]["library"] == "hypergradbench" and ours["cost"]["peak_bytes"] > 0
    frame = results.load(tmp_path)
    found = peer_tables.with_ratios(frame).set_index("estimator")
    if make is zero:
        assert other["accuracy"]["relative_error"] == 1.0
        assert found.loc["mine: way", "wrong"]
        assert found["time_to_best"].isna().all()  # a wrong answer is no yardstick


def test_a_library_that_is_absent_is_a_row_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = contender(zero, module="no_such_module_here")
    assert absent.version is None
    monkeypatch.setitem(LIBRARIES, "mine", absent)
    (row,) = rows_of([cell("mine: way")], tmp_path)
    assert row["status"] == "refused"
    assert row["reason"] == "skipped: not installed (pip install it)"


def test_ratios_are_to_the_best_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(case: Case) -> Callable[[], Any]:
        ours = LIBRARIES["hypergradbench"].variants["neumann", "Implicit(Neumann)"].make(case)

        def twice() -> Any:
            ours()
            kept = torch.zeros(100_000)
            return ours() if kept.numel() else None

        return twice

    monkeypatch.setitem(LIBRARIES, "mine", contender(same))
    rows_of([cell("hypergradbench: Implicit(Neumann)"), cell("mine: way")], tmp_path)
    found = peer_tables.with_ratios(results.load(tmp_path)).set_index("estimator")
    ours, other = found.loc["hypergradbench: Implicit(Neumann)"], found.loc["mine: way"]
    assert ours["time_to_best"] == pytest.approx(1 / other["to_first"])
    assert ours["peak_to_best"] == pytest.approx(ours["peak_bytes"] / other["peak_bytes"])
    assert ours["time_to_best"] < 1 and ours["peak_to_best"] < 1
    assert other["time_to_best"] != other["time_to_best"]
    lines = peer_tables.summary(results.load(tmp_path))[2:]
    assert [line.split(" | ")[1] for line in lines] == ["**Implicit(Neumann)**", "mine way"]
    assert lines[1].split(" | ")[4] == "-"


def test_problems_that_not_every_peer_can_be_given_are_refused() -> None:
    with pytest.raises(NotApplicableError, match="2 stages"):
        case_of(Task(problem="two_stage_quadratic", settings={}, method="cg", steps=2, settle=2))
    with pytest.raises(NotApplicableError, match="in its rule"):
        case_of(Task(problem="noisy_quadratic", settings={}, method="cg", steps=2, settle=2))


OWN = """
import torch
from estimators import SGD, Problem, Stage

def make(dtype=torch.float64):
    data = torch.arange(1.0, 4.0, dtype=dtype)
    loss = lambda p, h, t: (data * (p["w"] - h["shift"]) ** 2).sum() + p["bias"] ** 2
    return Problem(
        name="own", stages=[Stage(loss=loss, rule=SGD(lr=0.05), stream=lambda t: t, steps=3)],
        outer=lambda p, h: (p["w"] ** 2).sum() + p["bias"] + h["shift"].sum(),
        start={"w": torch.ones(3, dtype=dtype), "bias": torch.ones((), dtype=dtype)}, hparams={"shift": torch.zeros(3, dtype=dtype)},
    )

def untyped():
    return make()
"""


def test_the_command_measures_a_problem_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    words = ["peers", "own.py:make", "--method", "cg", "--steps", "3", "--budget", "0.02", "--out", "found"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "3 steps of conjugate gradient; own.py:make" in said
    assert "figures/peers.png" in said and (tmp_path / "found" / "figures" / "peers.png").stat().st_size > 10_000
    frame = results.load(tmp_path / "found").set_index(["method", "estimator"])
    ours = frame.loc["cg", "hypergradbench: Implicit(CG)"]
    assert ours["status"] == "ok" and ours["relative_error"] < 1e-5  # float32
    for name, library in LIBRARIES.items():
        mine = frame[frame.index.get_level_values(1).str.startswith(f"{name}: ")]
        if len(mine) and not library.present:
            assert set(mine["status"]) == {"refused"} and "skipped: not installed" in said
    assert "| **Implicit(CG)** |" in (tmp_path / "found" / "summary.md").read_text()
    assert main(["table", "found"]) == 0
    assert "conjugate gradient" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "no problem is called 'nowhere'"),
        (["own.py:untyped"], "takes no dtype"),
        (["--method", "magic"], "no method is called 'magic'; there are: cg, neumann, unroll"),
        (["--set", "wide=3"], "takes no setting 'wide'"),
        (["--steps", "0"], "--steps, --settle and --threads must be at least 1"),
        (["--lr", "-1"], "--lr -1.0: must be positive"),
        (["--device", "gpu"], "--device"),
    ],
)
def test_wrong_command_lines_are_explained(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert main(["peers", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (9.5, 9.7), (3e-3, 0.4), (100.0, 9e4)])
def test_axes_hold_all_and_have_round_ticks(low: float, high: float) -> None:
    left, right = common.log_limits(low, high)
    assert left < low and right > high and right / left >= 2.5 * (1 - 1e-12)
    ticks = common.log_ticks(left, right)
    assert ticks and len(ticks) <= 8 and all(left <= t <= right for t in ticks)


def test_cells_of_a_method_share_a_process_and_methods_do_not() -> None:
    todo = [cell(peer_cells.named("mine", "a")), cell(peer_cells.named("mine", "b")), cell("mine: a", "cg")]
    assert [len(g) for g in groups(todo, together=True)] == [2, 1]
    assert len({c.id for c in todo}) == 3


def test_every_library_says_how_to_get_it() -> None:
    assert not [x.name for x in LIBRARIES.values() if not x.present and not x.install]
    assert {m for x in LIBRARIES.values() for m, _ in x.variants} == set(METHODS)
