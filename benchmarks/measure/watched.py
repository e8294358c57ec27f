"""Losses and streams that say when they are at work, without a change to what they compute."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from torch import Tensor

from estimators import MeanOf, Problem, Stage, Tree
from estimators.multitask import MultiTask
from estimators.stage import Batch

Inside = Callable[[], AbstractContextManager[object]]
"""Makes the context in which a call runs."""


def within(fn: Callable[..., Any], inside: Inside) -> Callable[..., Any]:
    """``fn``, every call of which runs in a fresh ``inside()``. A `MultiTask` loss stays one, since `Tartan` asks for it, and
    a `MeanOf` one of parts."""
    if isinstance(fn, MultiTask):
        return _MultiTask(fn.tasks, fn.logits, fn.penalty, inside)
    if isinstance(fn, MeanOf):
        return MeanOf([within(part, inside) for part in fn.parts])

    @wraps(fn)
    def watched(*args: Any, **kwargs: Any) -> Any:
        with inside():
            return fn(*args, **kwargs)

    return watched


class Watcher:
    """Wants to know when losses and streams are at work: each of their calls runs in a context of its own."""

    def at_loss(self) -> AbstractContextManager[object]:
        """Around a call of a loss, inner, outer or plain."""
        return nullcontext()

    def at_stream(self) -> AbstractContextManager[object]:
        """Around a call of a stream."""
        return nullcontext()

    def loss(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The same loss, watched."""
        return within(fn, self.at_loss)

    def stage(self, stage: Stage) -> Stage:
        """The same stage, its loss and its stream watched."""
        return replace(stage, loss=self.loss(stage.loss), stream=within(stage.stream, self.at_stream))

    def problem(self, problem: Problem) -> Problem:
        """The same problem, all of whose losses and streams are watched."""
        return replace(problem, stages=[self.stage(s) for s in problem.stages], outer=self.loss(problem.outer))


@dataclass(frozen=True, eq=False)
class _MultiTask(MultiTask):
    """`losses` is what `Tartan` evaluates; the sum evaluates it too, inside its own context."""

    inside: Inside = nullcontext

    def __call__(self, params: Tree, hparams: Tree, batch: Batch) -> Tensor:
        with self.inside():
            return super().__call__(params, hparams, batch)

    def losses(self, params: Tree, batch: Batch) -> dict[str, Tensor]:
        with self.inside():
            return super().losses(params, batch)
