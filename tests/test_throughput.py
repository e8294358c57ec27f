"""What a meta step costs: the rows of "meta" cells, beside plain training and by hand."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks import meta_cells, throughput
from benchmarks.cells import AUTOCAST, Cell
from benchmarks.meta_step import (
    WARM_STEPS,
    MetaStep,
    PlainTraining,
    copied,
    fastest,
    preloaded,
    settled,
)
from benchmarks.throughput import PLAIN, Bench, Effort, units
from benchmarks.workloads import Workload
from benchmarks.workloads.mlp_decay import make
from estimators import (
    SAMA,
    Claim,
    Direct,
    HypergradientError,
    NotApplicableError,
    Pullback,
    Record,
    Stage,
    Tree,
    Unroll,
    estimate,
    registry,
    run,
)
from estimators.solvers import Outcome

QUICK = {"budget": 0.02, "least": 1, "most": 2}
PARAMS = 3 * (32 * 32 + 32) + 32 * 10 + 10
"""Of the tiny multilayer perceptron, in which each linear layer holds a weight and a bias."""


def tiny(unroll: int = 3, **settings: Any) -> Workload:
    return make(size="tiny", unroll=unroll, dtype=torch.float64, **settings)


@pytest.fixture(scope="module")
def bench() -> Bench:
    made = Bench(tiny(unroll=4), effort=Effort(**QUICK))
    for name in ("sama", "t1t2", "unroll"):
        made.enter(name, registry[name].estimator)
    made.time()
    return made


# --- the two pieces of work


def test_plain_training_is_the_loop_that_one_would_write() -> None:
    workload = tiny()
    state = settled(workload)
    plain = PlainTraining(workload, state)
    by_hand = {k: x.detach().clone().requires_grad_() for k, x in state.params.items()}
    optimizer = torch.optim.Adam(list(by_hand.values()), lr=1e-3)
    for _ in range(2):
        plain()
        for t in (WARM_STEPS, WARM_STEPS + 1, WARM_STEPS + 2):
            optimizer.zero_grad()
            x, y = workload.stage.stream(t)
            for i in (0, 2, 4):
                x = torch.relu(x @ by_hand[f"{i}.weight"].T + by_hand[f"{i}.bias"])
            logits = x @ by_hand["6.weight"].T + by_hand["6.bias"]
            torch.nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
    for k, x in by_hand.items():
        torch.testing.assert_close(plain.params[k].detach(), x.detach(), rtol=1e-12, atol=1e-14)


def test_a_meta_step_makes_its_steps_the_hypergradient_and_the_meta_update() -> None:
    workload = tiny()
    state = settled(workload)
    assert state.step == WARM_STEPS
    step = MetaStep(workload, Unroll(), state)
    found = step()
    expected = estimate(replace(workload.problem, start=state), Unroll())
    for k, g in expected.hparams.items():
        assert torch.equal(found.hparams[k], g)
        # the first step of Adam at rate 1e-2 goes that far, whatever the gradient's length
        moved = step._updated[k] - workload.problem.hparams[k]
        torch.testing.assert_close(moved, -1e-2 * g / (g.abs() + 1e-8))
    again = step()
    assert all(torch.equal(again.hparams[k], found.hparams[k]) for k in found.hparams)  # the same work each time
    assert step.state is state


def test_onward_goes_on_from_the_end_and_leaves_the_shared_state_alone() -> None:
    workload = tiny()
    state = settled(workload)
    before = {k: x.clone() for k, x in state.params.items()}
    step = MetaStep(workload, SAMA(), copied(state), onward=True)
    step()
    step()
    assert step.state.step == WARM_STEPS + 2 * 3
    end = run(replace(workload.stage, steps=6), state, workload.problem.hparams, tail=0).end
    assert all(torch.equal(step.state.params[k], end.params[k]) for k in end.params)
    assert all(torch.equal(state.params[k], before[k]) for k in before)


def test_preloaded_batches_are_those_of_the_stream_and_are_made_once() -> None:
    workload = tiny()
    asked: list[int] = []

    def stream(t: int) -> Any:
        asked.append(t)
        return tiny().stage.stream(t)

    watched = replace(workload, problem=replace(workload.problem, stages=[replace(workload.stage, stream=stream)]))
    ready = preloaded(watched)
    assert asked == [WARM_STEPS, WARM_STEPS + 1, WARM_STEPS + 2]
    state = settled(workload)
    with_data = MetaStep(ready, registry["neumann"].estimator, state)()
    assert len(asked) == 3
    fresh = MetaStep(workload, registry["neumann"].estimator, state)()
    assert all(torch.equal(with_data.hparams[k], fresh.hparams[k]) for k in fresh.hparams)
    ready.stage.stream(0)
    assert asked[3:] == [0]


# --- memory


def test_the_peak_of_plain_training_by_hand(bench: Bench) -> None:
    """It lies in the first layer, at the end of the backward pass: all gradients are there, with the cotangent of the layer's output
    (16 examples, 32 units), its inputs, the loss and the 1 that is pulled back. The fused step takes nothing more."""
    memory = bench.content("sama")["memory"]
    state = PARAMS * 8 + 2 * PARAMS * 8 + 8 * 4  # a float32 step counter a leaf
    assert memory["plain_peak_bytes"] == state + PARAMS * 8 + 2 * 16 * 32 * 8 + 2 * 8
    assert memory["plain_split"]["parameters"] == PARAMS * 8
    assert memory["plain_split"]["slots"] == 2 * PARAMS * 8 + 8 * 4
    assert memory["plain_split"]["hyperparameters"] == 0


@pytest.mark.parametrize("name", ["sama", "t1t2", "unroll"])
def test_the_split_adds_up_to_the_peak(name: str, bench: Bench) -> None:
    memory = bench.content(name)["memory"]
    assert sum(memory["split"].values()) == memory["peak_bytes"]
    assert sum(memory["plain_split"].values()) == memory["plain_peak_bytes"]
    assert memory["ratio"] == memory["peak_bytes"] / memory["plain_peak_bytes"]


def test_a_step_that_goes_on_holds_one_state_and_the_states_that_it_records(bench: Bench) -> None:
    one = PARAMS * 8
    split = {name: bench.content(name)["memory"]["split"] for name in ("sama", "t1t2", "unroll")}
    # eight scalars, beside each the meta optimizer's two slots and a step counter
    assert all(s["hyperparameters"] == 8 * (8 + 2 * 8 + 4) for s in split.values())
    assert (split["sama"]["parameters"], split["sama"]["slots"], split["sama"]["recorded"]) == (one, 2 * one, 0)
    assert split["t1t2"]["recorded"] == one  # the parameters before the last step; at the peak their slots are gone
    unrolled = split["unroll"]
    assert unrolled["parameters"] + unrolled["slots"] + unrolled["recorded"] == (4 + 1) * 3 * one


def test_nothing_of_an_answer_is_alive_when_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is alive beside the step is in a GPU's figures; a cotangent on the start is as large as the parameters."""
    answers: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    class Noted(MetaStep):
        def __call__(self) -> Any:
            found = super().__call__()
            answers.append(weakref.ref(found))
            return found

    monkeypatch.setattr(throughput, "MetaStep", Noted)
    monkeypatch.setattr(throughput, "cuda_memory", lambda work, device: alive.append(any(a() for a in answers)))
    made = Bench(tiny(), effort=Effort(**QUICK))
    made.enter("unroll", Unroll())
    assert len(answers) >= 2 and not any(alive) and len(alive) == 2


def test_the_peak_repeats() -> None:
    first, second = (Bench(tiny(), effort=Effort(**QUICK)) for _ in range(2))
    for made in (first, second):
        made.enter("sama", SAMA())
        made.time()
    assert first.content("sama")["memory"] == second.content("sama")["memory"]
    assert first.content("sama")["counters"] == second.content("sama")["counters"]


# --- throughput


@pytest.mark.parametrize("name", ["sama", "t1t2", "unroll"])
def test_the_figures_of_a_row_agree_with_one_another(name: str, bench: Bench) -> None:
    found = bench.content(name)
    t = found["throughput"]
    assert found["workload"]["samples"] == 16
    assert t["samples_per_second"] * t["seconds"] == pytest.approx(16 * 4)
    assert t["plain_samples_per_second"] * t["plain_seconds"] == pytest.approx(16 * 4)
    assert t["meta_step_units"] == pytest.approx(4 / t["ratio"] - 4)
    assert found["workload"]["params"] == PARAMS
    assert found["workload"]["hparams"] == 8
    assert 0 < found["overhead"]["share"] < 1


def test_the_units_are_those_of_the_published_tables() -> None:
    assert units(0.795, 10) == pytest.approx(2.57, abs=0.02)  # SAMA, Table 8
    assert units(0.396, 10) == pytest.approx(15.2, abs=0.1)  # Neumann
    assert units(0.258, 1) == pytest.approx(2.87, abs=0.02)  # DARTS, which fits at one step only
    assert units(1.0, 10) == 0


def test_the_interval_of_the_ratio_holds_it() -> None:
    made = Bench(tiny(), effort=Effort(width=1e-9, budget=0.05, least=6, most=6, patience=1e9))
    made.enter("sama", SAMA())
    made.time()
    t = made.content("sama")["throughput"]
    assert t["samples"] == 6
    assert t["ratio_low"] <= t["ratio"] <= t["ratio_high"]
    assert t["meta_step_units_low"] <= t["meta_step_units"] <= t["meta_step_units_high"]
    assert t["relative_width"] > 0 and not t["reached"]


def test_estimators_take_turns(bench: Bench) -> None:
    turns: list[str] = []
    bench.time(turns.append)
    assert set(turns) == {"sama", "t1t2", "unroll"}
    assert PLAIN not in turns
    counts = [turns.count(name) for name in ("sama", "t1t2", "unroll")]
    assert max(counts) - min(counts) <= 1  # a long first call is a sample already


def test_counts(bench: Bench) -> None:
    counts = {name: bench.content(name)["counters"] for name in ("sama", "t1t2", "unroll")}
    # four steps, the outer loss, and: two points of a difference, or the passes of exact products
    assert counts["sama"]["forwards"] == 4 + 1 + 2
    assert counts["t1t2"]["forwards"] == 4 + 1 + 1
    assert counts["unroll"]["products"] == 4
    layers = 3 * 32 * 32 + 32 * 10
    # a forward pass and the gradient of the weights take 2 flops a weight and example each, that of the inputs too but for the first
    step = 2 * 16 * (3 * layers - 32 * 32)
    assert counts["sama"]["plain_flops"] == 4 * step
    assert counts["sama"]["collectives"] == counts["sama"]["collective_bytes"] == 0


# --- rows


@dataclass(frozen=True)
class Broken:
    """An estimator that answers NaN, raises at once, or raises only after some calls."""

    how: str
    calls: list[int]
    tail: ClassVar[int] = 0

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        self.calls.append(1)
        if self.how == "at once" or (self.how == "later" and len(self.calls) > 4):
            raise HypergradientError(f"broken {self.how}")
        wrong = Direct().pullback(stage, record, hparams, cotangent)
        if self.how == "nan":
            return replace(wrong, hparams={k: torch.full_like(x, math.nan) for k, x in hparams.items()})
        return replace(wrong, outcome=Outcome.APPROXIMATE)


class Desk:
    """Takes notes."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.rows: dict[str, Any] = {}

    def start(self, cell: Cell) -> None:
        self.events.append(("start", cell.estimator))

    def at(self, cell: Cell) -> None:
        self.events.append(("at", cell.estimator))

    def done(self, cell: Cell, content: dict[str, Any]) -> None:
        self.events.append(("done", cell.estimator))
        self.rows[cell.estimator] = content

    def fail(self, cell: Cell, error: Exception) -> None:
        self.events.append(("done", cell.estimator))
        self.rows[cell.estimator] = error

    @contextmanager
    def attempt(self, cell: Cell) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.fail(cell, error)

    @contextmanager
    def limited(self, cell: Cell) -> Iterator[None]:
        self.events.append(("limit", "begins"))
        yield
        self.events.append(("limit", "ends"))


def cell(estimator: str, **more: Any) -> Cell:
    options = {"problem": "mlp_decay", "settings": {"size": "tiny", "unroll": 2}, "dtype": "float64", "kind": "meta"}
    return Cell(estimator=estimator, **(options | more))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    def register(name: str, estimator: Any) -> None:
        claim = Claim(of="nothing", citation="these tests", target="direction", control=True)
        monkeypatch.setitem(registry._entries, name, type(registry["sama"])(estimator, claim))

    return register


def test_one_that_fails_is_a_row_and_the_others_are_timed(registered: Callable[[str, Any], None]) -> None:
    for how in ("at once", "later", "nan"):
        registered(how, Broken(how, []))
    desk = Desk()
    names = ["sama", "at once", "later", "composed", "nan", "t1t2"]
    meta_cells.measure([cell(n) for n in names], desk, QUICK | {"most": 6, "least": 6, "patience": 1e9})
    assert desk.events[0] == ("start", "sama")
    assert {n for what, n in desk.events if what == "done"} == set(names)
    assert len([e for e in desk.events if e[0] == "done"]) == len(names)
    assert isinstance(desk.rows["at once"], HypergradientError)
    assert isinstance(desk.rows["later"], HypergradientError)
    assert isinstance(desk.rows["composed"], NotApplicableError)
    assert "NaN" in str(desk.rows["nan"])
    for name in ("sama", "t1t2"):
        assert desk.rows[name]["throughput"]["samples"] == 6
        assert desk.rows[name]["claim"]["citation"] == registry[name].claim.citation
    assert ("at", "nan") not in desk.events
    timed = desk.events[desk.events.index(("limit", "begins")) : desk.events.index(("limit", "ends"))]
    assert ("at", "sama") in timed, "a cell could take all memory while it is timed"


def test_plain_training_that_fails_beside_them_fails_all_that_it_was_to_be_timed_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(PlainTraining):
        calls = 0

        def __call__(self) -> None:
            type(self).calls += 1
            if "timing" in begun:
                raise torch.OutOfMemoryError("no room for the plain model")
            super().__call__()

    begun: list[str] = []
    preload = throughput.preloaded
    monkeypatch.setattr(throughput, "preloaded", lambda workload: (begun.append("timing"), preload(workload))[1])
    monkeypatch.setattr(throughput, "PlainTraining", Failing)
    desk = Desk()
    meta_cells.measure([cell(n) for n in ("sama", "t1t2")], desk, QUICK)
    assert Failing.calls
    assert [str(desk.rows[n]) for n in ("sama", "t1t2")] == ["no room for the plain model"] * 2


def test_a_workload_that_cannot_be_made_fails_every_cell() -> None:
    desk = Desk()
    meta_cells.measure([cell(n, settings={"size": "huge"}) for n in ("sama", "t1t2")], desk, QUICK)
    assert all("choose one of tiny" in str(desk.rows[n]) for n in ("sama", "t1t2"))


def test_fields_kernel_and_autocast_reach_the_measurement() -> None:
    desk = Desk()
    more = {"fields": {"solver.steps": 3, "solver.lr": 0.01}, "meta": {"kernel": "math"}, "dtype": AUTOCAST}
    meta_cells.measure([cell("neumann", **more)], desk, QUICK)
    row = desk.rows["neumann"]
    assert row["counters"]["matvecs"] == 3
    assert row["workload"]["kernel"] == "math"
    assert row["memory"]["split"]["parameters"] == PARAMS * 4  # float32 masters
    wide = Desk()
    meta_cells.measure([cell("neumann", **(more | {"dtype": "float32"}))], wide, QUICK)
    assert row["value"] != wide.rows["neumann"]["value"]
    assert row["value"] == pytest.approx(wide.rows["neumann"]["value"], rel=0.05)


# --- docs/throughput.md


DOCS = (Path(__file__).resolve().parent.parent / "docs" / "throughput.md").read_text(encoding="utf-8")


def test_the_example_of_the_docs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", DOCS, flags=re.M | re.S)
    exec(compile(example, "throughput.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in lines] == ["sama", "cg"]
    for _, ratio, cost, _ in lines:
        assert float(cost) == pytest.approx(4 / float(ratio) - 4)


def test_the_docs_name_what_a_row_holds(bench: Bench) -> None:
    row = bench.content("sama")
    for part in ("throughput", "memory"):
        assert [n for n in row[part] if f"`{n}`" not in DOCS and f"`{part}.{n}`" not in DOCS] == []
    for part in ("counters", "overhead", "hypergradient", "workload.data"):
        assert f"`{part}`" in DOCS


def test_plain_training_is_fused_unless_an_implementation_was_chosen() -> None:
    leaves = [torch.ones(3, requires_grad=True)]
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        assert fastest(kind(leaves)).param_groups[0]["fused"]
        for chosen in ({"foreach": False}, {"foreach": True}, {"fused": False}):
            assert not fastest(kind(leaves, **chosen)).param_groups[0]["fused"]  # type: ignore[arg-type]
    assert not fastest(torch.optim.SGD(leaves)).param_groups[0]["fused"]
