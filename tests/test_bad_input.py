"""Every mistake that an issue names gets a message that says what, where and what to do instead."""

from __future__ import annotations

import math

import pytest
import torch

from estimators import (
    CG,
    SAMA,
    SGD,
    T1T2,
    Adam,
    Claim,
    Direct,
    Evolution,
    FiniteDifference,
    Forward,
    HypergradientError,
    Identity,
    Implicit,
    MeanOf,
    Momentum,
    Neumann,
    NonFiniteError,
    NotApplicableError,
    Outcome,
    Plain,
    Problem,
    Pullback,
    Random,
    Stage,
    State,
    Unroll,
    estimate,
    hypergradient,
    registry,
    run,
    run_stages,
)

F64 = torch.float64


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


START = {"w": randn(3, seed=1), "b": randn(2, seed=2)}
HPARAMS = {"goal": randn(3, seed=3), "decay": torch.tensor(0.2, dtype=F64)}


def loss(p, h, batch):
    return (
        ((p["w"] - h["goal"]) ** 2).mean() + h["decay"].exp() * (p["b"] ** 2).sum() + (p["w"].sum() * p["b"]).mean() / 9
    )


def outer(p, h):
    return (p["w"] ** 2).sum() + p["b"].sum()


def stage(loss=loss, rule=None, steps=3, stream=lambda t: t, **options):
    return Stage(loss, rule or SGD(lr=0.1), stream, steps, **options)


def go(estimator=None, outer=outer, start=START, hparams=HPARAMS, stages=None, **options):
    """What a user calls."""
    stages = stages or [stage(**options)]
    return estimate(Problem("p", stages, outer, start, hparams), estimator or Unroll())


EVERY = {  # of one stage, and of hyperparameters in any loss
    name: entry.estimator
    for name, entry in registry.items()
    if not (isinstance(entry.estimator, tuple) or entry.claim.rule_only or entry.claim.tasks_only)
}
BASELINES = (FiniteDifference, Evolution, Plain, Direct, Random)


def test_the_example_itself_is_sound():
    for estimator in EVERY.values():
        found = go(estimator)
        assert all(bool(torch.isfinite(x).all()) for x in found.hparams.values())


# ---------------------------------------------------------------- start and hparams


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([randn(3)], r"start must be a dict of tensors.*\{'w': tensor\}.*got list"),
        (randn(3), r"start must be a dict of tensors.*got Tensor"),
        (torch.nn.Linear(2, 1), r"start must be a dict of tensors.*got Linear"),
        ({**START, "w": [1.0]}, r"start must be a dict of tensors"),
        ({**START, "b": randn(2, dtype=torch.float32)}, r"start mixes dtypes.*float32.*float64.*\.to\("),
        ({**START, "b": torch.zeros(2, dtype=F64, device="meta")}, r"start mixes devices.*cpu.*meta.*\.to\("),
        ({**START, "b": torch.zeros(2, dtype=torch.int64)}, r"start\['b'\] has dtype torch.int64.*\.float\(\)"),
        ({"w": START["w"]}, r"loss of step 0 reads 'b', but params hold \['w'\].*rename"),
        ({"w": START["w"], "bias": START["b"]}, r"loss of step 0 reads 'b', but params hold \['bias', 'w'\]"),
        ({}, r"start is empty.*at least one tensor"),
    ],
)
def test_a_malformed_start(start, message):
    with pytest.raises(HypergradientError, match=message):
        go(start=start)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ([randn(3)], r"hparams must be a dict of tensors.*got list"),
        (randn(3), r"hparams must be a dict of tensors.*got Tensor"),
        ({**HPARAMS, "decay": 0.2}, r"hparams must be a dict of tensors"),
        ({**HPARAMS, "decay": torch.tensor(1)}, r"hparams\['decay'\] has dtype torch.int64.*\.float\(\)"),
        ({**HPARAMS, "decay": torch.tensor(0.2)}, r"hparams mixes dtypes.*float32.*float64.*\.to\("),
        ({k: v.float() for k, v in HPARAMS.items()}, r"start is torch.float64.*hparams are torch.float32.*\.to\("),
        ({k: v.to("meta") for k, v in HPARAMS.items()}, r"start is.*cpu.*hparams are.*meta.*\.to\("),
        ({"goal": HPARAMS["goal"]}, r"loss of step 0 reads 'decay'.*hparams \['goal'\].*rename"),
        ({}, r"hparams is empty|hparams.*at least one"),
    ],
)
def test_malformed_hparams(hparams, message):
    with pytest.raises(HypergradientError, match=message):
        go(hparams=hparams)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"goal": HPARAMS["goal"]}, r"hparams has the keys \['goal'\], expected \['decay', 'goal'\]"),
        ({**HPARAMS, "goal": randn(4)}, r"hparams\['goal'\] has shape \(4,\), expected \(3,\).*nothing is broadcast"),
        ({**HPARAMS, "goal": randn(1, 3)}, r"hparams\['goal'\] has shape \(1, 3\), expected \(3,\)"),
    ],
)
def test_estimating_at_hparams_unlike_the_problem_s(hparams, message):
    problem = Problem("p", [stage()], outer, START, HPARAMS)
    with pytest.raises(HypergradientError, match=message):
        estimate(problem, Unroll(), hparams)


def test_a_shape_that_the_loss_cannot_use_names_the_step():
    with pytest.raises(RuntimeError) as caught:
        go(start={**START, "w": randn(4)})
    assert any("Stage.loss of step 0" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("seed", [None, 0])
def test_a_key_error_that_is_not_about_the_trees_is_not_blamed_on_them(seed):
    """A batch without the column that the loss reads: the message must think of it."""

    def reads_batch(p, h, batch):
        return loss(p, h, batch) * batch["weight"]

    with pytest.raises((HypergradientError, KeyError), match=r"weight.*batch.*stream"):
        go(loss=reads_batch, stream=lambda t: {"x": 1.0}, seed=seed)


def test_a_state_without_slots():
    with pytest.raises(HypergradientError, match=r"State.slots lacks \['b', 'w'\].*dict of params"):
        go(start=State(START, {}, 4), rule=Adam())


def test_a_frozen_leaf_that_does_not_exist():
    with pytest.raises(HypergradientError, match=r"Stage.frozen names \['body'\].*start holds \['b', 'w'\]"):
        go(frozen=frozenset({"body"}))


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            lambda p, h, b: (p["w"] - h["goal"]) ** 2,
            r"Stage.loss of step 0 returned shape \(3,\), not a scalar.*\.mean\(\)",
        ),
        (lambda p, h, b: loss(p, h, b)[None], r"Stage.loss of step 0 returned shape \(1,\), not a scalar"),
        (lambda p, h, b: loss(p, h, b).item(), r"Stage.loss of step 0 returned float, not a scalar"),
        (lambda p, h, b: None, r"Stage.loss of step 0 returned NoneType, not a scalar"),
        (lambda p, h, b: {"loss": loss(p, h, b)}, r"Stage.loss of step 0 returned dict, not a scalar"),
        (lambda p, h, b: loss(START, h, b), r"depends on none of the trained leaves \['b', 'w'\].*closure"),
        (lambda p, h, b: loss(p, h, b).detach(), r"depends on none of the trained leaves"),
    ],
)
def test_inner_losses(bad, message):
    with pytest.raises(HypergradientError, match=message):
        go(loss=bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda p, h: p["w"] ** 2, r"the outer loss returned shape \(3,\), not a scalar.*\.mean\(\)"),
        (lambda p, h: 1.0, r"the outer loss returned float, not a scalar"),
        (lambda p, h: outer(p, h)[None], r"the outer loss returned shape \(1,\), not a scalar"),
        (lambda p, h: p["head"].sum(), r"(?s)outer loss.*'head'.*\['b', 'w'\]"),
        (lambda p, h: h["temperature"] * outer(p, h), r"(?s)outer loss.*'temperature'.*\['decay', 'goal'\]"),
    ],
)
def test_outer_losses(bad, message):
    with pytest.raises(HypergradientError, match=message):
        go(outer=bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [0, 2, 4])
def test_a_non_finite_inner_loss_names_its_step(bad, when):
    def breaks(p, h, t):
        return loss(p, h, t) * (bad if t == when else 1.0)

    with pytest.raises(NonFiniteError, match=rf"inner loss became (nan|-?inf) at step {when} of 5.*learning rate"):
        go(loss=breaks, steps=5)


def test_a_non_finite_loss_in_a_continued_run_names_the_step_of_the_stream():
    """Step t reads stream(t): that is the batch to look at."""

    def breaks(p, h, t):
        return loss(p, h, t) * (math.nan if t == 12 else 1.0)

    start = State(START, {k: {} for k in START}, 10)
    with pytest.raises(NonFiniteError, match=r"step 12\b"):
        go(start=start, loss=breaks, steps=5)


def test_a_diverging_run_says_so():
    with pytest.raises(NonFiniteError, match=r"(?s)step \d+ of 400.*learning rate"):
        go(loss=lambda p, h, t: loss(p, h, t) + (p["w"] ** 4).sum(), rule=SGD(lr=10.0), steps=400)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_non_finite_gradient_of_a_finite_loss(steps):
    """sqrt at 0: the loss is fine, the last gradient is not."""

    def root(p, h, t):
        return loss(p, h, t) + (torch.sqrt((p["w"] * 0) ** 2).sum() if t == steps - 1 else 0.0)

    with pytest.raises(NonFiniteError, match=r"parameters \['w'\].*gradient was NaN.*sqrt, log or division"):
        go(loss=root, steps=steps)


def test_a_non_finite_outer_loss_and_gradient():
    with pytest.raises(NonFiniteError, match=r"the outer loss is nan at the end of the last stage"):
        go(outer=lambda p, h: outer(p, h) * math.nan)
    with pytest.raises(NonFiniteError, match=r"the outer gradient is NaN or infinite in \['b'\].*not replaced by zero"):
        go(outer=lambda p, h: outer(p, h) + torch.sqrt((p["b"] * 0) ** 2).sum())


def test_a_non_finite_direct_gradient():
    def root(p, h):
        return outer(p, h) + torch.sqrt(h["decay"] * 0)

    with pytest.raises(NonFiniteError, match=r"NaN or infinite in \['decay'\]"):
        go(outer=root)


@pytest.mark.parametrize("name", EVERY)
def test_a_non_finite_second_derivative_is_never_a_finite_answer(name):
    """d2/dw2 of |w|^1.5 is infinite at 0, its gradient is 0; 0 * inf follows."""
    start = {"w": torch.zeros(3, dtype=F64), "b": START["b"]}
    hparams = {"goal": torch.zeros(3, dtype=F64), "decay": HPARAMS["decay"]}

    def kinked(p, h, t):
        return (p["w"].abs() ** 1.5).sum() * h["decay"].exp() + ((p["b"] - h["goal"][:2]) ** 2).sum()

    def touches(p, h):
        return p["w"].sum() + (p["b"] ** 2).sum()

    try:
        found = go(EVERY[name], touches, start, hparams, loss=kinked, rule=SGD(lr=0.1))
    except (HypergradientError, torch.linalg.LinAlgError):
        return
    # No product with H was taken: then the answer is that of finite numbers only, and is finite.
    assert all(bool(torch.isfinite(x).all()) for x in found.hparams.values())
    assert EVERY[name].__class__ in (T1T2, SAMA, *BASELINES)


# ---------------------------------------------------------------- hyperparameters without influence


@pytest.mark.parametrize("name", EVERY)
def test_a_hyperparameter_that_influences_nothing(name):
    with pytest.raises(HypergradientError, match=r"hyperparameters \['idle'\] influence nothing.*Remove them"):
        go(EVERY[name], hparams={**HPARAMS, "idle": randn(2)})


@pytest.mark.parametrize("name", EVERY)
def test_a_hyperparameter_that_only_the_outer_loss_reads_is_fine(name):
    found = go(
        EVERY[name],
        lambda p, h: outer(p, h) + (h["direct"] ** 2).sum(),
        hparams={**HPARAMS, "direct": randn(2, seed=5)},
    )
    want = 0 * randn(2) if name == "plain" else 2 * randn(2, seed=5)
    torch.testing.assert_close(found.hparams["direct"], want, rtol=1e-14, atol=0)
    assert not found.indirect["direct"].any()


@pytest.mark.parametrize("name", [n for n in EVERY if not registry[n].claim.rule_hparams])
@pytest.mark.parametrize(
    "rule",
    [
        lambda h: SGD(lr=h["lr"].exp()),
        lambda h: Momentum(lr=0.1, momentum=torch.sigmoid(h["lr"])),
        lambda h: Adam(lr=0.1, betas=(torch.sigmoid(h["lr"]), 0.999)),
    ],
    ids=["lr", "momentum", "betas"],
)
def test_rule_hyperparameters_are_refused_where_they_cannot_be_seen(name, rule):
    with pytest.raises(NotApplicableError, match=r"hyperparameters \['lr'\] sit in (SGD|Momentum|Adam).*Unroll"):
        go(EVERY[name], hparams={**HPARAMS, "lr": torch.tensor(-2.0, dtype=F64)}, rule=rule)


@pytest.mark.parametrize("name", ["unroll", "unroll-checkpointed", "forward", "finite-difference", "evolution"])
def test_rule_hyperparameters_are_seen_by_the_others(name):
    found = go(
        EVERY[name], hparams={**HPARAMS, "lr": torch.tensor(-2.0, dtype=F64)}, rule=lambda h: SGD(lr=h["lr"].exp())
    )
    assert bool(found.hparams["lr"] != 0)


def test_a_rule_that_turns_its_hyperparameter_into_a_number():
    """A number cuts the graph: the learning rate would seem to influence nothing."""
    with pytest.raises(HypergradientError, match=r"\['lr'\] influence nothing"):
        go(hparams={**HPARAMS, "lr": torch.tensor(0.1, dtype=F64)}, rule=lambda h: SGD(lr=h["lr"].item()))


def test_a_rule_function_that_returns_no_rule():
    with pytest.raises(HypergradientError, match=r"Stage.rule returned 0.1: return a rule such as SGD"):
        go(rule=lambda h: 0.1)


# ---------------------------------------------------------------- estimators


def test_neumann_with_too_large_a_step():
    with pytest.raises(HypergradientError, match=r"(?s)stage 0.*Neumann.*diverges.*lr \* lambda_max >= 2.*throw=False"):
        go(Neumann(steps=20, lr=50.0))
    problem = Problem("p", [stage()], outer, START, HPARAMS)
    found = estimate(problem, Neumann(steps=20, lr=50.0), throw=False)
    assert found.outcomes == (Outcome.DIVERGED,)
    assert found.pullbacks[0].residual > 1


def test_forward_with_too_many_hyperparameters():
    with pytest.raises(NotApplicableError, match=r"Forward.*4 hyperparameters.*max_hparams=3.*Unroll"):
        go(Forward(max_hparams=3))
    go(Forward(max_hparams=4))


@pytest.mark.parametrize("name", ["t1t2", "sama", "sama-na", "sama-exact"])
def test_one_step_estimators_without_a_step(name):
    with pytest.raises(NotApplicableError, match=r"(T1T2|SAMA).*took (none|no step).*Stage\(steps >= 1\).*Implicit"):
        go(EVERY[name], steps=0)


@pytest.mark.parametrize(
    "last", [Implicit(CG()), T1T2(), SAMA(), Forward(), Unroll(last=1)], ids=lambda e: type(e).__name__
)
def test_an_estimator_without_start_cotangent_and_an_earlier_stage(last):
    with pytest.raises(
        HypergradientError, match=rf"{type(last).__name__} gives no cotangent.*stage 1.*stage 0.*Unroll\(\)"
    ):
        go([Unroll(), last], stages=[stage(), stage()])


@pytest.mark.parametrize("counts", [(1, 2, 2), (2, 1, 2), (2, 2, 1), (0, 0, 0)])
def test_lengths_that_differ(counts):
    record = run(stage(), START, HPARAMS)
    s, e, r = counts
    message = rf"{s} stages, {e} estimators and {r} records"
    with pytest.raises(HypergradientError, match=message):
        hypergradient(outer, [stage()] * s, [Unroll()] * e, [record] * r, HPARAMS)


@pytest.mark.parametrize("estimators", [[Unroll()], [Unroll()] * 3])
def test_estimators_that_do_not_fit_the_stages(estimators):
    with pytest.raises(HypergradientError, match=rf"{len(estimators)} estimators for 2 stages"):
        go(estimators, stages=[stage(), stage()])
    with pytest.raises(
        HypergradientError, match=rf"2 stages.*{len(estimators)} estimators|{len(estimators)} estimators.*2 stages"
    ):
        run_stages([stage(), stage()], START, HPARAMS, estimators)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"no estimator is called 'conjugate'.*unroll.*cg.*sama"):
        go("conjugate")


@pytest.mark.parametrize("thing", [3, None, object()])
def test_what_is_no_estimator(thing):
    problem = Problem("p", [stage()], outer, START, HPARAMS)
    with pytest.raises(HypergradientError, match="no estimator, no solver and no registered name"):
        estimate(problem, thing)


@pytest.mark.parametrize("cls", [Unroll, SAMA, CG, Implicit])
def test_a_class_in_place_of_an_instance(cls):
    with pytest.raises((HypergradientError, TypeError), match=rf"{cls.__name__}\("):
        go(cls)


def test_registering_twice_and_registering_nonsense():
    claim = Claim(of="x", citation="y", target="direction")
    with pytest.raises(HypergradientError, match=r"'cg' is registered already.*another name"):
        registry.register("cg", Unroll(), claim)
    with pytest.raises(HypergradientError, match=r"'new'.*has no tail and pullback"):
        registry.register("new", Identity(), claim)
    assert "new" not in registry


class Wrong:
    """An estimator of a third party with a mistake in it."""

    tail = 0

    def __init__(self, start):
        self.start = start

    def pullback(self, stage, record, hparams, cotangent):
        cost = Unroll().pullback(stage, run(stage, START, HPARAMS), hparams, cotangent).cost
        return Pullback(hparams={"goal": HPARAMS["goal"]}, start=self.start, outcome=Outcome.DONE, cost=cost)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"w": randn(3)}, r"cotangent on the end of stage 0 has the keys \['w'\], expected \['b', 'w'\]"),
        ({"w": randn(4), "b": randn(2)}, r"cotangent on the end of stage 0\['w'\] has shape \(4,\), expected \(3,\)"),
        ({"w": randn(3).float(), "b": randn(2).float()}, r"cotangent on the end of stage 0\['w'\] is torch.float32"),
    ],
)
def test_a_cotangent_unlike_the_parameters(start, message):
    with pytest.raises(HypergradientError, match=message):
        go([Unroll(), Wrong(start)], stages=[stage(), stage()])


@pytest.mark.parametrize(
    ("estimator", "tail", "message"),
    [
        (Unroll(), 0, r"record begins after step 0.*run\(\.\.\., tail=None\)"),
        (Unroll(), 2, r"record begins after step 0.*tail=None"),
        (Unroll(last=3), 2, r"record begins after step 0.*tail=3"),
        (Forward(), 2, r"record lacks the first state.*tail=None"),
        (T1T2(), 0, r"state before the last step was not recorded.*tail=1"),
    ],
)
def test_a_record_that_lacks_what_is_needed(estimator, tail, message):
    record = run(stage(), START, HPARAMS, tail=tail)
    with pytest.raises(HypergradientError, match=message):
        hypergradient(outer, [stage()], [estimator], [record], HPARAMS)


# ---------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: stage(steps=-1), r"Stage\(steps=-1\): must not be negative"),
        (lambda: run(stage(), START, HPARAMS, tail=-1), r"run\(tail=-1.*tail must be None or >= 0"),
        (lambda: run(stage(), START, HPARAMS, every=0), r"run\(.*every=0.*every >= 1"),
        (lambda: Unroll(last=-1), r"Unroll\(last=-1.*must not be negative"),
        (lambda: Unroll(checkpoint=0), r"checkpoint=0.*at least 1"),
        (lambda: Implicit(CG(), batches=0), r"batches=0.*at least 1"),
        (lambda: SAMA(batches=0), r"batches=0.*at least 1"),
        (lambda: SAMA(waiting=torch.int32), r"waiting=torch.int32.*floating"),
        (lambda: MeanOf(lambda p, h: p["w"]), r"MeanOf\(.*list of outer losses"),
        (lambda: Forward(max_hparams=0), r"max_hparams=0.*at least 1"),
        (lambda: Forward(chunk=0), r"chunk=0.*at least 1"),
    ],
)
def test_fields_out_of_range(build, message):
    with pytest.raises(HypergradientError, match=message):
        build()


# ---------------------------------------------------------------- things of the wrong kind


def test_things_of_the_wrong_kind_are_named():
    s = stage()
    record = run(s, START, HPARAMS, tail=None)
    for args, text in (
        (([s], ["sama"], [record]), "'sama' is no estimator.*`estimate` takes names too"),
        (([s], [Unroll], [record]), "Unroll.*is no estimator: give one such as SAMA"),
        (([s], [Unroll()], [START]), "dict is no Record: give what run"),
        ((s, Unroll(), record), "are lists"),
    ):
        with pytest.raises(HypergradientError, match=text):
            hypergradient(outer, *args, HPARAMS)
    for solver in (CG, "cg"):
        with pytest.raises(HypergradientError, match="give a solver such as CG"):
            Implicit(solver)
    with pytest.raises(HypergradientError, match="got dict with 'rate': float"):
        go(hparams={**HPARAMS, "rate": -3.0})
    with pytest.raises(HypergradientError, match="Stage.rule reads 'rat', but hparams hold"):
        run(stage(rule=lambda h: SGD(lr=h["rat"])), START, HPARAMS)
    with pytest.raises(HypergradientError, match="returned float, not a scalar: leave out .item"):
        run(stage(lambda p, h, b: 1.0), START, HPARAMS)
