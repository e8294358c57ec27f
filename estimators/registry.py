"""Every estimator by name, with what it claims. Registering is being listed, tested, measured and drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal, NamedTuple

from . import tree
from .baselines import Direct, Evolution, FiniteDifference, Plain, Random
from .errors import HypergradientError
from .estimator import Estimator
from .forward import Forward
from .greedy import Greedy
from .implicit import Implicit
from .influence import loss_hparams
from .multitask import MultiTask
from .one_step import SAMA, T1T2
from .problem import Problem
from .products import reverse_over_forward
from .solvers import CG, Dense, FixedPoint, Neumann, Nystrom
from .tartan import Tartan
from .unroll import Unroll

ENTRY_POINTS = "hypergradbench.estimators"

Estimators = Estimator | tuple[Estimator, ...]
"""One estimator for every stage, or one for each."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an estimator says of itself; the tests hold it to that.

    Attributes:
        of: what it estimates, in a few words, for tables.
        citation: its source.
        target: "run", the derivative of the steps taken; "optimum", of the inner optimum; "direction", neither: a
            direction whose error is reported only.
        exact: equal to its target to rounding (for "optimum": when the run has reached it).
        bias: what is left out when it is not exact.
        scale: "true", or "lr" if the answer carries an inner learning rate, or "1/H" if it lacks an inverse Hessian, or
            "none" if its length means nothing.
        degree: of homogeneity in the cotangent; 0 if the cotangent's length is divided out.
        stages: numbers of stages it handles, None for any.
        rule_hparams: sees hyperparameters that sit in the rule.
        rule_only: sees only those.
        tasks_only: sees only the weights of a `MultiTask`.
        control: no estimate, but what one must beat: nothing is asked of its error.
        max_hparams: most scalars of lam, None for any.
        max_params: most scalars of theta, None for any.
    """

    of: str
    citation: str
    target: Literal["run", "optimum", "direction"]
    exact: bool = False
    bias: str = ""
    scale: Literal["true", "lr", "1/H", "none"] = "true"
    degree: Literal[0, 1] = 1
    stages: tuple[int, ...] | None = (1,)
    rule_hparams: bool = False
    rule_only: bool = False
    tasks_only: bool = False
    control: bool = False
    max_hparams: int | None = None
    max_params: int | None = None

    def refuses(self, problem: Problem) -> str | None:
        """Why the estimator does not apply to ``problem``, or None if it does."""
        count = len(problem.stages)
        if self.stages is not None and count not in self.stages:
            return f"handles {' or '.join(map(str, self.stages))} stage(s), the problem has {count}"
        if not self.rule_hparams and any(s.rule_reads_hparams for s in problem.stages):
            return "cannot see hyperparameters that sit in the rule"
        if self.tasks_only and not all(isinstance(s.loss, MultiTask) for s in problem.stages):
            return "weighs tasks, and the loss is no MultiTask"
        params = problem.start if isinstance(problem.start, dict) else problem.start.params
        if self.rule_only:
            if not all(s.rule_reads_hparams for s in problem.stages):
                return "sees only hyperparameters that sit in the rule, and there are none"
            read = {k for s in problem.stages for k in loss_hparams(s, params, problem.hparams, 0)}
            if read:
                return f"sees only hyperparameters that sit in the rule, and the loss reads {sorted(read)}"
        limits = (("hyperparameters", problem.hparams, self.max_hparams), ("parameters", params, self.max_params))
        for what, a, most in limits:
            if most is not None and tree.size(a) > most:
                return f"takes at most {most} {what}, the problem has {tree.size(a)}"
        return None


class Entry(NamedTuple):
    """One line of the registry."""

    estimator: Estimators
    claim: Claim


class Registry(Mapping[str, Entry]):
    """name -> (estimator, claim), in order of registration; third parties' entry points are loaded on first look.

    An entry point of the group ``hypergradbench.estimators`` names an `Entry`; its name becomes the key.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._complete = False

    def register(self, name: str, estimator: Estimators, claim: Claim) -> None:
        """Add an estimator.

        Raises:
            HypergradientError: the name is taken, or the object is no estimator.
        """
        if name in self._entries:
            raise HypergradientError(f"an estimator called {name!r} is registered already: choose another name")
        for e in estimator if isinstance(estimator, tuple) else (estimator,):
            if not isinstance(e, Estimator):
                raise HypergradientError(f"{name!r}: {e!r} has no tail and pullback(stage, record, hparams, cotangent)")
        self._entries[name] = Entry(estimator, claim)

    def _load(self) -> None:
        if not self._complete:
            self._complete = True
            for point in entry_points(group=ENTRY_POINTS):
                try:
                    self.register(point.name, *point.load())
                except Exception as error:
                    warnings.warn(
                        f"the estimator {point.name!r} ({point.value}) could not be loaded and is left out: {error!r}",
                        stacklevel=3,
                    )

    def __getitem__(self, name: str) -> Entry:
        self._load()
        if name not in self._entries:
            raise KeyError(f"no estimator is called {name!r}; there are: {', '.join(self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._entries)

    def __len__(self) -> int:
        self._load()
        return len(self._entries)


registry = Registry()
"""The estimators of this library and of installed third parties."""

_GRAZZI = "Grazzi et al. 2020"
_RUN = "derivative of the steps taken"
_OPTIMUM = "derivative of the inner optimum"

registry.register(
    "unroll", Unroll(),
    Claim(of=_RUN, citation="Franceschi et al. 2017", target="run", exact=True, stages=None, rule_hparams=True),
)  # fmt: skip
registry.register(
    "unroll-truncated", Unroll(last=10),
    Claim(of="derivative of the last 10 steps", citation="Shaban et al. 2019", target="direction",
          bias="leaves out all earlier steps", rule_hparams=True),
)  # fmt: skip
registry.register(
    "unroll-checkpointed", Unroll(checkpoint=10),
    Claim(of=_RUN, citation="Griewank & Walther 2000", target="run", exact=True, stages=None, rule_hparams=True),
)  # fmt: skip
registry.register(
    "forward", Forward(),
    Claim(of=_RUN, citation="Franceschi et al. 2017", target="run", exact=True, rule_hparams=True, max_hparams=512),
)  # fmt: skip
registry.register(
    "dense", Implicit(Dense()),
    Claim(of=_OPTIMUM, citation="implicit function theorem", target="optimum", exact=True, max_params=4096),
)  # fmt: skip
registry.register(
    "cg", Implicit(CG(steps=60, rtol=1e-12)),
    Claim(of=_OPTIMUM, citation="Pedregosa 2016; Rajeswaran et al. 2019", target="optimum", exact=True),
)  # fmt: skip
registry.register(
    "neumann", Implicit(Neumann(steps=20)),
    Claim(of=_OPTIMUM, citation="Lorraine et al. 2020", target="direction",
          bias="(I - lr H)^21 H^-1 c: directions of low curvature are damped"),
)  # fmt: skip
registry.register(
    "adapted-neumann", Implicit(Neumann(steps=5), adapt=True),
    Claim(of="inverse Hessian by the adapted series: SAMA, continued", citation="Choe et al. 2023; Lorraine et al. 2020",
          target="direction", bias="H^-1 (I - a H D)^6 c, D the rule's adaptation"),
)  # fmt: skip
registry.register(
    "adapted-cg", Implicit(CG(steps=60, rtol=1e-12), adapt=True),
    Claim(of=_OPTIMUM, citation="CG preconditioned by SAMA's adaptation", target="optimum", exact=True),
)  # fmt: skip
registry.register(
    "fixed-point", Implicit(FixedPoint(steps=100)),
    Claim(of=_OPTIMUM, citation=f"Almeida 1987; {_GRAZZI}", target="direction",
          bias="(I - lr H)^100 H^-1 c: directions of low curvature are damped"),
)  # fmt: skip
registry.register(
    "nystrom", Implicit(Nystrom(rank=10, rho=0.1)),
    Claim(of=_OPTIMUM, citation="Hataya & Yamada 2023", target="direction",
          bias="c / rho outside the 10 sampled columns of H, and rho added inside"),
)  # fmt: skip
registry.register(
    "t1t2", T1T2(),
    Claim(of="derivative of the last step as gradient descent", citation="Luketina et al. 2016", target="direction",
          bias="leaves out all earlier steps", scale="lr"),
)  # fmt: skip
registry.register(
    "sama-na", SAMA(adapt=False, product=reverse_over_forward),
    Claim(of="inverse Hessian replaced by the identity", citation="Choe et al. 2023", target="direction",
          bias="curvature ignored", scale="1/H"),
)  # fmt: skip
registry.register(
    "sama", SAMA(),
    Claim(of="identity, adapted; product by central difference", citation="Choe et al. 2023", target="direction",
          bias="curvature ignored but for the rule's adaptation; O(alpha^2) of the difference", scale="lr"),
)  # fmt: skip
registry.register(
    "sama-exact", SAMA(product=reverse_over_forward),
    Claim(of="identity, adapted; exact product", citation="Choe et al. 2023, with an exact product", target="direction",
          bias="curvature ignored but for the rule's adaptation", scale="lr"),
)  # fmt: skip
registry.register(
    "composed", (Implicit(CG(steps=60, rtol=1e-12)), Unroll()),
    Claim(of="implicit pre-training, unrolled fine-tuning", citation="Raghu et al. 2021", target="optimum", exact=True,
          stages=(2,)),
)  # fmt: skip
registry.register(
    "greedy", Greedy(),
    Claim(of="derivative of the last update, by the rule's own hyperparameters", citation="Lichtarge et al. 2022; Baydin et al. 2018",
          target="direction", bias="leaves out all earlier steps", rule_hparams=True, rule_only=True),
)  # fmt: skip
registry.register(
    "finite-difference", FiniteDifference(),
    Claim(of="differences of whole runs, outer loss linearised at the end", citation="central differences", target="run",
          bias="O(step^2) of the difference and of the linearisation, and rounding", rule_hparams=True, max_hparams=64),
)  # fmt: skip
registry.register(
    "evolution", Evolution(pairs=4),
    Claim(of="derivative of the run smoothed over lam, outer loss linearised at the end",
          citation="Salimans et al. 2017; Metz et al. 2019",
          target="run", bias="squared error (n + 1) / 4 of n hyperparameters; O(sigma^2) of the smoothing",
          rule_hparams=True),
)  # fmt: skip
registry.register(
    "plain", Plain(),
    Claim(of="zero: plain training, no hyperparameter moves", citation="baseline", target="direction",
          bias="leaves out everything", scale="none", stages=None, rule_hparams=True, control=True),
)  # fmt: skip
registry.register(
    "direct", Direct(),
    Claim(of="the direct term alone", citation="baseline, sometimes called first-order", target="direction",
          bias="leaves out all that comes through the run", scale="none", stages=None, rule_hparams=True, control=True),
)  # fmt: skip
registry.register(
    "random", Random(),
    Claim(of="a random direction", citation="baseline", target="direction", bias="looks at no derivative", scale="none",
          rule_hparams=True, control=True),
)  # fmt: skip
registry.register(
    "tartan", Tartan(),
    Claim(of="cosine of each task's gradient with the outer one, over the shared body", citation="Dery et al. 2022",
          target="direction", bias="leaves out all earlier steps, the lengths of the gradients and the softmax",
          scale="none", degree=0, tasks_only=True),
)  # fmt: skip
registry.register(
    "tartan-dot", Tartan(cosine=False, body="all"),
    Claim(of="derivative of the last step as gradient descent, by the tasks' weights",
          citation="Dery et al. 2022, eq. 6", target="direction", bias="leaves out all earlier steps and the softmax",
          scale="lr", tasks_only=True),
)  # fmt: skip
