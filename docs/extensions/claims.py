"""Tables of estimators, from what each claims in the registry and from measured results, made as the site is built.

    ```{claims} unroll forward         what they claim; without names: all of them
    ```{measured} unroll forward       what was measured: measured.csv, which measured.py writes from result files

A new estimator is in the table of all without a line here.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from estimators import Claim

MEASURED = Path(__file__).resolve().parent.parent / "measured.csv"
SCALES = {
    "true": "as the derivative",
    "lr": "carries an inner learning rate",
    "1/H": "lacks an inverse Hessian",
    "none": "means nothing",
}


class Table(SphinxDirective):
    """A table whose rows are estimators, by name."""

    optional_arguments = 100
    has_content = True  # what GitHub shows in its place: where the table is
    rows: ClassVar[Callable[[list[str]], Iterable[str]]]

    def run(self) -> list[nodes.Node]:
        from estimators import registry

        unknown = [name for name in self.arguments if name not in registry]
        if unknown:
            raise self.error(f"no estimator is called {', '.join(unknown)}; there are: {', '.join(registry)}")
        return self.parse_text_to_nodes("\n".join(type(self).rows(self.arguments or list(registry))))


def claims(names: list[str]) -> Iterable[str]:
    """Markdown: one row an estimator."""
    from benchmarks.advise.candidates import as_code
    from estimators import registry

    yield "| name | is | estimates | exact, or what is left out | length | applies to | source |"
    yield "|---|---|---|---|---|---|---|"
    for name in names:
        built, claim = registry[name]
        parts = built if isinstance(built, tuple) else (built,)
        code = ", ".join(f"`{as_code(part)}`" for part in parts)
        truth = "exact" if claim.exact else _cell(claim.bias)
        if claim.exact and claim.target == "optimum":
            truth = "exact at the inner optimum"
        yield (
            f"| `{name}` | {_cell(code)} | {_cell(claim.of)} | {truth} | {SCALES[claim.scale]} | {_applies(claim)} "
            f"| {_cell(claim.citation)} |"
        )


def _applies(claim: Claim) -> str:
    """Which problems an estimator takes, in words."""
    said = []
    stages = claim.stages
    said.append(
        "any number of stages"
        if stages is None
        else "one stage"
        if stages == (1,)
        else f"{' or '.join(map(str, stages))} stages"
    )
    if claim.rule_only:
        said.append("hyperparameters of the rule only")
    elif claim.rule_hparams:
        said.append("also hyperparameters of the rule")
    if claim.tasks_only:
        said.append("weights of a `MultiTask`")
    for what, most in (("hyperparameters", claim.max_hparams), ("parameters", claim.max_params)):
        if most is not None:
            said.append(f"at most {most} {what}")
    return "; ".join(said)


PROBLEMS = {
    "biased_regression (cond=10)": "biased regression, condition 10",
    "biased_regression (cond=100)": "condition 100",
    "log_ridge": "a penalty a feature",
    "two_stage_quadratic": "two stages",
    "noisy_quadratic": "rate and momentum",
    "digits_tasks (hidden=4, steps=12)": "task weights",
}
COST = "biased_regression (cond=100)"
"""The problem whose cost is shown; where an estimator does not apply to it, that of the first to which it does."""


def measured(names: list[str]) -> Iterable[str]:
    """Markdown: one row an estimator, one column a problem, and what it cost."""
    with MEASURED.open(encoding="utf-8", newline="") as file:
        found = {(row["estimator"], row["problem"]): row for row in csv.DictReader(file)}
    yield f"| name | {' | '.join(PROBLEMS.values())} | products | gradients | time / gradient | memory / gradient |"
    yield "|---" * (len(PROBLEMS) + 5) + "|"
    for name in names:
        rows = {case: found[name, case] for case in (COST, *PROBLEMS) if (name, case) in found}
        if not rows:
            yield f"| `{name}` | not measured here |" + " |" * (len(PROBLEMS) + 3)
            continue
        cost = next((row for row in rows.values() if not row["reason"]), dict.fromkeys(next(iter(rows.values())), ""))
        errors = " | ".join(_error(rows.get(case)) for case in PROBLEMS)
        spent = " | ".join(_number(cost[key]) for key in ("products", "gradients", "time_ratio", "memory_ratio"))
        yield f"| `{name}` | {errors} | {spent} |"
    commits = sorted({row["commit"] for row in found.values()})
    seeds = next(iter(found.values()))["seeds"].split()[-1]
    yield f"\nMedians of {seeds} seeds (smallest to largest), measured at commit {', '.join(commits)}."


def _error(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    if row["reason"]:
        return row["reason"].partition(":")[0]
    if not row["error"]:
        return "undefined: the estimate is 0"
    unit = "" if row["kind"] == "relative" else "°"
    return f"{_number(row['error'])}{unit} ({_number(row['low'])} to {_number(row['high'])})"


def _number(text: str) -> str:
    if not text:
        return "-"
    value = float(text)
    return f"{value:.0f}" if 100 <= value < 1e4 else f"{value:.2g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


class Claims(Table):
    rows = staticmethod(claims)


class Measured(Table):
    rows = staticmethod(measured)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("claims", Claims)
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
