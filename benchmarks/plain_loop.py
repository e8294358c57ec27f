"""`run` that records nothing, beside the loop that one would write with `torch.optim`: the same losses, batches and start.

python -m benchmarks.plain_loop mlp_reweighting bert_noisy --size tiny
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from estimators import SGD, Adagrad, Adam, AdamW, AMSGrad, Momentum, NAdam, RAdam, RMSprop, Stage, State, Tree, run
from estimators.rules import AnyRule
from estimators.tree import detach

from .measure import Category, Timing, interleaved, peak
from .meta_step import copied
from .workloads import WORKLOADS, Workload

OURS = "run"

Make = Callable[..., torch.optim.Optimizer]

PAIRS: dict[str, tuple[AnyRule, Make]] = {
    "sgd": (SGD(lr=1e-3), lambda x, **how: torch.optim.SGD(x, lr=1e-3, **how)),
    "momentum": (Momentum(lr=1e-3), lambda x, **how: torch.optim.SGD(x, lr=1e-3, momentum=0.9, **how)),
    "adam": (Adam(), torch.optim.Adam),
    "adamw": (AdamW(), torch.optim.AdamW),
    "amsgrad": (AMSGrad(), lambda x, **how: torch.optim.Adam(x, amsgrad=True, **how)),
    "adagrad": (Adagrad(), torch.optim.Adagrad),
    "rmsprop": (RMSprop(), torch.optim.RMSprop),
    "nadam": (NAdam(), torch.optim.NAdam),
    "radam": (RAdam(), torch.optim.RAdam),
}
"""Rules, and the same in `torch.optim`."""

VARIANTS: dict[str, dict[str, bool]] = {
    "torch.optim": {}, "torch.optim, foreach": {"foreach": True}, "torch.optim, fused": {"fused": True},
}  # fmt: skip


class OurLoop:
    """``stage.steps`` steps by `run`; every call goes on from the last, and holds nothing else."""

    def __init__(self, stage: Stage, start: State, hparams: Tree) -> None:
        self.stage, self.hparams, self._held = stage, hparams, [copied(start)]

    @property
    def resident(self) -> dict[Category, Any]:
        return {"parameters": self._held[0].params, "slots": self._held[0].slots}

    def __call__(self) -> None:
        record = run(self.stage, self._held.pop(), self.hparams, tail=0, donate=True)
        self._held.append(record.end)


class TorchLoop:
    """The same steps as a training script has them."""

    def __init__(self, stage: Stage, start: State, hparams: Tree, make: Make, **how: bool) -> None:
        self.stage, self.hparams, self._step = stage, hparams, start.step
        self.params = {k: x.detach().clone().requires_grad_(k not in stage.frozen) for k, x in start.params.items()}
        self.optimizer = make([x for x in self.params.values() if x.requires_grad], **how)

    @property
    def resident(self) -> dict[Category, Any]:
        return {"parameters": self.params, "slots": self.optimizer.state}

    def __call__(self) -> None:
        for _ in range(self.stage.steps):
            self.stage.loss(self.params, self.hparams, self.stage.stream(self._step)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._step += 1


def loops(workload: Workload, rule: str, steps: int | None = None) -> dict[str, OurLoop | TorchLoop]:
    """`run`, and the loop by every variant of the optimizer that there is, after a first call, so that all have slots.

    Args:
        workload: whose losses, start and batches are used; the batches are made beforehand, and come again.
        rule: a key of `PAIRS`.
        steps: a call; the workload's unroll length if None.
    """
    ours, make = PAIRS[rule]
    length = workload.stage.steps if steps is None else steps
    pool = [workload.stage.stream(t) for t in range(length)]
    stage = replace(workload.stage, rule=ours, steps=length, stream=lambda t: pool[t % length])
    hparams, first = detach(workload.problem.hparams), workload.problem.start
    start = first if isinstance(first, State) else stage.initial(first, hparams)
    found: dict[str, OurLoop | TorchLoop] = {OURS: OurLoop(stage, start, hparams)}
    for name, how in VARIANTS.items():
        try:
            found[name] = TorchLoop(stage, start, hparams, make, **how)
        except TypeError:  # it has no such variant
            continue
    for loop in found.values():
        loop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--rules", nargs="+", choices=PAIRS, default=["sgd", "momentum", "adam", "adamw"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each rule")
    args = parser.parse_args()
    workload = WORKLOADS[args.workload].make(size=args.size)
    for rule in args.rules:
        works = loops(workload, rule, args.steps)
        peaks = {name: peak(work, work.resident).peak for name, work in works.items()}
        best = next(name for name in reversed(VARIANTS) if name in works)
        times = interleaved(works, best, budget=args.seconds, width=0.005, clock=time.process_time)
        for name, t in times.items():
            if isinstance(t, Exception):
                raise t
            print(
                f"{rule:9} {name:22} {1e3 * t.seconds / args.steps:8.3f} ms a step, {t.ratio:.3f} {_interval(t)} of {best}; "
                f"{peaks[name]:>12} bytes, {peaks[name] / peaks[best]:.4f}"
            )


def _interval(t: Timing) -> str:
    return "" if t.ratio_interval is None else "[{:.3f}, {:.3f}]".format(*t.ratio_interval)


if __name__ == "__main__":
    main()
