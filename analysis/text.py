"""Numbers as tables write them."""

from __future__ import annotations


def short(x: float) -> str:
    """Two or three digits, exponents only where needed."""
    if x == 0:
        return "0"
    if abs(x) < 1e-3 or abs(x) >= 1e5:
        return f"{x:.0e}"
    return f"{x:.0f}" if abs(x) >= 99.5 else f"{x:.2g}"
