"""Iterative differentiation in forward mode (Franceschi et al. 2017, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor

from . import tree
from .adaptation import _check_differentiable
from .errors import HypergradientError, NotApplicableError
from .estimator import Cost, Pullback
from .solvers import Outcome
from .stage import Record, Stage, State
from .tree import Tree


@dataclass(frozen=True)
class Forward:
    """Carry Z = d(theta, slots)/dlam along the run, then answer Z^T c.

    Z' = Z + (du/dg)(H Z + M) + ...: memory does not grow with the steps but with the number of hyperparameters, and
    so does the time. Exact for the steps that were run. It gives no cotangent for the start.

    Args:
        max_hparams: refuse more scalars of lam than this; each costs a gradient and its tangent in every step.
    """

    max_hparams: int = 512

    @property
    def tail(self) -> None:
        return None

    @property
    def every(self) -> int:
        """Only the first state is needed."""
        return 2**62

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
        _check_differentiable(stage.bind(hparams))
        if stage.steps == 0:
            return Pullback(hparams=tree.zeros_like(hparams), start=None, outcome=Outcome.DONE, cost=Cost())
        first = record.end.step - stage.steps
        if first not in record.states:
            raise HypergradientError("the record lacks the first state: run(..., tail=None) records what Forward needs")
        state = record.states[first]
        basis = torch.eye(n, dtype=_like(hparams).dtype, device=_like(hparams).device)
        directions = [tree.unflatten(e, hparams) for e in basis]
        tangents = [State(tree.zeros_like(state.params), {k: {} for k in state.slots}, 0) for _ in directions]
        for _ in range(stage.steps):
            following = [_dual_step(stage, state, hparams, z, d) for z, d in zip(tangents, directions, strict=True)]
            state, tangents = following[0][0], [z for _, z in following]
        row = torch.stack([tree.dot(z.params, cotangent) for z in tangents])
        return Pullback(
            hparams=stage.reduce(tree.unflatten(row.to(_like(hparams).dtype), hparams)),
            start=None,
            outcome=Outcome.DONE,
            cost=Cost(
                gradients=n * stage.steps,
                products=n * stage.steps,
                kept_bytes=n * sum(map(tree.nbytes, [tangents[0].params, *tangents[0].slots.values()])),
            ),
        )


def _like(a: Tree) -> Tensor:
    return next(iter(a.values()))


def _dual_step(stage: Stage, state: State, hparams: Tree, z: State, direction: Tree) -> tuple[State, State]:
    """One step and its derivative along (z, direction): forward mode over the gradient and the update."""
    objective = stage.objective(state.step)
    names = stage.trained(state.params)
    with fwd.dual_level():

        def dual(x: Tensor, tangent: Tensor | None) -> Tensor:
            return x if tangent is None else fwd.make_dual(x, tangent)

        lam = {k: dual(x.detach(), direction[k]) for k, x in hparams.items()}
        with torch.enable_grad():
            theta = {
                k: dual(x.detach().requires_grad_() if k in names else x.detach(), z.params[k])
                for k, x in state.params.items()
            }
            value = objective(theta, lam)
            found = torch.autograd.grad(value, [theta[k] for k in names], allow_unused=True)
        split = {k: fwd.unpack_dual(g) for k, g in zip(names, found, strict=True) if g is not None}
        primal = stage.reduce({k: g.primal.detach() for k, g in split.items()})
        slope = stage.reduce({k: torch.zeros_like(g.primal) if g.tangent is None else g.tangent.detach()
                              for k, g in split.items()})  # fmt: skip
        rule = stage.bind(lam)
        params, slots = dict(state.params), dict(state.slots)
        z_params, z_slots = dict(z.params), dict(z.slots)
        with torch.no_grad():
            for k, g in primal.items():
                before = {s: dual(x, z.slots[k].get(s)) for s, x in state.slots[k].items()}
                x = dual(state.params[k], z.params[k])
                change, after = rule.update(fwd.make_dual(g, slope[k]), before, state.step + 1, x)
                params[k], tangent = fwd.unpack_dual(x + change)
                z_params[k] = torch.zeros_like(g) if tangent is None else tangent
                pairs = {s: fwd.unpack_dual(y) for s, y in after.items()}
                slots[k] = {s: y.primal for s, y in pairs.items()}
                z_slots[k] = {s: y.tangent for s, y in pairs.items() if y.tangent is not None}
    return State(params, slots, state.step + 1), State(z_params, z_slots, 0)
