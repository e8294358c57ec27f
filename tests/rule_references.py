"""What the rules are held to: real optimizers to walk beside, formulas to differentiate, states to start from.

`CASES` pairs settings of every rule with an optimizer that is not ours (`benchmarks.rule_references`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.rule_references import FlaxAdafactor, InFloat64, MuonInOwnDtype, PaperLAMB, PaperLion, Reference
from estimators import (
    LAMB,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AMSGrad,
    Lion,
    Momentum,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rule,
)
from estimators.rules import Slots

F64 = torch.float64


def warm(rule: Rule, shape: tuple[int, ...], seed: int, updates: int = 4) -> tuple[Tensor, Slots]:
    """A parameter, and slots that hold some earlier gradients: a state that a run could be in."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(shape, dtype=F64, generator=generator)
    slots = rule.init(theta)
    for t in range(1, updates + 1):
        grad = torch.randn(shape, dtype=F64, generator=generator)
        _, slots = rule.update(grad, slots, t, theta)
    return theta, slots


# ---------------------------------------------------------------- optimizers to walk beside


@dataclass(frozen=True)
class Case:
    """A rule, and the optimizer whose trajectory it must walk."""

    name: str
    rule: Rule
    reference: Reference

    @property
    def smooth(self) -> bool:
        """Whether a rounding of the gradient stays a rounding: not where the step is g / |g|."""
        return getattr(self.rule, "beta2", 0.5) != 0


def _case(name: str, rule: type, theirs: Any, **options: Any) -> Case:
    def reference(params: Sequence[Tensor]) -> Any:
        inside = issubclass(theirs, torch.optim.Optimizer)
        return InFloat64(theirs, params, **options) if inside else theirs(params, **options)

    return Case(name, rule(**options), reference)


def _momentum_cases() -> Iterator[Case]:
    for mu, damp, nesterov in itertools.product([0.0, 0.5, 0.95], [0.0, 0.3, 1.0], [False, True]):
        if nesterov and (damp or not mu):  # torch.optim.SGD refuses these
            continue
        name = f"momentum-{mu}-{damp}-{nesterov}"
        yield _case(name, Momentum, torch.optim.SGD, lr=0.07, momentum=mu, dampening=damp, nesterov=nesterov)
    for nesterov in (False, True):
        name = f"momentum-decay-{nesterov}"
        yield _case(name, Momentum, torch.optim.SGD, lr=0.07, momentum=0.8, nesterov=nesterov, weight_decay=0.3)


def _adam_cases() -> Iterator[Case]:
    for (name, rule, theirs), betas, wd, ams in itertools.product(
        [("adam", Adam, torch.optim.Adam), ("adamw", AdamW, torch.optim.AdamW)],
        [(0.9, 0.999), (0.0, 0.99), (0.8, 0.0), (0.5, 0.5)],
        [0.0, 0.3],
        [False, True],
    ):
        options: dict[str, Any] = {"lr": 0.03, "betas": betas, "eps": 1e-8, "weight_decay": wd, "amsgrad": ams}
        yield _case(f"{name}-{betas}-{wd}-{ams}", rule, theirs, **options)
    for eps in (0.0, 1e-2):
        yield _case(f"adam-eps-{eps}", Adam, torch.optim.Adam, lr=0.03, eps=eps)


def _rectified_cases() -> Iterator[Case]:
    """NAdam and RAdam have the same options, but for one; 0.6 and 1/3 are poles of RAdam's rectifier."""
    for (name, rule, theirs), betas, wd, apart in itertools.product(
        [("nadam", NAdam, torch.optim.NAdam), ("radam", RAdam, torch.optim.RAdam)],
        [(0.9, 0.999), (0.0, 0.9), (0.7, 0.8)],
        [0.0, 0.3],
        [False, True],
    ):
        if apart and not wd:
            continue
        options: dict[str, Any] = {"lr": 0.03, "betas": betas, "weight_decay": wd, "decoupled_weight_decay": apart}
        yield _case(f"{name}-{betas}-{wd}-{apart}", rule, theirs, **options)
    yield _case("nadam-momentum-decay", NAdam, torch.optim.NAdam, lr=0.03, momentum_decay=0.3, eps=1e-3)
    for beta2 in (0.6, 1 / 3, 0.0):
        yield _case(f"radam-{beta2}", RAdam, torch.optim.RAdam, lr=0.03, betas=(0.9, beta2), eps=1e-2)


def _rmsprop_cases() -> Iterator[Case]:
    for alpha, wd, mu, centered in itertools.product([0.99, 0.7], [0.0, 0.3], [0.0, 0.8], [False, True]):
        options: dict[str, Any] = {"lr": 0.02, "alpha": alpha, "weight_decay": wd, "momentum": mu, "centered": centered}
        yield _case(f"rmsprop-{alpha}-{wd}-{mu}-{centered}", RMSprop, torch.optim.RMSprop, **options)


def _adafactor_cases() -> Iterator[Case]:
    settings: list[dict[str, Any]] = [
        {"lr": 0.3},
        {"lr": 0.02, "weight_decay": 0.3},
        {"lr": 0.05, "d": 1.5, "eps": (1e-3, 0.1), "beta2_decay": -0.5},
    ]
    for options in settings:
        yield _case(f"adafactor-{options}", Adafactor, torch.optim.Adafactor, **options)
    for momentum, eps in [(None, (1e-30, 1e-3)), (0.9, (1e-30, 1e-3)), (0.5, (1e-3, 0.5))]:
        flax: dict[str, Any] = {
            "decay_rate": 0.8,
            "epsilon1": eps[0],
            "epsilon2": eps[1],
            "threshold": 1.0,
            "beta1": momentum,
            "lr": 0.05,
        }
        rule = Adafactor(lr=0.05, eps=eps, eps_inside=True, relative_step=False, momentum=momentum)
        yield Case(f"adafactor-flax-{momentum}-{eps}", rule, lambda params, flax=flax: FlaxAdafactor(params, **flax))  # type: ignore[misc]


def _muon_cases() -> Iterator[Case]:
    settings: list[dict[str, Any]] = [
        {"lr": 0.05},
        {"lr": 0.05, "weight_decay": 0.0, "nesterov": False, "momentum": 0.5, "ns_steps": 3},
        {"lr": 0.05, "adjust_lr_fn": "match_rms_adamw"},
        {"lr": 0.05, "adjust_lr_fn": "original", "ns_coefficients": (1.5, -0.5, 0.0), "eps": 0.1},
    ]
    for options in settings:
        yield _case(f"muon-{options}", Muon, MuonInOwnDtype, **options)
        yield Case(
            f"muon-bfloat16-{options}",
            Muon(**options, bfloat16=True),
            lambda params, options=options: InFloat64(torch.optim.Muon, params, **options),  # type: ignore[misc]
        )


CASES: list[Case] = [
    _case("sgd", SGD, torch.optim.SGD, lr=0.1),
    _case("sgd-decay", SGD, torch.optim.SGD, lr=0.1, weight_decay=0.3),
    *_momentum_cases(),
    *_adam_cases(),
    _case("adam-defaults", Adam, torch.optim.Adam, lr=0.01),
    _case("adamw-defaults", AdamW, torch.optim.AdamW, lr=0.01),
    Case(
        "amsgrad",
        AMSGrad(lr=0.03, betas=(0.8, 0.7)),
        lambda params: InFloat64(torch.optim.Adam, params, lr=0.03, betas=(0.8, 0.7), amsgrad=True),
    ),
    *_rectified_cases(),
    _case("adamax", Adamax, torch.optim.Adamax, lr=0.03),
    _case("adamax-decay", Adamax, torch.optim.Adamax, lr=0.03, betas=(0.5, 0.7), eps=1e-2, weight_decay=0.3),
    _case("adamax-b2-0", Adamax, torch.optim.Adamax, lr=0.03, betas=(0.5, 0.0)),
    *_rmsprop_cases(),
    _case("adagrad", Adagrad, torch.optim.Adagrad, lr=0.1),
    _case("adagrad-decay", Adagrad, torch.optim.Adagrad, lr=0.1, lr_decay=0.1, weight_decay=0.3, eps=1e-2),
    _case("adagrad-initial", Adagrad, torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.5),
    _case("adadelta", Adadelta, torch.optim.Adadelta, lr=1.0),
    _case("adadelta-decay", Adadelta, torch.optim.Adadelta, lr=3.0, rho=0.7, eps=1e-3, weight_decay=0.3),
    *_adafactor_cases(),
    _case("lamb", LAMB, PaperLAMB, lr=0.03, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0),
    _case("lamb-decay", LAMB, PaperLAMB, lr=0.03, betas=(0.5, 0.7), eps=1e-2, weight_decay=0.3),
    _case("lion", Lion, PaperLion, lr=0.01, betas=(0.9, 0.99), weight_decay=0.0),
    _case("lion-decay", Lion, PaperLion, lr=0.01, betas=(0.5, 0.7), weight_decay=0.3),
    *_muon_cases(),
]


# ---------------------------------------------------------------- formulas to differentiate


def formula(rule: Any, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    """The leaf after update ``t`` of a rule that is neither SGD, Momentum nor Adam, from its paper or torch's manual.

    For long autograd graphs: ``memory`` is replaced entry by entry. No attention is paid to zeros.
    """
    step = _FORMULAS[type(rule)]
    if rule.weight_decay and not rule.decoupled_weight_decay:
        g = g + rule.weight_decay * p
    moved = p - step(rule, g, memory, t, p)
    apart = rule.decoupled_weight_decay and not isinstance(rule, LAMB)
    return moved - rule.lr * rule.weight_decay * p if apart else moved


def _ema(memory: dict[str, Tensor], name: str, new: Tensor, beta: Any) -> Tensor:
    memory[name] = beta * memory.get(name, torch.zeros_like(new)) + (1 - beta) * new
    return memory[name]


def _nadam(o: NAdam, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    (b1, b2), psi = o.betas, o.momentum_decay
    momenta = [b1 * (1 - 0.96 ** (i * psi) / 2) for i in range(1, t + 2)]
    m, v = _ema(memory, "m", g, b1), _ema(memory, "v", g**2, b2)
    mhat = momenta[t] * m / (1 - math.prod(momenta)) + (1 - momenta[t - 1]) * g / (1 - math.prod(momenta[:-1]))
    return o.lr * mhat / ((v / (1 - b2**t)).sqrt() + o.eps)


def _radam(o: RAdam, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    b1, b2 = (float(x) for x in o.betas)
    mhat, v = _ema(memory, "m", g, b1) / (1 - b1**t), _ema(memory, "v", g**2, b2)
    top = 2 / (1 - b2) - 1
    rho = top - 2 * t * b2**t / (1 - b2**t)
    if rho <= 5:
        return o.lr * mhat
    r = math.sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
    return o.lr * mhat * r * math.sqrt(1 - b2**t) / (v.sqrt() + o.eps)


def _adamax(o: Adamax, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    b1, b2 = o.betas
    m = _ema(memory, "m", g, b1)
    memory["u"] = torch.maximum(b2 * memory.get("u", torch.zeros_like(g)), g.abs() + o.eps)
    return o.lr * m / ((1 - b1**t) * memory["u"])


def _rmsprop(o: RMSprop, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    v = _ema(memory, "v", g.square(), o.alpha)
    if o.centered:
        v = v - _ema(memory, "mean", g, o.alpha).square()
    memory["b"] = o.momentum * memory.get("b", torch.zeros_like(g)) + g / (v.sqrt() + o.eps)
    return o.lr * memory["b"]


def _adagrad(o: Adagrad, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    memory["s"] = memory.get("s", torch.full_like(g, o.initial_accumulator_value)) + g.square()
    return o.lr / (1 + (t - 1) * o.lr_decay) * g / (memory["s"].sqrt() + o.eps)


def _adadelta(o: Adadelta, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    v = _ema(memory, "v", g.square(), o.rho)
    u = memory.get("u", torch.zeros_like(g))
    delta = ((u + o.eps) / (v + o.eps)).sqrt() * g
    _ema(memory, "u", delta.square(), o.rho)
    return o.lr * delta


def _adafactor(o: Adafactor, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    """As torch's manual has it, without its eps1, which never binds where no gradient is tiny."""
    beta2 = 1 - float(t) ** float(o.beta2_decay)
    if g.dim() > 1:
        r = _ema(memory, "r", g.square().sum(-1), beta2)
        c = _ema(memory, "c", g.square().sum(-2), beta2)
        v = torch.einsum("...i,...j->...ij", r, c) / r.sum(-1)[..., None, None]
    else:
        v = _ema(memory, "v", g.square(), beta2)
    u = g / v.sqrt()
    u = u / torch.clamp(u.square().mean().sqrt() / o.d, min=1.0)
    return min(float(o.lr), t**-0.5) * torch.clamp(p.square().mean().sqrt(), min=o.eps2) * u


def _lamb(o: LAMB, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    b1, b2 = o.betas
    m, v = _ema(memory, "m", g, b1), _ema(memory, "v", g**2, b2)
    r = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + o.eps) + o.weight_decay * p
    return o.lr * (p.square().sum() / r.square().sum()).sqrt() * r


def _muon(o: Muon, g: Tensor, memory: dict[str, Tensor], t: int, p: Tensor) -> Tensor:
    b = _ema(memory, "b", g, o.momentum)
    x = (1 - o.momentum) * g + o.momentum * b if o.nesterov else b
    x = x / x.square().sum().sqrt()
    k1, k3, k5 = o.ns_coefficients
    for _ in range(o.ns_steps):
        cube = x @ x.mT @ x
        x = k1 * x + k3 * cube + k5 * (x @ x.mT @ cube)
    return o.lr * max(1.0, p.shape[0] / p.shape[1]) ** 0.5 * x


_FORMULAS: dict[type, Callable[..., Tensor]] = {
    NAdam: _nadam,
    RAdam: _radam,
    Adamax: _adamax,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
    Adadelta: _adadelta,
    Adafactor: _adafactor,
    LAMB: _lamb,
    Muon: _muon,
}
