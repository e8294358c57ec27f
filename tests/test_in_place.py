"""Steps in place are those of the pure `update`, write over what they own, and over nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.measure import peak_bytes
from benchmarks.meta_step import copied
from estimators import RULES, SGD, Adam, ClipNorm, Groups, Momentum, Muon, Scheduled, Stage, State, Tree, run, tree
from estimators.rules import Owned, Slots, init_tree, step_in_place, step_tree, unshared
from estimators.rules.base import Scalar
from estimators.rules.in_place import counter

from .rule_references import CASES, F64

SHAPES = {"matrix": (5, 4), "vector": (70,), "number": (), "across": (4, 6)}
FUSED = [name for name, rule in RULES.items() if "step_" in vars(rule)]
CUT = ["rmsprop", "nadam", "radam", "adamax", "adadelta"]
"""Diagonal rules without a step of their own."""

GENERATOR = torch.Generator()


def draw(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=F64).to(dtype)


def drawn_params(rule: Any, dtype: torch.dtype) -> Tree:
    shapes = {k: s for k, s in SHAPES.items() if len(s) == 2 or not isinstance(rule, Muon)}
    params = {k: draw(*s, dtype=dtype) for k, s in shapes.items()}
    return params | {"across": params["across"].T}  # no kernel walks through it as it lies


def drawn_grads(params: Tree, t: int, dtype: torch.dtype) -> Tree:
    grads = {k: draw(*x.shape, dtype=dtype) for k, x in params.items()}
    grads["matrix"] = grads["matrix"].T.contiguous().T if t % 2 else grads["matrix"][:, :1].expand(5, 4)
    if t in (1, 4) and "vector" in grads:
        del grads["vector"]  # and its number of updates stays behind
    if t == 3 and "vector" in grads:
        grads["vector"] = torch.zeros_like(grads["vector"])
    return grads


def pure(rule: Any, grads: Tree, state: State) -> State:
    changes, slots = step_tree(rule, grads, state)
    return state._replace(params=tree.union_add(state.params, changes), slots={**state.slots, **slots})


def after(state: State, grads: Tree) -> State:
    missed = {k: state.missed.get(k, 0) + (k not in grads) for k in state.params}
    return state._replace(step=state.step + 1, missed=missed)


def flat(state: State) -> dict[str, Tensor]:
    return {f"{k}.{n}": x for k, s in state.slots.items() for n, x in s.items()} | state.params


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_step_in_place_is_the_update_to_rounding(case: Any, dtype: torch.dtype, owned: bool) -> None:
    """Each of several steps, from the same state; every entry, in units of what was added up in it."""
    GENERATOR.manual_seed(0)
    rule = case.rule
    params = drawn_params(rule, dtype)
    state = State(params, init_tree(rule, params, 0), 0)
    limit = 8 * torch.finfo(dtype).eps
    for t in range(6):
        grads = drawn_grads(params, t, dtype)
        given = {k: (x, x.clone(), x._version) for k, x in grads.items()}
        want, ours = pure(rule, grads, state), copied(state)
        held = {k: (x, x.clone()) for k, x in flat(ours).items()}
        with torch.no_grad():
            step_in_place(rule, grads, ours, unshared(ours, ()) if owned else Owned())
        if not owned:
            assert all(torch.equal(x, y) for x, y in held.values())  # copied, not written over
        assert all(torch.equal(x, y) and x._version == v for x, y, v in given.values())
        earlier, found = flat(state), flat(ours)
        for k, x in flat(want).items():
            assert found[k].dtype == dtype
            if dtype is torch.bfloat16 or not isinstance(rule, tuple(RULES[name] for name in FUSED)):
                assert torch.equal(found[k], x)
            scale = earlier[k].abs() + x.abs()
            g, p = grads.get(k.split(".")[0]), params_of(state, k)
            if g is not None and k not in params:  # a new moment may be small by cancellation
                scale = scale + (g.abs() + g.square()).max()
            elif g is not None:  # and so may be a decayed gradient, which is divided by
                decay = 0.0 if rule.decoupled_weight_decay else rule.weight_decay
                lost = (g.abs() + decay * p.abs()) / (g + decay * p).abs()
                scale = (scale + rule.lr) * lost.nan_to_num(1.0)
            assert ((found[k] - x).abs() <= limit * scale).all(), (t, k)
        state = after(want, grads)


def params_of(state: State, key: str) -> Tensor:
    return state.params[key.split(".", maxsplit=1)[0]]


def test_rules_with_kernels_of_torch() -> None:
    assert {"sgd", "momentum", "adam", "adamw", "amsgrad", "adagrad"} <= set(FUSED)


def quadratic(rule: Any, steps: int = 4) -> tuple[Stage, State, Tree]:
    GENERATOR.manual_seed(1)
    params, hparams = {"w": draw(6, 5), "b": draw(5)}, {"x": draw(5)}
    stage = Stage(
        lambda p, h, b: (p["w"] @ h["x"]).square().sum() + (p["b"] - h["x"]).pow(4).sum(), rule, lambda t: t, steps
    )
    return stage, stage.initial(params, hparams), hparams


def by_update(stage: Stage, state: State, hparams: Tree) -> State:
    for _ in range(stage.steps):
        leaves = {k: x.detach().requires_grad_() for k, x in state.params.items()}
        grads = dict(
            zip(leaves, torch.autograd.grad(stage.loss(leaves, hparams, None), list(leaves.values())), strict=True)
        )
        with torch.no_grad():
            state = after(pure(stage.bind(hparams), grads, state), grads)
    return state


@dataclass(frozen=True, kw_only=True, eq=False)
class Half(Adam):
    """Half of Adam's step, by another update: what Adam does in place is not its step."""

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        change, slots = super().update(grad, slots, t, param)
        return change / 2, slots


def warm(t: int) -> Scalar:
    """A number or a tensor, by turns."""
    return (t + 1) / 5 if t % 2 else torch.tensor((t + 1) / 5, dtype=F64)


@pytest.mark.parametrize(
    "rule",
    [
        Half(lr=0.05),
        Adam(lr=torch.tensor(0.05, dtype=F64)),  # type: ignore[arg-type]
        Adam(lr=0.05, betas=(0.9, torch.tensor(0.99, dtype=F64))),
        Scheduled(Momentum(lr=0.05, nesterov=True), warm),
        Scheduled(Groups({"w": Momentum(lr=0.05), "b": Adam(lr=0.05)}), lambda t: 1 / (t + 1)),
        ClipNorm(Groups({"*": ClipNorm(Adam(lr=0.05), 0.1)}), 0.5),
    ],
)  # fmt: skip
def test_a_run_is_its_pure_steps(rule: Any) -> None:
    stage, start, hparams = quadratic(rule)
    end, want = run(stage, start, hparams, tail=0).end, by_update(stage, start, hparams)
    torch.testing.assert_close(flat(end), flat(want), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", FUSED)
def test_a_start_is_written_over_only_if_it_is_given_away(name: str) -> None:
    stage, start, hparams = quadratic(RULES[name](lr=0.05))
    before = copied(start)
    end = run(stage, start, hparams, tail=0).end
    assert all(torch.equal(x, flat(before)[k]) for k, x in flat(start).items())
    given = {k: x.data_ptr() for k, x in flat(start).items()}
    onward = run(stage, start, hparams, tail=0, donate=True).end
    assert {k: x.data_ptr() for k, x in flat(onward).items()} == given
    assert all(torch.equal(x, flat(onward)[k]) for k, x in flat(end).items())


@pytest.mark.parametrize("name", ["momentum", "rmsprop"])
def test_what_shares_memory_is_not_written_over_even_if_given_away(name: str) -> None:
    rule = RULES[name](lr=0.05)
    stage, _, _ = quadratic(rule)
    one = draw(6, 5)

    def start() -> State:
        params = {"w": one, "b": one[0]}
        return stage.initial(params, {"x": one[1]})

    hparams = {"x": one[1]}
    want, before = by_update(stage, start(), {"x": one[1].clone()}), one.clone()
    end = run(stage, start(), hparams, tail=0, donate=True).end
    torch.testing.assert_close(flat(end), flat(want), rtol=1e-12, atol=1e-14)
    assert torch.equal(one, before)
    narrow = {"w": draw(5).expand(6, 5), "b": draw(5)}
    want = by_update(stage, stage.initial(narrow, hparams), hparams)
    found = run(stage, narrow, hparams, tail=0, donate=True).end
    torch.testing.assert_close(flat(found), flat(want), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", FUSED)
def test_a_graph_that_holds_the_parameters_notices(name: str) -> None:
    """Torch's fused kernels do not count versions; a graph would otherwise be pulled back at other parameters."""
    stage, start, hparams = quadratic(RULES[name](lr=0.05), steps=1)
    w = start.params["w"].detach().requires_grad_()
    loss = w.pow(3).sum()
    run(stage, start, hparams, tail=0, donate=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, w)


def test_a_momentum_does_not_live_in_the_gradient() -> None:
    """Whose memory is not the run's: here it is a batch's."""
    batch = draw(5)

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: Tensor) -> Tensor:
            return w @ batch

        @staticmethod
        def backward(ctx: Any, c: Tensor) -> Tensor:
            return batch

    stage = Stage(lambda p, h, b: Inner.apply(p["w"]) + 0 * h["x"].sum(), Momentum(lr=0.1), lambda t: t, 3)
    before = batch.clone()
    run(stage, {"w": draw(5)}, {"x": draw(1)}, tail=0)
    assert torch.equal(batch, before)


@dataclass(frozen=True)
class FromThePrevious:
    """Heavy ball as theta + mu (theta - theta_previous): the leaf itself becomes a slot."""

    lr: float = 0.05

    def init(self, param: Tensor) -> Slots:
        return {"previous": param.new_zeros(param.shape)}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        moved = 0 * param if t == 1 else param - slots["previous"]
        return 0.5 * moved - self.lr * grad, {"previous": param}


@dataclass(frozen=True)
class InPieces(FromThePrevious):
    """The same, which may be cut; it also hands its slots round."""

    diagonal: ClassVar[bool] = True

    def init(self, param: Tensor) -> Slots:
        return {
            "previous": param.new_zeros(param.shape),
            "a": param.new_ones(param.shape),
            "b": param.new_zeros(param.shape),
        }

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        change, after = super().update(grad, slots, t, param)
        return change + 1e-3 * slots["a"], {**after, "a": slots["b"], "b": slots["a"]}


@pytest.mark.parametrize("rule", [RULES[name](lr=0.05) for name in CUT] + [InPieces()], ids=[*CUT, "own"])
def test_a_step_in_pieces_is_the_update_to_the_bit_and_takes_a_piece(rule: Any) -> None:
    GENERATOR.manual_seed(3)
    param = draw(31 * 2**14)  # fifteen pieces and a half
    state = State({"w": param}, init_tree(rule, {"w": param}, 0), 0)
    for _ in range(3):
        grads = {"w": draw(len(param))}
        want, ours = pure(rule, grads, state), copied(state)
        where = {k: x.data_ptr() for k, x in flat(ours).items()}
        with torch.no_grad():
            owned = unshared(ours, ())
            spent = peak_bytes(lambda g=grads, s=ours, o=owned: step_in_place(rule, g, s, o))  # type: ignore[misc]
        assert {k: x.data_ptr() for k, x in flat(ours).items() if x.dim()} == {
            k: w for k, w in where.items() if flat(want)[k].dim()
        }
        assert all(torch.equal(x, flat(ours)[k]) for k, x in flat(want).items())
        assert spent < tree.nbytes({"": param})
        state = after(want, grads)


@pytest.mark.parametrize("own", [FromThePrevious(), InPieces()])
def test_a_slot_that_is_the_leaf_stays_what_it_was(own: Any) -> None:
    stage, start, hparams = quadratic(own)
    want = by_update(stage, start, hparams)
    for donate in (False, True):
        end = run(stage, copied(start), hparams, tail=0, donate=donate).end
        torch.testing.assert_close(flat(end), flat(want), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop"])
def test_a_gradient_that_is_another_leaf_stays_what_it_was(name: str) -> None:
    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            ctx.save_for_backward(a, b)
            return a @ b

        @staticmethod
        def backward(ctx: Any, c: Tensor) -> tuple[Tensor, Tensor]:
            a, b = ctx.saved_tensors
            return b, a

    hparams = {"x": draw(1)}
    stage = Stage(lambda p, h, t: Inner.apply(p["a"], p["b"]) + 0 * h["x"].sum(), RULES[name](lr=0.05), lambda t: t, 4)
    start = stage.initial({"a": draw(5), "b": draw(5)}, hparams)
    want = by_update(stage, start, hparams)
    record = run(stage, start, hparams, tail=1)
    torch.testing.assert_close(flat(record.end), flat(want), rtol=1e-12, atol=1e-14)
    assert record.grad is not None
    assert torch.equal(record.grad["a"], record.states[3].params["b"])
    without = run(stage, start, hparams, tail=0)
    assert without.grad is not None
    assert torch.equal(without.grad["a"], record.grad["a"])


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad"])
def test_the_number_of_an_update_is_a_float32_whatever_the_default_dtype(name: str) -> None:
    """Rounded to bfloat16 it would be another; on a GPU the kernels would read half of a float64."""
    stage, start, hparams = quadratic(RULES[name](lr=0.05, **({"lr_decay": 0.1} if name == "adagrad" else {})))
    start = start._replace(step=300)
    want = run(stage, start, hparams, tail=0).end
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = run(stage, start, hparams, tail=0).end
        assert counter(1, start.params["w"]).dtype is torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(x, flat(found)[k]) for k, x in flat(want).items())


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("donate", [False, True])
def test_bytes_without_values_are_bytes_with_them(name: str, donate: bool) -> None:
    stage, _, _ = quadratic(RULES[name](lr=0.05))

    def train() -> object:
        params, hparams = {"w": torch.ones(6, 5), "b": torch.ones(5)}, {"x": torch.ones(5)}
        return run(stage, stage.initial(params, hparams), hparams, tail=1, donate=donate)

    with FakeTensorMode():
        fake = peak_bytes(train)
    assert peak_bytes(train) == fake


def test_a_missed_leaf_is_still_the_callers() -> None:
    """Its first gradient comes in a later step."""
    stage = Stage(
        lambda p, h, t: p["a"].square().sum() * h["x"] + (p["b"].square().sum() if t else 0.0),
        SGD(lr=0.1), lambda t: t, 3,
    )  # fmt: skip
    start = {"a": draw(3), "b": draw(3)}
    before = {k: x.clone() for k, x in start.items()}
    record = run(replace(stage), start, {"x": torch.ones((), dtype=F64)})
    assert all(torch.equal(x, start[k]) for k, x in before.items())
    torch.testing.assert_close(record.states[1].params["b"], before["b"])
    torch.testing.assert_close(record.end.params["b"], 0.8**2 * before["b"])
