"""The site: `python3 do.py docs` builds it from these pages into build/docs, with warnings as errors.

All of it opens from a file, without a network: equations are MathML (extensions/mathml.py), and the theme brings its own
fonts, style and script.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [
    str(HERE / "extensions"),
    str(HERE.parent),
]  # this site's own extensions, and the library that they read

project = "Hypergradbench"
author = "The Hypergradbench authors"
project_copyright = author  # no year: the same sources make the same pages

extensions = ["myst_parser", "claims", "mathml", "outside"]
html_math_renderer = "mathml"
root_doc = "index"
exclude_patterns = ["images"]

# What GitHub renders of Markdown, and no more, so that every page reads there as well.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_ambiguous"]

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses where the site is opened as files
