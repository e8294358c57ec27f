"""What was computed and what was sent, counted while it happens: the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .live_bytes import tensors
from .watched import Watcher


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a piece of work did.

    Attributes:
        forwards: evaluations of a watched loss, inner, outer or plain. A pass with forward-mode tangents is one; the tasks of
            a `MultiTask` are one together.
        backwards: runs of the autograd engine, whoever started them (`torch.autograd.grad`, ``Tensor.backward``,
            `torch.func`): a double backward is two. One for a rule's derivative counts, too.
        flops: floating-point operations of matrix products, convolutions and attention, as
            `torch.utils.flop_counter` counts them: 2 m k n for (m, k) times (k, n); all else counts nothing.
        collectives: calls to other processes: every operation of `torch.distributed` that sends, whoever calls it (barriers
            send nothing).
        collective_bytes: bytes of the tensors that this process put into them.
    """

    forwards: int
    backwards: int
    flops: int
    collectives: int
    collective_bytes: int


class Counter(Watcher):
    """Counts; see `counting`."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0
        self.flops = FlopCounterMode(display=False)
        self.sent = _Collectives()
        self._depth = 0

    @contextmanager
    def at_loss(self) -> Iterator[None]:
        """One forward, unless it is part of another one."""
        self.forwards += self._depth == 0
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def counts(self) -> Counts:
        """What was counted so far."""
        return Counts(
            forwards=self.forwards,
            backwards=self.backwards,
            flops=self.flops.get_total_flops(),
            collectives=self.sent.calls,
            collective_bytes=self.sent.nbytes,
        )


@contextmanager
def counting() -> Iterator[Counter]:
    """Count what happens inside.

    Yields:
        A `Counter`. Backwards, FLOPs and collectives are counted wherever they come from; forwards are those of losses
        that went through it: ``counter.problem(problem)``, ``counter.stage(stage)`` or ``counter.loss(fn)``.

    Example:
        with counting() as counter:
            estimate(counter.problem(problem), CG(steps=5))
        counter.counts().backwards
    """
    counter = Counter()
    with _backwards(counter), counter.sent, counter.flops:
        yield counter


@contextmanager
def _backwards(counter: Counter) -> Iterator[None]:
    """All of torch's ways to a backward pass lead through one function."""
    autograd: Any = torch.autograd
    engine = autograd._engine_run_backward

    def counted(*args: Any, **kwargs: Any) -> Any:
        counter.backwards += 1
        return engine(*args, **kwargs)

    autograd._engine_run_backward = counted
    try:
        yield
    finally:
        autograd._engine_run_backward = engine


_SILENT = {"barrier", "monitored_barrier_", "wait_tensor", "_wrap_tensor_autograd", "check_for_nan", "irecv", "recv_"}
_SILENT |= {"recv_any_source_"}


class _Collectives(TorchDispatchMode):
    """Sees the operations of `torch.distributed`, old and functional, since both pass through the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.nbytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As `LiveBytes`."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in ("c10d", "_c10d_functional") and func._opname not in _SILENT:
            self.calls += 1
            self.nbytes += sum(x.numel() * x.element_size() for x in tensors(_given(func, args, kwargs)))
        return func(*args, **kwargs)


def _given(func: Any, args: Any, kwargs: Any) -> Any:
    """What a process puts in: the argument called input or inputs; where there is none, the first."""
    names = [a.name for a in func._schema.arguments]
    chosen = next((i for i, name in enumerate(names) if name.startswith("input")), 0)
    return args[chosen] if chosen < len(args) else kwargs[names[chosen]]
