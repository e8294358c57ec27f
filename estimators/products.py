"""First-order gradients, and the one second-order primitive in three interchangeable forms.

For a loss L(theta, lam) and a tangent v on theta,

    H v = d2L/dtheta2 v      and      M^T v = d2L/dlam dtheta v

are the two gradients of the slope <dL/dtheta, v>. A *product* computes the parts of them that are asked for.
Forms: Pearlmutter 1994 (double backward); reverse over forward (jvp, then backward); central difference
(Pearlmutter's R-operator by finite differences; Liu et al. 2019, DARTS, eq. 8; Choe et al. 2023, SAMA, eq. 5).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from . import tree
from .errors import HypergradientError, NotApplicableError
from .forward_mode import VERIFIED, node_names
from .tree import Tree

BoundLoss = Callable[[Tree, Tree], Tensor]
"""(params, hparams) -> scalar: a stage's loss with its batch and its randomness fixed."""


class Product(Protocol):
    """What the three forms have in common.

    Args:
        loss: scalar function of (params, hparams).
        params: theta.
        hparams: lam.
        tangent: v, for some or all leaves of theta; absent leaves count as zero.
        wrt_params: leaves of theta whose rows of H v are wanted.
        wrt_hparams: leaves of lam whose rows of M^T v are wanted.

    Returns:
        (H v, M^T v), each holding the wanted leaves that the slope depends on. A leaf is missing, not zero, if the
        autograd graph shows that it has no influence. (`CentralDifference` sees only whether the loss reads it: one
        that enters additively is zero there.)
    """

    def __call__(
        self,
        loss: BoundLoss,
        params: Tree,
        hparams: Tree,
        tangent: Tree,
        *,
        wrt_params: Collection[str] = (),
        wrt_hparams: Collection[str] = (),
    ) -> tuple[Tree, Tree]: ...


def leaves(a: Mapping[str, Tensor], names: Collection[str]) -> Tree:
    """Cut from every graph; only ``names`` require grad. Whatever does not keeps no activation alive."""
    wanted = set(names)
    return {k: x.detach().requires_grad_() if k in wanted else x.detach() for k, x in a.items()}


def grad_trees(output: Tensor | Sequence[Tensor], inputs: Sequence[Mapping[str, Tensor]], **options: Any) -> list[Tree]:
    """Gradients of ``output`` for the leaves that require grad, a tree for each of ``inputs``; None is left out.

    Args:
        output: one, or several that all require grad, as `torch.autograd.grad` takes them (with ``grad_outputs``).
        options: for `torch.autograd.grad`.
    """
    wanted = [(i, k, x) for i, a in enumerate(inputs) for k, x in a.items() if x.requires_grad]
    out: list[Tree] = [{} for _ in inputs]
    if not wanted or (isinstance(output, Tensor) and not output.requires_grad):
        return out
    grads = torch.autograd.grad(output, [x for _, _, x in wanted], allow_unused=True, **options)
    for (i, k, _), g in zip(wanted, grads, strict=True):
        if g is not None:
            out[i][k] = _dense(g)
    return out


def _dense(x: Tensor) -> Tensor:
    """The same with all its zeros, if it is sparse (an embedding's gradient): nothing here is written for other layouts."""
    return x if x.layout is torch.strided else x.to_dense()


def gradients(
    loss: BoundLoss,
    params: Tree,
    hparams: Tree,
    *,
    wrt_params: Collection[str] = (),
    wrt_hparams: Collection[str] = (),
) -> tuple[Tensor, Tree, Tree]:
    """Value and first-order gradients of ``loss``.

    Returns:
        (loss, detached; dL/dparams; dL/dhparams): only wanted leaves, and only those that the loss reads.
    """
    with torch.enable_grad():
        theta, lam = leaves(params, wrt_params), leaves(hparams, wrt_hparams)
        value = loss(theta, lam)
        d_params, d_hparams = grad_trees(value, [theta, lam])
    return value.detach(), d_params, d_hparams


Arrival = Callable[[str, Tensor, bool], Tensor]
"""(leaf, its gradient, whether nobody else holds that) -> what takes its place, the same tensor if one likes."""


def summed_gradients(
    losses: Sequence[BoundLoss],
    params: Tree,
    hparams: Tree,
    *,
    wrt_params: Collection[str] = (),
    wrt_hparams: Collection[str] = (),
    arrival: Arrival | None = None,
) -> tuple[Tensor, Tree, Tree]:
    """As `gradients` of the sum of ``losses``, of which no two hold memory at once: a backward pass follows each forward pass.

    Args:
        arrival: told of every leaf of params as the last backward pass is done with it, before the pass goes on to the
            leaves of earlier layers.
    """
    arrived: Tree = {}
    values: list[Tensor] = []

    def take(x: Tensor, k: str) -> None:
        grad, x.grad = _dense(cast(Tensor, x.grad)), None
        arrived[k] = grad if arrival is None else arrival(k, grad, _alone(grad))

    with torch.enable_grad():
        theta, lam = leaves(params, wrt_params), leaves(hparams, wrt_hparams)
        wanted = [x for x in (*theta.values(), *lam.values()) if x.requires_grad]
        for i, loss in enumerate(losses):
            value = loss(theta, lam)
            values.append(value.detach())
            if i == len(losses) - 1:
                for k in wrt_params:
                    theta[k].register_post_accumulate_grad_hook(partial(take, k=k))  # type: ignore[no-untyped-call]
            if value.requires_grad:
                torch.autograd.backward(value, inputs=wanted)
            del value
    for k in wrt_params:
        if theta[k].grad is not None:  # the last loss does not read it
            take(theta[k], k)
    d_params = {k: arrived[k] for k in theta if k in arrived}
    return torch.stack(values).sum(), d_params, {k: x.grad for k, x in lam.items() if x.grad is not None}


def _alone(x: Tensor) -> bool:
    """Whether no other tensor lives in x's storage. (That x itself is nobody else's, torch has seen to in ``x.grad``.)"""
    storage = x.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) == 2  # x's, and that of the object asked here


def _dual(x: Tensor, tangent: Tensor) -> Tensor:
    return cast(Tensor, fwd.make_dual(x, tangent))  # type: ignore[no-untyped-call]


def _tangent(x: Tensor) -> Tensor | None:
    return cast("Tensor | None", fwd.unpack_dual(x).tangent)  # type: ignore[no-untyped-call]


def _twice_differentiable() -> AbstractContextManager[None]:
    """Attention by torch's plain kernel, for the passes that are differentiated again: the fused kernels have no second
    derivative. First-order passes keep those; a loss that chooses its own kernel has it."""
    return sdpa_kernel(SDPBackend.MATH)


def reverse_over_forward(
    loss: BoundLoss,
    params: Tree,
    hparams: Tree,
    tangent: Tree,
    *,
    wrt_params: Collection[str] = (),
    wrt_hparams: Collection[str] = (),
) -> tuple[Tree, Tree]:
    """One forward pass with dual numbers gives the slope; one backward pass gives both parts. Exact.

    See `Product` for the arguments. No second-order graph is stored, and for ``wrt_hparams`` alone theta is
    detached, so that only what follows the hyperparameters is kept: the lightest exact form where it applies.

    Raises:
        NotApplicableError: between a wanted leaf and the loss stands an operation through which torch is not known to
            be right (see `forward_mode`). What lies before the hyperparameters does not matter if only they are wanted.
        NotImplementedError: a kernel without forward mode (LSTM).
    """
    theta, lam = leaves(params, wrt_params), leaves(hparams, wrt_hparams)
    with torch.enable_grad():
        with fwd.dual_level():
            with NoGradCutsTangents(), _twice_differentiable():
                value = loss({k: _dual(x, tangent[k]) if k in tangent else x for k, x in theta.items()}, lam)
            slope = _tangent(value)
        if slope is None:  # the loss reads no leaf of the tangent
            return {}, {}
        unverified = node_names(value) - VERIFIED
        if unverified:
            raise NotApplicableError(
                f"reverse_over_forward is not known to be right through {sorted(unverified)} (torch is silently wrong "
                "there for some operations, layer_norm among them): use reverse_over_reverse"
            )
        d_params, d_hparams = grad_trees(slope, [theta, lam])  # outside the dual level, which would cost twice the time
    return d_params, d_hparams


def reverse_over_reverse(
    loss: BoundLoss,
    params: Tree,
    hparams: Tree,
    tangent: Tree,
    *,
    wrt_params: Collection[str] = (),
    wrt_hparams: Collection[str] = (),
) -> tuple[Tree, Tree]:
    """Double backward (Pearlmutter 1994): the graph of the gradient is kept and pulled back. Exact.

    See `Product` for the arguments. The default of every family: right through all of torch's layers.
    """
    at = linearize(loss, params, hparams, tangents=tangent, wrt_params=wrt_params, wrt_hparams=wrt_hparams)
    at.take()
    return at.pull(tangent, wrt_params=wrt_params, wrt_hparams=wrt_hparams, last=True)


_LEAF = "torch::autograd::AccumulateGrad"


class _Multiple(NamedTuple):
    """A term of the gradient: ``factor`` times a leaf plus a constant, as an L2 penalty gives. ``leaf`` is an id."""

    tangent: str
    leaf: int
    factor: float | Tensor


class _Part(NamedTuple):
    """Terms of the gradient that share no node with the others.

    Attributes:
        edges: where tangents enter, with the leaf that each is for.
        reads: ids of the leaves that it depends on.
    """

    edges: list[tuple[str, GradientEdge]]
    reads: set[int]


def _fits(node: Any, number: int, shape: torch.Size) -> bool:
    """Whether a gradient of this shape flows into ``node`` as it is."""
    metadata = getattr(node, "_input_metadata", ())
    return number < len(metadata) and tuple(metadata[number].shape) == shape


def _terms(g: Tensor) -> Iterator[GradientEdge]:
    """The terms of a sum: a cotangent on the sum is one on each of them."""
    todo = [get_gradient_edge(g)]
    while todo:
        edge = todo.pop()
        node: Any = edge.node
        nexts = [GradientEdge(n, i) for n, i in node.next_functions if n is not None]
        sums = node.name() == "AddBackward0" and node._saved_alpha == 1
        if sums and all(_fits(e.node, e.output_nr, g.shape) for e in nexts):
            todo += nexts
        else:
            yield edge


def _multiple(k: str, edge: GradientEdge, g: Tensor) -> _Multiple | None:
    """The term that begins at ``edge``, if its nodes show that it is a multiple of one leaf plus a constant."""
    node: Any = edge.node
    factor: float | Tensor = 1.0
    while node.name() != _LEAF:
        nexts = [n for n, _ in node.next_functions if n is not None]
        if len(nexts) != 1 or not _fits(node, 0, g.shape):
            return None
        match node.name():
            case "MulBackward0":
                c = node._saved_self if node._saved_other is None else node._saved_other
                if not c.numel() or any(n > 1 and step for n, step in zip(c.shape, c.stride(), strict=True)):
                    return None
                if c.dim() == 0 and c.device.type == "cpu" and tree.has_values(c):
                    with _disable_current_modes():  # it may be a Python number, which modes take for no tensor
                        factor = factor * float(c)
                else:
                    factor = c.detach()[(0,) * c.dim()].to(g.device) * factor
            case "MulBackward1":
                factor = factor * node._saved_other
            case "PowBackward0" if node._saved_exponent == 1:
                pass
            case "NegBackward0":
                factor = factor * -1.0
            case "AddBackward0" | "SubBackward0" if node.next_functions[0][0] is not None:  # of a constant
                pass
            case _:
                return None
        (node,) = nexts
    return _Multiple(k, id(node.variable), factor) if node.variable.shape == g.shape else None


def _parts(terms: list[tuple[str, GradientEdge]], room: int) -> list[_Part]:
    """Terms in parts that can be pulled back one after the other, the largest first, without doing anything twice.

    What one part needs while it is pulled back is free again when the next begins. A penalty on the parameters is a part for
    each leaf.

    Args:
        room: parts after the first are taken together while the leaves that they read hold no more bytes than that.
    """
    parent, size = list(range(len(terms))), [0] * len(terms)
    reads: list[dict[int, int]] = [{} for _ in terms]  # id -> bytes
    owner: dict[Any, int] = {}  # also keeps the nodes' Python objects alive, so that each has one

    def top(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, (_, edge) in enumerate(terms):
        todo: list[Any] = [edge.node]
        while todo:
            node = todo.pop()
            if node.name() == _LEAF:
                reads[i][id(node.variable)] = node.variable.nbytes
            elif node in owner:
                parent[top(owner[node])] = top(i)
            else:
                owner[node] = i
                size[i] += 1
                todo += [n for n, _ in node.next_functions if n is not None]
    members: dict[int, list[int]] = {}
    for i in range(len(terms)):
        members.setdefault(top(i), []).append(i)
    found: list[_Part] = []
    held = 0
    for part in sorted(members.values(), key=lambda part: -sum(size[i] for i in part)):
        read = {x: n for i in part for x, n in reads[i].items()}
        held += sum(read.values())
        if len(found) < 2 or held > room:
            found.append(_Part([], set()))
            held = sum(read.values())
        found[-1].edges.extend(terms[i] for i in part)
        found[-1].reads.update(read)
    return found


class Linearized:
    """The derivative of dL/dtheta at one point, to be pulled back as often as one likes.

    Made by `linearize`. Only the graph is kept, not the values of the gradient, which the caller may drop. The gradient is
    looked at as a sum: terms that share nothing are pulled back one after the other, so that what they need is not held at
    once, and of a term c theta (an L2 penalty's) nothing but c is kept.

    Attributes:
        value: the loss, detached.
        grads: dL/dtheta of the leaves that tangents will be given for, detached; take it away with `take` to free it. It may
            share memory with a tensor of the loss: never change it in place.
    """

    def __init__(self, loss: BoundLoss, theta: Tree, lam: Tree, names: Collection[str]) -> None:
        with torch.enable_grad(), _twice_differentiable():
            value = loss(theta, lam)
            (first,) = grad_trees(value, [{k: theta[k] for k in theta if k in names}], create_graph=True)
        self.value = value.detach()
        self.grads = tree.detach(first)
        self._theta, self._lam = theta, lam
        self._multiples: list[_Multiple] = []
        terms: list[tuple[str, GradientEdge]] = []
        for k, g in first.items():
            for edge in _terms(g) if g.requires_grad else ():  # else it is constant
                multiple = _multiple(k, edge, g)
                if multiple is None:
                    terms.append((k, edge))
                else:
                    self._multiples.append(multiple)
        self._parts = _parts(terms, max((x.nbytes for x in theta.values()), default=0))

    def take(self) -> Tree:
        """The gradient, which is let go of here."""
        grads, self.grads = self.grads, {}
        return grads

    @property
    def nodes(self) -> list[Node]:
        """Where the graph that is kept begins."""
        return [edge.node for part in self._parts for _, edge in part.edges]

    def pull(
        self,
        tangent: Tree,
        *,
        wrt_params: Collection[str] = (),
        wrt_hparams: Collection[str] = (),
        last: bool = False,
    ) -> tuple[Tree, Tree]:
        """(H v, M^T v) as a `Product` gives them, without another forward pass.

        Args:
            tangent: v, for some or all of the leaves that were announced.
            wrt_params, wrt_hparams: what is wanted, among what was announced.
            last: nothing will be asked after this; the graph is freed as it is used.
        """
        asked = [(0, k, self._theta[k]) for k in wrt_params] + [(1, k, self._lam[k]) for k in wrt_hparams]
        wanted = {id(x): (i, k, x) for i, k, x in asked}
        out: list[Tree] = [{}, {}]
        for part in self._parts:
            given = [(k, edge) for k, edge in part.edges if k in tangent]
            inputs = [w for x, w in wanted.items() if x in part.reads]
            if given and inputs:
                seconds = torch.autograd.grad(
                    [edge for _, edge in given],
                    [x for _, _, x in inputs],
                    [tangent[k] for k, _ in given],
                    allow_unused=True,
                    retain_graph=not last,
                )
                for (i, k, _), g in zip(inputs, seconds, strict=True):
                    if g is not None:
                        out[i][k] = out[i][k] + g if k in out[i] else _dense(g)
                del seconds
        for k, leaf, c in self._multiples:
            if k in tangent and leaf in wanted:
                i, name, _ = wanted[leaf]
                out[i][name] = tree.plus(out[i][name], c, tangent[k]) if name in out[i] else tangent[k] * c
        if last:
            self._parts, self._multiples = [], []
        rows, mixed = (
            {k: a[k] for k in names if k in a} for a, names in zip(out, (wrt_params, wrt_hparams), strict=True)
        )
        return rows, mixed


def linearize(
    loss: BoundLoss,
    params: Tree,
    hparams: Tree,
    *,
    tangents: Collection[str],
    wrt_params: Collection[str] = (),
    wrt_hparams: Collection[str] = (),
) -> Linearized:
    """`reverse_over_reverse` in two halves: the graph of the gradient now, its pullbacks later.

    Several products at one point share the first half, and whoever takes a step there has its gradient for nothing.

    Args:
        tangents: the leaves of theta for which tangents will be given.
        wrt_params, wrt_hparams: the leaves that will be asked for.
    """
    theta, lam = leaves(params, {*wrt_params, *tangents}), leaves(hparams, wrt_hparams)
    return Linearized(loss, theta, lam, tangents)


_CUTS: set[Any] = {
    Tensor.detach, torch.detach, Tensor.detach_, torch.detach_, cast(Any, Tensor.data).__get__, Tensor.item, Tensor.tolist,
    Tensor.numpy, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__,
}  # fmt: skip


class NoGradCutsTangents(TorchFunctionMode):
    """Makes ``torch.no_grad()`` inside a loss cut forward-mode tangents as it cuts graphs; torch keeps them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            torch._C._set_fwd_grad_enabled(args[0])
        return func(*args, **(kwargs or {}))


class _StopGradients(TorchFunctionMode):
    """Records what a loss cuts from the graph (``detach``, ``.data``, ``item``, ``no_grad``), or puts it back."""

    def __init__(self, recorded: list[Any] | None = None) -> None:
        super().__init__()
        self.values: list[Any] = []
        self._recorded = recorded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _CUTS:
            return self._hold(out, args)
        if torch.is_grad_enabled():
            return out
        if isinstance(out, Tensor):
            return self._hold(out, args)
        if isinstance(out, (tuple, list)) and any(isinstance(x, Tensor) for x in out):  # sort, max, topk
            held = [self._hold(x, args) if isinstance(x, Tensor) else x for x in out]
            return type(out)(held)
        return out

    def _hold(self, out: Any, args: Any) -> Any:
        """Record ``out`` (a copy: the loss may go on in place), or give back what stood here."""
        self.values.append(out.detach().clone() if isinstance(out, Tensor) else out)
        if self._recorded is None:
            return out
        if len(self.values) > len(self._recorded):
            raise HypergradientError(
                "CentralDifference: the loss detaches a different number of values at different parameters, so "
                "they cannot be held fixed. Use reverse_over_forward or reverse_over_reverse."
            )
        value = self._recorded[len(self.values) - 1]
        if not isinstance(value, Tensor):
            return value
        if any(out is x for x in args):  # in place: what the loss goes on with is the argument
            with torch.no_grad():
                return out.copy_(value)
        return value.clone()


@dataclass(frozen=True)
class CentralDifference:
    """(g(theta + e v) - g(theta - e v)) / 2e with e = alpha / ||v||: only first-order passes.

    SAMA (Choe et al. 2023, Algorithm 1) and DARTS (Liu et al. 2019, eq. 8). Truncation error O(alpha^2), rounding
    O(1/alpha). theta is copied, never moved. Two things that a plain difference gets wrong are put right:
    random draws are the same at both points, and tensors that the loss detaches keep their value at theta
    (this costs one more forward pass, only for losses that detach).

    Args:
        alpha: norm of the perturbation, > 0. The published SAMA uses 1; float32 wants about 1e-3 ||theta||, bfloat16
            some 3e-2 ||theta|| and still errs by some percent (measured: the study `difference`).
        relative: measure ``alpha`` in units of ||theta|| (of the perturbed leaves) instead of absolutely.
        hold_detached: False re-evaluates what the loss detaches at both points, as released codes do: the answer is then
            the product of another loss, in which nothing was detached. An ablation.
        share_randomness: False lets the two points draw apart. An ablation too; it reaches only what the loss draws from
            torch's own generator, and a stage with a seed reseeds that itself.

    Raises:
        HypergradientError: ``alpha`` is not positive.
    """

    alpha: float = 1e-3
    relative: bool = False
    hold_detached: bool = True
    share_randomness: bool = True

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise HypergradientError(f"CentralDifference(alpha={self.alpha}): must be positive")

    def __call__(
        self,
        loss: BoundLoss,
        params: Tree,
        hparams: Tree,
        tangent: Tree,
        *,
        wrt_params: Collection[str] = (),
        wrt_hparams: Collection[str] = (),
    ) -> tuple[Tree, Tree]:
        return self.consuming(
            loss, params, hparams, dict(tangent), own=False, wrt_params=wrt_params, wrt_hparams=wrt_hparams
        )

    def consuming(
        self,
        loss: BoundLoss,
        params: Tree,
        hparams: Tree,
        tangent: Tree,
        *,
        own: bool = True,
        wrt_params: Collection[str] = (),
        wrt_hparams: Collection[str] = (),
    ) -> tuple[Tree, Tree]:
        """The product itself, which takes the tangent over: its leaves are dropped from the dict as the first point is made.

        Args:
            own: their memory may be written to, so that the points need none of their own.
        """
        length = tree.norm(tangent)
        radius = torch.full_like(length, self.alpha)
        if self.relative:
            around = tree.norm(tree.select(params, tangent))
            radius = torch.where(around > 0, radius * around, radius)
        step = torch.where(length > 0, radius / length, 0.0)
        point = dict(params)
        for k in list(tangent):
            v, by = tangent.pop(k), step.to(params[k].dtype)
            point[k] = (v.mul_(by) if own else v * by).add_(params[k])
            del v
        moved = [k for k in params if point[k] is not params[k]]

        def gradient(at: Tree, mode: _StopGradients, apart: bool = False) -> tuple[Tree, Tree]:
            return self._evaluate(loss, mode, at, hparams, apart, wrt_params=wrt_params, wrt_hparams=wrt_hparams)

        here = _StopGradients()
        plus = gradient(point, here)
        if here.values and self.hold_detached:
            here = _StopGradients()
            self._evaluate(loss, here, params, hparams)
            plus = gradient(point, _StopGradients(here.values))
        shared = {point[k].untyped_storage()._cdata for k in moved}
        plus = cast(
            Any,
            tuple({k: x.clone() if x.untyped_storage()._cdata in shared else x for k, x in a.items()} for a in plus),
        )
        for k in moved:  # theta - e v = 2 theta - (theta + e v)
            point[k].neg_().add_(params[k], alpha=2)
        held = here.values if self.hold_detached else None
        minus = gradient(point, _StopGradients(held), not self.share_randomness)
        per_step = length / (2 * radius)

        def difference(a: Tree, b: Tree) -> Tree:
            return {k: (x - b[k]) * per_step.to(x.dtype) for k, x in a.items() if k in b}

        return difference(plus[0], minus[0]), difference(plus[1], minus[1])

    @staticmethod
    def _evaluate(
        loss: BoundLoss,
        mode: _StopGradients,
        params: Tree,
        hparams: Tree,
        apart: bool = False,
        **wrt: Collection[str],
    ) -> tuple[Tree, Tree]:
        def watched(p: Tree, h: Tree) -> Tensor:
            with mode:
                return loss(p, h)

        devices = sorted({x.device.index for x in params.values() if x.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices):  # every evaluation draws from the same state
            if apart:  # from another one, itself a function of that state
                torch.manual_seed(int(torch.randint(2**62, (), device="cpu")))
            _, d_params, d_hparams = gradients(watched, params, hparams, **wrt)
        return d_params, d_hparams


PRODUCTS: dict[str, Product] = {
    "reverse-over-forward": reverse_over_forward,
    "reverse-over-reverse": reverse_over_reverse,
    "central-difference": CentralDifference(alpha=1e-3, relative=True),
}
"""Every product form by name."""
