"""What `torch.compile` gives the steps of a run (`Stage.first_order`): eager and compiled steps in turns, and the first call's cost.

python -m benchmarks.compiled mlp_decay --size base
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

from estimators.tree import detach

from .measure import interleaved
from .plain_loop import OurLoop
from .workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30.0, help="for the timing; compiling comes on top")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    args = parser.parse_args()
    workload = WORKLOADS[args.workload].make(size=args.size)
    pool = [workload.stage.stream(t) for t in range(args.steps)]
    eager = replace(workload.stage, steps=args.steps, stream=lambda t: pool[t % args.steps])
    compiled = replace(eager, first_order=torch.compile(eager.loss, backend=args.backend))
    hparams = detach(workload.problem.hparams)
    start = eager.initial(workload.problem.start, hparams)  # type: ignore[arg-type]
    loops = {"eager": OurLoop(eager, start, hparams), "compiled": OurLoop(compiled, start, hparams)}
    for name, loop in loops.items():
        begin = time.perf_counter()
        loop()
        print(f"{name:9} first {args.steps} steps: {time.perf_counter() - begin:.1f} s")
    for name, t in interleaved(loops, "eager", budget=args.seconds, clock=time.process_time).items():
        if isinstance(t, Exception):
            raise t
        low, high = t.ratio_interval or (float("nan"),) * 2
        print(f"{name:9} {1e3 * t.seconds / args.steps:8.3f} ms a step, {t.ratio:.3f} [{low:.3f}, {high:.3f}] of eager")


if __name__ == "__main__":
    main()
