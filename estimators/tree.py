"""Arithmetic on flat dictionaries of tensors: the only vector space of this library.

A tree is keyed as ``nn.Module.named_parameters()``. Binary functions take the keys of their first argument,
which the second must hold as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .errors import HypergradientError

Tree = dict[str, Tensor]


def map_tree(fn: Callable[[Tensor], Tensor], a: Mapping[str, Tensor]) -> Tree:
    """``fn`` of every leaf."""
    return {k: fn(x) for k, x in a.items()}


def detach(a: Mapping[str, Tensor]) -> Tree:
    """The same storage, cut from every autograd graph."""
    return map_tree(torch.Tensor.detach, a)


def zeros_like(a: Mapping[str, Tensor]) -> Tree:
    """The zero of the space of ``a``."""
    return map_tree(torch.zeros_like, a)


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    """``a + b``."""
    return {k: x + b[k] for k, x in a.items()}


def sub(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    """``a - b``."""
    return {k: x - b[k] for k, x in a.items()}


def scale(a: Mapping[str, Tensor], c: float | Tensor) -> Tree:
    """``c a``."""
    return {k: x * c for k, x in a.items()}


def axpy(c: float | Tensor, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Tree:
    """``c x + y``."""
    return {k: c * x[k] + yk for k, yk in y.items()}


def times(x: Tensor, c: float | Tensor) -> Tensor:
    """``c x`` of a leaf, in its dtype; c as in `plus`. (Of two 0-d tensors torch takes the wider dtype.)"""
    return x * (c.to(x) if isinstance(c, Tensor) else c)


def plus(y: Tensor, c: float | Tensor, x: Tensor) -> Tensor:
    """``y + c x`` of a leaf without a temporary; c is a number or a 0-d tensor on the leaf's device."""
    return torch.addcmul(y, x, c.to(y)) if isinstance(c, Tensor) else torch.add(y, x, alpha=c)


def add_(y: Mapping[str, Tensor], c: float | Tensor, x: Mapping[str, Tensor]) -> None:
    """``y += c x`` in place: only for trees that nobody else holds. c as in `plus`."""
    for k, a in y.items():
        if isinstance(c, Tensor):
            a.addcmul_(x[k], c.to(a))
        else:
            a.add_(x[k], alpha=c)


def union_add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    """Sum over the union of the keys; a missing leaf counts as zero."""
    return {**a, **{k: a[k] + x if k in a else x for k, x in b.items()}}


def fill(a: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tree:
    """``a`` with zeros for the leaves of ``like`` that it lacks, in the order of ``like``."""
    return {k: a[k] if k in a else torch.zeros_like(x) for k, x in like.items()}


def select(a: Mapping[str, Tensor], names: Collection[str]) -> Tree:
    """The leaves called ``names``, in the order of ``a``."""
    return {k: x for k, x in a.items() if k in names}


def _wide(x: Tensor) -> Tensor:
    """Half precision would round a long sum away: accumulate in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner product, a 0-d tensor on the leaves' device (no synchronisation)."""
    return torch.stack([torch.dot(_wide(x).reshape(-1), _wide(b[k]).reshape(-1)) for k, x in a.items()]).sum()


def piece(like: Tensor) -> int:
    """Entries of one of `pieces`; elsewhere than on a CPU a kernel's start costs more than a little memory."""
    return 2**15 if like.device.type == "cpu" else 2**22


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The entries of tensors of one shape in pieces that fit a processor's cache, so that what is made of a piece is small.

    Views of contiguous tensors, which may be written to; of others the entries are copied first. Without values (see
    `has_values`) it gives the first two pieces and the last alone: all others take the same bytes again, and a leaf of 1e9
    entries would take minutes to count.
    """
    length = piece(tensors[0])
    flat = [x.reshape(-1) for x in tensors]
    n = len(flat[0])
    if n > 3 * length and not has_values(tensors[0]):
        starts = (0, length, (n - 1) // length * length)
        return zip(*([x[i : i + length] for i in starts] for x in flat), strict=True)
    return zip(*(torch.split(x, length) for x in flat), strict=True)


def _extremes(a: Mapping[str, Tensor]) -> Tensor:
    """The smallest and the largest entry of every leaf, in a row; NaN where there is one. It makes nothing as large as a leaf."""
    ends = [x.detach().reshape(-1) for x in a.values() if x.numel()]
    return torch.stack([e for x in ends for e in (x.amin(), x.amax())])


def largest(a: Mapping[str, Tensor]) -> Tensor:
    """Largest absolute entry, a 0-d tensor."""
    return _wide(_extremes(a)).abs().max()


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm, a 0-d tensor; scaled inside, so that 1e-30 in float32 does not underflow to 0."""
    top = largest(a)
    unit = torch.where(top > 0, top, torch.ones_like(top))
    return unit * torch.stack([_sum_of_squares(x, unit) for x in a.values()]).sum().sqrt()


def _sum_of_squares(leaf: Tensor, unit: Tensor) -> Tensor:
    total = torch.zeros_like(unit)
    for (x,) in pieces(leaf):
        x = _wide(x) / unit
        total = total + torch.dot(x, x)
    return total


def plain_norm(a: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm in one pass and without a temporary, for trees that were scaled: squares may under- or overflow."""
    return cast(Tensor, torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(_wide(x)) for x in a.values()])))


def dtype_of(a: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that all leaves share (see `check`)."""
    return next(iter(a.values())).dtype


def power_of_two(a: Mapping[str, Tensor]) -> Tensor:
    """A power of two near the norm (1 for a zero tree), in the leaves' dtype: dividing by it rounds nothing."""
    length, dtype = norm(a), dtype_of(a)
    exponent = torch.floor(torch.log2(torch.where(length > 0, length, torch.ones_like(length))))
    limit = -math.log2(torch.finfo(dtype).tiny)  # beyond it the reciprocal would overflow
    return torch.exp2(exponent.clamp(-limit, limit)).to(dtype)


def size(a: Mapping[str, Tensor]) -> int:
    """Number of scalars."""
    return sum(x.numel() for x in a.values())


def nbytes(a: Mapping[str, Tensor]) -> int:
    """Bytes of the leaves' entries."""
    return sum(x.numel() * x.element_size() for x in a.values())


def flatten(a: Mapping[str, Tensor]) -> Tensor:
    """One vector, leaves in order."""
    return torch.cat([x.reshape(-1) for x in a.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Tree:
    """The inverse of `flatten` for trees shaped as ``like``."""
    parts = torch.split(vector, [x.numel() for x in like.values()])
    return {k: p.reshape(x.shape) for (k, x), p in zip(like.items(), parts, strict=True)}


def has_values(x: Tensor) -> bool:
    """Whether entries can be read back: fake and meta tensors know their shapes and dtypes alone.

    The whole library also runs on those, so that one can learn what a hypergradient would need without computing it (see
    `holds`). Where a value decides how much work is done, torch itself refuses to give one.
    """
    return not isinstance(x, FakeTensor) and not x.is_meta


def holds(condition: Tensor) -> bool:
    """Whether a 0-d condition is met (synchronises); without values (see `has_values`) it is taken to be.

    For conditions that are met unless something is wrong: nothing but a refusal, or a report, may depend on them.
    """
    return bool(condition) if has_values(condition) else True


def all_finite(a: Mapping[str, Tensor]) -> bool:
    """Whether no leaf holds NaN or infinity (synchronises once; see `holds`)."""
    return not any(x.numel() for x in a.values()) or holds(torch.isfinite(_extremes(a)).all())


def check_slots(a: Mapping[str, Tensor], what: str, like: Mapping[str, Tensor]) -> None:
    """As `check`, for optimizer slots, of which there may be none."""
    if a or like:
        if not a or a.keys() != like.keys():
            raise HypergradientError(
                f"{what} holds {sorted(a)}, but the rule keeps {sorted(like)}: another rule's state?"
            )
        check(a, what, like)


def any_nonzero(a: Mapping[str, Tensor]) -> bool:
    """Whether any entry differs from 0 (synchronises once; see `holds`)."""
    return any(x.numel() for x in a.values()) and holds(_extremes(a).ne(0).any())


def check(a: Mapping[str, Tensor], what: str, like: Mapping[str, Tensor] | None = None) -> None:
    """Refuse a tree that no estimator can work with.

    Args:
        a: the tree.
        what: how to call it in the message.
        like: if given, keys, shapes, dtypes and devices must agree with it.

    Raises:
        HypergradientError: not a dict of floating tensors, mixed dtypes or devices, or unlike ``like``.
    """
    if not isinstance(a, Mapping) or not all(isinstance(x, Tensor) for x in a.values()):
        got = type(a).__name__
        if isinstance(a, Mapping):
            got += " with " + ", ".join(f"{k!r}: {type(x).__name__}" for k, x in a.items() if not isinstance(x, Tensor))
        raise HypergradientError(f"{what} must be a dict of tensors such as {{'w': tensor}}, got {got}")
    if not a:
        raise HypergradientError(f"{what} is empty: it needs at least one tensor")
    for k, x in a.items():
        if not x.is_floating_point():
            raise HypergradientError(f"{what}[{k!r}] has dtype {x.dtype}: convert it with .float() or .double()")
    for kind, found in (("dtypes", {x.dtype for x in a.values()}), ("devices", {x.device for x in a.values()})):
        if len(found) > 1:
            raise HypergradientError(
                f"{what} mixes {kind} {sorted(map(str, found))}: convert all leaves with .to(...) first"
            )
    if like is None:
        return
    if a.keys() != like.keys():
        raise HypergradientError(f"{what} has the keys {sorted(a)}, expected {sorted(like)}")
    for k, x in a.items():
        if x.shape != like[k].shape:
            raise HypergradientError(
                f"{what}[{k!r}] has shape {tuple(x.shape)}, expected {tuple(like[k].shape)}: nothing is broadcast"
            )
        if (x.dtype, x.device) != (like[k].dtype, like[k].device):
            raise HypergradientError(
                f"{what}[{k!r}] is {x.dtype} on {x.device}, expected {like[k].dtype} on {like[k].device}"
            )
