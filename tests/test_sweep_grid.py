"""Sweep files: what cells they span, what is said of wrong ones, flags, shards, and estimators with other fields."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.cells import AUTOCAST, Cell
from benchmarks.commands.sweep import Sweep, resolve
from benchmarks.executors import choose
from benchmarks.grid import Grid, SweepError, read, shard
from benchmarks.plan import UnknownName, with_fields
from estimators import CG, SAMA, Implicit, Neumann, Unroll, registry, reverse_over_reverse

ROOT = Path(__file__).resolve().parent.parent

GOOD = """
about = "a try"
estimators = ["cg", "sama", "composed"]
problems = ["biased_regression", "weighted_ridge"]
seeds = [0, 1]
dtypes = ["float64", "float32"]
[settings.biased_regression]
cond = [2.0, 10.0, 100.0]
[fields.cg]
solver.steps = [5, 20]
"solver.damping" = 0.5
[fields.composed]
0.solver.steps = 7
[limits]
seconds = 60
memory = "2GiB"
"""

META = """
kind = "meta"
estimators = ["sama"]
problems = ["mlp_decay"]
workers = [1, 2]
together = true
[settings]
size = "tiny"
unroll = [1, 2]
[meta]
kernel = ["best", "math"]
"""


def grid(text: str, tmp_path: Path, **flags: object) -> Grid:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return read(file, flags)


def test_cells_are_the_product(tmp_path: Path) -> None:
    found = grid(GOOD, tmp_path)
    todo = found.cells()
    assert len(todo) == (3 + 1) * 2 * 2 * (2 + 1 + 1)
    assert len({c.id for c in todo}) == len(todo)
    assert {c.settings.get("cond") for c in todo if c.problem == "biased_regression"} == {2.0, 10.0, 100.0}
    assert {str(c.fields) for c in todo if c.estimator == "cg"} == {
        f"{{'solver.steps': {n}, 'solver.damping': 0.5}}" for n in (5, 20)
    }
    assert all("steps=7" in c.built for c in todo if c.estimator == "composed")
    assert {c.built for c in todo if c.estimator == "cg"} == {
        f"Implicit(solver=CG(steps={n}, rtol=1e-12, damping=0.5), product=reverse_over_reverse, batches=1, adapt=False, graph=None, sums=None)"
        for n in (5, 20)
    }
    assert (found.name, found.seconds, found.memory) == ("mine", 60.0, 2 * 2**30)
    for cell in todo:
        assert Cell(**cell.config).id == cell.id


def test_values_are_what_the_problem_takes(tmp_path: Path) -> None:
    """So that cond = 2 is the cell that `run --conds 2` measured, and None can be said."""
    text = GOOD.replace("[2.0, 10.0, 100.0]", '[2, 10.0]\nsteps = ["none", 5]\nspectrum = [[1, 2]]')
    chosen = [c.settings for c in grid(text, tmp_path).cells() if c.problem == "biased_regression"]
    assert {(c["cond"], type(c["cond"]), c["steps"]) for c in chosen} == {
        (cond, float, steps) for cond in (2.0, 10.0) for steps in (None, 5)
    }
    assert chosen[0]["spectrum"] == (1, 2)


def test_cells_of_one_instance_are_neighbours(tmp_path: Path) -> None:
    places = [c.instance for c in grid(GOOD, tmp_path).cells()]
    assert 1 + sum(a != b for a, b in zip(places, places[1:], strict=False)) == len(set(places))


def test_cells_of_meta_steps(tmp_path: Path) -> None:
    todo = grid(META, tmp_path).cells()
    assert len(todo) == 2 * 2 * 2
    assert {c.dtype for c in todo} == {"float32"}
    assert {(c.workers, c.meta["kernel"], c.settings["unroll"]) for c in todo} == {
        (w, k, u) for w in (1, 2) for k in ("best", "math") for u in (1, 2)
    }
    assert all(c.settings["size"] == "tiny" for c in todo)
    assert grid(META, tmp_path, dtypes=(AUTOCAST,)).cells()[0].dtype == AUTOCAST
    point = Cell(estimator="sama", problem="mlp_decay", settings=todo[0].settings, dtype="float32")
    assert point.instance != todo[0].instance


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seeds =", "seed ="), ["mine.toml: unknown key 'seed'", "did you mean 'seeds'", "estimators"]),
        (('"cg", ', '"cgg", '), ["mine.toml: estimators: no estimator is called 'cgg'", "neumann"]),
        (('"weighted_ridge"', '"weighted"'), ["problems: no problem is called 'weighted'", "log_ridge"]),
        (("[0, 1]", "[]"), ["mine.toml: seeds: is an empty list"]),
        (("[0, 1]", '[0, "one"]'), ["seeds: 'one' is no whole number"]),
        (("[0, 1]", "[true]"), ["seeds: True is no whole number"]),
        (('"float32"', '"float16"'), ["dtypes: kind 'point' is not measured in 'float16'", "float64, float32"]),
        (('"float32"', f'"{AUTOCAST}"'), ["dtypes: kind 'point' is not measured in"]),
        (("cond =", "conds ="), ["[settings.biased_regression] conds: biased_regression takes no such setting", "cond"]),
        (("[2.0, 10.0, 100.0]", '"two"'), ["[settings.biased_regression] cond: biased_regression takes float there, not 'two'"]),
        (("[2.0, 10.0, 100.0]", "[]"), ["cond: is an empty list"]),
        (("[settings.biased_regression]", "[settings]"), ["[settings] cond: weighted_ridge takes no such", "[settings.NAME] cond"]),
        (("[settings.biased_regression]", "[settings.biased]"), ["[settings.biased]: no problem is called 'biased'"]),
        (("[fields.cg]", "[fields.neumann]"), ["[fields.neumann]: neumann is not among the estimators of this sweep"]),
        (("[fields.cg]", "[fields.cgg]"), ["[fields.cgg]: no estimator is called 'cgg'"]),
        (("solver.steps = [5", "solver.step = [5"), ["[fields.cg]: field 'solver.step': CG has no field 'step'", "rtol"]),
        (("[5, 20]", '[5, "many"]'), ["[fields.cg]: field 'solver.steps' of CG takes int, not 'many'", "60 as registered"]),
        (("[5, 20]", "[5, 0]"), ["[fields.cg]: field 'solver.steps': CG refuses 0", "at least 1"]),
        (("0.solver.steps", "solver.steps"), ["[fields.composed]: field 'solver.steps': 'solver' is no stage"]),
        (("seconds = 60", "seconds = -1"), ["[limits] seconds: -1 is no positive number"]),
        (("seconds = 60", "second = 60"), ["[limits]: unknown key 'second'", "did you mean 'seconds'"]),
        (('"2GiB"', '"2 gigs"'), ["[limits] memory: '2 gigs' is no size"]),
        (("about =", "together = true\nabout ="), ["together: is for kind = \"meta\" only"]),
        (("about =", "workers = 2\nabout ="), ["workers: 2: at least 1, and more than 1 for kind"]),
        (("about =", 'device = "gpu"\nabout ='), ["device: 'gpu' is no device"]),
        (("about =", 'kind = "path"\nabout ='), ["kind: 'path' is none of: point, meta"]),
        (("about =", "per_process = 0\nabout ="), ["per_process: 0 is no whole number of at least 1"]),
        (("about =", 'name = "../up"\nabout ='), ["name: '../up' cannot name a folder"]),
        (("about =", "effort = 3\nabout ="), ["effort: must be a table"]),
        (("[limits]", "[meta]\n[limits]"), []),
        (("[limits]", '[meta]\nkernel = "best"\n[limits]'), ["[meta]: is for kind"]),
        (("[limits]", "[effort]\nleast = 1.5\n[limits]"), ["[effort] least: 1.5 is no positive whole number"]),
        (("[limits]", "[effort]\nwidth = 0\n[limits]"), ["[effort] width: 0 is no positive number"]),
        (("[limits]", "[effort]\npatience = 2\n[limits]"), ["unknown key 'patience'"]),
        (("[limits]", "[effort]\nleast = 5\nmost = 2\n[limits]"), ["[effort] least: 5 is more than most = 2"]),
        (("[limits]", "[effort]\nbudget = inf\n[limits]"), ["mine.toml: [effort] budget: inf is no finite number"]),
        (("10.0, 100.0]", "nan]"), ["mine.toml: [settings.biased_regression] cond: nan is no finite number"]),
        (('"solver.damping" = 0.5', "solver.damping = inf"), ["[fields.cg.solver] damping: inf is no finite number"]),
        (("about =", 'name = "a\\u0000b"\nabout ='), ["cannot name a folder"]),
        (("about =", f'name = "{"long" * 99}"\nabout ='), ["cannot name a folder"]),
        (('["cg", "sama", "composed"]', "[]"), ["mine.toml: estimators: is an empty list: there would be no cell"]),
        (("\nabout =", "\ufeffabout ="), []),
        (('estimators = ["cg", "sama", "composed"]', ""), ["mine.toml: estimators is missing", '"all"']),
        (("about =", "about"), ["no valid TOML"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(change: tuple[str, str], words: list[str], tmp_path: Path) -> None:
    text = GOOD.replace(*change, 1)
    assert text != GOOD
    if not words:  # an empty table says nothing
        assert grid(text, tmp_path).cells() == grid(GOOD, tmp_path).cells()
        return
    with pytest.raises(SweepError) as error:
        grid(text, tmp_path)
    for word in words:
        assert word in str(error.value)


def test_wrong_meta_sweeps(tmp_path: Path) -> None:
    for change, words in (
        (('"tiny"', '"small"'), "mlp_decay has no size 'small'; it has: tiny"),
        (('"math"', '"flash"'), "'flash' is none of: best, math"),
        (('"mlp_decay"', '"biased_regression"'), "no workload is called"),
        (("unroll =", "unrol ="), "mlp_decay takes no such setting; it takes: size, unroll"),
    ):
        with pytest.raises(SweepError, match=re.escape(words)):
            grid(META.replace(*change), tmp_path)


def test_a_missing_extra_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.grid.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SweepError, match=re.escape("bert_noisy needs transformers: pip install -e '.[models]'")):
        grid(META.replace("mlp_decay", "bert_noisy"), tmp_path)


def test_flags_stand_in_place_of_entries(tmp_path: Path) -> None:
    found = grid(GOOD, tmp_path, seeds=(5,), estimators=("sama",), dtypes=(), limit_memory="1GiB", limit_seconds=3.0)
    assert (found.seeds, found.estimators, found.memory, found.seconds) == ((5,), ("sama",), 2**30, 3.0)
    assert found.dtypes == ("float64", "float32")  # () is "not given"
    assert found.fields == {}
    meta = grid(META, tmp_path, sizes=("base",), unroll=(7,), workers=(1,), together=False)
    assert {(c.settings["size"], c.settings["unroll"]) for c in meta.cells()} == {("base", 7)}
    assert not meta.together
    own = META.replace("[settings]", "[settings.mlp_decay]")
    assert {c.settings["unroll"] for c in grid(own, tmp_path, unroll=(7,)).cells()} == {7}
    for flags, words in (
        ({"estimators": ("cgg",)}, "--estimators: no estimator is called 'cgg'"),
        ({"sizes": ("base",)}, "--sizes: biased_regression takes no such setting"),
        ({"limit_memory": "x"}, "--limit-memory: 'x' is no size"),
        ({"limit_seconds": 0.0}, "--limit-seconds: 0.0 is no positive number"),
        ({"data": tmp_path}, "--data: none of these problems reads data"),
        ({"device": "tpu"}, "--device: 'tpu' is no device"),
    ):
        with pytest.raises(SweepError, match=re.escape(words)):
            grid(GOOD, tmp_path, **flags)


def test_flags_alone_make_a_sweep(tmp_path: Path) -> None:
    command = Sweep(estimators=("t1t2", "sama"), problems=("log_ridge",), seeds=(1, 2), out=tmp_path / "x", shard="2/2")
    found, todo, out = resolve(command)
    assert out == tmp_path / "x"
    assert len(found.cells()) == 4
    assert len(todo) == 2
    with pytest.raises(SweepError, match="the command line: problems is missing"):
        resolve(Sweep(estimators=("sama",)))
    with pytest.raises(SweepError, match="exclude each other"):
        resolve(Sweep(together=True, apart=True))
    with pytest.raises(SweepError, match="--jobs 0"):
        resolve(Sweep(estimators=("sama",), problems=("log_ridge",), jobs=0))
    with pytest.raises(SweepError, match="cannot be read"):
        resolve(Sweep(file=tmp_path / "none.toml"))


def test_data_goes_to_those_that_read_it(tmp_path: Path) -> None:
    text = META.replace('"mlp_decay"', '"mlp_decay", "bert_noisy"')
    todo = grid(text, tmp_path, data=tmp_path).cells()
    assert {(c.problem, c.settings.get("data")) for c in todo} == {("mlp_decay", None), ("bert_noisy", str(tmp_path))}
    with pytest.raises(SweepError, match="--data: there is no folder"):
        grid(text, tmp_path, data=tmp_path / "elsewhere")


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
def test_shards_are_a_partition(n: int, tmp_path: Path) -> None:
    todo = grid(GOOD, tmp_path).cells()
    parts = [shard(todo, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(c.id for part in parts for c in part) == sorted(c.id for c in todo)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts[0] == shard(grid(GOOD, tmp_path).cells(), f"1/{n}")


def test_shards_do_not_separate_what_is_timed_together(tmp_path: Path) -> None:
    todo = grid(META, tmp_path, estimators=("sama", "cg", "t1t2")).cells()
    parts = [shard(todo, f"{i}/3", together=True) for i in (1, 2, 3)]
    assert sum(map(len, parts)) == len(todo)
    assert sum(len({c.instance for c in part}) for part in parts) == len({c.instance for c in todo})
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(SweepError, match="write i/n"):
            shard(todo, wrong)


def test_other_fields() -> None:
    cg, composed = registry["cg"].estimator, registry["composed"].estimator
    assert isinstance(cg, Implicit)
    assert with_fields(cg, {"solver.steps": 5}) == Implicit(CG(steps=5, rtol=1e-12))
    assert cg == Implicit(CG(steps=60, rtol=1e-12))
    assert with_fields(cg, {}) == cg
    exchanged = {"solver.steps": 3, "solver": "neumann"}  # in either order
    assert (
        with_fields(cg, exchanged) == Implicit(Neumann(steps=3)) == with_fields(cg, dict(reversed(exchanged.items())))
    )
    assert with_fields(composed, {"0.solver.steps": 2, "1.last": 3}) == (
        Implicit(CG(steps=2, rtol=1e-12)),
        Unroll(last=3),
    )
    assert with_fields(Unroll(last=3), {"last": "none"}) == Unroll()
    assert with_fields(SAMA(), {"product": "reverse-over-reverse"}) == SAMA(product=reverse_over_reverse)
    alpha = with_fields(SAMA(), {"product.alpha": 1}).product.alpha
    assert (alpha, type(alpha)) == (1.0, float)
    for thing, fields, words in (
        (SAMA(), {"product": "forward"}, "no product is called 'forward'; there are: reverse-over-forward"),
        (SAMA(), {"adapt.x": 1}, "bool has no fields"),
        (SAMA(), {"batches": True}, "takes int, not True"),
        (composed, {"2.last": 1}, "begin with 0 to 1"),
        (composed, {"0": 1}, "begin with 0 to 1"),
    ):
        with pytest.raises(UnknownName, match=re.escape(words)):
            with_fields(thing, fields)


def test_timing_is_not_disturbed_unless_told(tmp_path: Path) -> None:
    found = grid(GOOD, tmp_path)
    with pytest.raises(
        SweepError, match="--jobs 2: cells that run at the same time disturb .* --allow-disturbed-timing"
    ):
        choose(found, tmp_path, jobs=2, disturbed=False)
    assert choose(found, tmp_path, jobs=2, disturbed=True).shares_machine
    assert choose(found, tmp_path, jobs=1, disturbed=False).shares_machine


def test_a_device_that_is_not_there_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = grid(GOOD, tmp_path, device="cuda")
    with pytest.raises(SweepError, match="torch finds no CUDA device here"):
        choose(found, tmp_path, jobs=1, disturbed=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    choose(found, tmp_path, jobs=1, disturbed=False)
    with pytest.raises(SweepError, match="only 1 CUDA devices"):
        choose(grid(GOOD, tmp_path, device="cuda:1"), tmp_path, jobs=1, disturbed=False)


def test_the_examples_of_the_documentation_are_sweeps(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text()
    first, slurm = re.findall(r"```toml\n(.*?)```", text, re.S)
    assert len(grid(first, tmp_path).cells()) == 126
    assert "make 126 cells" in text
    base = 'estimators = "sama"\nproblems = "log_ridge"\n'
    assert grid(base + slurm, tmp_path).slurm["gpus_per_node"] == 1


def test_every_shipped_sweep_resolves() -> None:
    for file in (ROOT / "benchmarks").glob("sweeps/*.toml"):
        assert read(file).cells(), file
