"""Steps that write over parameters and slots: what `run` takes on tensors that nobody else holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..state import State
from ..tree import Tree, has_values, piece, pieces
from .base import Rule, Slots, declares, in_pieces
from .whole import AnyRule, parts, transform


class StepsInPlace(Protocol):
    """A leaf rule with a step of its own that writes in place (see `Rule`)."""

    def step_(self, params: list[Tensor], grads: list[Tensor], slots: list[Slots], t: int) -> None: ...


KERNELS = {
    "cuda": {torch.float64, torch.float32, torch.bfloat16, torch.float16},
    "cpu": {torch.float64, torch.float32},  # in half precision SGD's does nothing to most entries: pytorch issue 191763
}
"""Where torch has fused kernels, and what for."""

TYPES = {Tensor, torch.nn.Parameter, FakeTensor}


@dataclass
class Owned:
    """The leaves whose tensors may be written over.

    Attributes:
        params, slots: names, by what is the leaf's.
        flat: those of which all is owned, and known to be as fused kernels want it.
    """

    params: set[str] = field(default_factory=set)
    slots: set[str] = field(default_factory=set)
    flat: set[str] = field(default_factory=set)

    def clear(self) -> None:
        """Somebody else holds them all."""
        self.params.clear()
        self.slots.clear()
        self.flat.clear()

    def release(self, params: Tree, others: Iterable[Tensor]) -> None:
        """Of ``params``, those that share memory with one of ``others`` may not be written over."""
        held = {x.untyped_storage()._cdata for x in others}
        self.params -= {k for k in params.keys() & self.params if params[k].untyped_storage()._cdata in held}


def unshared(state: State, others: Iterable[Tensor]) -> Owned:
    """The leaves whose memory is their own: to write it changes neither another tensor of ``state`` nor one of ``others``, and
    no two entries lie on each other (as those of an expanded tensor do)."""
    everything = [*state.params.values(), *(x for s in state.slots.values() for x in s.values()), *others]
    users = Counter(x.untyped_storage()._cdata for x in everything)

    def alone(x: Tensor) -> bool:
        storage = x.untyped_storage()
        return users[storage._cdata] == 1 and x.numel() * x.element_size() <= storage.nbytes()

    return Owned(
        {k for k, x in state.params.items() if alone(x)},
        {k for k, s in state.slots.items() if all(map(alone, s.values()))},
    )


def step_in_place(rule: AnyRule, grads: Tree, state: State, owned: Owned) -> None:
    """The step of `step_tree`, to rounding, written over ``state``.

    Leaves that share a rule and a number of updates are moved together by the rule's own `step_` (see `Rule`) where it
    applies; all others by ``update`` and an addition, piece by piece if the rule is ``diagonal``.

    Args:
        grads: at ``state.params``; other leaves are left alone. They may share memory with anything, and are not changed.
        state: before the step; entries of its dicts are replaced, or written over.
        owned: what may be written over. The rest is copied first and is owned then.
    """
    owned.release(state.params, grads.values())
    given = transform(rule, grads)
    for one, leaves in parts(rule, given, state.step):
        step_ = _own_step(one)
        for t, group in _by_number(state, leaves).items():
            together: list[str] = []
            for k in group:
                if step_ is None or not (k in owned.flat or _flat(state, k)):
                    _update(one, given[k], state, k, t, owned)
                    continue
                _own(state, k, owned)
                if _contiguous(given[k]):
                    together.append(k)
                else:
                    step_([state.params[k]], [given[k].contiguous()], [state.slots[k]], t)
            if step_ is not None and together:
                step_(
                    [state.params[k] for k in together],
                    [given[k] for k in together],
                    [state.slots[k] for k in together],
                    t,
                )


def _own_step(rule: Rule) -> Callable[..., None] | None:
    """The rule's `step_`, if its own class has one (a subclass may have another update) and all its fields are numbers."""
    if "step_" not in vars(type(rule)):
        return None
    values = [y for x in vars(rule).values() for y in (x if isinstance(x, tuple) else (x,))]
    return None if any(isinstance(x, Tensor) for x in values) else cast("StepsInPlace", rule).step_


def _by_number(state: State, leaves: Collection[str]) -> dict[int, list[str]]:
    """The leaves by the number of their next update."""
    if not state.missed:
        return {state.step + 1: list(leaves)}
    groups: dict[int, list[str]] = {}
    for k in leaves:
        groups.setdefault(state.update_number(k), []).append(k)
    return groups


def _flat(state: State, leaf: str) -> bool:
    """Whether a fused kernel can take this leaf. It walks through memory and never looks at strides."""
    tensors = [state.params[leaf], *state.slots[leaf].values()]
    return all(type(x) in TYPES and x.dtype in KERNELS.get(x.device.type, ()) and _contiguous(x) for x in tensors)


def _contiguous(x: Tensor) -> bool:
    return x.layout is torch.strided and x.is_contiguous()


def _own(state: State, leaf: str, owned: Owned) -> None:
    if leaf not in owned.params:
        state.params[leaf] = state.params[leaf].clone()
        owned.params.add(leaf)
    if leaf not in owned.slots:
        state.slots[leaf] = {name: x.clone() for name, x in state.slots[leaf].items()}
        owned.slots.add(leaf)
    owned.flat.add(leaf)


def _update(rule: Rule, grad: Tensor, state: State, leaf: str, t: int, owned: Owned) -> None:
    if _can_be_cut(rule, grad, state, leaf):
        _own(state, leaf, owned)
        if _update_in_pieces(rule, grad, state.slots[leaf], t, state.params[leaf]):
            return
    change, state.slots[leaf] = rule.update(grad, state.slots[leaf], t, state.params[leaf])
    owned.release({leaf: state.params[leaf]}, state.slots[leaf].values())  # it may be a slot now
    if leaf in owned.params:
        state.params[leaf].add_(change)
    else:
        state.params[leaf] = state.params[leaf] + change
        owned.params.add(leaf)
    owned.flat.discard(leaf)
    owned.slots.discard(leaf)  # a rule may give back what it got, the gradient for one


def _can_be_cut(rule: Rule, grad: Tensor, state: State, leaf: str) -> bool:
    """A leaf that is one piece is moved faster as it is."""
    param, slots = state.params[leaf], state.slots[leaf]
    tensors = [grad, param, *slots.values()]
    return (
        declares(rule, "diagonal")
        and in_pieces(rule, slots, param)
        and param.numel() > piece(param)
        and all(type(x) in TYPES and _contiguous(x) for x in tensors)
    )


def _update_in_pieces(rule: Rule, grad: Tensor, slots: Slots, t: int, param: Tensor) -> bool:
    """Write one update over ``param`` and ``slots``: its temporaries are as large as a piece.

    Returns:
        False, and nothing was written, if the update gives back other slots than it was given.
    """
    own = {name: x for name, x in slots.items() if x.shape == param.shape}
    numbers = {name: x for name, x in slots.items() if name not in own}
    written = {x.untyped_storage()._cdata for x in (param, *own.values())}
    after: Slots = {}
    for i, (g, p, *held) in enumerate(pieces(grad, param, *own.values())):
        before = dict(zip(own, held, strict=True))
        change, after = rule.update(g, {**numbers, **before}, t, p)
        if i == 0 and (after.keys() != slots.keys() or any(after[k].shape != x.shape for k, x in before.items())):
            return False
        # an update may give back what it was given: its leaf as a slot, say
        found = [change, *(after[name] for name in own)]
        change, *new = [x.clone() if x.untyped_storage()._cdata in written else x for x in found]
        for x, y in zip(held, new, strict=True):
            x.copy_(y)
        p.add_(change)
    slots.update({name: after[name] for name in numbers})
    return True


def fused(kernel: Callable[..., Any], params: list[Tensor], *tensors: Any, **settings: Any) -> None:
    """One of torch's fused optimizer kernels; nothing at all on tensors without values, which have nothing to compute."""
    if has_values(params[0]):
        kernel(params, *tensors, **settings)
        torch.autograd.graph.increment_version(params)  # the kernels do not: a graph that holds them must notice


def counter(t: int, like: Tensor) -> Tensor:
    """The number of an update as the fused kernels want it; filled on the device, which is not waited for."""
    return torch.full((), float(t), dtype=torch.float32, device=like.device)  # kernels read it so, whatever the default
