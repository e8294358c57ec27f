"""Equations as MathML, which browsers draw themselves: Sphinx's own renderers load MathJax, or need LaTeX."""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator


def _draw(translator: HTML5Translator, node: nodes.Element, block: bool) -> None:
    """Write ``node``'s TeX as MathML; what docutils cannot read is a warning, hence an error of the build."""
    tex = node.astext()
    try:
        translator.body.append(tex2mathml(tex, as_block=block))
    except MathError as error:
        logging.getLogger(__name__).warning("%s in the equation %r", error, tex, location=node)
    raise nodes.SkipNode


def _inline(translator: HTML5Translator, node: nodes.Element) -> None:
    _draw(translator, node, block=False)


def _block(translator: HTML5Translator, node: nodes.Element) -> None:
    _draw(translator, node, block=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
