"""The unit of cost: one meta step, that is unroll steps, the hypergradient at their end, and the meta update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

from torch.nn.attention import SDPBackend, sdpa_kernel

from estimators import CentralDifference, Estimator, Hypergradient, State, hypergradient, run
from estimators.tree import detach

from .measure import Category
from .workloads import Workload

Kernel = Literal["best", "math"]
"""Attention: "best" lets each pass use the best kernel that it can, so that first-order passes are fused; "math" is the same
plain one for all, so that a ratio does not measure the kernel. Fused kernels have no second derivative."""

WARM_STEPS = 10
"""Steps before the point where meta steps are measured: Adam's adaptation is no longer young there."""


def settled(workload: Workload) -> State:
    """The state after `WARM_STEPS` steps of the workload's own training: where every estimator's meta step starts."""
    stage = replace(workload.stage, steps=WARM_STEPS)
    return run(stage, workload.problem.start, workload.problem.hparams, tail=0).end


class MetaStep:
    """One meta step of ``estimator`` from ``state``; every call does the same work and finds the same hypergradient.

    Args:
        workload: what is trained.
        estimator: for its one stage.
        state: where the steps start, as `settled` gives it; it is not changed, so that estimators may share it.
        kernel: see `Kernel`.

    Attributes:
        watch: given to `run`.
    """

    watch: Callable[[State], None] | None = None

    def __init__(self, workload: Workload, estimator: Estimator, state: State, *, kernel: Kernel = "best") -> None:
        self.workload, self.estimator, self.state, self.kernel = workload, estimator, state, kernel
        self.hparams = detach(workload.problem.hparams)
        self._updated = {k: x.clone() for k, x in self.hparams.items()}  # the meta optimizer's own copy
        self.meta = workload.meta(list(self._updated.values()))

    @property
    def resident(self) -> dict[Category, Any]:
        """The tensors that are held between meta steps, by what they are for."""
        return {
            "parameters": self.state.params,
            "slots": self.state.slots,
            "hyperparameters": [self.hparams, self._updated, self.meta.state],
        }

    def __call__(self) -> Hypergradient:
        problem, stage, e = self.workload.problem, self.workload.stage, self.estimator
        with _attention(self.kernel):
            every = getattr(e, "every", 1)
            record = run(stage, self.state, self.hparams, tail=e.tail, every=every, watch=self.watch)
        second_order = not isinstance(getattr(e, "product", None), CentralDifference)
        with _attention("math" if second_order else self.kernel):
            found = hypergradient(problem.outer, [stage], [e], [record], self.hparams, throw=False)
        for k, x in self._updated.items():
            x.grad = found.hparams[k]
        self.meta.step()
        self.meta.zero_grad()
        self.workload.between(record.end)
        return found


class PlainTraining:
    """As many steps of plain training, as one would write them with `torch.optim`; every call goes on from the last."""

    def __init__(self, workload: Workload, state: State, *, kernel: Kernel = "best") -> None:
        self.workload, self.kernel = workload, kernel
        trained = set(workload.stage.trained(state.params))
        self.params = {k: x.detach().clone().requires_grad_(k in trained) for k, x in state.params.items()}
        self._optimizer = workload.optimizer([x for x in self.params.values() if x.requires_grad])
        self._step = 0

    @property
    def resident(self) -> dict[Category, Any]:
        """As `MetaStep.resident`."""
        return {"parameters": self.params, "slots": self._optimizer.state}

    def __call__(self) -> None:
        stage = self.workload.stage
        with _attention(self.kernel):
            for _ in range(stage.steps):
                self._optimizer.zero_grad()
                self.workload.plain(self.params, stage.stream(self._step)).backward()
                self._optimizer.step()
                self._step += 1


@contextmanager
def _attention(kernel: Kernel) -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH) if kernel == "math" else nullcontext():
        yield
