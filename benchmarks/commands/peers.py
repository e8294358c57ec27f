"""``hypergradbench peers``: this library beside others, side by side."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from .again import show_results

PEERS_OUT = Path("results/peers")

DEFAULTS = {"mlp_reweighting": ("size=base",)}
"""Settings where none are given."""


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Compare with other libraries on one problem: error, time and exact peak bytes at equal work, in one interleaved run a method.

    Libraries that are not installed are rows that say so: pip install -e '.[peers]'. docs/peers.md says how each is called.
    """

    problem: Annotated[Positional[str], arg(metavar="PROBLEM")] = "mlp_reweighting"
    """A registered problem or workload of one stage, or your own: my_problem.py:make."""
    settings: Annotated[tuple[str, ...], arg(name="set", metavar="KEY=VALUE ...")] = ()
    """Settings of the problem."""
    method: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Of cg, neumann, unroll, unroll-adam, sama, run, run-adam."""
    steps: int = 10
    """Products of the implicit methods, steps of the others."""
    settle: int = 30
    """Steps of the problem's own training before the point."""
    lr: float | None = None
    """Learning rate of the inner SGD or Adam, and of the Neumann series (default: the problem's own, else 0.1 and 1e-3)."""
    seed: int = 0
    """Of the problem."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of what is compared. The reference is in float64."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    out: Path = PEERS_OUT
    """Folder for cells/, table.txt, summary.md and figures/."""
    budget: float = 2.0
    """Seconds of timing a contestant."""
    threads: int = 1
    """Of torch."""
    timeout: float = 600.0
    """Seconds after which a contestant is given up."""
    force: bool = False
    """Measure again what is there already."""


def peers(command: Peers) -> int:
    """`peers`."""
    begin = time.perf_counter()
    from analysis import peer_tables, results

    from ..cells import unwritable
    from ..isolated import Orders
    from ..plan import UnknownName
    from ..progress import Progress
    from ..sweep import sweep

    try:
        todo = _cells(command)
        if wrong := unwritable(command.out):
            raise UnknownName(f"--out: {wrong}")
    except (UnknownName, ImportError) as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    orders = Orders(
        out=command.out, force=command.force, timeout=command.timeout, threads=command.threads, per_process=1, together=True,
        effort={"budget": command.budget},
    )  # fmt: skip
    with Progress(len(todo)) as progress:
        counts = sweep(todo, orders, progress.report)
    ids = {c.id for c in todo}
    status = show_results(command.out, ids=ids, draw=True)
    (command.out / "summary.md").write_text("\n".join(peer_tables.summary(results.load(command.out, ids=ids))) + "\n")
    print(
        f"\n{len(todo)} contestants: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        + f". {time.perf_counter() - begin:.0f} s. Everything is in {command.out.resolve()}"
    )  # fmt: skip
    return status


def _cells(command: Peers) -> list[Any]:
    """One cell a contestant, those of a method beside each other.

    Raises:
        UnknownName, ImportError: there is no such problem, setting, method, device, or a number is out of its range.
    """
    from .. import own_problem
    from ..cells import Cell, code_version
    from ..devices import absent, misnamed
    from ..peer_cells import named
    from ..peers import METHODS, contestants
    from ..plan import UnknownName, known

    found = own_problem.find(command.problem)
    if not found.takes("dtype"):
        raise UnknownName(f"{command.problem} takes no dtype: give it one, since the reference is made in float64")
    settings = own_problem.settings(found, command.settings or DEFAULTS.get(command.problem, ()))
    methods = known(command.method, dict.fromkeys(METHODS), "method")
    if command.steps < 1 or command.settle < 1 or command.threads < 1 or min(command.timeout, command.budget) <= 0:
        raise UnknownName("--steps, --settle and --threads must be at least 1, --timeout and --budget positive")
    if command.lr is not None and command.lr <= 0:
        raise UnknownName(f"--lr {command.lr}: must be positive")
    if wrong := misnamed(command.device) or absent(command.device):
        raise UnknownName(f"--device: {wrong}")
    code = code_version(None, found.function, "peers")
    return [
        Cell(
            estimator=named(library.name, variant), problem=command.problem, settings=settings, seed=command.seed,
            dtype=command.dtype, device=command.device, kind="peers", built=f"{library.name} {library.version}", code=code,
            meta={"method": method, "steps": command.steps, "settle": command.settle, "lr": command.lr},
        )
        for method in methods
        for library, variant, _ in contestants(method)
    ]  # fmt: skip
