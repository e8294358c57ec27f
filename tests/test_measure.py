"""The measuring instruments against cases known by hand."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch.func import grad, jvp, vmap

from benchmarks import theory
from benchmarks.accuracy import compare
from benchmarks.cells import Cell, built_as, code_version, finished, row, strict, write
from benchmarks.measure import environment, paired_timing, peak_bytes
from benchmarks.point import Effort, Instance, measure, thin
from benchmarks.problems import PROBLEMS
from estimators import CG, SAMA, Implicit, Unroll, per_stage, registry, reverse_over_reverse

N = 1000
BYTES = 8 * N


@pytest.fixture
def x() -> torch.Tensor:
    return torch.arange(1.0, N + 1, dtype=torch.float64)


def test_peak_counts_what_is_made(x: torch.Tensor) -> None:
    assert peak_bytes(lambda: x + 1) == BYTES
    assert peak_bytes(lambda: torch.zeros(10)) == 40
    assert peak_bytes(lambda: torch.tensor([1.0, 2.0])) == 8


def test_peak_leaves_out_what_was_there(x: torch.Tensor) -> None:
    assert peak_bytes(lambda: x[10:].view(2, -1)) == 0
    assert peak_bytes(lambda: x.add_(1)) == 0


def test_peak_is_the_largest_sum_alive_at_once(x: torch.Tensor) -> None:
    def three_in_turn() -> torch.Tensor:
        a = x + 1
        b = a * 2
        del a
        return b + 1

    def a_view_keeps_its_base() -> torch.Tensor:
        a = (x + 1)[:1]
        return x * a

    assert peak_bytes(three_in_turn) == 2 * BYTES
    assert peak_bytes(a_view_keeps_its_base) == 2 * BYTES


def test_peak_follows_storages_that_grow() -> None:
    def grow() -> torch.Tensor:
        return torch.empty(0).resize_(100)

    assert peak_bytes(grow) == 400


def test_peak_sees_a_backward_pass(x: torch.Tensor) -> None:
    x.requires_grad_()

    def backward() -> object:
        return torch.autograd.grad(x.exp().sum(), x)  # exp, kept; its scalar sum; the 1 to start from; exp * grad

    assert peak_bytes(backward) == 2 * BYTES + 2 * 8


def test_peak_sees_through_forward_mode_and_functorch(x: torch.Tensor) -> None:
    def dual() -> object:
        with fwd.dual_level():
            return fwd.unpack_dual(fwd.make_dual(x, x + 1).sin()).tangent

    # tangent, sin(x), cos(x), cos(x) * tangent
    assert peak_bytes(dual) == 4 * BYTES
    columns = torch.eye(N, dtype=torch.float64)[:3]

    def third_power(z: torch.Tensor) -> torch.Tensor:
        return (z**3).sum()

    def column(e: torch.Tensor) -> torch.Tensor:
        return jvp(grad(third_power), (x,), (e,))[1]

    peak = peak_bytes(lambda: vmap(column)(columns))
    assert peak >= 3 * BYTES


def test_peak_repeats_and_does_not_touch_the_result(x: torch.Tensor) -> None:
    instance = Instance(PROBLEMS["biased_regression"].make(cond=5.0))
    first = peak_bytes(instance.gradient)
    assert first == peak_bytes(instance.gradient) > 0
    kept = x * 2
    peak_bytes(lambda: x * 2)
    assert torch.equal(kept, x * 2)


def test_peak_survives_an_error(x: torch.Tensor) -> None:
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: x + 1 / 0)
    assert peak_bytes(lambda: x + 1) == BYTES


def spin(seconds: float) -> None:
    """Keep this thread's processor busy: on a CPU that is the time that is measured, however busy the machine."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_paired_timing_finds_a_known_ratio() -> None:
    timing = paired_timing(lambda: spin(8e-3), lambda: spin(2e-3), budget=0.1)
    assert timing.seconds >= 8e-3
    assert timing.ratio_low <= timing.ratio <= timing.ratio_high
    assert 3.5 < timing.ratio < 4.5
    assert timing.samples >= 3


def test_waiting_is_not_working() -> None:
    """What pre-empts a sample on a busy machine is not the estimator's time."""
    timing = paired_timing(lambda: (spin(4e-3), time.sleep(8e-3)), lambda: spin(4e-3), budget=0.05)
    assert 0.8 < timing.ratio < 1.3


def test_paired_timing_does_not_wait_for_slow_calls() -> None:
    timing = paired_timing(lambda: spin(0.06), lambda: None, budget=0.01, patience=0.05)
    assert timing.samples == 1
    assert math.isfinite(timing.ratio)


def test_environment_names_the_machine_but_nobody_on_it() -> None:
    found = environment()
    assert {"torch", "python", "cpu", "threads", "commit", "dirty", "load_average", "platform", "dtype"} <= found.keys()
    assert found["threads"] == 1
    text = json.dumps(found)
    assert "/home" not in text
    assert "/root" not in text


def test_compare_against_numbers_known_by_hand() -> None:
    t = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    e = {"a": torch.tensor([6.0, 0.0]), "b": torch.tensor([8.0])}
    same = compare(e, t)
    assert same["cosine"] == pytest.approx(1)
    assert same["relative_error"] == pytest.approx(1)
    assert same["direction_error"] == pytest.approx(0, abs=1e-15)
    assert same["norm_ratio"] == pytest.approx(2)
    across = compare({"a": torch.tensor([-4.0, 0.0]), "b": torch.tensor([3.0])}, t)
    assert (across["cosine"], across["angle"]) == pytest.approx((0, 90))
    zero = compare({"a": torch.zeros(2), "b": torch.zeros(1)}, t)
    assert math.isnan(zero["cosine"])
    assert zero["relative_error"] == pytest.approx(1)


def test_compare_is_accurate_for_tiny_angles() -> None:
    t = {"a": torch.tensor([1.0, 0.0], dtype=torch.float64)}
    e = {"a": torch.tensor([1.0, 1e-12], dtype=torch.float64)}
    assert compare(e, t)["direction_error"] == pytest.approx(1e-12)


def test_a_cell_is_named_by_what_decides_its_result() -> None:
    a = Cell(estimator="cg", problem="biased_regression", settings={"cond": 2.0}, built=built_as(Implicit(CG(steps=5))))
    assert a.id == Cell(**a.config).id
    others = [
        Cell(**(a.config | change))
        for change in ({"seed": 1}, {"dtype": "float32"}, {"settings": {"cond": 3.0}}, {"built": "x"}, {"kind": "path"})
    ]
    assert len({a.id, *(o.id for o in others)}) == 6


def test_estimators_are_described_without_addresses() -> None:
    text = built_as((SAMA(product=reverse_over_reverse), Unroll(last=3)))
    assert "0x" not in text
    assert "reverse_over_reverse" in text
    assert "last=3" in text


def test_results_are_strict_json_and_say_what_was_not_finite(tmp_path) -> None:
    assert strict({"a": [1.0, math.nan], "b": {"c": math.inf}}) == (
        {"a": [1.0, None], "b": {"c": None}},
        ["a[1]", "b.c"],
    )
    cell = Cell(estimator="cg", problem="p")
    write(cell.file(tmp_path), row(cell, "ok", value=math.nan))
    content = json.loads(cell.file(tmp_path).read_text())
    assert content["value"] is None
    assert content["nonfinite"] == ["value"]
    assert [p.name for p in cell.file(tmp_path).parent.iterdir()] == [f"{cell.id}.json"]  # nothing temporary is left
    assert finished(cell, tmp_path) == "ok"
    assert finished(Cell(estimator="cg", problem="q"), tmp_path) is None
    cell.file(tmp_path).write_text("{")
    assert finished(cell, tmp_path) is None


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("cond", [1.5, 30.0])
@pytest.mark.parametrize("rule", ["momentum", "sgd"])
def test_no_estimator_exceeds_its_bound(cond: float, rule: str, seed: int) -> None:
    for steps in (8, None):
        if rule == "sgd" and steps is None:
            steps = 120
        instance = Instance(PROBLEMS["biased_regression"].make(cond=cond, rule=rule, steps=steps, seed=seed))
        assert instance.setting is not None
        assert instance.setting.condition == pytest.approx(cond)
        bounded = set()
        for name, entry in registry.items():
            if entry.claim.refuses(instance.problem):
                continue
            chosen = per_stage(entry.estimator, 1)
            limit = theory.bound(instance.setting, chosen[0])
            if limit is None:
                continue
            bounded.add(name)
            records = [thin(instance.records[0], instance.problem.stages[0], chosen[0], instance.hparams)]
            from estimators import hypergradient

            answer = hypergradient(
                instance.problem.outer, instance.problem.stages, chosen, records, instance.hparams, throw=False
            )
            errors = compare(answer.hparams, instance.truth[0])
            if limit["relative_error"] is not None:
                assert errors["relative_error"] <= limit["relative_error"], name
            if limit["angle"] is not None:
                assert errors["angle"] <= limit["angle"], name
        assert {
            "unroll",
            "forward",
            "unroll-truncated",
            "dense",
            "cg",
            "neumann",
            "fixed-point",
            "t1t2",
            "sama",
        } <= bounded


def test_there_is_no_bound_where_the_assumptions_fail() -> None:
    assert Instance(PROBLEMS["weighted_ridge"].make()).setting is None
    assert Instance(PROBLEMS["two_stage_quadratic"].make()).setting is None


@pytest.mark.parametrize("name", list(registry))
def test_every_registered_estimator_can_be_measured(name: str) -> None:
    entry = registry[name]
    instances = (
        PROBLEMS[p].make(steps=12, **settings)
        for p, settings in [
            ("biased_regression", {"cond": 3.0}), ("two_stage_quadratic", {}), ("one_step_rule", {}),
            ("digits_tasks", {"hidden": 2}),
        ]
    )  # fmt: skip
    problem = next(p for p in instances if entry.claim.refuses(p) is None)
    instance = Instance(problem)
    found = measure(
        instance, per_stage(entry.estimator, len(problem.stages)), entry.claim, Effort(budget=0.0, least=1, most=1)
    )
    assert found["cost"]["peak_bytes"] > 0
    assert found["cost"]["time_ratio"] > 0
    assert 0 < found["accuracy"]["cosine"] <= 1 or entry.claim.control
    assert found["pullbacks"][0]["outcome"]


def test_kept_bytes_are_those_of_the_estimator_alone() -> None:
    problem = PROBLEMS["biased_regression"].make(cond=3.0, steps=20)
    record = Instance(problem).records[0]
    kept = [
        thin(record, problem.stages[0], e, problem.hparams)
        for e in (Unroll(), Unroll(checkpoint=5), Unroll(last=3), SAMA())
    ]
    assert [len(r.states) for r in kept] == [20, 4, 3, 0]
    assert kept[0].kept_bytes > kept[1].kept_bytes > 0 == kept[3].kept_bytes


def test_changed_code_is_another_cell(tmp_path: Path) -> None:
    """A second run must not show the numbers of an estimator as it was before an edit."""
    plugin = tmp_path / "mine.py"
    text = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    tail = 0\n"
    versions = []
    for extra in ("", "    # edited\n"):
        plugin.write_text(text + extra)
        spec = importlib.util.spec_from_file_location("mine", plugin)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["mine"] = module
        spec.loader.exec_module(module)
        versions += [code_version(module.Mine()), code_version(module.Mine())]
    assert versions[0] == versions[1] != versions[2] == versions[3]
    assert code_version(SAMA()) == code_version((SAMA(), Unroll()))


def test_changed_code_that_a_problem_imports_is_another_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers of data sets, say, or a problem that is made from another."""
    package = tmp_path / "of_mine"
    package.mkdir()
    for name, text in (
        ("__init__", ""),
        ("problem", "from .reader import read\ndef make():\n    return read()\n"),
        ("reader", "from . import deep\ndef read():\n    return deep.X\n"),
        ("deep", "X = 1\n"),
        ("stranger", ""),
    ):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    make = importlib.import_module("of_mine.problem").make
    versions = [code_version(SAMA(), make)]
    for name in ("stranger", "deep", "reader"):
        (package / f"{name}.py").write_text((package / f"{name}.py").read_text() + "# edited\n")
        versions.append(code_version(SAMA(), make))
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3
