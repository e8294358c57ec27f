"""Iterative differentiation in forward mode (Franceschi et al. 2017, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from . import tree
from .adaptation import check_derivative, check_differentiable, rule_hparams
from .errors import HypergradientError, NotApplicableError
from .estimator import Cost, FromTheStart, Pullback
from .products import NoGradCutsTangents, reverse_over_reverse
from .rules import Slots, is_linear, step_tree
from .solvers import Outcome
from .stage import Record, Stage, advance
from .state import State
from .tree import Tree

AllSlots = dict[str, Slots]
T = TypeVar("T")


@dataclass(frozen=True)
class Forward(FromTheStart):
    """Carry Z = d(theta, slots)/dlam along the run, then answer Z^T c.

    Z' = Z + (du/dg)(H Z + M) + ...: memory does not grow with the steps but with the number of hyperparameters, and
    so does the work. Exact for the steps that were run. It gives no cotangent for the start.

    Args:
        max_hparams: refuse more scalars of lam than this; each costs the tangent of a gradient in every step.
        chunk: columns of Z advanced together; None all. Smaller is lighter and slower.

    Raises:
        HypergradientError: a field is below 1.
    """

    max_hparams: int = 512
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.max_hparams < 1 or (self.chunk is not None and self.chunk < 1):
            raise HypergradientError(f"{self}: max_hparams and chunk must be at least 1")

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: too many hyperparameters, or a rule without derivative.
        """
        n = tree.size(hparams)
        if n > self.max_hparams:
            raise NotApplicableError(
                f"Forward carries one tangent for each of the {n} hyperparameters, more than max_hparams="
                f"{self.max_hparams}: use Unroll, or raise max_hparams if you mean it"
            )
        if stage.steps == 0:
            return Pullback(hparams=tree.zeros_like(hparams), start=None, outcome=Outcome.DONE, cost=Cost())
        first = record.end.step - stage.steps
        if first not in record.states:
            raise HypergradientError("the record lacks the first state: run(..., tail=None) records what Forward needs")
        state = record.states[first]
        check_differentiable(stage.bind(hparams), stage.trained(state.params), first)
        like = next(iter(hparams.values()))
        directions = vmap(lambda e: tree.unflatten(e, hparams))(torch.eye(n, dtype=like.dtype, device=like.device))
        z_params = tree.map_tree(lambda x: x.new_zeros(n, *x.shape), state.params)
        z_slots = {k: tree.map_tree(lambda x: x.new_zeros(n, *x.shape), s) for k, s in state.slots.items()}
        rule = stage.bind(hparams)
        influential, looks = rule_hparams(stage, record.end, hparams), 0
        for t in range(first, record.end.step):
            unseen = [k for k in hparams if k not in influential]
            if unseen:  # as a rule only before the first step
                influential += self._influential(stage, state, hparams, unseen)
                looks += 1
            names = [k for k in stage.trained(state.params) if k not in record.skipped.get(t, ())]
            following, _, grads = advance(stage, rule, state, hparams)
            slopes = self._gradient_tangents(stage, state, hparams, names, z_params, directions)
            moved, z_moved = self._update_tangents(stage, state, hparams, grads, slopes, z_params, z_slots, directions)
            z_params, z_slots, state = {**z_params, **moved}, {**z_slots, **z_moved}, following
        row = torch.stack([z.reshape(n, -1) @ cotangent[k].reshape(-1) for k, z in z_params.items()]).sum(0)
        if not tree.any_nonzero(z_params) and not stage.rule_reads_hparams:
            check_derivative(stage, record, hparams)
        return Pullback(
            hparams=stage.reduce(tree.select(tree.unflatten(row, hparams), influential)),
            start=None,
            outcome=Outcome.DONE,
            cost=Cost(
                gradients=stage.steps,
                products=n * stage.steps + looks,
                kept_bytes=sum(map(tree.nbytes, [z_params, *z_slots.values()])),
            ),
        )

    @staticmethod
    def _influential(stage: Stage, state: State, hparams: Tree, names: list[str]) -> list[str]:
        """Those of ``names`` that move the gradient of this step. Leaves that move none, and sit in no rule, are
        missing from the answer, not zero (see `Pullback`); batches may differ in what they read."""
        tangent = tree.map_tree(torch.ones_like, tree.select(state.params, stage.trained(state.params)))
        objective = stage.objective(state.step)
        _, mixed = reverse_over_reverse(objective, state.params, hparams, tangent, wrt_hparams=names)
        return list(mixed)

    def _gradient_tangents(
        self, stage: Stage, state: State, hparams: Tree, names: list[str], z_params: Tree, directions: Tree
    ) -> Tree:
        """(H Z + M) of one step: forward mode over the gradient, all columns at once."""
        objective = stage.objective(state.step)

        def gradient(params: Tree, lam: Tree) -> Tree:
            def of(theta: Tree) -> Tensor:
                with NoGradCutsTangents():
                    return objective({**params, **theta}, lam)

            return cast(Tree, grad(of)(tree.select(params, names)))

        def tangent(z: Tree, direction: Tree) -> Tree:
            return cast(Tree, jvp(gradient, (state.params, hparams), (z, direction))[1])

        try:
            found = self._columns(tangent)(z_params, directions)
        except (NotImplementedError, RuntimeError) as error:
            if "ZeroTensors" not in str(error) and not isinstance(error, NotImplementedError):
                raise
            raise NotApplicableError(
                f"torch cannot carry tangents through the gradient of this loss ({str(error)[:120]}): use Unroll, or write "
                "the loss out, as in (a - b).square().mean() for mse_loss"
            ) from error
        return stage.reduce(_as(found, state.params))

    def _update_tangents(
        self, stage: Stage, state: State, hparams: Tree, grads: Tree, slopes: Tree, z_params: Tree, z_slots: AllSlots,
        directions: Tree,
    ) -> tuple[Tree, AllSlots]:  # fmt: skip
        """The tangents of the leaves that the rule moves, and of their slots."""

        def update(g: Tree, params: Tree, slots: AllSlots, lam: Tree) -> tuple[Tree, AllSlots]:
            changes, after = step_tree(stage.bind(lam), g, state._replace(params=params, slots=slots))
            return {k: params[k] + change for k, change in changes.items()}, after

        theta, slots = tree.select(state.params, grads), {k: state.slots[k] for k in grads}

        def tangent(dg: Tree, z: Tree, zs: AllSlots, direction: Tree) -> tuple[Tree, AllSlots]:
            if is_linear(stage.rule, grads, state.step):  # a linear map is its own derivative
                return update(dg, z, zs, hparams)
            out = jvp(update, (grads, theta, slots, hparams), (dg, z, zs, direction))[1]
            return cast(tuple[Tree, AllSlots], out)

        z, z_after = self._columns(tangent)(
            slopes, tree.select(z_params, grads), {k: z_slots[k] for k in grads}, directions
        )
        return _as(z, state.params), {k: _as(s, state.slots[k]) for k, s in z_after.items()}

    def _columns(self, fn: Callable[..., T]) -> Callable[..., T]:
        return cast(Callable[..., T], vmap(fn, randomness="same", chunk_size=self.chunk))


def _as(a: Tree, like: Tree) -> Tree:
    """The dtypes of ``like``: under vmap a 0-d leaf counts as a number, and torch promotes it to float64."""
    return {k: x.to(like[k].dtype) for k, x in a.items()}
