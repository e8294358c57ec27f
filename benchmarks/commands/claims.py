"""``hypergradbench claims``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional

from .study import STUDIES_OUT


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Write what studies found to the docs: claims.md, rules.md, and the figures under images/."""

    folder: Positional[Path] = STUDIES_OUT
    """Folder that `study` wrote (its --out)."""
    docs: Path = Path("docs")
    """Folder of the docs."""
    partial: Annotated[bool, FlagCreatePairsOff] = False
    """Write pages of the studies that have results, and of those alone."""


def claims(command: Claims) -> int:
    """`claims`."""
    from analysis import studies

    from ..studies import STUDIES

    for folder in (command.folder, command.docs):
        if not folder.is_dir():
            print(f"hypergradbench: there is no folder {folder}", file=sys.stderr)
            return 2
    found, damaged = studies.load_all(command.folder)
    for reason in damaged:
        print(f"hypergradbench: {reason}: left out", file=sys.stderr)
    if not found:
        print(f"hypergradbench: no results of studies in {command.folder}", file=sys.stderr)
        return 1
    other = [f.name for f in found if not f.content["defaults"]]
    if other:
        print(
            f"hypergradbench: {', '.join(other)}: not run at the default settings, for which the claims are worded; run "
            "`hypergradbench study` on them again, without --quick and --set",
            file=sys.stderr,
        )
        return 1
    if lost := sorted(STUDIES.keys() - {f.name for f in found}):
        if not command.partial:
            print(
                f"hypergradbench: no results of {', '.join(lost)} in {command.folder}, and nothing was written: run "
                f"`hypergradbench study {' '.join(lost)} --out {command.folder}`, or give --partial for pages without them",
                file=sys.stderr,
            )
            return 1
        print(f"hypergradbench: left out, for want of results: {', '.join(lost)}", file=sys.stderr)
    for path in studies.write_docs(found, command.docs):
        print(f"written: {path}")
    return 0
