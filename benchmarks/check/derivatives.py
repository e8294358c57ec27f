"""First and second derivatives of the losses: that there are any, and that they are finite."""

from __future__ import annotations

from dataclasses import replace

import torch

from estimators import (
    Forward,
    HypergradientError,
    Tree,
    hypergradient,
    registry,
    reverse_over_forward,
    reverse_over_reverse,
    run,
    tree,
)
from estimators.products import gradients
from estimators.rules import is_linear, is_rule

from .case import Case
from .explain import UNDIFFERENTIABLE
from .purity import problem_hparams
from .watch import CUTS


def first(case: Case) -> None:
    """Gradients by the parameters are there and finite; the outer loss reads what is trained."""
    problem, lam = case.problem, problem_hparams(case)
    params = case.start
    trained: set[str] = set()
    for i, stage in enumerate(problem.stages):
        names, what = stage.trained(params), case.which(i)
        _, grads, _ = gradients(stage.objective(0), params, lam, wrt_params=names)
        if not grads:
            cut = _cuts(case.inner[i].called)
            case.fail(
                f"{what} depends on none of the parameters {sorted(names)}{cut}",
                "read params inside the loss, not a closure or a module's own weights (from_module puts params into a module)",
            )
        if not tree.all_finite(grads):
            bad = [k for k, x in grads.items() if not tree.all_finite({k: x})]
            case.fail(
                f"the gradient of {what} is NaN or infinite in {bad} at the start",
                "look for sqrt, log or division at 0",
            )
        trained |= set(names)
        _rounding(case, i, grads)
    _, cotangent, direct = gradients(problem.outer, params, lam, wrt_params=params, wrt_hparams=lam)
    cut = _cuts(case.outer.called)
    if not cotangent and not direct:
        case.fail(
            f"the outer loss depends on neither params nor hparams{cut}",
            "read params['...'] in it, not a closure, and outside torch.no_grad()",
        )
    if not set(cotangent) & trained:
        reads = f"only {sorted(cotangent)}, which no stage trains" if cotangent else "no params"
        case.fail(
            f"the outer loss reads {reads}{cut}: training has no influence on it, and no hypergradient goes through the run",
            "evaluate it at params, as outer=lambda params, hparams: validate(params, hparams, batch)",
        )
    if not tree.all_finite(cotangent) or not tree.all_finite(direct):
        case.fail(
            "the gradient of the outer loss is NaN or infinite at the start", "look for sqrt, log or division at 0"
        )
    case.add("ok", "losses are finite scalars with finite gradients")


def _rounding(case: Case, i: int, grads: Tree) -> None:
    """Leaves whose gradient is nothing but rounding, of which an adaptive optimizer makes steps as long as any other."""
    stage = case.problem.stages[i]
    largest, eps = max(float(x.abs().max()) for x in grads.values()), torch.finfo(tree.dtype_of(grads)).eps
    noise = [k for k, x in grads.items() if 0 < float(x.abs().max()) < 100 * eps * largest]
    if noise and not (is_rule(stage.rule) and is_linear(stage.rule, noise, 0)):
        case.add(
            "warning",
            f"the gradient of {case.which(i)} by {noise} is zero but for rounding (a bias before BatchNorm?), and the optimizer turns that "
            "into steps: runs and hypergradients then differ between precisions and machines",
            "bias=False before a normalisation; or Stage(frozen=...); or an optimizer that follows the gradient's size (SGD, Momentum)",
        )


def second(case: Case) -> None:
    """Whether second-order products can be taken, in which of their forms, and whether the run left leaves out."""
    _unread(case)
    lam = problem_hparams(case)
    for i, (stage, record) in enumerate(zip(case.problem.stages, case.records, strict=True)):
        params, loss, what = record.end.params, stage.objective(0), case.which(i)
        tangent = random_like({k: params[k] for k in stage.trained(params)})
        try:
            rows, mixed = reverse_over_reverse(loss, params, lam, tangent, wrt_params=tangent, wrt_hparams=lam)
        except (RuntimeError, NotImplementedError) as error:
            if UNDIFFERENTIABLE.search(str(error)):  # not even once, by a hyperparameter
                raise
            case.twice = False
            case.add(
                "warning",
                f"{what} cannot be differentiated twice: {str(error).splitlines()[0]}. Estimators that take second-order products will "
                "fail, and there is no unrolled reference; sama (differences of gradients), greedy and evolution can do without",
                "use a kernel that has a second derivative: attn_implementation='eager' or sdpa_kernel(SDPBackend.MATH) for attention, "
                "a GRU or LSTM written in torch for cuDNN's; no torch.compile inside a loss",
            )
            continue
        if not tree.all_finite(rows) or not tree.all_finite(mixed):
            case.add(
                "error", f"second derivatives of {what} are NaN or infinite at the end of the run",
                "look for norms and square roots at 0: (x.square().sum() + 1e-12).sqrt()",
            )  # fmt: skip
        _forward(case, i, loss_tangent=tangent)
    if case.twice:
        case.add("ok", "the losses can be differentiated twice")


def _forward(case: Case, i: int, loss_tangent: Tree) -> None:
    """Forward mode is a convenience: what cannot use it is named."""
    stage, record, lam = case.problem.stages[i], case.records[i], problem_hparams(case)
    try:
        reverse_over_forward(stage.objective(0), record.end.params, lam, loss_tangent, wrt_hparams=lam)
    except (RuntimeError, NotImplementedError, HypergradientError) as error:
        names = [n for n, e in registry.items() if getattr(e.estimator, "product", None) is reverse_over_forward]
        case.add(
            "note",
            f"no forward mode through {case.which(i)} ({_line(error)}): {', '.join(names)} will refuse it, as they are registered",
        )
    applies = registry["forward"].claim.refuses(case.problem) is None
    if not applies or i:
        return
    one = replace(stage, steps=min(stage.steps, 1))
    try:
        forward = Forward()
        record = run(one, case.problem.start, lam, tail=forward.tail, every=forward.every)
        hypergradient(
            lambda p, h: tree.dot(p, p) + sum((x.sum() for x in h.values()), torch.zeros(())),
            [one],
            [forward],
            [record],
            lam,
        )
    except (RuntimeError, NotImplementedError, HypergradientError) as error:
        case.add("note", f"the estimator forward will fail here: {_line(error)}")


def _unread(case: Case) -> None:
    for i, record in enumerate(case.records):
        skipped = list(record.skipped.values())
        idle = sorted(frozenset.intersection(*skipped)) if len(skipped) == len(record.losses) and skipped else []
        if idle:
            case.add(
                "warning", f"{case.which(i)} reads the leaves {idle} of start in no step: they stay as they are",
                f"leave them out of start, or say so: Stage(..., frozen=frozenset({idle}))",
            )  # fmt: skip
        if len(record.losses) > 1 and float(record.losses[-1]) > 2 * abs(float(record.losses[0])):
            case.add(
                "warning", f"{case.which(i)} rises from {float(record.losses[0]):.3g} to {float(record.losses[-1]):.3g} along the run",
                "lower the learning rate",
            )  # fmt: skip


def random_like(like: Tree) -> Tree:
    """A tangent; the same at every call."""
    source = torch.Generator().manual_seed(0)
    return {k: torch.randn(x.shape, generator=source, dtype=torch.float64).to(x) for k, x in like.items()}


def _cuts(called: set[str]) -> str:
    found = sorted(called & set(CUTS))
    return f" (it calls {', '.join(found)})" if found else ""


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:160]
