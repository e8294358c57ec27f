"""Every command line that README and docs show is one that the command line understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from benchmarks import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = r"(?:\.venv/bin/)?hypergradbench "
SHOWN = re.compile(rf"^(?:    )?{STARTS}(?!\.)((?:.*\\\n)*.*)$|`{STARTS}([a-z][^`]*)`", re.M)


def shown() -> list[tuple[str, str]]:
    """(page, what follows the program's name), each command once."""
    found: dict[str, str] = {}
    for page in PAGES:
        for block, inline in SHOWN.findall(page.read_text(encoding="utf-8")):
            line = (block or inline).replace("\\\n", " ").replace("\n", " ")
            found.setdefault(re.sub(r"\s+", " ", re.sub(r"\s#.*", "", line)).strip(), page.name)
    return [(page, line) for line, page in found.items()]


def test_commands_are_found() -> None:
    assert len(shown()) > 40


def test_every_command_is_understood(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {name: (kind, lambda options: 0) for name, (kind, _) in cli.COMMANDS.items()})
    wrong = []
    for page, line in shown():
        words = shlex.split(line)
        if len(words) == 1 or (len(words) == 2 and words[1].startswith("--")):  # a mention in a sentence
            assert words[0] in cli.COMMANDS, f"{page}: there is no command {words[0]!r}"
            continue
        try:
            status = cli.main(words)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 2
        if status:
            wrong.append(f"{page}: hypergradbench {line}\n{capsys.readouterr().err[:600]}")
    assert not wrong, "\n".join(wrong)
