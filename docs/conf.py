"""Sphinx configuration: MyST pages, executed notebooks, API from docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "jaxkd"
author = "The jaxkd authors"
copyright = "2026, the jaxkd authors"
extensions = [
    "families",
    "myst_nb",
    "papers",
    "reference",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "sphinx_book_theme"
html_title = "jaxkd"
exclude_patterns = ["_build", "jupyter_execute"]
default_role = "code"
napoleon_use_ivar = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
