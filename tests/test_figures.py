"""Every registered figure, drawn of made-up results: labels, directions, colours, failures, and that nothing overlaps or is cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text

from analysis import figures
from analysis.columns import READ, WORKED_OUT
from analysis.figures.ablation import taken_apart
from analysis.figures.weights import apart
from analysis.style import LIBRARIES, LOOKS, SPARE, WIDTHS, look, order, registered
from estimators import registry

NAMES = (
    "unroll",
    "dense",
    "cg(solver.steps=5)",
    "cg(solver.steps=20)",
    "neumann",
    "nystrom",
    "t1t2",
    "sama-na",
    "sama",
    "mine",
    "random",
)
LONG = "hidden=10, steps=30, weight_hidden=30, l2=0.02"
BROKEN = "adapted-neumann"
ASKED = (
    "estimator", "name", "kind", "problem", "case", "cond", "seed", "dtype", "device_asked", "workers", "kernel", "size", "setting", "unroll",
    "built", "library", "method", "products_or_steps", "task", "meta_lr",
)  # fmt: skip
"""What a row says that failed."""
UNITLESS = re.compile(r"cosine|error|step|weight|value|outer loss|distance|product|inverse|per second|condition number")


@cache
def everything() -> pd.DataFrame:
    """Results of all kinds, with one estimator that failed everywhere."""
    rows = [*_points(), *_matrix(), *_paths(), *_meta(), *_peers(), *_advice()]
    frame = pd.DataFrame([{"id": f"{i:016x}", **row} for i, row in enumerate(rows)])
    return frame.reindex(columns=[c.name for c in (*WORKED_OUT, *READ)])


def _row(estimator: str, **more: Any) -> dict[str, Any]:
    row = {
        "estimator": estimator, "name": registered(estimator), "status": "ok", "seed": 0, "dtype": "float64", "device_asked": "cpu",
        "device": "cpu", "workers": 1, "control": estimator == "random", "target": "optimum", "scale": "true", "truth": "closed form",
        "setting": "",
    }  # fmt: skip
    return _failed(row | more) if estimator == BROKEN else row | more


def _failed(row: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in row.items() if k in ASKED}
    return kept | {"status": "failed", "reason": "RuntimeError: no luck", "failure": "error"}


def _points() -> Iterator[dict[str, Any]]:
    places = [("biased_regression", c, f"biased_regression (cond={c:g})") for c in (2.0, 10.0, 100.0)]
    places += [("digits_mwn", np.nan, f"digits_mwn ({LONG})"), ("digits_wide", np.nan, f"digits_wide ({LONG})")]
    for (problem, cond, case), (i, name), seed in product(places, enumerate((*NAMES, BROKEN)), range(3)):
        error = 10.0 ** (i - 10 + seed / 10)
        yield _row(
            name, kind="point", problem=problem, cond=cond, case=case, seed=seed, relative_error=error, angle=min(80 * error, 90),
            cosine=1 - error / 2, bound_error=2 * error, bound_angle=90.0, time_ratio=200.0 / (i + 1), products=60 // (i + 1),
            peak_bytes=1000 * (12 - i), kept_bytes=10 * i, truth="full unroll in float64" if "mwn" in problem else "closed form",
            target="run" if name == "unroll" else "optimum", scale="lr" if name.startswith("sama") else "true",
        )  # fmt: skip


def _matrix() -> Iterator[dict[str, Any]]:
    solvers = ("Identity()", "Neumann(steps=20, lr=None)", "CG(steps=60, rtol=0.0)")
    products = ("reverse_over_reverse", "CentralDifference(alpha=0.001, relative=True)")
    cells = list(product(solvers, (False, True), products))
    for case, seed, (i, (solver, adapt, form)) in product(
        ("digits_tasks", f"digits_deep ({LONG})"), range(2), enumerate(cells)
    ):
        row = _row(
            "neumann", kind="point", problem=case.split()[0], case=case, seed=seed, cosine=0.5 + i / 30, angle=10.0, time_ratio=3.0,
            products=5, peak_bytes=10, built=f"Implicit(solver={solver}, product={form}, batches=1, adapt={adapt})",
        )  # fmt: skip
        yield _failed(row) if i == len(cells) - 1 else row


def _paths() -> Iterator[dict[str, Any]]:
    for i, name in enumerate((*NAMES[:6], BROKEN)):
        curve = [1 - i / 10 - t / 100 for t in range(6)]
        yield _row(
            name, kind="path", problem="digits_example", case=f"digits_example ({LONG})", meta_lr=0.1, path_cosine=curve[:5],
            path_distance=[5 * c for c in curve], path_value=curve[:5], path_optimum={"logits[0]": 0.3, "logits[499]": 0.5},
            path_trajectory={f"logits[{k}]": [c + k for c in curve] for k in (0, 499)},
            path_observed={when: {"weights": {"right": [0.9, 0.8, 0.7 - i / 10], "wrong": [0.1, 0.3]}} for when in ("first", "last")},
        )  # fmt: skip


def _meta() -> Iterator[dict[str, Any]]:
    cells = [(100, 4, 1), (200, 4, 1), (100, 16, 1), (100, 64, 1), (100, 4, 2), (100, 4, 4)]
    for (params, unroll, workers), (i, name) in product(cells, enumerate((*NAMES[:9], BROKEN))):
        split = {"parameters": 10, "slots": 20, "recorded": 5 * unroll, "graph": 50 + i}
        yield _row(
            name, kind="meta", problem="bert_noisy", kernel="best", size="base" if params == 100 else "large", params=1000 * params,
            setting=f"size={params}, correction=False", case="bert_noisy", dtype="float32", unroll=unroll, workers=workers, rounds=5,
            throughput=400 * workers / (i + 1), plain_throughput=800.0 * workers, throughput_ratio=0.5 / (i + 1), batch=48,
            throughput_ratio_low=0.4 / (i + 1), throughput_ratio_high=0.6 / (i + 1), meta_peak=2**20 * params * (1 + i + unroll / 10),
            plain_peak=2**20 * params, memory_ratio=1 + i + unroll / 10, memory_split=split, plain_split=split, data="generated: tokens",
        )  # fmt: skip


def _peers() -> Iterator[dict[str, Any]]:
    for i, (method, library) in enumerate(product(("cg", "unroll"), LIBRARIES)):
        yield _row(
            f"{library}: way", kind="peers", problem="mlp", case="mlp (size=base)", library=library, version="1", variant="way",
            method=method, products_or_steps=10, task=method, seconds=0.1 * (i + 1), peak_bytes=2**20 * (i + 1), relative_error=0.01,
        )  # fmt: skip
    yield _row(
        BROKEN,
        kind="peers",
        problem="mlp",
        case="mlp (size=base)",
        library="higher",
        method="cg",
        products_or_steps=10,
        task="cg",
    )


def _advice() -> Iterator[dict[str, Any]]:
    for i, name in enumerate((*NAMES, BROKEN)):
        yield _row(
            name, kind="advice", problem="mine", case="mine (steps=200)", angle=10.0 ** (2 - i / 2), run_ratio=1.0 + i, meta_seconds=1.0,
            meta_peak=2**10 * (i + 1), products=i, outcomes={}, code="code",
        )  # fmt: skip


@pytest.fixture(params=figures.FIGURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def drawn(name: str, width: str = "page") -> Figure:
    figure = figures.draw(name, everything(), width)
    assert figure is not None
    figure.draw(FigureCanvasAgg(figure).get_renderer())
    return figure


def panels(figure: Figure) -> list[Axes]:
    return [a for a in figure.axes if a.get_visible() and a.get_label() != "<colorbar>"]


def words(figure: Figure) -> str:
    return " ".join(" ".join(t.get_text() for t in figure.findobj(Text)).split())


def test_its_data_are_tidy(name: str) -> None:
    frame, found = everything(), figures.data(name, everything())
    assert len(found) and found.columns.is_unique
    assert list(found.index) == list(range(len(found)))
    assert not any(isinstance(x, (list, dict)) for x in found.to_numpy().ravel())
    if "id" in found:
        assert set(found["id"]) <= set(frame["id"])
    assert found.select_dtypes("number").notna().any().all()


def test_it_has_a_line_in_the_docs(name: str) -> None:
    lines = (Path(__file__).parent.parent / "docs" / "figures.md").read_text().splitlines()
    assert any(f"`{name}`" in line for line in lines if line.startswith("| `"))


def test_nothing_is_drawn_of_nothing(name: str) -> None:
    for frame in (everything()[:0], everything()[lambda f: f["status"] != "ok"]):
        assert figures.data(name, frame).empty
        assert figures.draw(name, frame) is None


def test_axes_have_labels_with_units(name: str, width: str) -> None:
    figure = drawn(name, width)
    for axes in panels(figure):
        place = axes.get_subplotspec()
        assert place is not None
        others = [(a, s) for a in panels(figure) if (s := a.get_subplotspec()) is not None]
        below = [
            a for a, s in others if s.colspan.start == place.colspan.start and s.rowspan.start >= place.rowspan.start
        ]
        left = [
            a for a, s in others if s.rowspan.start == place.rowspan.start and s.colspan.start <= place.colspan.start
        ]
        x, y = ([get(a) for a in found if get(a)] for found, get in ((below, Axes.get_xlabel), (left, Axes.get_ylabel)))
        x_named, y_named = (
            any(re.search("[a-z]{2}", t.get_text()) for t in ticks())
            for ticks in (axes.get_xticklabels, axes.get_yticklabels)
        )
        assert (x or x_named) and (y or y_named), axes.get_title(loc="left")
        for label in (*x, *y):
            assert re.search(r"\(.+\)|/", label) or UNITLESS.search(label), label


def test_the_direction_of_better_is_marked(name: str, width: str) -> None:
    figure = drawn(name, width)
    marked = [a for a in figure.axes if any("better" in t.get_text() or "best" in t.get_text() for t in a.texts)]
    for axes in panels(figure):
        colored = any(a.get_label() == "<colorbar>" for a in marked)
        assert axes in marked or colored or "better" in words(figure), axes.get_title(loc="left")


def test_estimators_have_their_own_colours(name: str) -> None:
    figure = drawn(name)
    seen = set()
    for artist in figure.findobj(lambda a: isinstance(a, (PathCollection, Line2D)) and bool(a.get_gid())):
        gid = str(artist.get_gid())
        if registered(gid) not in registry and gid != "mine":
            continue
        colors = artist.get_facecolor() if isinstance(artist, PathCollection) else [artist.get_color()]
        assert {to_hex(c) for c in colors} == {look(gid).color.lower()}, gid
        seen.add(gid)
    without = {"ablation", "weights", "memory_split", "peers"}
    assert seen or name in without


def test_failures_are_shown(name: str, width: str) -> None:
    text = words(drawn(name, width))
    if name == "ablation":
        assert "failed" in text
    else:
        assert BROKEN in text.split("not shown: ")[1], text


def test_texts_neither_overlap_nor_are_cut(name: str, width: str) -> None:
    figure = drawn(name, width)
    renderer = FigureCanvasAgg(figure).get_renderer()
    ticks = {id(t) for a in figure.axes for axis in (a.xaxis, a.yaxis) for t in axis.get_ticklabels(which="both")}
    inside = {id(t) for a in panels(figure) for t in a.texts if t.get_gid() != "better"}
    boxes = [
        (t.get_text(), t.get_window_extent(renderer))
        for t in figure.findobj(Text)
        if t.get_visible() and t.get_text().strip() and id(t) not in ticks | inside
        and all(a.get_visible() for a in [t.axes] if a is not None)
    ]  # fmt: skip
    whole = figure.bbox.padded(2)
    for text, box in boxes:
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1, f"cut: {text}"
    for (one, a), (other, b) in combinations(boxes, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide <= 1 or high <= 2, f"{one!r} overlaps {other!r}"


def test_tick_labels_do_not_run_into_each_other(name: str, width: str) -> None:
    assert_tick_labels_apart(drawn(name, width))


def assert_tick_labels_apart(figure: Figure) -> None:
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in panels(figure):
        turned = [
            t for t in axes.get_xticklabels(which="both") if t.get_visible() and t.get_text() and not t.get_rotation()
        ]
        low, high = sorted(axes.get_xlim())
        boxes = sorted(
            (t.get_window_extent(renderer) for t in turned if low <= t.get_position()[0] <= high), key=lambda b: b.x0
        )
        assert all(a.x1 <= b.x0 for a, b in pairwise(boxes)), axes.get_title(loc="left")
        low, high = sorted(axes.get_ylim())
        labels = [t for t in axes.get_yticklabels(which="both") if t.get_visible() and t.get_text()]
        boxes = sorted(
            (t.get_window_extent(renderer) for t in labels if low <= t.get_position()[1] <= high), key=lambda b: b.y0
        )
        assert all(a.y1 <= b.y0 + 2 for a, b in pairwise(boxes)), axes.get_title(loc="left")


def test_its_letters_are_as_large_in_a_column(name: str) -> None:
    sizes = {
        width: {t.get_fontsize() for t in drawn(name, width).findobj(Text) if t.get_text().strip()} for width in WIDTHS
    }
    assert sizes["column"] == sizes["page"]
    assert {w: drawn(name, w).get_figwidth() for w in WIDTHS} == WIDTHS


def test_a_column_is_not_taller_than_a_page(name: str) -> None:
    assert drawn(name, "column").get_figheight() < 9.5


def test_a_few_bars_have_room_for_their_names(width: str) -> None:
    names = ["unroll", "dense", "cg(solver.steps=20)", "neumann", "sama"]
    frame = everything()
    frame = frame[(frame["kind"] == "meta") & frame["estimator"].isin(names)]
    for few in range(1, len(names) + 1):
        figure = figures.draw(
            "memory_split", frame[frame["estimator"].isin(names[:few]) & (frame["unroll"] == 4)], width
        )
        assert figure is not None
        assert_tick_labels_apart(figure)


def test_numbers_are_within_their_cells(width: str) -> None:
    figure = drawn("ablation", width)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in panels(figure):
        for text in axes.texts:
            if text.get_gid() != "better":
                box = axes.transData.inverted().transform(text.get_window_extent(renderer))
                assert np.ptp(box, axis=0).max() <= 1, text.get_text()


def test_a_width_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="page or column"):
        figures.draw("peers", everything(), "slide")
    paths = figures.draw_all(everything()[lambda f: f["kind"] == "peers"], tmp_path, "column")
    assert [p.name for p in paths] == ["peers_column.png", "peers_column.svg"]


def test_a_look_does_not_depend_on_its_neighbours() -> None:
    for n in ("cg(solver.steps=5)", "cg(solver.steps=20)", "unroll-budget", "mine"):
        assert look(n).color == look(n, [*NAMES, "yours"]).color
        assert look(n).marker == look(n, NAMES).marker
    assert look("cg(solver.steps=5)").color == LOOKS["cg"].color
    several = ["cg", "cg(solver.steps=5)", "cg(solver.steps=20)", "cg(solver.steps=100)"]
    assert len({str(look(n, several).line) for n in several}) == 4
    assert order(reversed(several)) == several
    unknown = [f"plugin{i}" for i in range(len(SPARE))]
    assert len({look(n, unknown) for n in unknown}) == len(SPARE)


def test_a_budget_is_written_beside_its_point() -> None:
    axes = panels(drawn("error_products"))[0]
    assert {t.get_text() for t in axes.texts if isinstance(t, Annotation) and t.get_gid() == "setting"} == {"5", "20"}


def test_the_front_joins_what_nothing_beats() -> None:
    points = figures.data("error_cost", everything())
    mine = (
        points[points["case"] == "biased_regression (cond=10)"]
        .groupby("estimator")[["time_ratio", "direction_distance"]]
        .median()
    )
    (front,) = (line for line in panels(drawn("error_cost"))[0].lines if line.get_gid() == "front")
    on = {(x, max(y, 1e-4)) for x, y in mine.drop("random").itertuples(index=False)}
    corners = set(zip(*map(tuple, front.get_data()), strict=True))
    assert corners <= on
    for x, y in on:
        assert any(a <= x and b <= y for a, b in corners)


def test_implicit_estimators_are_taken_apart() -> None:
    cg = "Implicit(solver=CG(steps=60, rtol=1e-12), product=reverse_over_reverse, batches=1, adapt=True)"
    sama = "SAMA(adapt=True, product=CentralDifference(alpha=1.0, relative=False), batches=1)"
    assert {k: v for k, v in (taken_apart(cg) or {}).items() if k != "rest"} == {
        "inverse": "CG, 60", "adapted": True, "product": "exact", "rank": 2,
    }  # fmt: skip
    assert (taken_apart(sama) or {})["inverse"] == "identity"
    assert (taken_apart(sama) or {})["product"] == r"difference, $\alpha$ = 1"
    for other in ("Unroll(last=None)", "[Implicit(solver=CG())]", "", None, "a b"):
        assert taken_apart(other) is None


def test_right_above_wrong_counts_pairs() -> None:
    points = pd.DataFrame({"label": ["right", "right", "wrong", "wrong"], "weight": [0.9, 0.5, 0.5, 0.1]})
    assert apart(points) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert np.isnan(apart(points[points["label"] == "right"]))


def test_efficiency_is_to_the_fewest_workers() -> None:
    found = figures.data("workers", everything()).query("estimator == 'sama'").set_index("workers")
    assert found["efficiency"].to_dict() == pytest.approx({1: 1.0, 2: 1.0, 4: 1.0})
    assert found["plain_efficiency"].to_dict() == pytest.approx({1: 1.0, 2: 1.0, 4: 1.0})


def test_a_pdf_repeats_to_the_byte() -> None:
    first = figures.image("ablation", everything(), "pdf")
    assert first is not None and first.startswith(b"%PDF")
    assert first == figures.image("ablation", everything(), "pdf")
