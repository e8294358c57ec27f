"""A live torch.optim optimizer as rule and state: the same next steps, the same hypergradients, and never a guess."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from estimators import (
    CG,
    SAMA,
    T1T2,
    Groups,
    HypergradientError,
    Implicit,
    NotApplicableError,
    Stage,
    Unroll,
    from_module,
    from_torch_optimizer,
    hypergradient,
    reverse_over_reverse,
    run,
)
from estimators.torch_optimizer import TORCH_OPTIMIZERS
from estimators.tree import flatten

F64 = torch.float64

SETTINGS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": torch.tensor(0.02, dtype=F64), "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.02, "amsgrad": True}),
    "adam-decoupled": (torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1, "foreach": True}),
    "nadam": (torch.optim.NAdam, {"lr": 0.02, "momentum_decay": 0.01}),
    "radam": (torch.optim.RAdam, {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adamax": (torch.optim.Adamax, {"lr": 0.02}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5, "alpha": 0.9}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0, "rho": 0.8}),
    "adafactor": (torch.optim.Adafactor, {"lr": 0.05, "weight_decay": 0.1}),
}
STEPS = 12


class Net(nn.Module):
    """One layer is used every third step only, so that its own count of updates stays behind; one is never trained."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.body, self.head, self.rare, self.alien = (nn.Linear(3, 3, dtype=F64) for _ in range(4))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g, dtype=F64) * 0.5

    def forward(self, x, t):
        hidden = torch.tanh(self.body(x)) + (torch.tanh(self.rare(x)) if t % 3 == 2 else 0)
        return self.head(hidden) + self.alien(x)


def stream(t):
    g = torch.Generator().manual_seed(100 + t)
    return t, torch.randn(6, 3, generator=g, dtype=F64), torch.randn(6, 3, generator=g, dtype=F64)


def criterion(model, hparams, batch):
    t, x, y = batch
    return ((model(x, t) - y).square() * hparams["weights"]).mean()


def outer(params, hparams):
    return sum((p.square().sum() for p in params.values()), torch.zeros((), dtype=F64))


HPARAMS = {"weights": torch.tensor([0.5, 1.0, 2.0], dtype=F64)}


def trained(optimizer_of, steps=STEPS, watch=()):
    """A loop as users write it; ``watch``: steps before which the optimizer is read."""
    model = Net()
    optimizer = optimizer_of(model)
    seen = {}
    for t in range(steps):
        if t in watch:
            seen[t] = from_torch_optimizer(optimizer, model, steps=t)
        optimizer.zero_grad()
        criterion(model, HPARAMS, stream(t)).backward()
        optimizer.step()
    return model, optimizer, seen


def groups(model):
    return [
        {"params": list(model.body.parameters())},
        {"params": [*model.head.parameters(), *model.rare.parameters()], "lr": 0.003},
    ]


def stage_of(live, model, steps):
    return Stage(from_module(model, criterion).loss, live.rule, stream, steps, frozen=live.frozen)


@pytest.mark.parametrize("name", SETTINGS)
def test_going_on_from_a_live_optimizer_takes_its_next_steps(name):
    kind, settings = SETTINGS[name]
    _, _, seen = trained(lambda m: kind(groups(m), **settings), watch=(0, 5))
    model, _, _ = trained(lambda m: kind(groups(m), **settings))
    for begin, live in seen.items():
        assert live.frozen == {"alien.weight", "alien.bias"}
        end = run(stage_of(live, model, STEPS - begin), live.state, HPARAMS).end
        tolerance = 1e-9 if name == "nadam" else 1e-12  # torch keeps NAdam's mu_product in float32
        for k, p in model.named_parameters():
            torch.testing.assert_close(end.params[k], p.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_record_of_a_live_loop_gives_the_hypergradient_of_the_same_run(name):
    """SAMA, T1-T2 and CG at the end of a loop of torch.optim equal those on our own run of it."""
    kind, settings = SETTINGS[name]
    model, optimizer, seen = trained(lambda m: kind(groups(m), **settings), watch=(0, STEPS - 1))
    live = from_torch_optimizer(optimizer, model, steps=STEPS)
    stage = stage_of(live, model, STEPS)
    ours = run(stage, seen[0].state, HPARAMS, tail=1)
    theirs = live.record(before=seen[STEPS - 1])
    for estimator in (SAMA(product=reverse_over_reverse), T1T2(), Implicit(CG(steps=5))):
        a, b = (hypergradient(outer, [stage], [estimator], [r], HPARAMS, throw=False).hparams for r in (ours, theirs))
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-12)
        assert flatten(a).norm() > 0
    unrolled = hypergradient(outer, [replace(stage, steps=1)], [Unroll()], [theirs], HPARAMS)
    torch.testing.assert_close(
        unrolled.hparams, hypergradient(outer, [stage], [Unroll(last=1)], [ours], HPARAMS).hparams
    )


def test_without_the_state_before_a_rule_that_can_step_back_serves_sama():
    model, optimizer, seen = trained(lambda m: torch.optim.Adam(groups(m), lr=0.02), watch=(STEPS - 1,))
    live = from_torch_optimizer(optimizer, model)
    stage = stage_of(live, model, STEPS)
    with_it, without = (
        hypergradient(outer, [stage], [SAMA(product=reverse_over_reverse)], [r], HPARAMS).hparams
        for r in (live.record(before=seen[STEPS - 1]), live.record())
    )
    torch.testing.assert_close(without, with_it, rtol=1e-6, atol=0)
    model, optimizer, _ = trained(lambda m: torch.optim.Adafactor(groups(m), lr=0.02))
    live = from_torch_optimizer(optimizer, model)
    with pytest.raises(NotApplicableError, match="Adafactor cannot take its last step back.*before"):
        hypergradient(outer, [stage_of(live, model, STEPS)], [SAMA()], [live.record()], HPARAMS)


def test_muon_goes_on_in_bfloat16_as_torch_does():
    matrices = lambda m: torch.optim.Muon([m.body.weight, m.head.weight], lr=0.02)  # noqa: E731
    _, _, seen = trained(matrices, watch=(0, 4))
    model, _, _ = trained(matrices)
    for live in seen.values():
        end = run(stage_of(live, model, STEPS - live.state.step), live.state, HPARAMS).end
        for k, p in model.named_parameters():
            torch.testing.assert_close(end.params[k], p.detach(), rtol=1e-12, atol=1e-12)


def test_it_reads_copies_and_changes_nothing():
    model, optimizer, _ = trained(lambda m: torch.optim.Adam(groups(m)))
    versions = [p._version for p in model.parameters()]
    live = from_torch_optimizer(optimizer, model)
    assert versions == [p._version for p in model.parameters()]
    held = flatten(live.state.params).clone()
    optimizer.step()
    assert torch.equal(flatten(live.state.params), held)
    assert isinstance(live.rule, Groups)
    single = torch.optim.Adam(model.parameters())
    assert not isinstance(from_torch_optimizer(single, model).rule, Groups)


class MyAdam(torch.optim.Adam):
    """Might take other steps."""


def make(kind, **settings):
    model = Net()
    return kind(model.parameters(), **settings), model


@pytest.mark.parametrize(
    ("optimizer_and_model", "steps", "text"),
    [
        (make(torch.optim.ASGD), None, "ASGD is not known.*SGD, Adam, AdamW.*TORCH_OPTIMIZERS"),
        (make(torch.optim.Rprop), None, "Rprop is not known"),
        (make(MyAdam), None, "MyAdam is not known, and is not read as something else"),
        (make(torch.optim.SGD, lr=0.1), None, "does not count its steps: pass steps="),
        (make(torch.optim.Adam, maximize=True), None, "maximize=True"),
        ((make(torch.optim.Adam)[0], Net()), None, "not among those of params"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_never_guessed(optimizer_and_model, steps, text):
    with pytest.raises(HypergradientError, match=text):
        from_torch_optimizer(*optimizer_and_model, steps=steps)


def test_contradictions_are_named():
    model, optimizer, seen = trained(lambda m: torch.optim.Adam(groups(m)), watch=(3,))
    with pytest.raises(HypergradientError, match="steps=3, but the optimizer's state shows at least 12"):
        from_torch_optimizer(optimizer, model, steps=3)
    live = from_torch_optimizer(optimizer, model)
    with pytest.raises(HypergradientError, match="before was read at step 3, this at step 12"):
        live.record(before=seen[3])
    optimizer.zero_grad()
    with pytest.raises(HypergradientError, match=r"after step\(\) and before zero_grad"):
        from_torch_optimizer(optimizer, model).record()
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(HypergradientError, match="lacks.*max_exp_avg_sq"):
        from_torch_optimizer(optimizer, model)
    optimizer.param_groups[0]["surprise"] = optimizer.defaults["surprise"] = 1
    with pytest.raises(HypergradientError, match="surprise"):
        from_torch_optimizer(optimizer, model)


def test_what_schedulers_and_users_put_into_groups_moves_nothing():
    """OneCycleLR adds four keys and changes betas; a frozen layer may stay in the optimizer."""
    model = Net()
    for p in model.alien.parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer.param_groups[0]["name"] = "all"
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    for t in range(5):
        optimizer.zero_grad()
        criterion(model, HPARAMS, stream(t)).backward()
        optimizer.step()
        scheduler.step()
    live = from_torch_optimizer(optimizer, model)
    assert live.frozen == frozenset()
    assert not any(k.startswith("alien") for k in live.state.params)
    assert live.rule.lr == optimizer.param_groups[0]["lr"]
    assert live.rule.betas == optimizer.param_groups[0]["betas"]


@pytest.mark.parametrize("scheduled", ["before", "after"])
def test_a_schedule_is_read_with_its_base_rates(scheduled):
    """Before or after the scheduler's step: the last step's rate is its own, and going on takes the next ones."""

    def factor(t):
        return 1 / (1 + t)

    def train(steps):
        model = Net()
        optimizer = torch.optim.Adam(groups(model), lr=0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        for t in range(steps):
            optimizer.zero_grad()
            criterion(model, HPARAMS, stream(t)).backward()
            optimizer.step()
            if t < steps - 1 or scheduled == "after":
                scheduler.step()
        return model, optimizer

    model0 = Net()
    model, optimizer = train(6)
    live = from_torch_optimizer(optimizer, model, schedule=factor)
    stage = stage_of(live, model, 6)
    ours = run(stage, from_module(model0, criterion).start, HPARAMS)
    sama = [
        hypergradient(outer, [stage], [SAMA(product=reverse_over_reverse)], [r], HPARAMS) for r in (ours, live.record())
    ]
    torch.testing.assert_close(sama[1].hparams, sama[0].hparams, rtol=1e-7, atol=1e-12)
    on = run(stage_of(live, model, 4), live.state, HPARAMS).end
    end, _ = train(10)
    for k, p in end.named_parameters():
        torch.testing.assert_close(on.params[k], p.detach(), rtol=1e-12, atol=1e-12)
    with pytest.raises(HypergradientError, match="no initial_lr"):
        from_torch_optimizer(torch.optim.Adam(model.parameters()), model, schedule=factor)


def test_a_tensor_under_two_names_is_refused():
    model = Net()
    model.head.weight = model.body.weight
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(HypergradientError, match=r"same tensor under several names, \['body.weight'\]"):
        from_torch_optimizer(optimizer, dict(model.named_parameters(remove_duplicate=False)))
    assert "body.weight" in from_torch_optimizer(optimizer, model).state.params
    with pytest.raises(HypergradientError, match="steps=2.5: give a whole number"):
        from_torch_optimizer(optimizer, model, steps=2.5)


def test_every_known_optimizer_is_tested():
    assert {kind for kind, _ in SETTINGS.values()} | {torch.optim.Muon} == set(TORCH_OPTIMIZERS)
