"""Other libraries beside this one: the same task at the same point through each one's own interface, a file each."""

from __future__ import annotations

from . import betty, higher, hypertorch, ours, torch_optim, torchopt
from .base import ABOUT, Case, Library, Method, Variant

__all__ = ["ABOUT", "LIBRARIES", "METHODS", "Case", "Library", "Method", "Variant", "contestants"]

LIBRARIES: dict[str, Library] = {
    library.LIBRARY.name: library.LIBRARY for library in (ours, torch_optim, torchopt, higher, hypertorch, betty)
}
"""name -> library, ours first."""

METHODS: tuple[Method, ...] = tuple(ABOUT)  # type: ignore[arg-type]


def contestants(method: str) -> list[tuple[Library, str, Variant]]:
    """(library, variant's name, how) of all that can do ``method``."""
    return [
        (library, name, how)
        for library in LIBRARIES.values()
        for (what, name), how in library.variants.items()
        if what == method
    ]
