"""What an estimator must beat: nothing at all, nothing but the direct term, a random direction, and differences of whole
runs.

All are pullbacks, like the estimators they are compared with. So the two that rerun the stage differentiate
<c, end(lam)> with the cotangent c fixed at the recorded end, that is, the outer loss *linearised* there. Only so do
they serve a stage of a composite, whose end is not where the outer loss is taken. With M the outer loss,
M(end(lam + h)) - M(end(lam - h)) and <dM, end(lam + h) - end(lam - h)> differ by O(h^3): as derivatives, by O(h^2), no
more than the difference itself is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from . import tree
from .errors import HypergradientError, NotApplicableError
from .estimator import Cost, FromTheStart, Pullback
from .influence import influential
from .solvers import Outcome
from .stage import Record, Stage, run
from .tree import Tree


@dataclass(frozen=True)
class Direct:
    """Nothing comes through the run: the hypergradient is its direct term ("first-order", in some codes).

    It still looks at the losses, so that a hyperparameter that nothing reads is refused as by the others.
    """

    @property
    def tail(self) -> int:
        return 0

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`."""
        names, asked = influential(stage, record, hparams)
        return Pullback(
            hparams=tree.zeros_like(tree.select(hparams, names)),
            start=tree.zeros_like(record.end.params),
            outcome=Outcome.APPROXIMATE,
            cost=Cost(gradients=asked),
        )


@dataclass(frozen=True)
class Plain(Direct):
    """Zero, the direct term included: plain training, which moves no hyperparameter.

    So that a comparison has it as a row among the others, at the cost of looking at the losses.
    """

    without_direct: ClassVar[bool] = True


@dataclass(frozen=True)
class Random:
    """<r, c> d with r and d standard normal: linear in c, as a pullback is, and its direction says nothing.

    The mean over seeds is 0. Draws depend on the seed and on the step at which the stage ends, not on the data.

    Args:
        seed: of the draws.
    """

    seed: int = 0

    @property
    def tail(self) -> int:
        return 0

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`."""
        names, asked = influential(stage, record, hparams)
        source = _generator(self.seed, record.end.step)
        read = tree.select(cotangent, record.grad or ())  # the others' ends do not depend on lam
        direction = tree.select(_normal(source, hparams), names)
        along = tree.dot(_normal(source, read), read) if read else 0.0
        return Pullback(
            hparams=stage.reduce(tree.map_tree(lambda d: (d * along).to(d.dtype), direction)),
            start=None,
            outcome=Outcome.APPROXIMATE,
            cost=Cost(gradients=asked),
        )


@dataclass(frozen=True)
class FiniteDifference(FromTheStart):
    """(<c, end(lam + h e_i)> - <c, end(lam - h e_i)>) / 2h for every scalar lam_i, by running the stage again.

    The outer loss is linearised at the recorded end: c is its gradient there, and it is not evaluated at the shifted ends. The
    only estimator that needs no derivative of the run: it sees hyperparameters in the rule, rules without derivative
    (as far as a difference shows anything there) and what the loss detaches. Random draws are those of the run, if
    `Stage.seed` makes them a function of the step. A leaf whose every entry leaves the end the same, to the bit, has no
    influence that could be seen, and is missing.

    Args:
        step: h relative to max(1, |lam_i|); None is the cube root of the dtype's epsilon (6e-6 in float64), at which
            truncation, O(h^2), and rounding, O(eps / h), are alike. Hyperparameters far smaller than 1 want a
            smaller one, or a logarithm.
        max_hparams: refuse more scalars of lam than this; each costs two runs.

    Raises:
        HypergradientError: ``step`` is not positive, or ``max_hparams`` below 1.
    """

    step: float | None = None
    max_hparams: int = 64

    def __post_init__(self) -> None:
        if (self.step is not None and not self.step > 0) or self.max_hparams < 1:
            raise HypergradientError(f"{self}: step must be positive, max_hparams at least 1")

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: too many hyperparameters.
            NonFiniteError: a run from a shifted lam diverged.
        """
        n = tree.size(hparams)
        if n > self.max_hparams:
            raise NotApplicableError(
                f"FiniteDifference runs the stage twice for each of the {n} hyperparameters, more than max_hparams="
                f"{self.max_hparams}: use Unroll, or raise max_hparams if you mean it"
            )
        if stage.steps == 0:
            return Pullback(hparams=tree.zeros_like(hparams), start=None, outcome=Outcome.DONE, cost=Cost())
        step = self.step or torch.finfo(tree.dtype_of(hparams)).eps ** (1 / 3)
        found: Tree = {}
        for k, x in hparams.items():
            slopes, moved = [], False
            for e in torch.eye(x.numel(), dtype=x.dtype, device=x.device):
                shift = step * x.abs().clamp_min(1.0) * e.reshape(x.shape)
                ahead, behind = x + shift, x - shift
                gap = _gap(stage, record, {**hparams, k: ahead}, {**hparams, k: behind})
                moved = moved or tree.any_nonzero(gap)
                slopes.append(tree.dot(gap, cotangent) / (ahead - behind).sum())  # 2h as it was rounded
            if moved:
                found[k] = torch.stack(slopes).reshape(x.shape).to(x.dtype)
        return Pullback(
            hparams=stage.reduce(found),
            start=None,
            outcome=Outcome.APPROXIMATE,
            cost=Cost(gradients=2 * n * stage.steps, kept_bytes=_first_bytes(stage, record)),
        )


@dataclass(frozen=True)
class Evolution(FromTheStart):
    """Mean over ``pairs`` draws of <c, end(lam + sigma u) - end(lam - sigma u)> / 2 sigma u, u standard normal.

    Antithetic evolution strategies (Salimans et al. 2017; Metz et al. 2019), but of the outer loss linearised at the recorded
    end: unbiased for the gradient of E_u <c, end(lam + sigma u)>, the smoothed run, and not of E_u M(end(lam + sigma u)), the
    smoothed outer loss. Where <c, end> is linear in lam with slope g, the squared error is
    (n + 1) / pairs ||g||^2 in the mean, n the number of hyperparameters. Draws depend on the seed and on the step at
    which the stage ends.

    Args:
        pairs: antithetic pairs; each costs two runs.
        sigma: standard deviation of the perturbations, in the units of lam.
        seed: of the draws.

    Raises:
        HypergradientError: ``pairs`` is below 1, or ``sigma`` not positive.
    """

    pairs: int = 16
    sigma: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1 or not self.sigma > 0:
            raise HypergradientError(f"{self}: pairs must be at least 1, sigma positive")

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NonFiniteError: a run from a perturbed lam diverged.
        """
        names, asked = influential(stage, record, hparams)
        source = _generator(self.seed, record.end.step)
        total = tree.zeros_like(hparams)
        for _ in range(self.pairs):
            u = _normal(source, hparams)
            ahead, behind = (tree.axpy(c, u, hparams) for c in (self.sigma, -self.sigma))
            slope = tree.dot(_gap(stage, record, ahead, behind), cotangent) / (2 * self.sigma * self.pairs)
            total = {k: (x + slope * u[k]).to(x.dtype) for k, x in total.items()}
        return Pullback(
            hparams=stage.reduce(tree.select(total, names)),
            start=None,
            outcome=Outcome.APPROXIMATE,
            cost=Cost(gradients=2 * self.pairs * stage.steps + asked, kept_bytes=_first_bytes(stage, record)),
        )


def _gap(stage: Stage, record: Record, ahead: Tree, behind: Tree) -> Tree:
    """end(ahead) - end(behind), each run from the record's first state."""
    first = record.end.step - stage.steps
    if stage.steps and first not in record.states:
        raise HypergradientError("the record lacks the first state: run(..., tail=None) records what is needed")
    start = record.states[first] if stage.steps else record.end
    a, b = (run(stage, start, lam, tail=0).end.params for lam in (ahead, behind))
    return tree.sub(a, b)


def _first_bytes(stage: Stage, record: Record) -> int:
    first = record.states.get(record.end.step - stage.steps, record.end)
    return sum(map(tree.nbytes, [first.params, *first.slots.values()]))


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + step)


def _normal(source: torch.Generator, like: Tree) -> Tree:
    """Standard normal entries shaped as ``like``; the same numbers in every dtype, on every device, for every split
    into leaves."""
    flat = torch.randn(tree.size(like), generator=source, dtype=torch.float64)
    return {k: x.to(like[k]) for k, x in tree.unflatten(flat, like).items()}
