"""The rule and the state of a live `torch.optim` optimizer: a hypergradient for a training loop that exists already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from . import tree
from .errors import HypergradientError
from .rules import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AnyRule,
    Groups,
    Momentum,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rule,
    Scheduled,
    Slots,
)
from .stage import Record
from .state import State
from .tree import Tree

Group = Mapping[str, Any]

IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable", "maximize"}
"""Settings that say how a step is computed, not what it is."""


def _fields(kind: type, group: Group, *ignored: str, **changed: Any) -> Rule:
    """``kind`` with the fields that the group holds under the same names, some settings ignored, some fields given."""
    names = {f.name for f in fields(kind)}
    known = names | IMPLEMENTATION | set(ignored) | changed.keys()
    if unknown := sorted(group.keys() - known):
        raise HypergradientError(
            f"the optimizer has the settings {unknown}, which {kind.__name__} does not know: write a rule that does"
        )
    values = {k: _plain(v) for k, v in group.items() if k in names}
    rule: Rule = kind(**{**values, **changed})
    return rule


def _plain(value: Any) -> Any:
    """torch takes 0-d tensors for learning rates and betas; a rule's tensor fields are hyperparameters."""
    if isinstance(value, Tensor):
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) else value


def _sgd(group: Group) -> Rule:
    if group["momentum"]:
        return _fields(Momentum, group)
    return _fields(SGD, group, "momentum", "dampening", "nesterov")


def _adam(group: Group) -> Rule:
    return _fields(AdamW if group["decoupled_weight_decay"] else Adam, group, "decoupled_weight_decay")


TORCH_OPTIMIZERS: dict[type, Callable[[Group], Rule]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: lambda group: _fields(NAdam, group),
    torch.optim.RAdam: lambda group: _fields(RAdam, group),
    torch.optim.Adamax: lambda group: _fields(Adamax, group),
    torch.optim.RMSprop: lambda group: _fields(RMSprop, group),
    torch.optim.Adagrad: lambda group: _fields(Adagrad, group),
    torch.optim.Adadelta: lambda group: _fields(Adadelta, group),
    torch.optim.Adafactor: lambda group: _fields(Adafactor, group),
    torch.optim.Muon: lambda group: _fields(Muon, group, bfloat16=True),
}
"""Optimizer class -> parameter group -> rule. The very class is looked up, never a base: a subclass may take other
steps. Add a line for your own; its ``state`` must hold the rule's slots under the rule's names."""


@dataclass(frozen=True, eq=False)
class Live:
    """What `from_torch_optimizer` read.

    Attributes:
        rule: for `Stage`.
        state: parameters, slots and step; copies.
        frozen: trainable parameters that the optimizer does not hold, for `Stage`.
        grad: ``.grad`` of the parameters that the optimizer holds; copies. Missing where it is None.
    """

    rule: AnyRule
    state: State
    frozen: frozenset[str]
    grad: Tree

    def record(self, before: Live | None = None) -> Record:
        """The record of the training so far, for estimators that look at its end alone (`SAMA`, `Implicit`, `T1T2`).

        Read the optimizer after ``step()`` and before ``zero_grad()``: the gradients of the last step are needed.

        Args:
            before: what was read before that last ``step()``. Needed by `T1T2`, and by `SAMA` for rules that cannot take a
                step back: Adafactor, and RMSprop, Adagrad, Adadelta, NAdam and Adamax with coupled weight decay.

        Raises:
            HypergradientError: steps were taken and no parameter has a gradient, or ``before`` is not one step earlier.
        """
        if self.state.step and not self.grad:
            raise HypergradientError(
                "no parameter has a .grad, which the last step used: read the optimizer after step() and before zero_grad()"
            )
        if before is not None and before.state.step != self.state.step - 1:
            raise HypergradientError(
                f"before was read at step {before.state.step}, this at step {self.state.step}: read it right before the "
                "last step()"
            )
        states = {} if before is None else {before.state.step: before.state}
        return Record(self.state, states, self.grad if self.state.step else None, torch.empty(0), {})


def from_torch_optimizer(
    optimizer: torch.optim.Optimizer,
    params: nn.Module | Mapping[str, Tensor],
    *,
    steps: int | None = None,
    schedule: Callable[[int], float] | None = None,
) -> Live:
    """Read a live `torch.optim` optimizer: its rule with all parameter groups, and the state it has reached.

        optimizer.step()
        live = from_torch_optimizer(optimizer, model)
        stage = Stage(loss, live.rule, stream, steps=live.state.step, frozen=live.frozen)
        hypergradient(outer, [stage], [SAMA()], [live.record()], hparams)       # at the end of the loop as it was run
        run(stage, live.state, hparams)                                         # or go on from there

    Without ``schedule`` the current learning rates are taken: after a scheduler's ``step()`` they are those of the *next*
    step, so read the optimizer before it. Gradients that the loop clipped or scaled are taken as they are; the derivative
    of the clipping is not part of the rule then (`ClipNorm` has it).

    Args:
        optimizer: of a class in `TORCH_OPTIMIZERS`. It is not changed.
        params: the module, or name -> parameter; those with ``requires_grad``.
        steps: optimizer steps taken so far. Needed for `torch.optim.SGD` and Muon, which do not count; the others do.
        schedule: what a `torch.optim.lr_scheduler.LambdaLR` on this optimizer has: step (from 0) -> factor. The rates are
            then the groups' ``initial_lr``, and the rule is `Scheduled` with it, right for every step before and after.

    Raises:
        HypergradientError: an unknown optimizer or setting, ``maximize=True``, a parameter of the optimizer that is not in
            ``params`` or stands there twice, steps that are missing or contradict the optimizer's own count, or a state
            that does not fit.
    """
    kind = type(optimizer)
    if kind not in TORCH_OPTIMIZERS:
        known = ", ".join(t.__name__ for t in TORCH_OPTIMIZERS)
        raise HypergradientError(
            f"{kind.__module__}.{kind.__qualname__} is not known, and is not read as something else; known are {known} of "
            "torch.optim. Write a rule (init and update) and add it to estimators.torch_optimizer.TORCH_OPTIMIZERS"
        )
    named = dict(params.named_parameters()) if isinstance(params, nn.Module) else dict(params)
    named = {k: p for k, p in named.items() if p.requires_grad}
    names = {id(p): k for k, p in named.items()}
    if len(names) < len(named):
        twice = sorted(k for k, p in named.items() if names[id(p)] != k)
        raise HypergradientError(
            f"params holds the same tensor under several names, {twice} among them: give each tensor once, as "
            "dict(module.named_parameters()) does"
        )
    rules: dict[str, Rule] = {}
    for i, group in enumerate(optimizer.param_groups):
        if group.get("maximize"):
            raise HypergradientError(f"parameter group {i} has maximize=True: minimise the negative loss instead")
        # what is no setting of the optimizer was put there by a scheduler or the user, and moves nothing
        settings = {k: v for k, v in group.items() if k in optimizer.defaults}
        if schedule is not None:
            if "initial_lr" not in group:
                raise HypergradientError(
                    f"parameter group {i} has no initial_lr, so no scheduler was made for it: leave schedule out"
                )
            settings["lr"] = group["initial_lr"]
        rule = TORCH_OPTIMIZERS[kind](settings)
        for p in group["params"]:
            if not p.requires_grad:
                continue  # torch skips it: a constant
            if id(p) not in names:
                raise HypergradientError(
                    f"parameter group {i} holds a parameter of shape {tuple(p.shape)} that is not among those of params with "
                    f"requires_grad, {sorted(named)}: pass the module that the optimizer trains"
                )
            rules[names[id(p)]] = rule
    rules = {k: rules[k] for k in named if k in rules}
    if not rules:
        raise HypergradientError(
            "the optimizer holds no parameter with requires_grad: there is nothing to differentiate"
        )
    if steps is not None and not isinstance(steps, int):
        raise HypergradientError(f"steps={steps!r}: give a whole number")
    found = {k: optimizer.state.get(named[k], {}) for k in rules}
    with torch.no_grad():
        start = {k: p.detach().clone() for k, p in named.items()}
        slots = {k: _slots(rule, found[k], start[k], k) for k, rule in rules.items()}
        step, missed = _counts(found, slots, steps)
        grad = {k: g.detach().clone() for k in rules if (g := named[k].grad) is not None}
    whole: AnyRule = next(iter(rules.values())) if len(optimizer.param_groups) == 1 else Groups(rules)
    if schedule is not None:
        whole = Scheduled(whole, schedule)
    return Live(whole, State(start, slots, step, missed), frozenset(named.keys() - rules.keys()), grad)


def _counts(found: Mapping[str, Group], slots: Mapping[str, Slots], steps: int | None) -> tuple[int, dict[str, int]]:
    """Steps taken, and how many of them each leaf missed.

    Args:
        found: the optimizer's own state of every leaf.
        slots: the rule's; a leaf that should have some and has no state yet missed all steps.
        steps: as the user says.
    """
    own = {k: int(s["step"]) for k, s in found.items() if "step" in s}
    if steps is None and not own and (any(found.values()) or not any(slots.values())):
        raise HypergradientError(
            "the optimizer does not count its steps: pass steps=, the number taken so far (0 for a fresh one)"
        )
    least = max(own.values(), default=int(any(found.values())))
    step = least if steps is None else steps
    if step < least:
        raise HypergradientError(f"steps={steps}, but the optimizer's state shows at least {least}: correct it")
    taken = {k: own.get(k, step if found[k] or not slots[k] else 0) for k in found}
    return step, {k: step - n for k, n in taken.items() if n < step}


def _slots(rule: Rule, found: Mapping[str, Any], param: Tensor, name: str) -> Slots:
    """The rule's slots from the optimizer's state of one parameter; fresh ones where it has none yet."""
    initial = rule.init(param)
    slots = dict(initial)
    if lost := sorted(slots.keys() - found.keys()) if found else []:
        raise HypergradientError(
            f"the optimizer's state of {name!r} lacks {lost}: was a setting changed during the run?"
        )
    for slot, fresh in initial.items():
        if (value := found.get(slot)) is not None:
            value = torch.as_tensor(value).detach().to(fresh, copy=True)
            slots[slot] = value.expand_as(fresh).clone() if value.dim() == 0 else value
    tree.check_slots(slots, f"the optimizer's state of {name!r}", initial)
    return slots
