"""The columns of the table that `load` gives: where each stands in a result file, of what kind it is, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal["text", "number", "count", "flag", "series", "mapping"]


class Column(NamedTuple):
    """One column.

    Attributes:
        name: in the table.
        where: its place in a result file, dotted; empty for what `results` works out.
        kind: of its values; a file with another kind there is damaged. A count is a whole number.
        about: its meaning, with the unit.
    """

    name: str
    where: str
    kind: Kind
    about: str


WORKED_OUT = (
    Column("run", "", "text", "the folder that it was read from: its name, longer where two folders have the same"),
    Column("file", "", "text", "the result file, below that folder"),
    Column("name", "", "text", "what the estimator is registered as; `estimator` also says swept fields: cg(solver.steps=5)"),
    Column("fields", "", "text", "fields of the estimator that a sweep set, as text"),
    Column("case", "", "text", "the problem with its settings, as text"),
    Column("setting", "", "text", "the settings without `unroll`, as text"),
    Column("task", "", "text", "of peers: the method and its settings, as text"),
    Column("outcome", "", "text", "what the estimator says of its answer, in a word a stage"),
    Column("outcome_text", "", "text", "the same in sentences"),
    Column("outcomes", "", "mapping", "word: sentence"),
    Column("residual", "", "number", "the largest relative residual of its solves"),
    Column("curvature", "", "number", "the smallest curvature that its solves met"),
)  # fmt: skip

READ = (
    Column("id", "id", "text", "hash of everything that decides the result; also the file's name"),
    Column("status", "status", "text", "ok, failed, or refused (the estimator does not apply)"),
    Column("reason", "reason", "text", "in words, unless it is ok"),
    Column("failure", "failure", "text", "of a failed one: oom, crash, timeout, nan or error"),
    Column("finished", "finished", "text", "when: ISO 8601, UTC"),
    Column("seconds_in_all", "seconds", "number", "seconds that the cell took, with everything around its measurements"),
    Column("kind", "config.kind", "text", "point, path, meta, peers or advice"),
    Column("estimator", "config.estimator", "text", "registered name, with the fields where a sweep gave several"),
    Column("problem", "config.problem", "text", "problem or workload"),
    Column("seed", "config.seed", "count", "of the problem"),
    Column("dtype", "config.dtype", "text", "of the parameters, or bfloat16-autocast"),
    Column("device_asked", "config.device", "text", "device as it was asked for: cpu, cuda, cuda:1"),
    Column("workers", "config.workers", "count", "data-parallel processes"),
    Column("cond", "config.settings.cond", "number", "condition number that the problem was asked for"),
    Column("size", "config.settings.size", "text", "size of the workload"),
    Column("meta_lr", "config.meta.lr", "number", "learning rate of the meta optimizer"),
    Column("kernel", "config.meta.kernel", "text", "attention kernels that were allowed"),
    Column("method", "config.meta.method", "text", "of peers: the task"),
    Column("products_or_steps", "config.meta.steps", "count", "of a path: meta steps; of peers: products or steps"),
    Column("problem_version", "config.meta.version", "text", "of a problem of one's own: hash of its files"),
    Column("built", "config.built", "text", "the estimator with all its fields, as text"),
    Column("sources", "config.code", "text", "hash of the code that measured it"),
    Column("of", "claim.of", "text", "what the estimator estimates"),
    Column("citation", "claim.citation", "text", "its source"),
    Column("target", "claim.target", "text", "what it can be compared with: run, optimum, direction"),
    Column("exact", "claim.exact", "flag", "whether it claims to be exact"),
    Column("bias", "claim.bias", "text", "what it leaves out, in words"),
    Column("scale", "claim.scale", "text", "true, or the factor that the estimate has by definition: lr, 1/H"),
    Column("control", "claim.control", "flag", "no estimate but what one must beat"),
    Column("truth", "truth", "text", "how the truth is known"),
    Column("cosine", "accuracy.cosine", "number", "of the angle to the truth"),
    Column("relative_error", "accuracy.relative_error", "number", "|estimate - truth| / |truth|"),
    Column("direction_error", "accuracy.direction_error", "number", "sine of the angle to the truth: 0 for the opposite direction, too (figures and the page take 2 sin(angle / 2))"),
    Column("angle", "accuracy.angle", "number", "to the truth, in degrees"),
    Column("norm_ratio", "accuracy.norm_ratio", "number", "|estimate| / |truth|"),
    Column("run_error", "accuracy_on_run.relative_error", "number", "relative error to the exact derivative of the steps taken"),
    Column("condition", "condition", "number", "condition number of the inner problem, as measured"),
    Column("bound_error", "bound.relative_error", "number", "theory's bound on `relative_error`"),
    Column("bound_angle", "bound.angle", "number", "theory's bound on `angle`, in degrees"),
    Column("bound_by", "bound.by", "text", "which theorem"),
    Column("error_bound", "error_bound.relative", "number", "bound on the relative error that needs no truth (certify)"),
    Column("error_bound_angle", "error_bound.angle", "number", "the same of the angle, in degrees"),
    Column("error_bound_rigorous", "error_bound.rigorous", "flag", "whether it holds without assumption"),
    Column("error_bound_reason", "error_bound.reason", "text", "why there is none"),
    Column("seconds", "cost.seconds", "number", "of the hypergradient alone, given the run (peers: of the whole task)"),
    Column("gradient_seconds", "cost.gradient_seconds", "number", "of one plain training gradient, timed in turn with it"),
    Column("time_ratio", "cost.time_ratio", "number", "median of the ratios of the two"),
    Column("time_ratio_low", "cost.time_ratio_low", "number", "its 95 % interval, lower end"),
    Column("time_ratio_high", "cost.time_ratio_high", "number", "its 95 % interval, upper end"),
    Column("clock", "cost.clock", "text", "thread_time (processor time) or perf_counter (wall time)"),
    Column("run_seconds", "cost.run_seconds", "number", "of the inner run, once"),
    Column("peak_bytes", "cost.peak_bytes", "count", "peak of live tensor bytes of the pullback above what was there before"),
    Column("gradient_peak_bytes", "cost.gradient_peak_bytes", "count", "the same of one plain gradient"),
    Column("peak_ratio", "cost.peak_ratio", "number", "of the two"),
    Column("kept_bytes", "cost.kept_bytes", "count", "states that the run keeps for the estimator, on top of the peak"),
    Column("kept_ratio", "cost.kept_ratio", "number", "in peaks of one plain gradient"),
    Column("gradients", "cost.gradients", "count", "first-order gradients that the estimator took"),
    Column("products", "cost.products", "count", "second-order products"),
    Column("matvecs", "cost.matvecs", "count", "those of the solver"),
    Column("to_first", "cost.to_first", "number", "of peers: time in units of the task's first contestant"),
    Column("path_cosine", "path.cosine", "series", "of a path: cosine to the truth at each meta step"),
    Column("path_angle", "path.angle", "series", "angle, in degrees"),
    Column("path_distance", "path.distance", "series", "|lam - optimum| before the first and after each meta step"),
    Column("path_value", "path.value", "series", "outer loss"),
    Column("path_trajectory", "path.trajectory", "mapping", "hyperparameter (at most eight): its values before the first and after each meta step"),
    Column("path_optimum", "path.optimum", "mapping", "hyperparameter: its value at the optimum, where that is known"),
    Column("path_observed", "path.observed", "mapping", "what the first run and the one at the path's end show of the problem, as the weights of examples"),
    Column("workload", "workload.name", "text", "of a meta step: the workload"),
    Column("unroll", "workload.unroll", "count", "training steps in a meta step"),
    Column("batch", "workload.samples", "count", "training examples a step, of all workers"),
    Column("params", "workload.params", "count", "trained parameters"),
    Column("hparams", "workload.hparams", "count", "hyperparameters"),
    Column("data", "workload.data", "text", "where the data come from"),
    Column("throughput", "throughput.samples_per_second", "number", "training examples a second, of all workers"),
    Column("plain_throughput", "throughput.plain_samples_per_second", "number", "the same of plain training by the same workers"),
    Column("throughput_ratio", "throughput.ratio", "number", "of the two, taken in turn"),
    Column("throughput_ratio_low", "throughput.ratio_low", "number", "its 95 % interval, lower end"),
    Column("throughput_ratio_high", "throughput.ratio_high", "number", "its 95 % interval, upper end"),
    Column("meta_step_units", "throughput.meta_step_units", "number", "cost of a meta step beyond its steps, in plain steps"),
    Column("rounds", "throughput.samples", "count", "times that the meta step was timed"),
    Column("reached", "throughput.reached", "flag", "whether the interval became as narrow as was asked for"),
    Column("meta_peak", "memory.peak_bytes", "count", "peak of live tensor bytes of a meta step, of one rank, all included"),
    Column("plain_peak", "memory.plain_peak_bytes", "count", "the same of plain training"),
    Column("memory_ratio", "memory.ratio", "number", "of the two"),
    Column("memory_split", "memory.split", "mapping", "what the peak consists of: part: bytes"),
    Column("plain_split", "memory.plain_split", "mapping", "the same of plain training"),
    Column("predicted", "memory.predicted", "flag", "the peak was predicted and the cell not run, since it cannot fit"),
    Column("cuda_reserved", "memory.cuda.reserved_bytes", "count", "what CUDA's allocator reserved at most"),
    Column("cuda_before", "memory.cuda.before_bytes", "count", "what it had reserved before"),
    Column("run_ratio", "time.ratio", "number", "of advice: time of a meta step in runs without it"),
    Column("meta_seconds", "time.seconds", "number", "of advice: time of a meta step"),
    Column("gradient_ratio", "gradient_ratio", "number", "of advice: last inner gradient over the first"),
    Column("code", "code", "text", "of advice: the line of code to use"),
    Column("library", "peers.library", "text", "of peers: whose"),
    Column("version", "peers.version", "text", "its version"),
    Column("variant", "peers.variant", "text", "how it was called"),
    Column("note", "peers.note", "text", "what there is to say of it"),
    Column("settle", "peers.settle", "count", "training steps before the point"),
    Column("rate", "peers.lr", "number", "inner learning rate"),
    Column("size_params", "size.params", "count", "parameters of the problem"),
    Column("size_hparams", "size.hparams", "count", "hyperparameters of the problem"),
    Column("nonfinite", "nonfinite", "series", "places of the file where null stands for a NaN or an infinity"),
    Column("jobs", "environment.jobs", "count", "cells that were measured at a time"),
    Column("busy", "environment.busy", "flag", "more processes wanted to run than there are CPUs"),
    Column("threads", "environment.threads", "count", "of torch"),
    Column("cpu", "environment.cpu", "text", "its name"),
    Column("device", "environment.device", "text", "cpu, or the name of the GPU"),
    Column("torch", "environment.torch", "text", "its version"),
    Column("commit", "environment.commit", "text", "of the code that measured"),
    Column("dirty", "environment.dirty", "flag", "whether it had changes that are not committed"),
)  # fmt: skip
"""What a file says; what it does not say is missing."""

COLUMNS = (*WORKED_OUT, *READ)

TYPES: Mapping[Kind, tuple[type, ...]] = {
    "text": (str,), "number": (int, float), "count": (int, float), "flag": (bool,), "series": (list,), "mapping": (dict,),
}  # fmt: skip
"""What JSON has for a kind."""


def checked(column: Column, value: Any) -> Any:
    """``value``, if it is None or of the column's kind.

    Raises:
        ValueError: it is of another.
    """
    # JSON's true is an int for Python
    fits = isinstance(value, TYPES[column.kind]) and (column.kind == "flag" or not isinstance(value, bool))
    small = not isinstance(value, int) or abs(value) < 2**63  # what pandas has room for
    if value is None or (fits and small):
        return value
    raise ValueError(f"damaged: {column.where or column.name} is {_brief(value)}, where a {column.kind} belongs")


def markdown() -> str:
    """The table of docs/results.md."""
    lines = ["| column | in the file | kind | meaning |", "|---|---|---|---|"]
    for c in COLUMNS:
        where = f"`{c.where}`" if c.where else "worked out"
        lines.append(f"| `{c.name}` | {where} | {c.kind} | {c.about.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
