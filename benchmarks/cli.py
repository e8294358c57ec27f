"""The command line: ``hypergradbench run | sweep | advise | peers | show | study | ...``, or ``python -m benchmarks``.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from tyro.conf import subcommand

from .commands.advise import Advise, advise
from .commands.again import Figures, Table, again
from .commands.claims import Claims, claims
from .commands.names import List, show_list
from .commands.peers import Peers, peers
from .commands.run import Run, run
from .commands.show import Show, show
from .commands.study import Study, study
from .commands.sweep import Sweep, sweep

Command = (
    Annotated[Run, subcommand("run")]
    | Annotated[Sweep, subcommand("sweep")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Advise, subcommand("advise")]
    | Annotated[Study, subcommand("study")]
    | Annotated[Claims, subcommand("claims")]
    | Annotated[Peers, subcommand("peers")]
    | Annotated[List, subcommand("list")]
    | Annotated[Table, subcommand("table")]
    | Annotated[Figures, subcommand("figures")]
)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Troubles of a disk: no fault of the program's, whose traceback would tell nothing."""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Returns:
        Exit status: 0; 1 if a cell or a claim failed or there is nothing to show; 2 for a wrong command line; 130 interrupted.
    """
    args = sys.argv[1:] if args is None else list(args)
    command = tyro.cli(
        Command,
        prog="hypergradbench",
        description="A harness for hypergradient estimators.",
        args=args or ["--help"],
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    try:
        if isinstance(command, Run):
            return run(command)
        if isinstance(command, Sweep):
            return sweep(command, args)
        if isinstance(command, Show):
            return show(command)
        if isinstance(command, Advise):
            return advise(command, args)
        if isinstance(command, Study):
            return study(command)
        if isinstance(command, Claims):
            return claims(command)
        if isinstance(command, Peers):
            return peers(command)
        if isinstance(command, List):
            return show_list(command)
        return again(command)
    except KeyboardInterrupt:
        print("hypergradbench: interrupted; what is finished is kept, run again to go on", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"hypergradbench: {error}; what is finished is kept, run again to go on", file=sys.stderr)
        return 1
