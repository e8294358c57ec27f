"""The unit of cost: one meta step, that is unroll steps, the hypergradient at their end, and the meta update.

Beside it the plain training that it is measured against: as many steps of the same model, with `torch.optim`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from estimators import Estimator, Hypergradient, State, hypergradient, run
from estimators.estimator import recording
from estimators.stage import Batch, identity
from estimators.tree import detach

from .measure import Category
from .workloads import Workload

Kernel = Literal["best", "math"]
"""Attention: "best" lets first-order passes use the fused kernels (exact products take the plain one of themselves, since the
fused ones have no second derivative); "math" is the same plain one for all, so that a ratio does not measure the kernel."""

WARM_STEPS = 10
"""Steps before the point where meta steps are measured: Adam's adaptation is no longer young there."""


def settled(workload: Workload) -> State:
    """The state after `WARM_STEPS` steps of the workload's own training: where every estimator's meta step starts."""
    stage = replace(workload.stage, steps=WARM_STEPS)
    return run(stage, workload.problem.start, workload.problem.hparams, tail=0).end


def copied(state: State) -> State:
    """The same numbers in tensors of its own."""
    slots = {k: {name: x.clone() for name, x in s.items()} for k, s in state.slots.items()}
    return state._replace(params={k: x.clone() for k, x in state.params.items()}, slots=slots)


def preloaded(workload: Workload) -> Workload:
    """The same with the batches of a meta step made beforehand: training is timed, not the making or the copying of data.

    Other batches (a solver may average over earlier ones) are made when they are asked for.
    """
    stage = workload.stage
    held = {t: _contiguous(stage.stream(t)) for t in range(WARM_STEPS, WARM_STEPS + stage.steps)}

    def stream(t: int) -> Batch:
        return held[t] if t in held else stage.stream(t)

    return replace(workload, problem=replace(workload.problem, stages=[replace(stage, stream=stream)]))


class MetaStep:
    """One meta step of ``estimator`` from ``state``.

    Args:
        workload: what is trained.
        estimator: for its one stage.
        state: where the steps start, as `settled` gives it; it is not changed, so that estimators may share it, unless
            the step goes ``onward``: then it is given away.
        kernel: see `Kernel`.
        onward: go on from the end, as a training does, and hold nothing else: for memory. Otherwise every call does the same
            work and finds the same hypergradient: for time.

    Attributes:
        watch: given to `run`.
    """

    watch: Callable[[State], None] | None = None

    def __init__(
        self, workload: Workload, estimator: Estimator, state: State, *, kernel: Kernel = "best", onward: bool = False
    ) -> None:
        self.workload, self.estimator, self.kernel, self.onward = workload, estimator, kernel, onward
        self._held = [state]  # in a list, which copies of the step share: none of them holds what has been left behind
        self.hparams = detach(workload.problem.hparams)
        self._updated = {k: x.clone() for k, x in self.hparams.items()}  # the meta optimizer moves these, so that
        self.meta = workload.meta(list(self._updated.values()))  # the next call starts from the same ones

    def warm(self) -> None:
        """Let the meta optimizer make its state, as the first call does, without a meta step."""
        _first_step(self.meta, self._updated.values())

    @property
    def resident(self) -> dict[Category, Any]:
        """The tensors that are held between meta steps, by what they are for; the meta optimizer's after the first call.

        The unchanged copy of the hyperparameters is left out: only repeating needs it.
        """
        return {
            "parameters": self.state.params,
            "slots": self.state.slots,
            "hyperparameters": [self._updated, self.meta.state],
            "buffers": _exchanged(self.workload),
        }

    def __call__(self) -> Hypergradient:
        problem, stage, e = self.workload.problem, self.workload.stage, self.estimator
        with _attention(self.kernel):
            record = run(stage, self._start(), self.hparams, watch=self.watch, donate=self.onward, **recording(e))
            found = hypergradient(problem.outer, [stage], [e], [record], self.hparams, throw=False, consume=True)
        for k, x in self._updated.items():
            x.grad = found.hparams[k]
        self.meta.step()
        self.meta.zero_grad()
        end = self.workload.between(record.end)
        if self.onward:
            self._held.append(end)
        return found

    @property
    def state(self) -> State:
        """Where the next call starts."""
        return self._held[0]

    def _start(self) -> State:
        """The state, which is the caller's alone if nobody needs it again."""
        return self._held.pop() if self.onward else self._held[0]


class PlainTraining:
    """As many steps of plain training, as one would write them with `torch.optim`; every call goes on from the last.

    An Adam or AdamW is the fused one unless the workload chose an implementation (see `fastest`). Its batches are those of the meta step. Over data-parallel ranks the gradients are averaged as the stage averages its own.

    Args:
        workload, state, kernel: as for `MetaStep`; the state is copied.
    """

    def __init__(self, workload: Workload, state: State, *, kernel: Kernel = "best") -> None:
        self.workload, self.kernel = workload, kernel
        trained = set(workload.stage.trained(state.params))
        self.params = {
            k: x.detach().clone().requires_grad_(k in trained)
            for k, x in state.params.items()
            if k not in workload.left_out
        }
        self._optimizer = fastest(workload.optimizer([x for x in self.params.values() if x.requires_grad]))

    def warm(self) -> None:
        """Let the optimizer make its slots, as the first call does, without a training step."""
        _first_step(self._optimizer, [x for x in self.params.values() if x.requires_grad])

    @property
    def resident(self) -> dict[Category, Any]:
        """As `MetaStep.resident`."""
        return {"parameters": self.params, "slots": self._optimizer.state, "buffers": _exchanged(self.workload)}

    def __call__(self) -> None:
        stage = self.workload.stage
        with _attention(self.kernel):
            for t in range(WARM_STEPS, WARM_STEPS + stage.steps):
                self.workload.plain(self.params, stage.stream(t)).backward()
                if stage.reduce is not identity:
                    self._average()
                self._optimizer.step()
                self._optimizer.zero_grad()

    def _average(self) -> None:
        means = self.workload.stage.reduce({k: x.grad for k, x in self.params.items() if x.grad is not None})
        for k, mean in means.items():
            self.params[k].grad = mean


def fastest(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same with its groups fused, if it is an Adam or AdamW for which neither ``fused`` nor ``foreach`` was chosen.

    Torch's own default never is that, and on a CPU is a loop over the leaves: beside it whatever is fused would look fast. (A
    fused SGD is no faster than the loop on a CPU, wrong there in half precision, and has no kernel for fake tensors.)
    """
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        for group in optimizer.param_groups:
            if group["fused"] is None and group["foreach"] is None:
                group.update(fused=True, foreach=False)
    return optimizer


def _exchanged(workload: Workload) -> Any:
    """What data-parallel ranks hold for their averages."""
    return getattr(workload.stage.reduce, "resident", ())


def _contiguous(batch: Batch) -> Batch:
    return tuple(x.contiguous() for x in batch)


def _first_step(optimizer: torch.optim.Optimizer, leaves: Iterable[torch.Tensor]) -> None:
    for x in leaves:
        x.grad = torch.zeros_like(x)
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def _attention(kernel: Kernel) -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH) if kernel == "math" else nullcontext():
        yield
