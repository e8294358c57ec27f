"""`hypergradbench advise`: what is measured of a candidate, against what, and what is said of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from analysis import advice, results
from analysis.figures import pareto
from benchmarks import plugins
from benchmarks.advise import measure, place, reference
from benchmarks.advise.candidates import KIB, as_code, candidates, spare_of
from benchmarks.advise.survey import Survey, most
from benchmarks.cells import SCHEMA, Cell
from benchmarks.cli import main
from benchmarks.commands.advise import seconds
from benchmarks.measure import memory_of, peak_bytes
from benchmarks.measure.predict import LOOSE_CHANGE, peak_of, without_values
from benchmarks.meta_step import MetaStep, copied
from estimators import (
    CG,
    SAMA,
    Forward,
    Implicit,
    NotApplicableError,
    Unroll,
    per_stage,
    registry,
    reverse_over_forward,
    reverse_over_reverse,
)

QUADRATIC = '''
import torch
from estimators import SGD, Problem, Stage

A = torch.tensor([[2.0, 0.4], [0.4, 1.0]])          # float32 data in the losses, whatever the parameters' dtype
C = torch.tensor([1.0, -2.0])

def make(steps: int = 4, bend: float = 0.0):
    def loss(p, h, batch):
        w = p["w"]
        return 0.5 * w @ (A @ w) - w @ h["b"] + bend * w.pow(4).sum()

    return Problem(
        name="own", stages=[Stage(loss, SGD(lr=0.3), lambda t: (), steps)], outer=lambda p, h: (C @ p["w"]) ** 2 + C @ p["w"],
        start={"w": torch.tensor([0.5, 0.25])}, hparams={"b": torch.tensor([1.0, 0.5])},
    )

def saddle():
    """The loss has a negative curvature; the run is short, so that its derivative is as good as any."""
    made = make()
    def loss(p, h, batch):
        return 0.5 * (p["w"][0] ** 2 - 0.5 * p["w"][1] ** 2) - p["w"] @ h["b"]
    return Problem(name="saddle", stages=[Stage(loss, SGD(lr=0.3), lambda t: (), 4)], outer=made.outer, start=made.start, hparams=made.hparams)

def sometimes(seed: int = 0):
    return saddle() if seed == 1 else make()

def scalar():
    return Problem(
        name="scalar", stages=[Stage(lambda p, h, t: (p["w"] - h["a"]).square().sum(), SGD(lr=0.3), lambda t: (), 4)],
        outer=lambda p, h: p["w"].sum(), start={"w": torch.zeros(2)}, hparams={"a": torch.tensor(1.0)},
    )

def stages():
    made = make()
    return Problem(name="two", stages=[*made.stages, *made.stages], outer=made.outer, start=made.start, hparams=made.hparams)

def broken():
    made = make()
    def loss(p, h, batch):
        raise RuntimeError("the data are not there")
    return Problem(name="broken", stages=[Stage(loss, SGD(lr=0.3), lambda t: (), 4)], outer=made.outer, start=made.start, hparams=made.hparams)
'''  # fmt: skip

PLUGIN = """
import os
from dataclasses import dataclass
from estimators import Claim, Cost, Outcome, Pullback, registry, tree

@dataclass(frozen=True)
class Faulty:
    how: str
    tail = 0

    def pullback(self, stage, record, hparams, cotangent):
        if self.how == "crash":
            os._exit(3)
        return Pullback(hparams={k: x * float("nan") for k, x in hparams.items()}, start=None, outcome=Outcome.DONE, cost=Cost())

for how in ("crash", "nan"):
    registry.register(how, Faulty(how), Claim(of="nothing", citation="-", target="direction"))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(QUADRATIC)
    return path


def cell(problem: object, **fields: Any) -> Cell:
    return Cell(
        problem=str(problem), kind="advice", dtype=fields.pop("dtype", "float32"), **{"estimator": "unroll"} | fields
    )


def by_hand(steps: int) -> torch.Tensor:
    """d/db of the outer loss at the end of ``steps`` steps of gradient descent, from the recurrence's own linear algebra."""
    a, c = torch.tensor([[2.0, 0.4], [0.4, 1.0]]).double(), torch.tensor([1.0, -2.0]).double()
    w, b, z = torch.tensor([0.5, 0.25]).double(), torch.tensor([1.0, 0.5]).double(), torch.zeros(2, 2).double()
    for _ in range(steps):
        w, z = w - 0.3 * (a @ w - b), z - 0.3 * (a @ z - torch.eye(2).double())
    return z.T @ c * (2 * c @ w + 1)


# The reference.


def test_an_unroll_in_float64_though_the_losses_hold_float32(own: Path, tmp_path: Path) -> None:
    asked = cell(f"{own}:make", estimator=reference.NAME, meta={"of": "unroll"})
    row = measure.content(asked, tmp_path, {})
    assert row["truth"] == "full unroll in float64"
    found = reference.load(asked.id, tmp_path)["b"]
    assert found.dtype == torch.float64
    assert torch.allclose(found, by_hand(4), rtol=1e-7)  # data are rounded to float32, as in the run
    assert 1e-3 < row["gradient_ratio"] < 1


def test_cg_answers_for_the_optimum_and_only_if_it_converges(own: Path, tmp_path: Path) -> None:
    asked = cell(f"{own}:make", estimator=reference.NAME, meta={"of": "cg"}, settings={"steps": 200})
    row = measure.content(asked, tmp_path, {})
    assert row["truth"] == "CG to 1e-10 in float64"
    assert row["gradient_ratio"] < advice.AT_OPTIMUM
    assert torch.allclose(reference.load(asked.id, tmp_path)["b"], by_hand(10_000), rtol=1e-7)
    with pytest.raises(NotApplicableError, match="indefinite"):
        measure.content(cell(f"{own}:saddle", estimator=reference.NAME, meta={"of": "cg"}), tmp_path, {})


def test_a_closed_form_is_taken_where_there_is_one(tmp_path: Path) -> None:
    asked = cell("log_ridge", estimator=reference.NAME, meta={"of": "exact"}, settings={"steps": 3}, dtype="float64")
    assert measure.content(asked, tmp_path, {})["truth"] == "closed form"
    assert reference.order(True, None) == ("exact", "unroll", "cg")
    assert reference.order(False, None) == ("unroll", "cg")
    assert reference.order(True, "cg") == ("cg",)


def test_losses_that_change_with_the_dtype_are_no_float64_of_the_same(tmp_path: Path) -> None:
    path = tmp_path / "unruly.py"
    path.write_text(QUADRATIC.replace('w = p["w"]', 'w = p["w"] * (2 if p["w"].dtype == torch.float64 else 1)'))
    _, how = place.in_float64(cell(f"{path}:make"))
    assert how == "float32, since the losses cannot be evaluated in float64"


def test_a_workload_is_made_in_float64() -> None:
    found, how = place.in_float64(cell("mlp_decay", settings={"size": "tiny", "unroll": 2}))
    assert how == "float64"
    assert found.dtype == torch.float64
    assert found.warm == 10


# Points.


def test_further_points_go_on_where_make_takes_no_seed(own: Path) -> None:
    first, third = (place.of(cell(f"{own}:make", seed=seed)) for seed in (0, 2))
    assert third.state.step == third.warm == 8
    w = first.state.params["w"].double()
    a = torch.tensor([[2.0, 0.4], [0.4, 1.0]]).double()
    for _ in range(8):
        w = w - 0.3 * (a @ w - torch.tensor([1.0, 0.5]))
    assert torch.allclose(third.state.params["w"].double(), w, rtol=1e-5)
    assert place.of(cell("log_ridge", seed=2, settings={"steps": 3}, dtype="float64")).state.step == 0


def test_several_stages_are_refused(own: Path) -> None:
    with pytest.raises(ValueError, match="has 2 stages, and advice is for one"):
        place.of(cell(f"{own}:stages"))


# A candidate.


def test_a_row_of_a_candidate(own: Path, tmp_path: Path) -> None:
    asked = cell(f"{own}:make", estimator=reference.NAME, meta={"of": "unroll"})
    measure.content(asked, tmp_path, {})
    meta = {"reference": asked.id, "costs": True}
    row = measure.content(
        cell(f"{own}:make", estimator="cg", fields={"solver.steps": 5, "graph": "rebuilt"}, meta=meta),
        tmp_path,
        {"budget": 0.05, "bounds": True},
    )
    optimum, run = by_hand(10_000), by_hand(4)
    cosine = float(optimum @ run / optimum.norm() / run.norm())
    h = row["accuracy"]
    assert -1 <= h["cosine"] <= 1
    assert h["truth_norm"] == pytest.approx(float(run.norm()), rel=1e-6)
    assert cosine != pytest.approx(1.0, abs=1e-6)  # at the end of 4 steps they do differ
    assert row["code"] == "estimate(problem, Implicit(solver=CG(steps=5, rtol=1e-12), graph='rebuilt'))"
    assert row["memory"]["peak_bytes"] > row["memory"]["plain_peak_bytes"] > 0
    assert row["time"]["ratio"] == pytest.approx(row["time"]["seconds"] / row["time"]["plain_seconds"], rel=2.0)
    assert row["error_bound"]["relative"] > 0
    assert "time" not in measure.content(cell(f"{own}:make", meta=meta | {"costs": False}), tmp_path, {"bounds": False})


@pytest.mark.parametrize(
    ("problem", "name"),
    [("log_ridge", n) for n in ("unroll", "cg", "sama", "forward", "unroll-checkpointed")] + [("mlp_decay", "sama")],
)
def test_a_prediction_is_what_is_measured(problem: str, name: str) -> None:
    """But for a few 0-d tensors, from a problem whose losses and streams hold numbers."""
    settings = {"steps": 9} if problem == "log_ridge" else {"size": "tiny", "unroll": 9}
    found = place.of(cell(problem, settings=settings, dtype="float64" if problem == "log_ridge" else "float32"))
    (estimator,) = per_stage(registry[name].estimator, 1)
    if name == "cg":
        estimator = Implicit(CG(steps=6))
    step = MetaStep(found.workload, estimator, copied(found.state), onward=True)
    predicted = peak_of(found.workload, estimator, warm=found.warm)
    assert predicted.peak == pytest.approx(memory_of(step).peak, abs=LOOSE_CHANGE * 9)
    survey = Survey(steps=9, params=10**9, hparams=8, plain_bytes=found.plain_memory.peak)
    assert most(estimator, survey) >= predicted.peak


def test_candidates_and_their_code() -> None:
    chosen = candidates(["cg", "sama", "unroll-truncated"], steps=40)
    assert chosen[0] == ("sama", {})
    assert ("unroll-truncated", {"last": 4}) in chosen
    assert candidates(["unroll"], 40, spare_of(10 * KIB, KIB)) == [("unroll", {}), ("unroll", {"budget": "7KiB"})]
    assert ("cg", {"solver.steps": 20, "solver.rtol": 0.0, "graph": "rebuilt"}) in candidates(["cg"], 40, 7 * KIB)
    assert candidates(["unroll"], 40, spare_of(KIB, KIB)) == [("unroll", {})]
    assert [f["solver.steps"] for n, f in chosen if n == "cg"] == [5, 20]
    assert as_code(Unroll()) == "Unroll()"
    assert as_code((Implicit(CG(steps=3)), Unroll(last=2))) == "(Implicit(solver=CG(steps=3)), Unroll(last=2))"
    made = SAMA(product=reverse_over_forward)
    assert eval(as_code(made), {"SAMA": SAMA, "reverse_over_forward": reverse_over_forward}) == made
    assert as_code(Forward()) == "Forward()"


# The recommendation.


def row(name: str, error: float, time: float, peak: float, **more: Any) -> dict[str, Any]:
    """A file of the results, with an error that is an angle."""
    angle = 2 * 57.29577951308232 * torch.asin(torch.tensor(error / 2, dtype=torch.float64)).item()
    content = {
        "schema": SCHEMA, "id": name, "status": "ok", "reason": None, "failure": None, "finished": "2026",
        "config": {"estimator": name, "problem": "p", "settings": {}, "seed": 0, "dtype": "float32", "kind": "advice", "meta": {},
                   "device": "cpu", "fields": {}, "workers": 1},
        "claim": {"control": False}, "code": f"estimate(problem, {name!r})",
        "accuracy": {"angle": angle, "cosine": 1 - error**2 / 2, "relative_error": 10 * error, "norm_ratio": 1.0},
        "pullbacks": [{"outcome": "DONE", "text": "complete: all of it", "residual": None, "curvature": None, "products": 1}],
        "cost": {"products": 3},
        "time": {"ratio": time, "seconds": time / 10, "plain_seconds": 0.1}, "memory": {"peak_bytes": peak, "plain_peak_bytes": 1.0},
    }  # fmt: skip
    for key, value in more.items():
        content[key] = content[key] | value if isinstance(value, dict) and isinstance(content.get(key), dict) else value
    return content


def truth(ratio: float = 1e-6, of: str = "full unroll in float64") -> dict[str, Any]:
    found = row("reference", 0.0, 1.0, 1.0, truth=of, gradient_ratio=ratio)
    return {k: v for k, v in found.items() if k not in ("claim", "accuracy", "time", "memory", "pullbacks", "cost")}


def loaded(tmp_path: Path, *rows: dict[str, Any]) -> pd.DataFrame:
    (tmp_path / "cells").mkdir(exist_ok=True)
    for i, content in enumerate(rows):
        (tmp_path / "cells" / f"{i}.json").write_text(json.dumps(content))
    return results.load(tmp_path)


def said(found: advice.Advice) -> str:
    text = io.StringIO()
    advice.show(found, Console(file=text, width=250), head="p")
    return text.getvalue()


ROWS = (
    truth(),
    row("unroll", 0.001, 4.0, 900.0), row("cg", 0.02, 2.0, 400.0), row("neumann", 0.04, 1.5, 300.0),
    row("sama", 0.5, 1.1, 200.0), row("direct", 1.3, 1.0, 150.0, claim={"control": True}),
)  # fmt: skip


def test_the_cheapest_within_the_tolerance_of_the_best(tmp_path: Path) -> None:
    frame = loaded(tmp_path, *ROWS)
    found = advice.advise(frame)
    assert (found.best, found.choice) == ("unroll", "neumann")
    assert advice.advise(frame, {"tolerance": 0.03}).choice == "cg"
    assert advice.advise(frame, {"tolerance": 0.0}).choice == "unroll"
    assert advice.advise(frame, {"tolerance": 2.0}).choice == "sama"  # never a control
    assert advice.advise(frame, {"error": "relative", "tolerance": 0.1}).choice == "unroll"  # ten times the direction's
    assert list(found.rows.index[found.rows["front_time"]]) == ["unroll", "cg", "neumann", "sama"]
    text = said(found)
    assert "Recommended: neumann, error 0.04, 1.5 times the run, 300 B: the cheapest within 0.05" in text
    assert "    estimate(problem, 'neumann')" in text
    assert "Smallest error within the limits: unroll" in text
    assert "full unroll in float64" in text


def test_errors_below_the_floor_are_alike(tmp_path: Path) -> None:
    rows = row("unroll", 1e-6, 4.0, 900.0), row("cg", 3e-6, 2.0, 400.0), row("neumann", 2e-6, 1.96, 450.0)
    found = advice.advise(loaded(tmp_path, truth(), *rows), {"tolerance": 0.0})
    assert (found.best, found.choice) == ("cg", "cg")
    assert "No other has a smaller error within the limits (below 1e-4 all count as equal)." in said(found)


@pytest.mark.parametrize(
    ("limits", "best", "choice"),
    [
        ({"memory": 500}, "cg", "neumann"),
        ({"time_ratio": 1.2}, "sama", "sama"),
        ({"time_seconds": 0.2}, "cg", "neumann"),
        ({"memory": 400, "time_ratio": 2.0}, "cg", "neumann"),
    ],
)
def test_limits_are_kept(tmp_path: Path, limits: dict[str, Any], best: str, choice: str) -> None:
    found = advice.advise(loaded(tmp_path, *ROWS), limits)
    assert (found.best, found.choice) == (best, choice)
    assert "no: " in said(found)


def test_nothing_fits(tmp_path: Path) -> None:
    found = advice.advise(loaded(tmp_path, *ROWS), {"memory": 160, "time_ratio": 1.05})
    assert (found.best, found.nearest) == (None, "sama")
    assert "Nothing fits. Nearest: sama, error 0.5, 1.1 times the run, 200 B" in said(found)


def test_what_was_discarded_failed_or_refused_is_said(tmp_path: Path) -> None:
    gone = row(
        "forward",
        0.0,
        1.0,
        12.4 * 2**30,
        status="failed",
        failure="oom",
        reason="does not fit: 12.4 GiB of 8 GiB (predicted)",
    )
    gone = {k: v for k, v in gone.items() if k not in ("accuracy", "time", "pullbacks", "claim", "code")}
    gone["memory"] = {"peak_bytes": 12.4 * 2**30, "predicted": True}
    frame = loaded(
        tmp_path, *ROWS, gone, row("dense", 0.0, 1, 1, status="failed", failure="nan", reason="the estimate is NaN"),
        row("greedy", 0.0, 1, 1, status="refused", reason="sees only the rule"),
    )  # fmt: skip
    found = advice.advise(frame, {"memory": 8 * 2**30})
    assert found.best == "unroll"
    text = said(found)
    assert "discarded: forward: does not fit: 12.4 GiB of 8 GiB (predicted)" in text
    assert "failed: dense: the estimate is NaN" in text
    assert "refused: greedy: sees only the rule" in text
    figure = pareto.draw(frame)
    assert figure is not None
    drawn = {c.get_gid() for axes in figure.axes for c in axes.collections}
    assert {"unroll", "sama"} <= drawn
    assert not drawn & {"forward", "dense", "greedy"}


def test_what_to_beware_of(tmp_path: Path) -> None:
    bad = {
        "pullbacks": [
            {
                "outcome": "YOUNG",
                "text": "the optimizer state is young",
                "residual": None,
                "curvature": None,
                "products": 1,
            }
        ]
    }
    frame = loaded(
        tmp_path, truth(0.3), row("cg", 0.1, 2.0, 4.0, **bad), row("direct", 0.05, 1.0, 1.0, claim={"control": True})
    )
    text = said(advice.advise(frame))
    assert "Beware: cg: the optimizer state is young." in text
    assert "does not end at an optimum: its last gradient is 0.3 of its first" in text
    assert "errors are to the steps taken" in text
    assert "direct is no worse, without any second-order work" in text


def test_without_a_reference_bounds_serve(tmp_path: Path) -> None:
    without = [r | {"accuracy": None} for r in ROWS[1:]]
    found = advice.advise(loaded(tmp_path, *without))
    assert found.best is None
    assert "without a reference nothing is known of errors" in said(found)
    without[1] |= {"error_bound": {"relative": 0.2, "angle": 10.0}}
    found = advice.advise(loaded(tmp_path, *without))
    assert found.choice == "cg"
    assert "upper bound" in said(found)
    assert found.rows.loc["cg", "error"] == pytest.approx(2 * 0.08715574, rel=1e-6)  # 2 sin(5 degrees)


def test_errors_are_medians_over_points(tmp_path: Path) -> None:
    points = [row("cg", e, 2.0, 4.0) for e in (0.1, 0.3, 0.2)]
    for i, content in enumerate(points):
        content["id"], content["config"] = f"cg{i}", content["config"] | {"seed": i}
        if i:
            del content["time"], content["memory"]
    found = advice.advise(loaded(tmp_path, truth(), *points)).rows.loc["cg"]
    assert found[["error", "error_low", "error_high", "time", "points"]].tolist() == pytest.approx(
        [0.2, 0.1, 0.3, 2.0, 3]
    )


# The command.


def test_from_end_to_end(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry.items()))  # the plugin is gone afterwards
    monkeypatch.setattr(plugins, "LOADED", [])
    plugin, out = tmp_path / "faulty.py", tmp_path / "out"
    plugin.write_text(PLUGIN)
    command = [
        "advise",
        f"{own}:make",
        "steps=40",
        "--estimators",
        "crash",
        "nan",
        "sama",
        "cg",
        "greedy",
        "--plugins",
        str(plugin),
    ]
    command += ["--out", str(out), "--budget", "5min", "--points", "2", "--memory", "1MiB", "--time", "100x"]
    assert main(command) == 0
    text, told = capsys.readouterr()
    assert "Recommended: " in text
    assert "full unroll in float64" in text
    assert "failed: crash: the process ended with exit code 3" in text
    assert "failed: nan: NonFiniteError" in text
    assert "refused: greedy" in text
    assert "ok" in told
    assert (out / "advice.txt").read_text().startswith(f"{own}:make: 40 steps, 2 parameters")
    assert {p.name for p in (out / "figures").iterdir()} == {"pareto.png", "pareto.svg"}
    frame = results.load(out)
    assert frame.attrs["limits"]["memory"] == 2**20
    assert sorted(frame.loc[frame["name"] == "cg", "seed"]) == [0, 0, 0, 1, 1, 1]

    assert main([*command[:-2], "--time", "1.000001x", "--figures", "False"]) == 1
    text, told = capsys.readouterr()
    assert "Nothing fits. Nearest: " in text
    assert told == ""  # what was measured is kept, and what failed of itself

    assert main(["table", str(out)]) == 0
    assert "own.py:make" in capsys.readouterr().out
    assert main(["show", str(out)]) == 0


def test_a_further_point_without_a_reference_costs_no_candidate(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "advise",
        f"{own}:sometimes",
        "--estimators",
        "cg",
        "--reference",
        "cg",
        "--budget",
        "5min",
        "--points",
        "2",
    ]
    assert main([*command, "--out", str(tmp_path / "out"), "--figures", "False"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Recommended: cg" in text
    assert "no errors at point 2, no reference by cg: CG: indefinite" in text
    frame = results.load(tmp_path / "out")
    assert sorted(frame.loc[frame["name"] == "cg", "seed"]) == [0, 0]


def test_the_direction_of_one_hyperparameter_is_said_to_be_a_sign(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["advise", f"{own}:scalar", "--estimators", "unroll", "--points", "1", "--figures", "False"]
    for error, warns in (("direction", True), ("relative", False)):
        assert main([*command, "--out", str(tmp_path / "out"), "--error", error]) == 0
        assert ("no direction but its sign" in capsys.readouterr().out) == warns


def test_what_cannot_fit_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "advise",
        "log_ridge",
        "steps=300",
        "--estimators",
        "unroll",
        "sama",
        "--budget",
        "5min",
        "--points",
        "1",
    ]
    main([*command, "--out", str(tmp_path / "out"), "--memory", "9000", "--figures", "False"])
    text, told = capsys.readouterr()
    assert "discarded: unroll: does not fit: " in text
    assert "(predicted)" in text
    assert "Recommended: sama" in text
    assert "unroll" not in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["log_rigde"], "no problem is called 'log_rigde'"),
        (["log_ridge", "--memory", "much"], "--memory: 'much' is no size of memory"),
        (["log_ridge", "--time", "fast"], "--time: 'fast' is no time.*or 2x"),
        (["log_ridge", "--time", "1x"], "takes more than 1x"),
        (["log_ridge", "--budget", "0s"], "--budget: '0s' is no time: write a positive"),
        (["log_ridge", "--points", "0"], "--points and --threads must be at least 1"),
        (["log_ridge", "--estimators", "cgg"], "no estimator is called 'cgg'"),
        (["log_ridge", "stesp=3"], "takes no setting 'stesp'"),
    ],
)
def test_a_wrong_command_line(words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *words, "--out", str(tmp_path / "out")]) == 2
    assert pd.Series([capsys.readouterr().err]).str.contains(says).all()


@pytest.mark.parametrize(
    ("name", "says"), [("stages", "has 2 stages"), ("broken", "RuntimeError: the data are not there")]
)
def test_a_problem_that_cannot_be_run(
    name: str, says: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", f"{own}:{name}", "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


def test_times() -> None:
    assert [seconds(t) for t in ("60s", "500ms", "1.5min")] == [60.0, 0.5, 90.0]


def test_a_number_times_a_leaf_is_one_under_the_counter_too() -> None:
    """A mode sees a Python number as a number, where autograd has saved a tensor."""

    def loss(p: dict[str, torch.Tensor], h: dict[str, torch.Tensor]) -> torch.Tensor:
        return 0.5 * (p["w"] @ p["w"]) + (0.1 * p["w"].square()).sum() + 0.5 * p["w"] @ h["b"]

    def product() -> None:
        v = {"w": torch.tensor([1.0, -2.0])}
        p, h = {"w": torch.ones(2)}, {"b": torch.ones(2)}
        found.append(reverse_over_reverse(loss, p, h, v, wrt_params=p, wrt_hparams=h))

    found: list[Any] = []
    peak_bytes(product)
    rows, mixed = found[0]
    assert torch.allclose(rows["w"], torch.tensor([1.2, -2.4]))
    assert torch.allclose(mixed["b"], torch.tensor([0.5, -1.0]))
    with without_values():
        assert peak_bytes(product) > 0
