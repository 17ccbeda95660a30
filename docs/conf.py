"""Sphinx settings."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

_metadata = configparser.ConfigParser(interpolation=None)
_metadata.read(REPOSITORY / "setup.cfg", encoding="utf-8")

project = "computemanager"
author = "The computemanager developers"
copyright = f"2026, {author}"
release = version = _metadata["metadata"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings say it in words
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_use_ivar = True
default_role = "py:obj"

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False

# Types are written in docstrings as people say them ('list of str', 'path'), and no inventory of other
# projects is fetched; so names that cannot be found here are no mistakes when they are one of these.
nitpick_ignore_regex = [
    (r"py:class", r"(applier|computemanager)(\.\w+)*\._\w+"),  # a private base class
    (r"py:(class|obj|data)", r"(?!applier|computemanager).*"),
    (r"py:exc", r"[A-Z][A-Za-z]*(Error|Exception|Warning|Interrupt|Exit)"),
]
