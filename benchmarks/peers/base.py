"""What is compared: one task at one point, and what a library must say to take part."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from estimators import Record, Stage, Tree
from estimators.products import BoundLoss

from ..workloads import Workload

Method = Literal["cg", "neumann", "unroll", "unroll-adam", "sama", "run", "run-adam"]
Work = Callable[[], Any]

ABOUT: dict[str, str] = {
    "cg": "implicit gradient at the point, that many steps of conjugate gradient",
    "neumann": "implicit gradient at the point, that many products of the Neumann series",
    "unroll": "that many SGD steps from the point, differentiated",
    "unroll-adam": "that many Adam steps from the point, differentiated",
    "sama": "a meta step of SAMA beside as many steps of plain training (peak: with parameters and slots)",
    "run": "that many SGD steps, nothing differentiated",
    "run-adam": "that many Adam steps, nothing differentiated",
}
"""method -> what is done, for tables."""

IMPLICIT = ("cg", "neumann")


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One task, the same for all. Nothing of it may be changed in place.

    Attributes:
        method: see `ABOUT`.
        params: theta at the point.
        hparams: lam, detached.
        losses: (params, hparams) -> scalar, one a step of an unroll; for the implicit methods one, whose gradient vanishes at
            an optimum. Their batches were made beforehand and are not timed.
        outer: (params, hparams) -> scalar.
        steps: products of an implicit method, else steps.
        lr: of the inner optimizer, and of the Neumann series.
        stage, record: the same for this library's own estimators: the run that ended at the point.
        workload: for "sama", what is trained from `params`; `losses` are then those of all steps, warming up included.
    """

    method: Method
    params: Tree
    hparams: Tree
    losses: Sequence[BoundLoss]
    outer: Callable[[Tree, Tree], Tensor]
    steps: int
    lr: float
    stage: Stage
    record: Record
    workload: Workload | None = None

    def leaves(self) -> tuple[Tree, Tree]:
        """(params, hparams) as leaves that require grad, sharing memory with the case's own."""
        return tuple({k: x.detach().requires_grad_() for k, x in a.items()} for a in (self.params, self.hparams))  # type: ignore[return-value]

    def tree(self, values: Sequence[Tensor], like: Literal["params", "hparams"] = "params") -> Tree:
        """A list in the order of the leaves, by name."""
        return dict(zip(getattr(self, like), values, strict=True))


class AsModule(nn.Module):
    """Parameters as libraries want them: those of a module whose forward is any function of them by name.

    They share memory with ``params``.
    """

    def __init__(self, params: Tree) -> None:
        super().__init__()
        self._keys = list(params)
        for i, x in enumerate(params.values()):
            self.register_parameter(f"p{i}", nn.Parameter(x.detach()))

    def forward(self, function: Callable[..., Tensor], *rest: Any) -> Tensor:
        return function({k: getattr(self, f"p{i}") for i, k in enumerate(self._keys)}, *rest)


@dataclass(frozen=True)
class Variant:
    """One way to do a method with a library.

    Attributes:
        make: case -> what is measured. What a user sets up once is set up before; every call does the whole task again and
            returns the answer: the hypergradient by name, the parameters after the steps, or None where there is none.
        note: its settings, in words.
        peak: case -> peak bytes, where they are not simply those of a call above what was there before.
    """

    make: Callable[[Case], Work]
    note: str = ""
    peak: Callable[[Case], int] | None = None


@dataclass(frozen=True, kw_only=True)
class Library:
    """One library, ours or a peer.

    Attributes:
        name: for tables.
        module: the name of a module that only this library has.
        distribution: as its metadata are named; "" if it has none.
        install: how to get it.
        variants: (method, variant) -> how.
    """

    name: str
    module: str
    distribution: str = ""
    install: str = ""
    variants: Mapping[tuple[str, str], Variant] = field(default_factory=dict)

    @cached_property
    def present(self) -> bool:
        """Whether it can be found; it is not imported."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except (ImportError, ValueError):
            return False

    @property
    def version(self) -> str | None:
        """Of the installed one; "no metadata" for a checkout; None if there is none."""
        if not self.present:
            return None
        try:
            return version(self.distribution) if self.distribution else "no metadata"
        except PackageNotFoundError:
            return "no metadata"


def imported(name: str) -> ModuleType:
    """A peer's module. Its complaints about its own dependencies are not the reader's to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def gradient(value: Tensor, hparams: Tree) -> Tree:
    """dvalue/dhparams by name, zero where there is none."""
    found = torch.autograd.grad(value, list(hparams.values()), allow_unused=True)
    return {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(hparams.items(), found, strict=True)}
