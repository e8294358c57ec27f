#!/usr/bin/env python3
"""Everything from a bare Python: each command sets up .venv if needed, then runs.

    python3 do.py demo     the main job: run the estimators over the problems, and report
    python3 do.py studies  regenerate every claim, or those of the studies that are named
    python3 do.py test     the tests            (--speed also times the primitives)
    python3 do.py bench    the asv suites, each once, for the current commit
    python3 do.py check    ruff and mypy
    python3 do.py docs     the site, from docs/ into build/docs

Further arguments are passed on: `python3 do.py test -k cg`. Needs Python 3.11 or newer, with its venv module.
"""

# Standard library only, and syntax that Python 3.6 can parse: an old Python must live to say that it is too old.
import hashlib
import os
import shutil
import signal
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
STAMP = os.path.join(VENV, "hypergradbench.stamp")
LOG = os.path.join(VENV, "install.log")

LEVELS = ["", "test", "dev"]  # each extra holds the one before it
COMMANDS = {"demo": "", "studies": "", "test": "test", "bench": "dev", "check": "dev", "docs": "test"}


class Stop(Exception):
    """Ends the program with one line."""


def main(argv):
    """Run one command; returns the exit status."""
    try:
        check_python()
        if not argv or argv[0] not in COMMANDS:
            asked_for_help = bool(argv) and argv[0] in ("-h", "--help", "help")
            print(__doc__.strip(), file=sys.stdout if asked_for_help else sys.stderr)
            return 0 if asked_for_help else 2
        set_up(COMMANDS[argv[0]])
        return execute(argv[0], argv[1:])
    except Stop as stop:
        print("do.py: {}".format(stop), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("do.py: interrupted", file=sys.stderr)
        return 130


def check_python():
    if tuple(sys.version_info[:2]) < (3, 11):
        found = ".".join(str(n) for n in sys.version_info[:3])
        raise Stop(
            "Hypergradbench needs Python 3.11 or newer, this is {}: install one and run it as, say, "
            "`python3.11 do.py`".format(found)
        )


def digest():
    """What the environment was made from. The place counts too: an editable install points to it."""
    h = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as f:
            h.update(f.read() + b"\0")
    h.update("{} {}".format(ROOT, sys.version_info[:2]).encode())
    return h.hexdigest()


def installed():
    """The level that .venv is at, or None if it is missing, stale or half made."""
    try:
        with open(STAMP) as f:
            made_from, _, extra = f.read().partition(" ")
    except OSError:
        return None
    return extra if made_from == digest() and extra in LEVELS and os.path.exists(PYTHON) else None


def set_up(extra):
    """Make .venv and install the project with ``extra``, unless that was done."""
    level = installed()
    if level is not None and LEVELS.index(level) >= LEVELS.index(extra):
        return
    if os.path.exists(STAMP):
        os.remove(STAMP)  # whatever interrupts the installation leaves no valid stamp
    make_venv()
    target = ".[{}]".format(extra) if extra else "."
    print("do.py: installing {} into .venv (the first time takes a minute or two) ...".format(target), file=sys.stderr)
    install(["-c", "constraints.txt", "-e", target])
    with open(STAMP + ".new", "w") as f:
        f.write("{} {}".format(digest(), extra))
    os.replace(STAMP + ".new", STAMP)


def make_venv():
    """Make .venv, unless one with pip and of this Python is there."""
    probe = "import sys, pip; sys.exit(sys.version_info[:2] != {})".format(tuple(sys.version_info[:2]))
    if os.path.exists(PYTHON) and quiet([PYTHON, "-c", probe]) == 0:
        return
    hint = "install it (Debian, Ubuntu: apt install python3-venv) and run this again"
    if quiet([sys.executable, "-c", "import venv, ensurepip"]) != 0:
        raise Stop("this Python has no complete venv module: " + hint)
    if quiet([sys.executable, "-m", "venv", "--clear", VENV]) != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise Stop("`{} -m venv {}` failed; if its venv module is incomplete, {}".format(sys.executable, VENV, hint))


def quiet(command):
    return subprocess.call(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def install(arguments):
    """pip install, its output in a log."""
    with open(LOG, "w") as log:
        command = [PYTHON, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments]
        status = subprocess.call(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if status == 0:
        return
    with open(LOG, errors="replace") as log:
        errors = [line.strip() for line in log if line.strip().startswith("ERROR:")]
    reason = errors[-1][len("ERROR:") :].strip() if errors else "pip ended with status {}".format(status)
    raise Stop("pip could not install the packages (no network?): {} -- whole log: {}".format(reason, LOG))


def execute(command, arguments):
    """Run the command in .venv; returns its exit status."""
    if command == "demo":
        return call("-m", "benchmarks", "run", *arguments)
    if command == "studies":
        named = bool(arguments) and not arguments[0].startswith("-")
        return call("-m", "benchmarks", "study", *([] if named else ["--all"]), *arguments)
    if command == "test":
        # A test file runs in one process, files beside one another; what is timed runs alone.
        processes = 0 if "--speed" in arguments else min(4, os.cpu_count() or 1)
        given = ["--benchmark-enable" if a == "--speed" else a for a in arguments]
        return call("-m", "pytest", "-n{}".format(processes), "--dist=loadfile", *given)
    if command == "bench":
        git = ["git", "rev-parse", "HEAD"]
        try:
            commit = subprocess.check_output(git, cwd=ROOT, stderr=subprocess.DEVNULL).decode().strip()
        except (OSError, subprocess.CalledProcessError):
            raise Stop("asv stores results by commit: this needs git, and a clone rather than an archive") from None
        quiet([PYTHON, "-m", "asv", "machine", "--yes"])  # or the first run asks questions
        return call("-m", "asv", "run", "--python=same", "--quick", "--set-commit-hash", commit, *arguments)
    if command == "docs":
        site = os.path.join("build", "docs")
        sphinx = ["-m", "sphinx", "--builder", "html", "--fail-on-warning", "--keep-going", "--quiet"]
        status = call(*sphinx, "--doctree-dir", os.path.join("build", "doctrees"), *arguments, "docs", site)
        if status == 0:
            print("do.py: open {}".format(os.path.join(ROOT, site, "index.html")), file=sys.stderr)
        return status
    steps = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]]
    return max([call("-m", *step, *arguments) for step in steps])  # all of them, so that one run shows everything


def call(*arguments):
    env = dict(os.environ)
    env.setdefault("OMP_NUM_THREADS", "1")  # small tensors: more threads are slower, and noisier
    # Ctrl-C reaches the child as well, which has things to put in order: wait for it instead of killing it.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.call([PYTHON, *arguments], cwd=ROOT, env=env)
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
