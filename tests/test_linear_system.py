"""Kept graphs and solutions that are never formed: the same numbers as from scratch and from dense algebra, in fewer bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import peak_bytes
from benchmarks.workloads import WORKLOADS
from estimators import (
    CG,
    SGD,
    Adam,
    CentralDifference,
    Dense,
    FixedPoint,
    HypergradientError,
    Identity,
    Implicit,
    Neumann,
    Nystrom,
    Problem,
    Stage,
    Tree,
    estimate,
    hypergradient,
    reverse_over_forward,
    reverse_over_reverse,
    run_stages,
)
from estimators.linear_system import LinearSystem
from estimators.products import Linearized, linearize
from estimators.solvers import Matvec, Solution
from estimators.tree import flatten, unflatten

from .oracle import dense
from .toy import toy

F64 = torch.float64

SOLVERS: dict[str, Any] = {
    "cg": CG(steps=6), "cg-exact": CG(steps=60, rtol=1e-13), "cg-damped": CG(steps=4, damping=0.3), "neumann": Neumann(steps=7),
    "neumann-no-product": Neumann(steps=0), "fixed-point": FixedPoint(steps=9, rtol=1e-3), "nystrom": Nystrom(rank=3),
    "dense": Dense(), "identity": Identity(),
}  # fmt: skip


def frozen(problem: Problem, names: set[str]) -> Problem:
    (stage,) = problem.stages
    return replace(problem, stages=[replace(stage, frozen=frozenset(names))])


def pulled(problem: Problem, estimator: Implicit) -> Tensor:
    """Hypergradient, cotangent on the start, and the figures."""
    records = run_stages(problem.stages, problem.start, problem.hparams, [estimator])
    c = torch.linspace(-1, 2, sum(x.numel() for x in records[0].end.params.values()), dtype=F64)
    found = estimator.pullback(problem.stages[0], records[0], problem.hparams, unflatten(c, records[0].end.params))
    parts = [flatten(found.hparams), torch.tensor([found.residual or 0.0, found.curvature or 0.0], dtype=F64)]
    return torch.cat([*parts, *([flatten(found.start)] if found.start else [])])


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("solver", [CG(steps=3), Neumann(steps=3, lr=0.05), FixedPoint(steps=3, lr=0.05)])
def test_hyperparameters_that_are_numbers_keep_their_dtype(solver: Any, sums: bool) -> None:
    """CG's steps are float32 there, and of two 0-d tensors torch takes the wider dtype."""

    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        return (p["w"] - h["x"]).square().sum() + p["w"].pow(4).sum() * h["x"]

    start, hparams = {"w": torch.ones(3).bfloat16()}, {"x": torch.ones(()).bfloat16()}
    problem = Problem("half", [Stage(loss, SGD(lr=0.05), lambda t: t, 5)], lambda p, h: p["w"].sum(), start, hparams)
    assert estimate(problem, Implicit(solver, sums=sums)).hparams["x"].dtype is torch.bfloat16


@pytest.mark.parametrize("sums", [None, True, False])
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("frees", [(), ("b",), ("w", "scale")])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_kept_graph_and_sums_change_nothing(
    name: str, frees: tuple[str, ...], batches: int, sums: bool | None
) -> None:
    if sums and not hasattr(SOLVERS[name], "combines"):
        return
    problem = frozen(toy(SGD(lr=0.1, weight_decay=0.05)), set(frees))
    plain = pulled(problem, Implicit(SOLVERS[name], batches=batches, graph="rebuilt", sums=False))
    for graph in ("kept", "rebuilt"):
        found = pulled(problem, Implicit(SOLVERS[name], batches=batches, graph=graph, sums=sums))
        torch.testing.assert_close(found, plain, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("solver", [CG(steps=6), Neumann(steps=7), FixedPoint(steps=5), Identity()])
@pytest.mark.parametrize("product", [reverse_over_forward, CentralDifference(1e-5)])
def test_other_products_sum_too(product: Any, solver: Any) -> None:
    problem = toy(SGD(lr=0.1))
    want = pulled(problem, Implicit(solver, graph="rebuilt", sums=False))
    sums = True if hasattr(solver, "combines") else None
    found = pulled(problem, Implicit(solver, product=product, sums=sums))
    torch.testing.assert_close(found, want, rtol=1e-11 if product is reverse_over_forward else 1e-6, atol=1e-7)


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("graph", ["kept", "rebuilt"])
def test_they_are_the_dense_answer(graph: str, sums: bool) -> None:
    problem = toy(SGD(lr=0.1))
    d = dense(problem, problem.hparams)
    want = d.answer(-d.m.T @ torch.linalg.solve(d.h, d.c))
    found = estimate(problem, Implicit(CG(steps=60, rtol=1e-13), graph=graph, sums=sums)).hparams
    torch.testing.assert_close(flatten(found), flatten(want), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", [CG(steps=5), Neumann(steps=5, lr=0.5), FixedPoint(steps=5, lr=0.5)])
def test_adapted_solvers_sum_too(solver: Any) -> None:
    problem = toy(Adam(lr=0.05, betas=(0.7, 0.9)), steps=13)
    a, b = (pulled(problem, Implicit(solver, adapt=True, sums=sums)) for sums in (True, False))
    torch.testing.assert_close(a[:-2], b[:-2], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("solver", [CG(), Neumann(lr=0.1), FixedPoint(steps=0, lr=0.1)])
def test_a_zero_cotangent_gives_zeros_that_are_not_missing(solver: Any) -> None:
    problem = toy()
    (record,) = run_stages(problem.stages, problem.start, problem.hparams, [Implicit(solver)])
    zero = {k: torch.zeros_like(x) for k, x in record.end.params.items()}
    found = Implicit(solver, sums=True).pullback(problem.stages[0], record, problem.hparams, zero).hparams
    assert found.keys() == problem.hparams.keys()
    assert not flatten(found).any()


@dataclass(frozen=True)
class Theirs:
    """A solver that knows nothing of all this."""

    def __call__(self, matvec: Matvec, b: Tree) -> Solution:
        return CG(steps=6)(matvec, b)


def test_a_solver_of_somebody_else_works_as_before() -> None:
    problem = toy()
    torch.testing.assert_close(
        pulled(problem, Implicit(Theirs())), pulled(problem, Implicit(CG(steps=6))), rtol=1e-12, atol=1e-14
    )
    with pytest.raises(HypergradientError, match=r"sums=True.*Theirs returns x"):
        Implicit(Theirs(), sums=True)


def test_what_is_no_choice_says_so() -> None:
    with pytest.raises(HypergradientError, match="graph='once'.*'kept', 'rebuilt', or None"):
        Implicit(CG(), graph="once")
    with pytest.raises(HypergradientError, match="only reverse_over_reverse has a graph to keep.*leave graph out"):
        Implicit(CG(), graph="kept", product=reverse_over_forward)


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize(
    "solver", [CG(steps=4), Neumann(steps=4), Neumann(steps=4, lr=0.1), FixedPoint(steps=5), Dense()]
)
def test_every_product_is_counted(monkeypatch: pytest.MonkeyPatch, solver: Any, sums: bool) -> None:
    """A pull of a kept graph is a product, the linearisation a gradient."""
    pulls, graphs = [], []
    pull, made = Linearized.pull, Linearized.__init__

    def counted(self: Linearized, *args: Any, **kwargs: Any) -> Any:
        pulls.append(1)
        return pull(self, *args, **kwargs)

    def counted_made(self: Linearized, *args: Any, **kwargs: Any) -> None:
        graphs.append(1)
        made(self, *args, **kwargs)

    monkeypatch.setattr(Linearized, "pull", counted)
    monkeypatch.setattr(Linearized, "__init__", counted_made)
    problem = toy(Adam(lr=0.01))  # without lr, the series look for lambda_max first
    sums = sums and hasattr(solver, "combines")
    cost = estimate(problem, Implicit(solver, sums=sums or None, graph="kept")).cost
    assert cost.products == len(pulls)
    assert cost.gradients == len(graphs) == 1
    assert cost.matvecs == cost.products - (0 if sums and isinstance(solver, CG) else 1)
    pulls.clear()
    cost = estimate(problem, Implicit(solver, sums=sums or None, graph="rebuilt", batches=2)).cost
    assert cost.products == len(pulls)


# ---------------------------------------------------------------- the gradient as a sum


def _tied(p: Tree, h: Tree) -> Tensor:
    x = torch.linspace(-1, 1, 12, dtype=F64).reshape(4, 3)
    return (torch.tanh(x @ p["w"]) @ p["w"].T - x).square().mean()


CONSTANT = torch.linspace(0, 1, 6, dtype=F64).reshape(3, 2)

TERMS: dict[str, Callable[[Tree, Tree], Tensor]] = {
    "square": lambda p, h: 0.3 * p["w"].square().sum(),
    "pow": lambda p, h: torch.tensor(0.7) * (p["w"] ** 2).sum() / 3,
    "product": lambda p, h: (p["w"] * p["w"]).mean(),
    "proximal": lambda p, h: (p["w"] - CONSTANT).square().sum() / 2,
    "turned round": lambda p, h: (CONSTANT - p["w"]).pow(2).sum(),
    "broadcast constant": lambda p, h: (p["w"] + CONSTANT[0]).square().sum(),
    "broadcast leaf": lambda p, h: (p["row"] - CONSTANT).square().sum(),
    "scaled": lambda p, h: (CONSTANT * p["w"]).square().sum(),
    "cubic": lambda p, h: (p["w"] ** 3).sum(),
    "power of a half": lambda p, h: (p["w"].square() + 1).sqrt().sum(),
    "decayed": lambda p, h: h["lam"].exp() * p["w"].square().sum(),
    "to a hyperparameter": lambda p, h: (p["w"] - h["to"]).square().sum(),
    "linear in one": lambda p, h: 2 * (p["w"] * h["to"]).sum(),
    "between leaves": lambda p, h: (p["w"] * p["row"]).sum() + 3 * (p["row"] * p["row2"]).sum(),
    "scalar": lambda p, h: 4 * p["s"].square() + p["s"] * p["w"].sum(),
    "transposed": lambda p, h: (p["w"].T * CONSTANT.T).sum() + p["w"].T.square().sum(),
    "norm": lambda p, h: p["w"].norm() ** 2,
    "subtracted with a factor": lambda p, h: torch.sub(p["w"], CONSTANT, alpha=2.0).square().sum(),
    "added to itself": lambda p, h: torch.add(p["w"], p["w"], alpha=2.0).square().sum(),
    "tied": _tied,
    "cut": lambda p, h: (p["w"].detach() * p["w"]).sum(),
    "empty": lambda p, h: p["none"].square().sum() + p["w"].square().sum(),
}


def point() -> tuple[Tree, Tree, Tree]:
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=F64)

    params = {"w": draw(3, 2), "row": draw(2), "row2": draw(2), "s": draw(), "none": draw(0)}
    return params, {"lam": draw(), "to": draw(3, 2)}, {k: draw(*x.shape) for k, x in params.items()}


@pytest.mark.parametrize("among", [False, True])
@pytest.mark.parametrize("name", TERMS)
def test_a_pull_is_the_dense_product_whatever_the_gradient_is_a_sum_of(name: str, among: bool) -> None:
    """``among``: as one term of many."""
    params, hparams, tangent = point()
    chosen = [*TERMS.values()] if among else [TERMS[name]]

    def loss(p: Tree, h: Tree) -> Tensor:
        return torch.stack([f(p, h) for f in (TERMS[name], *chosen)]).sum()

    def gradient(z: Tensor) -> Tensor:
        n = flatten(params).numel()
        p, h = unflatten(z[:n], params), unflatten(z[n:], hparams)
        found = torch.autograd.grad(loss(p, h), [*p.values()], create_graph=True, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(x) if g is None else g).reshape(-1) for x, g in zip(p.values(), found, strict=True)]
        )

    z = torch.cat([flatten(params), flatten(hparams)])
    want = flatten(tangent) @ torch.autograd.functional.jacobian(gradient, z)
    at = linearize(loss, params, hparams, tangents=params, wrt_params=params, wrt_hparams=hparams)
    for _ in range(2):
        rows, mixed = at.pull(tangent, wrt_params=params, wrt_hparams=hparams)
        full = {k: {**rows, **mixed}.get(k, torch.zeros_like(x)) for k, x in {**params, **hparams}.items()}
        torch.testing.assert_close(flatten(full), want, rtol=1e-12, atol=1e-13)
    some, none = at.pull({"w": tangent["w"]}, wrt_params=["w"])
    only = at.pull({k: x if k == "w" else torch.zeros_like(x) for k, x in tangent.items()}, wrt_params=["w"])[0]
    zero = torch.zeros_like(params["w"])
    torch.testing.assert_close(some.get("w", zero), only.get("w", zero), rtol=1e-12, atol=1e-13)
    assert not none


def test_a_pull_writes_into_nothing_that_it_was_given() -> None:
    params, hparams, tangent = point()
    before = [x.clone() for a in (params, hparams, tangent) for x in a.values()]
    at = linearize(
        lambda p, h: torch.stack([f(p, h) for f in TERMS.values()]).sum(), params, hparams, tangents=params,
        wrt_params=params, wrt_hparams=hparams,
    )  # fmt: skip
    at.pull(tangent, wrt_params=params, wrt_hparams=hparams, last=True)
    assert all(
        torch.equal(x, y)
        for x, y in zip(before, (x for a in (params, hparams, tangent) for x in a.values()), strict=True)
    )


def test_an_l2_penalty_costs_neither_nodes_nor_bytes() -> None:
    """mu ||theta||^2: only mu is kept, whatever stands beside it."""
    w = torch.randn(300, 300, dtype=F64)
    x = torch.randn(7, 300, dtype=F64)

    def fit(p: Tree, h: Tree) -> Tensor:
        return torch.tanh(x @ p["w"]).square().sum()

    def penalised(p: Tree, h: Tree) -> Tensor:
        return fit(p, h) + 0.1 * p["w"].square().sum()

    def bytes_of(loss: Callable[[Tree, Tree], Tensor]) -> int:
        at = linearize(loss, {"w": w}, {}, tangents=["w"], wrt_params=["w"])
        at.take()
        return peak_bytes(lambda: at.pull({"w": w}, wrt_params=["w"]))

    assert bytes_of(penalised) <= bytes_of(fit) + w.nbytes + 100


def test_factors_are_read_while_operations_are_watched() -> None:
    """A Python number in a graph is no tensor to a dispatch mode."""
    w = {"w": torch.ones(3, dtype=F64)}
    found: list[Tree] = []

    def work() -> None:
        at = linearize(lambda p, h: 0.5 * (p["w"] * 3.0 * p["w"] * 2).sum(), w, {}, tangents=w, wrt_params=w)
        found.append(at.pull(w, wrt_params=w)[0])

    peak_bytes(work)
    torch.testing.assert_close(found[0]["w"], torch.full((3,), 6.0, dtype=F64))


# ---------------------------------------------------------------- exact bytes


P = 4 * (3 * (512 * 512 + 512) + 512 * 10 + 10)


@pytest.fixture(scope="module")
def perceptron() -> tuple[Problem, Any]:
    problem = WORKLOADS["mlp_reweighting"].make(size="base", unroll=1).problem
    return problem, run_stages(problem.stages, problem.start, problem.hparams, [Implicit(CG())])


@pytest.mark.parametrize(
    ("estimator", "most"),
    [
        (Implicit(Neumann(steps=3, lr=0.1)), 13.25e6),
        (Implicit(Neumann(steps=3, lr=0.1), sums=False), 16.0e6),
        (Implicit(CG(steps=3)), 16.45e6),
        (Implicit(CG(steps=3), sums=False), 19.2e6),
    ],
)
def test_bytes_of_a_hypergradient_of_a_perceptron(perceptron: Any, estimator: Implicit, most: float) -> None:
    """512-512-512-512-10, batch 256; the parameters take 3.17e6 bytes, one training gradient 7.5e6."""
    problem, records = perceptron
    assert (
        peak_bytes(lambda: hypergradient(problem.outer, problem.stages, [estimator], records, problem.hparams)) <= most
    )


def test_hyperparameters_as_large_as_the_parameters_are_not_summed() -> None:
    """The images would then take as much as the solution."""
    problem = toy()
    seen: list[bool] = []
    solve = LinearSystem.solve

    def watched(self: LinearSystem, *args: Any) -> Any:
        seen.append(self._sums)
        return solve(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinearSystem, "solve", watched)
        estimate(problem, CG())
        estimate(replace(problem, stages=[replace(problem.stages[0], loss=_few)], hparams={"decay": torch.zeros((), dtype=F64)},
                         outer=lambda p, h: p["w"].sum()), CG())  # fmt: skip
    assert seen == [False, True]


def _few(params: Tree, hparams: Tree, batch: Tensor) -> Tensor:
    return hparams["decay"].exp() * torch.stack([(x - 1).square().sum() for x in params.values()]).sum()


def test_the_image_of_another_vector_is_not_that_of_the_last_product() -> None:
    """A solver may sum what it gave to no product: the zero start, a scaled copy."""
    problem = toy()
    (stage,) = problem.stages
    params, hparams = problem.start, problem.hparams
    assert isinstance(params, dict)

    def system() -> LinearSystem:
        return LinearSystem(
            reverse_over_reverse, [stage.objective(0)], params, hparams, unknowns=list(params), free=[], decay={},
            reduce=stage.reduce, kept=True, sums=True,
        )  # fmt: skip

    v, w = ({k: torch.full_like(x, c) for k, x in params.items()} for c in (1.0, -0.5))
    one = system()
    one(v)
    found, want = one.images_of(w)[1], system().images_of(w)[1]
    for k, x in want.items():
        torch.testing.assert_close(found[k], x, rtol=1e-12, atol=1e-14)
    one(v)
    torch.testing.assert_close(one.images_of(v)[1], system().images_of(v)[1], rtol=1e-12, atol=1e-14)
