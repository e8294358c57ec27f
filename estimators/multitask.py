"""A loss made of tasks whose weights are hyperparameters: what MT-TARTAN trains on and META-TARTAN weighs.

Dery et al. 2022, *Should We Be Pre-training?*, eqs. 3 and 5, with the softmax of Algorithm 1:

    L_total(theta, w) = sum_i alpha_i L_i(theta),    alpha = softmax(w)

MT-TARTAN is plain training on it with w held fixed, the end task being one of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .errors import HypergradientError
from .stage import Batch, scalar
from .tree import Tree


@dataclass(frozen=True, eq=False)
class MultiTask:
    """(params, hparams, batch) -> sum_i softmax(hparams[logits])_i L_i(params, batch of task i) + penalty(params).

    Pass it as ``Stage.loss``. A batch that is a mapping with exactly the tasks' names as keys holds one batch a task;
    any other batch goes to every task whole.

    Args:
        tasks: name -> loss (params, batch) -> scalar. Their order is the order of the logits.
        logits: the hyperparameter that holds w, of shape (number of tasks,).
        penalty: params -> scalar, added with weight 1: regularisation that is no task.

    Raises:
        HypergradientError: there is no task. When called: the logits are missing or of another shape, a task's loss is
            no scalar, or the batch names some of the tasks but not all.
    """

    tasks: Mapping[str, Callable[[Tree, Batch], Tensor]]
    logits: str = "task_logits"
    penalty: Callable[[Tree], Tensor] | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise HypergradientError("MultiTask(tasks={}): give at least one task, as {'name': loss}")
        object.__setattr__(self, "tasks", dict(self.tasks))

    def __call__(self, params: Tree, hparams: Tree, batch: Batch) -> Tensor:
        alpha, losses = self.weights(hparams), self.losses(params, batch)
        total = torch.stack([alpha[i] * loss for i, loss in enumerate(losses.values())]).sum()
        return total if self.penalty is None else total + self.penalty(params)

    def weights(self, hparams: Tree) -> Tensor:
        """alpha = softmax(w), shape (number of tasks,).

        Written out, because torch's own has no usable derivative in reverse over forward mode (see `forward_mode`).
        """
        if self.logits not in hparams:
            raise HypergradientError(
                f"MultiTask reads its weights from hparams[{self.logits!r}], but hparams hold {sorted(hparams)}: add it, "
                "or give MultiTask(logits=...) another name"
            )
        w = hparams[self.logits]
        if w.shape != (len(self.tasks),):
            raise HypergradientError(
                f"hparams[{self.logits!r}] has shape {tuple(w.shape)}, but there are {len(self.tasks)} tasks "
                f"{list(self.tasks)}: give it the shape ({len(self.tasks)},)"
            )
        e = (w - w.detach().amax()).exp()
        return e / e.sum()

    def losses(self, params: Tree, batch: Batch) -> dict[str, Tensor]:
        """L_i by task, without weights."""
        parts = self._split(batch)
        return {
            name: scalar(partial(task, params, parts[name]), f"the loss of task {name!r}", params, {})
            for name, task in self.tasks.items()
        }

    def _split(self, batch: Batch) -> Mapping[str, Batch]:
        if isinstance(batch, Mapping):
            if batch.keys() == self.tasks.keys():
                return batch
            if batch.keys() & self.tasks.keys():
                raise HypergradientError(
                    f"the batch has the keys {sorted(batch)}, but the tasks are {sorted(self.tasks)}: give one batch a "
                    "task under exactly these names, or a batch that names none of them, which goes to every task whole"
                )
        return dict.fromkeys(self.tasks, batch)
