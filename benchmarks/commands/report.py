"""``hypergradbench report``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML page of what was measured: summary, figures, tables, failures and sources. It needs no network."""

    folders: Positional[tuple[Path, ...]]
    """Folders that `run`, `sweep`, `study`, `peers` or `advise` wrote (their --out)."""
    out: Path | None = None
    """The file to write (default: report.html in the folder, or here if there are several)."""


def report(command: Report) -> int:
    """`report`."""
    from analysis.report import write

    folders = command.folders
    out = command.out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if out.is_dir():
        print(
            f"hypergradbench: --out {out} is a folder: name a file in it, such as {out / 'report.html'}",
            file=sys.stderr,
        )
        return 2
    try:
        print(f"page: {write(folders, out)}")
    except FileNotFoundError as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 1
    return 0
