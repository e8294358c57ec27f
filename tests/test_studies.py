"""Every registered study at its quick settings, and the frame around them on studies that are made up here."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from analysis import figures, studies
from benchmarks.cli import main
from benchmarks.studies import STUDIES, Claimed, Study, appendix_c
from benchmarks.studies.execute import execute, result_file
from estimators import Adam

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def found(name: str, folder: Path) -> studies.Found:
    """A registered study, run once at its quick settings."""
    execute(name, STUDIES[name], STUDIES[name].settings(quick=True), folder)
    return studies.load(result_file(folder, name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_and_says_what_it_found(name: str, folder: Path) -> None:
    study, result = STUDIES[name], found(name, folder)
    assert result.ok, result.content["reason"]
    assert study.about
    assert study.citation
    assert study.method
    assert set(study.quick) <= set(study.defaults)
    assert len(result.rows)
    assert result.claims
    for claim in result.claims:
        assert claim["text"]
        assert claim["measured"]
        assert isinstance(claim["holds"], bool)
    json.loads(result_file(folder, name).read_text(), parse_constant=pytest.fail)  # strict: no NaN


@pytest.mark.parametrize("name", STUDIES)
def test_its_figure_can_be_drawn(name: str, folder: Path) -> None:
    if name not in figures.STUDY_FIGURES:
        assert name == studies.RULES  # a table
        return
    png, svg = figures.draw_study(name, found(name, folder).rows, folder / "figures")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()


def test_figures_are_of_studies() -> None:
    assert set(figures.STUDY_FIGURES) <= set(STUDIES)


def test_the_docs_hold_every_study_and_none_that_is_gone() -> None:
    page = ROOT / "docs" / "claims.md"
    sections = {line[3:] for line in page.read_text().splitlines() if line.startswith("## ")}
    assert sections == STUDIES.keys()


def test_appendix_c_is_what_it_says() -> None:
    """With beta1 = beta2 the extracted text and the derivative are one formula; the released code's is the derivative, its
    bias correction undone."""
    draws = [torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    slots = {"exp_avg": draws[0], "exp_avg_sq": draws[1].square()}
    for betas in ((0.9, 0.999), (0.7, 0.7)):
        rule, t, grad = Adam(lr=0.1, betas=betas, eps=0.0), 7, draws[2].clone().requires_grad_()
        (slope,) = torch.autograd.grad(rule.update(grad, slots, t, torch.zeros(50))[0].sum(), grad)
        exact = -slope * (1 - betas[0] ** t) / (1 - betas[1] ** t) ** 0.5
        released, extracted = (f(rule, draws[2], slots) for f in (appendix_c.as_released, appendix_c.as_extracted))
        torch.testing.assert_close(released, exact, rtol=1e-10, atol=0)
        same = torch.isclose(extracted, exact, rtol=1e-10, atol=0)
        assert same.all() if betas[0] == betas[1] else not same.any()
    nothing = {k: torch.zeros(2) for k in slots}
    assert torch.equal(appendix_c.as_extracted(Adam(), torch.zeros(2), nothing), torch.zeros(2))


def held(name: str, rows: list[dict]) -> list[bool]:
    return [c.holds for c in STUDIES[name].claims(rows)]


def test_no_claim_of_greedy_learning_holds_on_trainings_that_failed() -> None:
    """A failed training has no end: neither above 0.1 nor below 0.05."""
    label = {"step": 1, "outer_loss": 0.0}
    rows = [{"seed": 0, "learned": "alpha", "rule": "momentum", "eta": e, "start": 1.0, "value": v, **label}
            for e, v in ((0.1, 0.5), (0.2, 0.4))]  # fmt: skip
    rows += [{"seed": 0, "learned": "momentum", "rule": rule, "eta": 0.1, "start": s, "value": v, **label}
             for rule, v in (("averaged", 0.5), ("momentum", 0.01)) for s in (0.1, 0.9)]  # fmt: skip
    assert held("greedy_quadratic", rows) == [True] * 4
    for i, spoilt in ((0, [0]), (1, [0]), (2, [1, 2]), (3, [1, 2]), (4, [3]), (5, [3])):
        failed = {k: v for k, v in rows[i].items() if k not in ("value", *label)} | {"reason": "diverged"}
        found = held("greedy_quadratic", [failed if r is rows[i] else r for r in rows])
        assert [n for n, holds in enumerate(found) if not holds] == spoilt
    assert not any(held("greedy_quadratic", [{**r, "step": 0, "value": float("nan")} for r in rows]))
    assert not any(held("greedy_quadratic", []))


def test_a_horizon_whose_trainings_failed_is_not_dropped() -> None:
    rows: list[dict] = [
        {"part": "slope", "seed": 0, "log_lr": 1.0, "horizon": k, "slope": s} for k, s in ((10, 1.0), (40, -1.0))
    ]
    rows += [{"part": "online", "seed": 0, "horizon": k, "excess": x} for k, x in ((1, 3.0), (3, 2.0), (10, 1.0))]
    rows += [{"part": "constant", "seed": 0, "log_lr": a, "excess": x} for a, x in ((0.0, 1.5), (1.0, 2.5))]
    assert held("horizon", rows) == [True] * 3
    for i in (2, 3):
        failed = {"part": "online", "seed": 0, "horizon": rows[i]["horizon"], "reason": "diverged"}
        claims = STUDIES["horizon"].claims([failed if r is rows[i] else r for r in rows])
        assert not claims[1].holds
        assert claims[2].holds is (i == 3)
        assert f"inf (K = {failed['horizon']})" in claims[1].measured


def test_a_guided_training_that_failed_holds_no_claim(folder: Path) -> None:
    rows = found("greedy_digits", folder).content["rows"]
    assert any(held("greedy_digits", rows))
    failed = [{"part": "end", "seed": 0, "rule": "momentum", "noise": 0.4, "reason": "diverged"} if r["part"] == "end" else r
              for r in rows]  # fmt: skip
    assert not any(held("greedy_digits", failed))
    assert not any(held("greedy_digits", []))


def test_rules_that_were_not_measured_hold_no_claim(folder: Path) -> None:
    rows = found("rules", folder).content["rows"]
    last = [i for i, r in enumerate(rows) if r["off_diagonal_share"] is not None][-1]
    columns = ("trajectory_error", "autograd_error", "difference_error", "negative_settled")
    spoilt = [{**r, **dict.fromkeys(columns)} if i == last else r for i, r in enumerate(rows)]
    assert [held("rules", spoilt)[i] for i in (0, 1, 2, 4)] == [False] * 4
    assert not any(held("rules", []))


# --- the frame ------------------------------------------------------------------------------------------------------


def made_up(run: Callable[..., list[dict]] | None = None, **fields: Any) -> Study:
    def squares(*, seeds: tuple[int, ...] = (0, 1), scale: float = 1.0, name: str = "a", deep: bool = False) -> list:
        return [
            {"seed": s, "square": scale * s**2, "drawn": float(torch.rand(())), "lost": float("nan")} for s in seeds
        ]

    def claims(rows: list[dict]) -> list[Claimed]:
        largest = max(r["square"] for r in rows)
        return [Claimed("squares | stay below 2", f"{largest:g}", largest < 2)]

    quick = fields.pop("quick", {"seeds": (0,)})
    return Study(
        run=run or squares, claims=claims, about="Squares", citation="Euclid", quick=quick, method="By hand.", **fields
    )


def draw(rows: pd.DataFrame) -> Figure:
    figure = Figure()
    figure.subplots().plot(rows["seed"], rows["square"])
    return figure


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*, seeds: tuple[int, ...] = (0,)) -> list[dict]:
        raise RuntimeError("[no] luck")

    for name, study in {"broken": made_up(broken), "squares": made_up()}.items():
        monkeypatch.setitem(STUDIES, name, study)
    monkeypatch.setitem(figures.STUDY_FIGURES, "squares", draw)


@pytest.mark.usefixtures("registered")
def test_a_study_that_raises_is_saved_and_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "broken", "squares", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "RuntimeError: [no] luck" in said
    assert "squares | stay below 2" in " ".join(said.split())
    assert studies.load(tmp_path / "broken.json").content["reason"] == "RuntimeError: [no] luck"
    content = studies.load(tmp_path / "squares.json").content
    assert content["settings"] == {"seeds": [0, 1], "scale": 1.0, "name": "a", "deep": False}
    assert content["defaults"]
    assert content["rows"][1] | {"drawn": 0} == {"seed": 1, "square": 1.0, "drawn": 0, "lost": None}
    assert content["nonfinite"] == ["rows[0].lost", "rows[1].lost"]
    assert content["environment"]["torch"] == torch.__version__
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"study_squares.png", "study_squares.svg"}


@pytest.mark.usefixtures("registered")
def test_a_claim_fails_the_command_at_the_default_settings_only(tmp_path: Path) -> None:
    run = ["study", "squares", "--out", str(tmp_path)]
    assert main(run) == 0
    assert main([*run, "--quick"]) == 0
    assert main([*run, "--set", "scale=5"]) == 0
    content = studies.load(tmp_path / "squares.json").content
    assert not content["claims"][0]["holds"]
    assert not content["defaults"]
    STUDIES["squares"] = made_up(lambda *, scale=5.0: [{"seed": 0, "square": scale}])  # the fixture puts it back
    assert main(run) == 1


@pytest.mark.usefixtures("registered")
def test_draws_do_not_depend_on_what_ran_before(tmp_path: Path) -> None:
    def drawn() -> list[float]:
        return [r["drawn"] for r in execute("squares", STUDIES["squares"], {}, tmp_path)["rows"]]

    before = torch.random.get_rng_state()
    first = drawn()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert drawn() == first


@pytest.mark.usefixtures("registered")
def test_an_interrupt_keeps_the_earlier_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> list[dict]:
        raise KeyboardInterrupt

    run = ["study", "squares", "--out", str(tmp_path)]
    assert main(run) == 0
    before = (tmp_path / "squares.json").read_bytes()
    monkeypatch.setitem(STUDIES, "squares", made_up(interrupted, quick={}))
    assert main(run) == 130
    assert "interrupted" in capsys.readouterr().err
    assert (tmp_path / "squares.json").read_bytes() == before


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ("'nonsense'", "squares")),
        ([], ("--all", "squares")),
        (["squares", "--all"], ("--all", "squares")),
        (["squares", "broken", "--set", "scale=2"], ("one study",)),
        (["squares", "--set", "scala=2"], ("'scala=2'", "scale=1.0", "seeds=(0, 1)")),
        (["squares", "--set", "scale"], ("'scale'", "key=value")),
        (["squares", "--set", "scale=big"], ("'big'", "float")),
        (["squares", "--set", "seeds=0.5"], ("0.5", "int")),
        (["squares", "--set", "deep=1"], ("1", "bool")),
        (["squares", "--set", "seeds=()"], ("seeds=()", "at least one")),
        (["rules", "--set", "steps=0"], ("steps=0", "at least 2")),
        (["rules", "--set", "steps=1"], ("steps=1", "at least 2")),
        (["greedy_quadratic", "--set", "steps=0"], ("steps=0", "at least 1")),
        (["difference", "--set", "alphas=1"], ("alphas=(1.0,)", "0.0001, 0.001, 0.01, 0.1 too")),
        (["horizon", "--set", "blocks=3"], ("blocks=(3,)", "1, 10 too")),
        (["appendix_c", "--set", "spaces=mwn"], ("spaces", "example too")),
    ],
)
def test_a_wrong_command_says_what_to_type(
    arguments: list[str], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *arguments, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert not (tmp_path / "x").exists()


def test_settings_are_read_as_the_defaults_are() -> None:
    read = made_up().settings
    assert read() == {"seeds": (0, 1), "scale": 1.0, "name": "a", "deep": False}
    assert read(quick=True)["seeds"] == (0,)
    words = ["seeds=3,4", "scale=2", "name=b c", "deep=True"]
    assert read(words, quick=True) == {"seeds": (3, 4), "scale": 2.0, "name": "b c", "deep": True}
    assert isinstance(read(["scale=2"])["scale"], float)
    assert read(["seeds=7"])["seeds"] == (7,)
    words_of_text = made_up(lambda *, arms=("a", "b"): [{"square": 0}]).settings
    assert words_of_text(["arms=c,d"])["arms"] == ("c", "d")


@pytest.mark.parametrize("row", [{"seed": torch.ones(())}, {"seed": [0]}, {0: 1}])
def test_rows_are_flat(row: dict, tmp_path: Path) -> None:
    done = execute("x", made_up(lambda: [row]), {}, tmp_path)
    assert done["status"] == "failed"
    assert "JSON scalar" in done["reason"]


@pytest.mark.usefixtures("registered")
def test_claims_are_written_to_the_docs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    docs.mkdir()
    monkeypatch.setitem(STUDIES, studies.RULES, made_up(quick={}))
    assert main(["study", "squares", "broken", studies.RULES, "--out", str(results)]) == 1
    write = ["claims", str(results), "--docs", str(docs)]
    assert main(write) == 1
    lost = " ".join(sorted(STUDIES.keys() - {"squares", "broken", studies.RULES}))
    assert f"`hypergradbench study {lost} --out {results}`" in capsys.readouterr().err
    assert not [*docs.iterdir()]
    write.append("--partial")
    assert main(write) == 0
    page = (docs / "claims.md").read_text()
    assert page.startswith("<!-- Written by")
    assert "| squares \\| stay below 2 | 1 | yes |" in page
    assert "hypergradbench study squares\n\nBy hand.\n" in page
    assert "![squares](images/study_squares.png)" in page
    assert (docs / "images" / "study_squares.png").exists()
    assert "**Failed:** RuntimeError: [no] luck" in page
    assert "| [broken](#broken) | failed |" in page
    rules = (docs / "rules.md").read_text()
    assert "| seed | square | drawn | lost |" in rules
    assert rules.count("| - |\n") == 2
    assert page == studies.claims_page(
        studies.load_all(results)[0], {"squares": [docs / "images" / "study_squares.png"]}
    )

    assert "left out, for want of results" in capsys.readouterr().err

    (results / "torn.json").write_text("{")
    assert main(write) == 0
    assert "torn.json is damaged" in capsys.readouterr().err
    assert main(["study", "squares", "--quick", "--out", str(results)]) == 0
    assert main(write) == 1
    assert "squares: not run at the default settings" in capsys.readouterr().err
    assert main(["claims", str(tmp_path / "nothing"), "--docs", str(docs)]) == 2
    assert main(["claims", str(docs), "--docs", str(docs)]) == 1


def test_memory_that_grows_otherwise_holds_no_claim() -> None:
    def rows(again: float = 0.5, **peaks: Callable[[int], int]) -> list[dict]:
        shapes = {
            "unroll": lambda t: 100 * t,
            "unroll-checkpointed": lambda t: 100 * round(t**0.5),
            "unroll-budget": lambda t: 400 + t,
            **{k: lambda t: 5 for k in flat},
        }
        return [
            {"estimator": k, "steps": t, "peak_bytes": f(t) + 4 * t, "losses_bytes": 4 * t, "gradients": again * t}
            for k, f in {**shapes, **peaks}.items()
            for t in (4, 9, 16, 25)
        ]

    flat = ("cg", "neumann", "t1t2", "sama")
    assert held("memory_growth", rows()) == [True] * 5
    assert held("memory_growth", rows(unroll=lambda t: 200 + 100 * round(t**0.5)))[:4] == [False, True, True, True]
    assert held("memory_growth", rows(**{"unroll-checkpointed": lambda t: 100 * t})) == [True, False, True, True, True]
    assert held("memory_growth", rows(sama=lambda t: 5 + (t == 25))) == [True, True, False, True, True]
    assert held("memory_growth", rows(cg=lambda t: 800)) == [True, True, True, False, True]
    assert held("memory_growth", rows(again=1.0)) == [True] * 4 + [False]
    assert held("memory_growth", rows(**{"unroll-budget": lambda t: 441 + 0 * t})) == [True] * 4 + [False]
    assert not any(held("memory_growth", []))
