"""``hypergradbench study``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

STUDIES_OUT = Path("results/studies")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Regenerate claims of the papers, or of ours: run studies, print what they show, save results and figures."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...", help_behavior_hint="(or --all)")] = ()
    """Studies; see `hypergradbench list`."""
    every: Annotated[bool, arg(name="all"), FlagCreatePairsOff] = False
    """All of them."""
    out: Path = STUDIES_OUT
    """Folder for one JSON file a study and figures/."""
    quick: Annotated[bool, FlagCreatePairsOff] = False
    """A few seconds each, to see that they run: thresholds are not meant for this."""
    settings: Annotated[tuple[str, ...], arg(name="set", metavar="KEY=VALUE ...")] = ()
    """Settings of the study, in place of its defaults; an unknown one shows all. Tuples as `seeds=0,1`."""


def study(command: Study) -> int:
    """`study`."""
    from analysis import figures, studies

    from ..listing import plain_console
    from ..plan import UnknownName, known
    from ..studies import STUDIES
    from ..studies.execute import execute, result_file

    try:
        if command.every == bool(command.names):
            raise UnknownName(f"name studies, or give --all; there are: {', '.join(STUDIES)}")
        if command.settings and len(command.names) != 1:
            raise UnknownName("--set is for one study at a time: name it")
        if command.out.exists() and not command.out.is_dir():
            raise UnknownName(f"--out {command.out} is a file: name a folder")
        names = known(command.names, STUDIES, "study")
        chosen = {name: STUDIES[name].settings(command.settings, quick=command.quick) for name in names}
    except ValueError as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    console, status = plain_console(), 0
    for name, settings in chosen.items():
        print(f"{name} ...", file=sys.stderr)
        execute(name, STUDIES[name], settings, command.out)
        found = studies.load(result_file(command.out, name))
        studies.show(found, console)
        if not found.ok or (found.content["defaults"] and not all(c["holds"] for c in found.claims)):
            status = 1
        try:
            drawn = figures.draw_study(name, found.rows, command.out / "figures") if found.ok else []
        except Exception as error:  # the numbers are saved, and the other studies wait
            print(f"hypergradbench: no figure of {name}: {type(error).__name__}: {error}", file=sys.stderr)
            drawn, status = [], 1
        for path in drawn:
            print(f"figure: {path}")
    return status
