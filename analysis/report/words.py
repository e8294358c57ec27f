"""What points and paths say, in sentences: every number with its interval, every comparison with its test, every name a link to its
line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from .. import stats
from ..advice import FLOOR
from ..text import short
from .grid import Grid
from .lines import FLOOR as ZERO
from .points import PLACE, with_measures

ALIKE = 0.01
"""Paths whose measures differ by less, relatively, are named together."""


CONVERGED = 0.05
"""Share of the distance below which a path has arrived."""


@dataclass(frozen=True)
class Part:
    """Some words, the place on the page that they lead to, and whether they are code."""

    text: str
    to: str | None = None
    code: bool = False


Sentence = Sequence[Part]


@dataclass(frozen=True)
class Finding:
    """What is said of one problem."""

    head: str
    sentences: Sequence[Sentence]


@dataclass(frozen=True)
class Measure:
    """What estimators are ranked by.

    Attributes:
        key: column of the lines and of the cells.
        word: "A is the ``word``".
        unit: behind the number.
        worse: how the runner-up compares: "B ``worse`` 1.3 ``times``".
    """

    key: str
    word: str
    unit: str
    worse: str
    times: str = "times as much"


ERROR = Measure("direction_error", "most accurate", "", "is off by", "times as much")
TIME = Measure("time_ratio", "fastest", " gradients", "takes", "times as long")
BYTES = Measure("bytes_ratio", "lightest", " times the memory of a gradient", "needs")


@dataclass
class Told:
    """What is said of one problem, before the comparisons in it have been corrected.

    Attributes:
        sentences: some of them wait for a verdict.
        pairs: the comparisons that they wait for, in order.
        accurate: who is right to `FLOOR`.
        winners: what -> who.
    """

    sentences: list[Sentence | Callable[[stats.Paired, stats.Paired], Sentence]] = field(default_factory=list)
    pairs: list[stats.Paired] = field(default_factory=list)
    accurate: list[str] = field(default_factory=list)
    winners: dict[str, str] = field(default_factory=dict)


def of_points(frame: pd.DataFrame, grid: Grid) -> list[Finding]:
    """Who is most accurate, fastest and lightest, on all problems together and on each, controls left out.

    Every comparison is one of the winner with the runner-up, paired by seed; they are corrected together (Holm).
    """
    rows = with_measures(frame[frame["kind"].eq("point") & frame["status"].eq("ok")])
    rows = rows[~controls(rows)]
    told = [(key, mine, _told(mine, _lines(grid, key))) for key, mine in rows.groupby(PLACE, sort=False)]
    pairs = [pair for _, _, one in told for pair in one.pairs]
    verdicts = iter(zip(pairs, stats.corrected(pairs), strict=True))
    severally = [n for n in PLACE if n == PLACE[0] or rows[n].nunique() > 1]
    found = []
    for key, _, one in told:
        head = ", ".join(str(k) for n, k in zip(PLACE, key, strict=True) if n in severally)
        found.append(Finding(head, [s(*next(verdicts)) if callable(s) else s for s in one.sentences]))
    if len(told) > 2:
        tried = Counter(str(name) for _, mine, _ in told for name in mine["estimator"].unique())
        found.insert(0, _together([one for _, _, one in told], tried))
    if pairs:
        said = (
            f"Winners are compared with runners-up seed by seed (exact permutation test): {counted(len(pairs), 'comparison')}, corrected "
            f"together (Holm). So many can show a difference from {stats.seeds_for(len(pairs))} seeds on."
        )
        found.append(Finding("How they are compared", [[Part(said)]]))
    return found


def controls(rows: pd.DataFrame) -> pd.Series:
    """Which are no estimates, but what one must beat."""
    return rows["control"].eq(True) | rows["scale"].eq("none")


def _together(told: Sequence[Told], tried: Counter[str]) -> Finding:
    """How often each came first."""
    right = Counter(name for one in told for name in one.accurate)
    always = [f"{name} ({n} of {tried[name]})" for name, n in right.most_common()]
    sentences = [[Part(f"Right in direction to {_floor()}: {', '.join(always) or 'none'}.")]]
    for what, begin in (
        ("fast", "Fastest of the most accurate"), ("light", "Lightest of the most accurate"),
        ("fastest", "Fastest of all, however wrong"), ("lightest", "Lightest of all, however wrong"),
    ):  # fmt: skip
        counts = Counter(one.winners[what] for one in told if what in one.winners)
        if counts:
            listed = ", ".join(f"{name} on {n}" for name, n in counts.most_common())
            sentences.append([Part(f"{begin}: {listed} (of {len(told)}).")])
    return Finding(f"All {len(told)} problems and settings together", sentences)


def _lines(grid: Grid, key: tuple[str, ...]) -> pd.DataFrame:
    """The lines of one problem by estimator, with their place on the page."""
    lines = grid.frame.assign(anchor=[f"{grid.name}-{i}" for i in range(len(grid.frame))])
    return lines[(lines[PLACE] == list(key)).all(axis=1)].set_index("estimator")


def _told(rows: pd.DataFrame, lines: pd.DataFrame) -> Told:
    lines = lines[lines["status"].eq("ok") & lines.index.isin(rows["estimator"].unique())]
    told, seeds = Told(), rows["seed"].nunique()
    truth = ", ".join(dict.fromkeys(rows["truth"].dropna())) or "unknown"
    told.sentences.append([Part(f"{counted(len(lines), 'estimator')}, {counted(seeds, 'seed')}; truth: {truth}.")])
    if rows["size_hparams"].max() == 1:
        told.sentences.append(
            [Part("There is one hyperparameter: its direction is but a sign, and an error is 0 or 2.")]
        )
    known = lines.dropna(subset=[ERROR.key])
    alike = known[known[ERROR.key] <= FLOOR]
    told.accurate = [str(name) for name in alike.index]
    if len(alike) > 1:
        listed = joined(_link(lines, name) for name in told.accurate)
        worst = short(alike[ERROR.key].max())
        told.sentences.append(
            [
                Part("Most accurate: "),
                *listed,
                Part(f"; their directions are right to {worst} or better, and below {_floor()} all are alike."),
            ]
        )
        fast = _ranked(told, rows, TIME, alike, "Of these the fastest is ")
        light = _ranked(told, rows, BYTES, alike, "Of these the lightest is ")
    else:
        fast = light = _ranked(told, rows, ERROR, known, "Most accurate is ")
    told.winners |= {what: name for what, name in (("fast", fast), ("light", light)) if name is not None}
    for measure, already in ((TIME, fast), (BYTES, light)):
        first = lines[measure.key].idxmin() if lines[measure.key].notna().any() else None
        if first is None:
            continue
        told.winners[measure.word] = str(first)
        if first != already:
            error = _amount(lines.loc[first], ERROR)
            told.sentences.append([
                Part(f"{measure.word.capitalize()} of all is "), _link(lines, str(first)), Part(f", {_amount(lines.loc[first], measure)}, but with {error}."),
            ])  # fmt: skip
    return told


def _ranked(told: Told, rows: pd.DataFrame, measure: Measure, among: pd.DataFrame, begin: str) -> str | None:
    """Say who is first by ``measure``, and how the second compares."""
    order = among[measure.key].dropna().sort_values(kind="stable")
    if order.empty:
        return None
    best = str(order.index[0])
    head = [Part(begin), _link(among, best), Part(f", {_amount(among.loc[best], measure)}")]
    if len(order) == 1:
        told.sentences.append([*head, Part(".")])
        return best
    second = str(order.index[1])
    both = stats.by_seed(rows, measure.key, best, second)
    told.pairs.append(
        stats.paired(both[second].clip(lower=ZERO).tolist(), both[best].clip(lower=ZERO).tolist(), log=True)
    )
    told.sentences.append(
        lambda alone, among_all: [*head, *_verdict(alone, among_all, measure, _link(among, second)), Part(".")]
    )
    return best


def _verdict(alone: stats.Paired, found: stats.Paired, measure: Measure, second: Part) -> list[Part]:
    """How the runner-up compares.

    Args:
        alone: as if it were the only comparison.
        found: corrected for all.
    """
    if found.verdict == stats.EQUAL:
        return [Part("; "), second, Part(" is equal in every seed")]
    ratio = _times(found.effect)
    if pd.notna(found.low) and (ends := [_times(found.low), _times(found.high)]) != [ratio, ratio]:
        ratio += f" [{ends[0]}, {ends[1]}]"
    seen = f" {measure.worse} {ratio} {measure.times}"
    if found.verdict == stats.NOT_ENOUGH:
        return [Part("; "), second, Part(f"{seen} (not enough seeds to tell them apart)")]
    if found.verdict == stats.HIGHER:
        return [Part("; "), second, Part(f"{seen} (p = {short(found.p)}, {found.n} seeds)")]
    if alone.verdict == stats.HIGHER:
        return [
            Part("; "),
            second,
            Part(
                f"{seen} (p = {short(alone.p)}, {short(found.p)} when corrected: not enough seeds for so many comparisons)"
            ),
        ]
    return [Part("; no difference is seen to "), second, Part(f", which{seen} (p = {short(found.p)}, {found.n} seeds)")]


def _times(x: float) -> str:
    """A ratio: near 1 the second place counts."""
    return f"{x:.2f}" if 0.1 <= x < 10 else short(x)


def _amount(line: pd.Series, measure: Measure) -> str:
    """The number with its interval."""
    if pd.isna(line[measure.key]):
        undefined = "an undefined direction" if pd.notna(line["relative_error"]) else "an unknown error"
        return undefined if measure is ERROR else "not measured"
    text, low, high = (short(line[f"{measure.key}{end}"]) for end in ("", "_low", "_high"))
    if pd.notna(line[f"{measure.key}_low"]) and (low, high) != (text, text):
        text += f" [{low}, {high}]"
    return f"direction error {text}" if measure is ERROR else f"{text}{measure.unit}"


def _link(lines: pd.DataFrame, name: str) -> Part:
    return Part(name, str(lines.loc[name, "anchor"]))


def joined(parts: Iterable[Part]) -> list[Part]:
    """With commas between."""
    return [p for part in parts for p in (Part(", "), part)][1:]


def counted(n: int, word: str, several: str | None = None) -> str:
    """A number and what it counts."""
    return f"{n} {word if n == 1 else several or word + 's'}"


def _floor() -> str:
    return f"{FLOOR:.0e}".replace("e-0", "e-")


def of_paths(frame: pd.DataFrame, grid: Grid) -> list[Finding]:
    """Who kept the best direction, and who came closest to the best hyperparameters or to the least loss, on each problem."""
    rows = frame[frame["kind"].eq("path") & frame["status"].eq("ok")]
    idle = set(rows.loc[controls(rows), "estimator"])
    lines = grid.frame.assign(anchor=[f"{grid.name}-{i}" for i in range(len(grid.frame))])
    lines = lines[lines["status"].eq("ok") & ~lines["estimator"].isin(idle)]
    found = []
    for key, mine in lines.groupby([*PLACE, "products_or_steps"], sort=False, dropna=False):
        mine = mine.set_index("estimator")
        sentences: list[Sentence] = []
        for column, sign, begin, write in (
            ("mean_cosine", -1, "Best direction on the way, by the mean cosine: ", "{:.4f}".format),
            ("last_value", 1, "Least outer loss at the end: ", short),
            ("distance_left", 1, "Nearest to the best hyperparameters, by the share of the distance that is left: ", short),
        ):  # fmt: skip
            ranked = (sign * mine[column].dropna()).sort_values(kind="stable")
            if len(ranked):
                best = ranked.index[abs(ranked - ranked.iloc[0]) <= ALIKE * abs(ranked.iloc[0])]
                parts = [
                    p
                    for name in best
                    for p in (Part(", "), _link(mine, name), Part(f" {write(mine.at[name, column])}"))
                ][1:]
                far = column == "distance_left" and ranked.iloc[0] > CONVERGED
                caution = ". It is far from there: a shorter way to go is not a better gradient." if far else "."
                sentences.append([Part(begin), *parts, Part(caution)])
        steps = f" for {key[-1]:.0f} steps" if pd.notna(key[-1]) else ""
        if sentences:
            found.append(Finding(f"{key[0]}: following the estimator{steps}", sentences))
    return found
