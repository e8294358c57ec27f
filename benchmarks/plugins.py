"""Modules that register estimators or problems before a sweep: how to measure your own without packaging it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

LOADED: list[str] = []
"""What was loaded here, for processes that this one starts."""


def load(plugins: Sequence[str]) -> None:
    """Import each, once.

    Args:
        plugins: module names, or paths ending in ``.py``.

    Raises:
        ImportError: there is no such module or file, or it fails; the message says how.
    """
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                load_file(Path(plugin).resolve())
            else:
                importlib.import_module(plugin)
        except ModuleNotFoundError:
            raise
        except Exception as error:
            raise ImportError(f"the plugin {plugin} fails: {type(error).__name__}: {error}") from error
        if plugin not in LOADED:
            LOADED.append(plugin)


def load_file(path: Path) -> ModuleType:
    """The module that ``path``, an absolute one, holds: imported once. It may import its neighbours.

    Raises:
        ModuleNotFoundError: there is no such file.
        Exception: whatever it raises.
    """
    name = f"hypergradbench_plugin_{path.stem}"
    while name in sys.modules:
        if sys.modules[name].__file__ == str(path):
            return sys.modules[name]
        name += "_"  # another folder's
    if not path.is_file():
        raise ModuleNotFoundError(f"no file {path.name} to load")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # it may import what lies beside it, as a script may
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
