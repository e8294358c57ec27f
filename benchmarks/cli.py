"""The command line: ``hypergradbench run | sweep | advise | peers | show | study | ...``, or ``python -m benchmarks``.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union

import tyro
from tyro.conf import subcommand

from .commands.advise import Advise, advise
from .commands.again import Figures, again
from .commands.check import Check, check
from .commands.claims import Claims, claims
from .commands.compare import Compare, compare
from .commands.names import List, show_list
from .commands.new import New, new
from .commands.peers import Peers, peers
from .commands.report import Report, report
from .commands.run import Run, run
from .commands.show import Show, show
from .commands.study import Study, study
from .commands.sweep import Sweep, sweep
from .commands.table import Table, table

COMMANDS: dict[str, tuple[type, Callable[..., int]]] = {
    "run": (Run, run),
    "check": (Check, check),
    "new": (New, new),
    "sweep": (Sweep, sweep),
    "show": (Show, show),
    "advise": (Advise, advise),
    "study": (Study, study),
    "claims": (Claims, claims),
    "compare": (Compare, compare),
    "peers": (Peers, peers),
    "list": (List, show_list),
    "report": (Report, report),
    "table": (Table, table),
    "figures": (Figures, again),
}
"""name -> the dataclass of its options, and what is called with it. Some also take ``words``, those of the command line."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Troubles of a disk: no fault of the program's, whose traceback would tell nothing."""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Returns:
        Exit status: 0; 1 if a cell or a claim failed or there is nothing to show; 2 for a wrong command line; 130 interrupted.
    """
    args = sys.argv[1:] if args is None else list(args)
    each: Any = tuple(Annotated[options, subcommand(name)] for name, (options, _) in COMMANDS.items())
    command: Any = tyro.cli(
        Union[each],  # noqa: UP007
        prog="hypergradbench",
        description="A harness for hypergradient estimators.",
        args=args or ["--help"],
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    (act,) = [function for options, function in COMMANDS.values() if type(command) is options]
    try:
        return act(command, words=args) if "words" in inspect.signature(act).parameters else act(command)
    except KeyboardInterrupt:
        print("hypergradbench: interrupted; what is finished is kept, run again to go on", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"hypergradbench: {error}; what is finished is kept, run again to go on", file=sys.stderr)
        return 1
