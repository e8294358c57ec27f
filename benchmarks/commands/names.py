"""``hypergradbench list``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class List:
    """Show estimators, problems, rules, solvers and studies, one line and the citation of each."""

    plugins: Annotated[tuple[str, ...], arg(metavar="MODULE ...", help_behavior_hint="(default: none)")] = ()
    """Modules or .py files that register further estimators or problems."""


def show_list(command: List) -> int:
    """`list`."""
    from ..listing import show
    from ..plugins import load

    try:
        load(command.plugins)
    except ImportError as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    show()
    return 0
