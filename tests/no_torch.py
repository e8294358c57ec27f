"""A machine without torch, for scripts that a test runs."""

NO_TORCH = """\
import sys


class NoTorch:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, NoTorch)  # sys.modules["torch"] = None would be found there by scipy, which looks for it
"""
