"""A figure as SVG that can stand in a page beside others: ids of its own, no rules for the whole page, colours that follow the theme."""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Collection
from xml.etree import ElementTree

from matplotlib.figure import Figure

from ..figures import METADATA

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
COLOR = re.compile(r"#([0-9a-fA-F]{6})\b")
REFERENCE = re.compile(r"url\(#([^)]*)\)")
DARK_PAPER = (0x16, 0x18, 0x1C)
READABLE = 3.0
"""Least contrast to the dark paper: what WCAG asks of graphical objects."""


def inline(figure: Figure, prefix: str, label: str) -> tuple[str, set[str]]:
    """``figure`` as an ``<svg>`` element.

    Text becomes outlines, so that it looks the same, and fits, where matplotlib's font is not installed.

    Args:
        figure: drawn under the style of the figures.
        prefix: begins every id: unique on the page.
        label: what readers who do not see it are told.

    Returns:
        The element, with every colour written ``var(--c-RRGGBB)`` unless the figure holds a map of colours, and these colours in
        small letters (see `theme`).
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=METADATA["svg"])
    root = ElementTree.fromstring(file.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):  # the style's rules are for `*`: see page.css
                parent.remove(child)
    _rename(root, prefix)
    colors: set[str] = set()
    if not mapped(root):
        root.set("fill", "#000000")  # matplotlib leaves black out, the default of what is filled
        for element in root.iter():
            for key in ("style", "fill", "stroke"):
                if (value := element.get(key)) is not None:
                    colors |= {c.lower() for c in COLOR.findall(value)}
                    element.set(key, COLOR.sub(lambda found: f"var(--c-{found[1].lower()})", value))
    root.set("role", "img")
    root.set("aria-label", label)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode"), colors


def mapped(root: ElementTree.Element) -> bool:
    """Whether colours stand for numbers (a heat map): these must not change with the theme."""
    return any(
        e.tag == f"{{{SVG}}}image" or (e.get("id") or "").startswith(("QuadMesh", "colorbar")) for e in root.iter()
    )


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Put ``prefix`` before every id and everything that refers to one."""
    for element in root.iter():
        if (own := element.get("id")) is not None:
            element.set("id", f"{prefix}-{own}")
        for key, value in element.attrib.items():
            if key in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
                element.set(key, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, REFERENCE.sub(rf"url(#{prefix}-\1)", value))


def theme(colors: Collection[str]) -> tuple[str, str]:
    """The declarations of the colours' variables, on white paper and on dark."""
    names = sorted(colors)
    light = " ".join(f"--c-{c}: #{c};" for c in names)
    return light, " ".join(f"--c-{c}: #{on_dark(c)};" for c in names)


def on_dark(color: str) -> str:
    """``color`` (RRGGBB) for dark paper: greys are mirrored, with white as the paper; others are lightened, so that what is told apart by
    its lightness still is, and until they can be seen."""
    rgb = tuple(int(color[i : i + 2], 16) for i in (0, 2, 4))
    if max(rgb) - min(rgb) <= 8:
        return _written(tuple(p + (238 - p) * (255 - x) / 255 for x, p in zip(rgb, DARK_PAPER, strict=True)))
    hue, lightness, saturation = colorsys.rgb_to_hls(*(x / 255 for x in rgb))
    lightness = 0.15 + 0.85 * lightness
    while contrast(found := _rgb(hue, lightness, saturation), DARK_PAPER) < READABLE and lightness < 1:
        lightness = min(1.0, lightness + 0.02)
    return _written(found)


def _rgb(hue: float, lightness: float, saturation: float) -> tuple[float, ...]:
    return tuple(255 * x for x in colorsys.hls_to_rgb(hue, lightness, saturation))


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """WCAG 2's ratio of two colours (0 to 255)."""
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def _luminance(rgb: tuple[float, ...]) -> float:
    linear = [x / 3294.6 if x <= 10.31475 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _written(rgb: tuple[float, ...]) -> str:
    return "".join(f"{round(x):02x}" for x in rgb)
