"""Workloads: what cost is measured on, at the size of real use. One a file, one line each in `WORKLOADS`."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from . import (
    bert_noisy,
    gpt_mixture,
    mlp_decay,
    mlp_reweighting,
    omniglot_imaml,
    resnet18_pruning,
    resnet50_pruning,
    roberta_auxiliary,
)
from .base import GENERATED, Workload, of_rank, with_autocast

__all__ = ["GENERATED", "WORKLOADS", "Workload", "WorkloadEntry", "of_rank", "with_autocast"]


@dataclass(frozen=True)
class WorkloadEntry:
    """One line of `WORKLOADS`.

    Attributes:
        make: keyword settings -> `Workload`. All take ``size``, ``unroll``, ``batch``, ``seed``, ``dtype`` and ``device``,
            and have defaults; those that can read a user's own data take ``data``, a folder.
        about: one line: what it is.
        citation: whose experiment.
        sizes: what ``size`` can be; "tiny" runs on any machine in a second or two.
        reads: what ``data`` may hold, in words; empty: it takes none.
        needs: modules beyond the dependencies, from the extra ``models``.
    """

    make: Callable[..., Workload]
    about: str
    citation: str
    sizes: tuple[str, ...]
    reads: str
    needs: tuple[str, ...]


def _entry(module: ModuleType) -> WorkloadEntry:
    return WorkloadEntry(
        module.make,
        module.ABOUT,
        module.CITATION,
        tuple(module.SIZES),
        getattr(module, "READS", ""),
        getattr(module, "NEEDS", ()),
    )


WORKLOADS: dict[str, WorkloadEntry] = {
    "mlp_decay": _entry(mlp_decay),
    "mlp_reweighting": _entry(mlp_reweighting),
    "bert_noisy": _entry(bert_noisy),
    "roberta_auxiliary": _entry(roberta_auxiliary),
    "gpt_mixture": _entry(gpt_mixture),
    "omniglot_imaml": _entry(omniglot_imaml),
    "resnet18_pruning": _entry(resnet18_pruning),
    "resnet50_pruning": _entry(resnet50_pruning),
}
"""name -> how to make it. The key is ``Workload.problem.name``. Importing a workload imports no optional module: `make` does."""
