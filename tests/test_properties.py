"""Laws over random problems: many leaf shapes, hyperparameters of every shape, both precisions, several stages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from estimators import (
    CG,
    LAMB,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Dense,
    Forward,
    HypergradientError,
    Implicit,
    Momentum,
    NAdam,
    Outcome,
    Problem,
    RAdam,
    RMSprop,
    Stage,
    State,
    Unroll,
    estimate,
    hypergradient,
    registry,
    reverse_over_reverse,
    run,
    run_stages,
)

F64 = torch.float64
QUICK = [Phase.explicit, Phase.generate, Phase.shrink]  # explaining a failure costs a minute
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=30)
FEW = settings(derandomize=True, deadline=None, max_examples=15)
EACH = settings(derandomize=True, deadline=None, max_examples=3, phases=QUICK)  # for every registered estimator
REGISTERED = [  # those of one stage that see hyperparameters in any loss
    n
    for n, entry in registry.items()
    if not (isinstance(entry.estimator, tuple) or entry.claim.rule_only or entry.claim.tasks_only)
]

SHAPES = st.lists(st.sampled_from([(), (1,), (3,), (2, 2), (2, 1, 2)]), min_size=1, max_size=3)
HPARAM_SHAPES = st.lists(st.sampled_from([(), (2,), (2, 3)]), min_size=1, max_size=3)
RULES = [
    SGD(lr=0.1), Momentum(lr=0.05, momentum=0.7), Momentum(lr=0.05, momentum=0.7, dampening=0.3),
    Momentum(lr=0.05, momentum=0.7, nesterov=True), Adam(lr=0.1, eps=1e-3), Adam(lr=0.1, eps=1e-3, weight_decay=0.2),
    Adam(lr=0.1, eps=1e-3, betas=(0.5, 0.6), amsgrad=True), AdamW(lr=0.1, eps=1e-3, weight_decay=0.3),
    NAdam(lr=0.1, eps=1e-2), RAdam(lr=0.1, eps=1e-2, betas=(0.8, 0.9), weight_decay=0.2), Adamax(lr=0.1, eps=1e-2),
    RMSprop(lr=0.1, eps=1e-2, alpha=0.8, momentum=0.5), Adagrad(lr=0.1, eps=1e-2), Adadelta(lr=1.0, eps=1e-2),
    Adafactor(lr=0.1), LAMB(lr=0.1, eps=1e-2),
]  # fmt: skip


def randn(*shape, seed):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Quadratic:
    """theta'A theta/2 - theta'(b_t + B lam), with A and B mixing all leaves. `curved` adds a term that mixes
    theta and lam beyond first order, so that H depends on lam."""

    def __init__(self, shapes, hparam_shapes, seed, curved=0.0, dtype=F64):
        self.start = {f"p{i}": randn(*s, seed=seed + i).to(dtype) for i, s in enumerate(shapes)}
        self.hparams = {f"h{i}": randn(*s, seed=seed + 10 + i).to(dtype) for i, s in enumerate(hparam_shapes)}
        n, m = (sum(x.numel() for x in a.values()) for a in (self.start, self.hparams))
        q, _ = torch.linalg.qr(randn(n, n, seed=seed + 20))
        self.a = (q @ torch.diag(torch.linspace(0.5, 3.0, n, dtype=F64)) @ q.T).to(dtype)
        self.b = randn(n, m, seed=seed + 21).to(dtype)
        self.offsets = randn(4, n, seed=seed + 22).to(dtype)
        self.c = randn(n, seed=seed + 23).to(dtype)
        self.curved = curved

    @staticmethod
    def flat(a):
        return torch.cat([x.reshape(-1) for x in a.values()])

    def loss(self, p, h, t):
        theta, lam = self.flat(p), self.flat(h)
        value = theta @ self.a @ theta / 2 - theta @ (self.offsets[t % 4] + self.b @ lam)
        if self.curved:
            value = value + self.curved * torch.sin(theta.sum() * lam.sum())
        return value

    def outer(self, p, h):
        theta = self.flat(p)
        return (self.c * theta).sum() + (theta**2).sum() / 2 + torch.sin(self.flat(h)).sum()

    def problem(self, rule, steps):
        return Problem("q", [Stage(self.loss, rule, lambda t: t, steps)], self.outer, self.start, self.hparams)


def reference(q: Quadratic, rule, steps: int):
    """Backpropagation through the whole loop as one autograd graph: none of the library but the rule's update."""
    h = {k: x.clone().requires_grad_() for k, x in q.hparams.items()}
    p = {k: x.clone().requires_grad_() for k, x in q.start.items()}
    slots = {k: rule.init(x) for k, x in p.items()}
    for t in range(steps):
        grads = dict(zip(p, torch.autograd.grad(q.loss(p, h, t), list(p.values()), create_graph=True), strict=True))
        for k, g in grads.items():
            change, slots[k] = rule.update(g, slots[k], t + 1, p[k])
            p[k] = p[k] + change
    found = torch.autograd.grad(q.outer(p, h), list(h.values()))
    return dict(zip(h, found, strict=True))


def assert_trees_close(found, expected, tol):
    assert list(found) == list(expected)
    size = max(1.0, *(float(x.abs().max()) for x in expected.values()))
    for k, x in expected.items():
        assert found[k].shape == x.shape
        assert found[k].dtype == x.dtype
        torch.testing.assert_close(found[k], x, rtol=tol, atol=tol * size, msg=lambda m, k=k: f"{k}: {m}")


@EXAMPLES
@given(
    SHAPES, HPARAM_SHAPES, st.sampled_from(RULES), st.integers(0, 7), st.sampled_from([0.0, 0.3]), st.integers(0, 999)
)
def test_unroll_and_forward_are_backpropagation_through_the_run(shapes, hparam_shapes, rule, steps, curved, seed):
    q = Quadratic(shapes, hparam_shapes, seed, curved)
    expected = reference(q, rule, steps)
    for estimator in (
        Unroll(),
        Unroll(product=reverse_over_reverse),
        Unroll(checkpoint=3),
        Unroll(last=steps),
        Forward(),
        Forward(chunk=2),
    ):
        found = estimate(q.problem(rule, steps), estimator)
        # Adam's chain of divisions by roots near eps = 1e-3 magnifies rounding by up to 1e3 a step
        assert_trees_close(found.hparams, expected, 1e-12 if not isinstance(rule, Adam) else 1e-8)
        assert found.outcomes == (Outcome.DONE,)


@FEW
@given(SHAPES, HPARAM_SHAPES, st.integers(0, 8), st.integers(0, 999))
def test_gradient_descent_has_a_dense_closed_form(shapes, hparam_shapes, steps, seed):
    """theta_T = M^T theta_0 + a sum_s M^(T-1-s) (b_s + B lam): no autograd at all."""
    q, lr = Quadratic(shapes, hparam_shapes, seed), 0.2
    m = torch.eye(len(q.c), dtype=F64) - lr * q.a
    theta, z = q.flat(q.start), torch.zeros_like(q.b)
    for t in range(steps):
        theta = m @ theta + lr * (q.offsets[t % 4] + q.b @ q.flat(q.hparams))
        z = m @ z + lr * q.b
    expected = z.T @ (q.c + theta) + torch.cos(q.flat(q.hparams))
    for estimator in (Unroll(), Forward()):
        found = estimate(q.problem(SGD(lr=lr), steps), estimator)
        torch.testing.assert_close(q.flat(found.hparams), expected, rtol=1e-12, atol=1e-12)


@FEW
@given(SHAPES, HPARAM_SHAPES, st.integers(0, 999))
def test_implicit_is_the_dense_formula_anywhere(shapes, hparam_shapes, seed):
    """direct + B'A^-1 dM/dtheta at the end, converged or not."""
    q = Quadratic(shapes, hparam_shapes, seed)
    problem = q.problem(SGD(lr=0.2), 3)
    end = q.flat(run(problem.stages[0], q.start, q.hparams).end.params)
    expected = q.b.T @ torch.linalg.solve(q.a, q.c + end) + torch.cos(q.flat(q.hparams))
    for solver in (Dense(), CG(steps=40, rtol=1e-13)):
        found = estimate(problem, solver)
        torch.testing.assert_close(q.flat(found.hparams), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", REGISTERED)
@EACH
@given(SHAPES, st.sampled_from(RULES), st.integers(0, 999))
def test_float32_gives_float32_near_the_float64_answer(name, shapes, rule, seed):
    entry = registry[name]
    answers = {}
    for dtype in (F64, torch.float32):
        q = Quadratic(shapes, [(), (2,)], seed, 0.1, dtype)
        answers[dtype] = estimate(q.problem(rule, 4), entry.estimator, throw=False).hparams
        assert all(x.dtype == dtype for x in answers[dtype].values())
        assert all(bool(torch.isfinite(x).all()) for x in answers[dtype].values())
    if not isinstance(rule, Adam):  # there a gradient near 0 turns float32's rounding into a step of another sign
        assert_trees_close({k: x.double() for k, x in answers[torch.float32].items()}, answers[F64], 3e-3)


@pytest.mark.parametrize("name", REGISTERED)
@EACH
@given(
    st.sampled_from([1e-12, 1e-3, -1.0, 1e6]),
    st.sampled_from(RULES),
    st.integers(0, 999),
)
def test_estimates_are_homogeneous_in_the_outer_loss(name, scale, rule, seed):
    estimator = registry[name].estimator
    q = Quadratic([(3,), ()], [(2,)], seed, 0.1)
    stage = q.problem(rule, 4).stages[0]
    one = estimate(Problem("q", [stage], q.outer, q.start, q.hparams), estimator, throw=False)
    other = estimate(
        Problem("q", [stage], lambda p, h: scale * q.outer(p, h), q.start, q.hparams), estimator, throw=False
    )
    assert_trees_close({k: x / scale for k, x in other.hparams.items()}, one.hparams, 1e-8)
    assert other.outcomes == one.outcomes


@pytest.mark.parametrize("name", REGISTERED)
@EACH
@given(st.integers(0, 999))
def test_leaves_are_only_a_way_to_write_one_vector(name, seed):
    """The same numbers as one leaf or as several. (Every registered estimator and SGD are blind to the split.)"""
    estimator = registry[name].estimator
    q = Quadratic([(2, 2), (), (3,)], [(2,), (), (2, 1)], seed, 0.1)
    whole_p, whole_h = {"all": q.flat(q.start)}, {"all": q.flat(q.hparams)}
    split = estimate(q.problem(SGD(lr=0.1), 4), estimator)
    stage = Stage(q.loss, SGD(lr=0.1), lambda t: t, 4)
    joined = estimate(Problem("q", [stage], q.outer, whole_p, whole_h), estimator)
    torch.testing.assert_close(q.flat(split.hparams), joined.hparams["all"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", REGISTERED)
@EACH
@given(HPARAM_SHAPES, st.sampled_from([(), (2,), (3, 2)]), st.integers(0, 999))
def test_unused_hyperparameters_are_refused_and_outer_ones_direct(name, hparam_shapes, shape, seed):
    estimator = registry[name].estimator
    q = Quadratic([(3,)], hparam_shapes, seed)
    stage = Stage(lambda p, h, t: q.loss(p, {k: h[k] for k in q.hparams}, t), SGD(lr=0.1), lambda t: t, 3)

    def outer(p, h):
        return q.outer(p, {k: h[k] for k in q.hparams})

    hparams = {**q.hparams, "extra": randn(*shape, seed=seed)}
    with pytest.raises(HypergradientError, match=r"\['extra'\] influence nothing"):
        estimate(Problem("q", [stage], outer, q.start, hparams), estimator)
    found = estimate(
        Problem("q", [stage], lambda p, h: outer(p, h) + (h["extra"] ** 3).sum(), q.start, hparams), estimator
    )
    want = (0 if name == "plain" else 3) * hparams["extra"] ** 2
    torch.testing.assert_close(found.hparams["extra"], want, rtol=1e-13, atol=1e-13)
    assert not found.indirect["extra"].any()


# ---------------------------------------------------------------- stages


@FEW
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from(RULES), st.integers(0, 999))
def test_any_number_of_stages_is_one_chain(steps, rule, seed):
    """Each stage restarts its rule; zero-step stages hand on what they get. Against one autograd graph."""
    q = Quadratic([(2,), ()], [(2,)], seed, 0.2)
    stages = [Stage(q.loss, rule, lambda t, i=i: t + i, n) for i, n in enumerate(steps)]
    h = {k: x.clone().requires_grad_() for k, x in q.hparams.items()}
    p = {k: x.clone().requires_grad_() for k, x in q.start.items()}
    for i, n in enumerate(steps):
        slots = {k: rule.init(x) for k, x in p.items()}
        for t in range(n):
            grads = dict(
                zip(p, torch.autograd.grad(q.loss(p, h, t + i), list(p.values()), create_graph=True), strict=True)
            )
            for k, g in grads.items():
                change, slots[k] = rule.update(g, slots[k], t + 1, p[k])
                p[k] = p[k] + change
    expected = dict(zip(h, torch.autograd.grad(q.outer(p, h), list(h.values())), strict=True))
    found = estimate(Problem("q", stages, q.outer, q.start, q.hparams), Unroll())
    assert_trees_close(found.hparams, expected, 1e-8 if isinstance(rule, Adam) else 1e-12)


@pytest.mark.parametrize(
    "estimator", [Unroll(), Unroll(checkpoint=2), Forward()], ids=["unroll", "checkpoint", "forward"]
)
def test_a_stage_of_no_steps_ends_where_it_starts(estimator):
    q = Quadratic([(3,), ()], [(2,)], 0)
    found = estimate(q.problem(Adam(), 0), estimator)
    assert_trees_close(found.hparams, {k: torch.cos(x) for k, x in q.hparams.items()}, 1e-14)
    assert not any(x.any() for x in found.indirect.values())
    assert found.cost.products == 0


def test_implicit_on_a_stage_of_no_steps_reads_the_first_batch():
    q = Quadratic([(3,)], [(2,)], 0)
    seen = []
    stage = Stage(q.loss, SGD(lr=0.1), lambda t: seen.append(t) or t, 0)
    found = estimate(Problem("q", [stage], q.outer, q.start, q.hparams), Implicit(Dense()))
    expected = q.b.T @ torch.linalg.solve(q.a, q.c + q.flat(q.start)) + torch.cos(q.flat(q.hparams))
    torch.testing.assert_close(q.flat(found.hparams), expected, rtol=1e-12, atol=1e-12)
    assert set(seen) == {0}


# ---------------------------------------------------------------- going on from a State


@FEW
@given(st.sampled_from(RULES), st.integers(0, 10), st.integers(0, 999))
def test_a_run_may_be_continued(rule, cut, seed):
    """Slots, the count of updates and the index into the stream all go on."""
    q = Quadratic([(3,), ()], [(2,)], seed, 0.2)
    seen = []

    def stage(n):
        return Stage(q.loss, rule, lambda t: seen.append(t) or t, n)

    whole = run(stage(10), q.start, q.hparams)
    first = run(stage(cut), q.start, q.hparams)
    seen.clear()
    second = run(stage(10 - cut), first.end, q.hparams)
    assert seen[: 10 - cut] == list(range(cut, 10))
    assert second.end.step == whole.end.step == 10
    for k in q.start:
        assert torch.equal(second.end.params[k], whole.end.params[k])
        assert all(torch.equal(second.end.slots[k][s], x) for s, x in whole.end.slots[k].items())
    if cut < 10:
        assert torch.equal(second.losses, whole.losses[cut:])


@FEW
@given(st.sampled_from(RULES), st.integers(1, 5), st.integers(0, 999))
def test_estimators_work_on_a_continued_run(rule, cut, seed):
    """The tail of the whole run, truncated there, is the continued run."""
    q = Quadratic([(3,), ()], [(2,)], seed, 0.2)
    middle = run(Stage(q.loss, rule, lambda t: t, cut), q.start, q.hparams).end
    assert isinstance(middle, State)
    rest = Stage(q.loss, rule, lambda t: t, 4)
    whole = Stage(q.loss, rule, lambda t: t, cut + 4)
    truncated = hypergradient(q.outer, [whole], [Unroll(last=4)], [run(whole, q.start, q.hparams)], q.hparams)
    for estimator in (Unroll(), Forward(), Unroll(checkpoint=3)):
        records = run_stages([rest], middle, q.hparams, [estimator])
        found = hypergradient(q.outer, [rest], [estimator], records, q.hparams)
        assert_trees_close(found.hparams, truncated.hparams, 1e-9)
