"""Cases in which an estimator would answer a wrong number without a word, each found by somebody who looked for one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from estimators import (
    CG,
    SAMA,
    SGD,
    T1T2,
    Adam,
    AdamW,
    CentralDifference,
    Dense,
    Estimator,
    Forward,
    HypergradientError,
    Implicit,
    Momentum,
    Neumann,
    NotApplicableError,
    Nystrom,
    Outcome,
    Problem,
    Rule,
    Stage,
    State,
    Tree,
    Unroll,
    estimate,
    hypergradient,
    registry,
    reverse_over_forward,
    reverse_over_reverse,
    run,
)
from estimators.registry import Registry
from estimators.solvers import FixedPoint
from estimators.stage import Record

D = torch.float64
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=D)
Y = torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=D)
START = {"w": torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=D)}
HPARAMS = {"a": torch.tensor(0.2, dtype=D)}


def problem(loss: Callable[[Tree, Tree, int], Tensor], rule: Rule | None = None, steps: int = 6) -> Problem:
    return Problem("edge", [Stage(loss, rule or SGD(lr=0.02), lambda t: t, steps)],
                   lambda p, h: p["w"].square().sum(), START, HPARAMS)  # fmt: skip


# ---------------------------------------------------------------- what the loss cuts stays cut, in every form

CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt": lambda x: x.sqrt(),
    "sort": lambda x: x.sort()[0],
    "max": lambda x: x.max(0).values.expand(6),
    "in place": lambda x: x.clone().div_(x.sum()),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("family", [Unroll, T1T2, SAMA, lambda product: Implicit(Dense(), product=product)],
                         ids=["unroll", "t1t2", "sama", "implicit"])  # fmt: skip
def test_no_grad_inside_a_loss_cuts_in_every_product_form(cut: str, family: Callable[..., object]) -> None:
    """torch keeps forward-mode tangents under no_grad, and a difference moves what was cut."""

    def loss(p: Tree, h: Tree, _: int) -> Tensor:
        x = (X @ p["w"] - Y).square() + 0.1
        with torch.no_grad():
            s = CUTS[cut](x)
        return (x * s * h["a"].exp()).mean()

    forms = (reverse_over_reverse, reverse_over_forward, CentralDifference(1e-5))
    a, b, c = (float(estimate(problem(loss), family(product=form)).hparams["a"]) for form in forms)  # type: ignore[arg-type]
    assert b == pytest.approx(a, rel=1e-9)
    assert c == pytest.approx(a, rel=1e-5)
    if family is Unroll:
        assert float(estimate(problem(loss), Forward()).hparams["a"]) == pytest.approx(a, rel=1e-9)


# ---------------------------------------------------------------- stages and states


def ridge(p: Tree, h: Tree, _: int) -> Tensor:
    return (X @ p["w"] - Y).square().mean() + h["a"].exp() * p["w"].square().sum()


@pytest.mark.parametrize("rule", [Momentum(lr=0.05), Adam(lr=0.05)])
def test_optimizer_state_carried_between_stages_is_refused(rule: Rule) -> None:
    """Its cotangent has nowhere to go: two halves would differ from the whole."""
    half = Stage(ridge, rule, lambda t: t, 5)
    first = run(half, START, HPARAMS, tail=None)
    second = run(half, first.end, HPARAMS, tail=None)
    with pytest.raises(HypergradientError, match="goes on from the optimizer state of stage 0"):
        hypergradient(lambda p, h: p["w"].sum(), [half, half], [Unroll(), Unroll()], [first, second], HPARAMS)


def test_plain_gradient_descent_may_be_cut_in_halves() -> None:
    half, whole = (Stage(ridge, SGD(lr=0.05), lambda t: t, n) for n in (5, 10))
    first = run(half, START, HPARAMS, tail=None)
    second = run(half, first.end, HPARAMS, tail=None)
    full = run(whole, START, HPARAMS, tail=None)

    def outer(p: Tree, h: Tree) -> Tensor:
        return p["w"].square().sum()

    a = hypergradient(outer, [half, half], [Unroll(), Unroll()], [first, second], HPARAMS).hparams["a"]
    b = hypergradient(outer, [whole], [Unroll()], [full], HPARAMS).hparams["a"]
    assert float(a) == pytest.approx(float(b), rel=1e-13)


class Anchored(SGD):
    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"anchor": param.clone()}

    def update(self, grad: Tensor, slots: dict[str, Tensor], t: int, param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return -self.lr * (grad + param - slots["anchor"]), slots


def test_first_slots_that_depend_on_the_start_are_refused() -> None:
    with pytest.raises(HypergradientError, match=r"Anchored\.init makes slots.*detach them"):
        estimate(problem(ridge, Anchored(lr=0.1)), Unroll())


def test_a_state_of_another_rule_is_refused() -> None:
    start = State(START, {"w": {"momentum_buffer": torch.zeros(4, dtype=D)}}, 3)
    with pytest.raises(HypergradientError, match=r"State\.slots\['w'\] holds \['momentum_buffer'\].*exp_avg"):
        run(Stage(ridge, Adam(), lambda t: t, 2), start, HPARAMS)


def test_a_stage_of_no_steps_reads_the_first_batch_wherever_it_starts() -> None:
    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        return (1 + t) * (X @ p["w"] - Y).square().mean() + h["a"].exp() * p["w"].square().sum()

    stage = Stage(loss, SGD(lr=0.1), lambda t: t, 0)
    a, b = (Problem("p", [stage], lambda p, h: p["w"].sum(), s, HPARAMS) for s in (START, State(START, {"w": {}}, 100)))
    assert torch.equal(estimate(a, Dense()).hparams["a"], estimate(b, Dense()).hparams["a"])


# ---------------------------------------------------------------- outcomes


def test_decoupled_decay_does_not_hide_a_diverged_series() -> None:
    with pytest.raises(HypergradientError, match="diverges"):
        estimate(problem(ridge, AdamW(lr=0.01)), Neumann(steps=40, lr=10.0))


def test_averaged_batches_take_the_unknowns_of_all_of_them() -> None:
    """A leaf that only every other batch reads must not depend on whose turn the last step was."""

    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        fit = (p["w"] - h["a"]).square().sum()
        return fit + (p["u"] - 2 * h["a"]).square() if t % 2 == 0 else fit

    found = []
    for steps in (300, 301):
        stage = Stage(loss, SGD(lr=0.1), lambda t: t, steps)
        start = {"w": START["w"], "u": torch.zeros((), dtype=D)}
        p = Problem("p", [stage], lambda q, h: q["w"].sum() + q["u"], start, HPARAMS)
        found.append(float(estimate(p, Implicit(Dense(), batches=2)).hparams["a"]))
    assert found == pytest.approx([6.0, 6.0])


def test_an_outer_loss_of_nothing_is_refused() -> None:
    p = problem(ridge)
    nothing = Problem("p", p.stages, lambda q, h: q["w"].detach().sum(), p.start, p.hparams)
    with pytest.raises(HypergradientError, match="depends on neither params nor hparams"):
        estimate(nothing, Dense())


@pytest.mark.parametrize("solver", [CG(), Neumann(lr=0.1), FixedPoint(lr=0.1), Nystrom(rank=2), Dense()])
def test_a_nan_product_is_called_that(solver: Callable[..., object]) -> None:
    b = {"x": torch.ones(3, dtype=D)}
    solution = solver(lambda v: {"x": v["x"] * torch.nan}, b)
    assert solution.outcome is Outcome.NONFINITE  # type: ignore[attr-defined]
    assert not torch.isfinite(solution.value["x"]).any()  # type: ignore[attr-defined]


@pytest.mark.parametrize("diagonal", [[1.0, 0.0], [0.0, 0.0]])
def test_a_flat_direction_is_singular_not_indefinite(diagonal: list[float]) -> None:
    h = torch.tensor(diagonal, dtype=D)
    solution = CG()(lambda v: {"x": h * v["x"]}, {"x": torch.ones(2, dtype=D)})
    assert solution.outcome is Outcome.SINGULAR


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 1e-5), (torch.float32, 1e-39)])
def test_subnormal_cotangents_do_not_overflow(dtype: torch.dtype, size: float) -> None:
    b = {"x": torch.full((3,), size, dtype=dtype)}
    solution = CG(steps=5)(lambda v: {"x": 2 * v["x"]}, b)
    assert solution.outcome is Outcome.CONVERGED
    assert torch.allclose(solution.value["x"], b["x"] / 2, rtol=0.05, atol=0)


# ---------------------------------------------------------------- refusals that would be wrong


def test_forward_says_what_to_do_about_torchs_mse_loss() -> None:
    def loss(p: Tree, h: Tree, _: int) -> Tensor:
        return F.mse_loss(X @ p["w"], Y) + h["a"].exp() * p["w"].square().sum()

    estimate(problem(loss), Unroll())
    with pytest.raises(NotApplicableError, match="use Unroll, or write the loss out"):
        estimate(problem(loss), Forward())


def test_a_zero_by_chance_is_not_called_no_influence() -> None:
    """From w = 0 one step of ridge does not feel its penalty: 0 is the right answer."""
    p = Problem("p", [Stage(ridge, SGD(lr=0.1), lambda t: t, 1)], lambda q, h: q["w"].sum(),
                {"w": torch.zeros(4, dtype=D)}, HPARAMS)  # fmt: skip
    assert float(estimate(p, Forward()).hparams["a"]) == float(estimate(p, Unroll()).hparams["a"]) == 0.0


@pytest.mark.parametrize("name", ["sama-exact", "unroll", "forward", "sama-na"])
def test_a_cotangent_on_unread_leaves_alone_is_no_fault_of_the_rule(name: str) -> None:
    start = {**START, "idle": torch.ones(2, dtype=D)}
    stage = Stage(ridge, Adam(lr=0.1), lambda t: t, 12)
    p = Problem("p", [stage], lambda q, h: q["idle"].sum() + 3 * h["a"], start, HPARAMS)
    assert float(estimate(p, name).hparams["a"]) == 3.0


class Every2nd(SGD):
    """Gradient accumulation: moves on even updates only."""

    def init(self, param: Tensor) -> dict[str, Tensor]:
        return {"sum": torch.zeros_like(param)}

    def update(self, grad: Tensor, slots: dict[str, Tensor], t: int, param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = slots["sum"] + grad
        return (-self.lr * total, {"sum": 0 * total}) if t % 2 == 0 else (0 * total.detach(), {"sum": total})

    rewind = None


del Every2nd.rewind


@pytest.mark.parametrize("steps", [4, 5])
def test_an_update_without_a_derivative_at_one_step_is_no_sign_method(steps: int) -> None:
    rule = Every2nd(lr=0.05)
    p = problem(ridge, rule, steps)
    lam = HPARAMS["a"].clone().requires_grad_()
    w, total = START["w"], torch.zeros(4, dtype=D)
    for t in range(steps):
        leaf = w if w.requires_grad else w.clone().requires_grad_()
        (g,) = torch.autograd.grad(ridge({"w": leaf}, {"a": lam}, t), leaf, create_graph=True)
        total = total + g
        if t % 2:
            w, total = leaf - 0.05 * total, torch.zeros(4, dtype=D)
    (want,) = torch.autograd.grad(w.square().sum(), lam)
    assert float(estimate(p, Unroll()).hparams["a"]) == pytest.approx(float(want), rel=1e-12)
    assert float(estimate(p, Forward()).hparams["a"]) == pytest.approx(float(want), rel=1e-12)


# ---------------------------------------------------------------- the registry and the one-liner


def test_a_broken_plugin_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint(name="theirs", value="no_such_module:thing", group="hypergradbench.estimators")
    monkeypatch.setattr(sys.modules[Registry.__module__], "entry_points", lambda group: [broken])
    fresh = Registry()
    fresh.register("cg", *registry["cg"])
    with pytest.warns(UserWarning, match=r"'theirs' \(no_such_module:thing\) could not be loaded"):
        assert list(fresh) == ["cg"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(fresh) == ["cg"]


@pytest.mark.parametrize("product", [reverse_over_forward, CentralDifference(0.1)])
def test_a_product_is_no_estimator(product: object) -> None:
    with pytest.raises(HypergradientError, match=r"is a product: pass it to an estimator"):
        estimate(problem(ridge), product)  # type: ignore[arg-type]


def test_a_hyperparameter_deep_in_a_rule_is_seen() -> None:
    """Not only direct fields: autograd is asked."""

    class Wrapped(SGD):
        pass

    def rule(h: Tree) -> Rule:
        wrapped = Wrapped(lr=0.0)
        object.__setattr__(wrapped, "fields", {"lr": h["a"].exp()})
        object.__setattr__(wrapped, "update", lambda g, s, t, p: (-wrapped.fields["lr"] * g, {}))  # type: ignore[attr-defined]
        return wrapped

    p = Problem("p", [Stage(ridge, rule, lambda t: t, 3)], lambda q, h: q["w"].sum(), START, HPARAMS)
    with pytest.raises(NotApplicableError, match=r"\['a'\] sit in Wrapped.*Use Unroll or Forward"):
        estimate(p, CG())


def test_kept_bytes_of_a_truncated_sweep_are_its_own() -> None:
    p = problem(ridge, steps=10)
    record: Record = run(p.stages[0], p.start, p.hparams, tail=None)
    g = hypergradient(p.outer, p.stages, [Unroll(last=2)], [record], p.hparams)
    assert g.cost.kept_bytes == 2 * 4 * 8
    assert g.cost.products == 2


def test_forward_sees_a_hyperparameter_that_only_some_batches_read() -> None:
    """Not the last step alone decides what has influence: dropping its row would be a silent zero beside a direct term."""

    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        fit = (X @ p["w"] - Y).square().mean()
        return fit + h["a"].exp() * p["w"].square().sum() if t % 2 == 0 else fit

    for steps in (5, 6):
        p = problem(loss, steps=steps)
        both = Problem("p", p.stages, lambda q, h: q["w"].square().sum() + h["a"], p.start, p.hparams)
        a, b = (estimate(both, e) for e in (Forward(), Unroll()))
        assert float(b.indirect["a"]) != 0
        assert float(a.hparams["a"]) == pytest.approx(float(b.hparams["a"]), rel=1e-12)


@pytest.mark.parametrize("rule", [Momentum(lr=0.02), Adam(lr=0.02)], ids=["momentum", "adam"])
@pytest.mark.parametrize("family", [Unroll(), SAMA(), T1T2(), Implicit(CG(steps=4))], ids=lambda e: type(e).__name__)
def test_sparse_gradients_of_an_embedding_are_dense(family: Estimator, rule: Rule) -> None:
    """Half of what is made of them knows no other layout."""
    rows = torch.tensor([0, 2])

    def estimated(sparse: bool) -> Tree:
        def table(p: Tree) -> Tensor:
            return F.embedding(rows, p["e"], sparse=sparse)

        loss = lambda p, h, t: (table(p).square().sum() + table(p).pow(4).sum()) * h["a"].exp() + p["w"].square().sum()  # noqa: E731
        whole = {**START, "e": X[:3]}
        stage = Stage(loss, rule, lambda t: t, 4)
        record = run(stage, whole, HPARAMS)
        run(stage, record.end, HPARAMS)
        found = hypergradient(lambda p, h: (table(p) - 1).square().sum(), [stage], [family], [record], HPARAMS)
        return {**found.hparams, **record.end.params}

    torch.testing.assert_close(estimated(True), estimated(False), rtol=1e-9, atol=1e-13)


@dataclass
class Plain:
    """A rule that cannot be hashed, as a dataclass is without more words."""

    lr: float = 0.02
    linear: ClassVar[bool] = True
    diagonal: ClassVar[bool] = True

    def init(self, param: Tensor) -> Tree:
        return {}

    def update(self, grad: Tensor, slots: Tree, t: int, param: Tensor) -> tuple[Tensor, Tree]:
        return -self.lr * grad, {}


def test_a_rule_need_not_be_hashable() -> None:
    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        return (p["w"].pow(4) * h["a"]).sum()

    found, want = (estimate(problem(loss, rule), Unroll()).hparams for rule in (Plain(), SGD(lr=0.02)))
    torch.testing.assert_close(found, want, rtol=1e-12, atol=0)
