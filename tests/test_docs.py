"""The documentation's promises: every module is in the reference, every page exists."""

import pkgutil
import re
from pathlib import Path

import jaxkd

DOCS = Path(__file__).parent.parent / "docs"


def test_every_module_is_in_the_reference():
    listed = re.findall(r"automodule:: (\S+)", (DOCS / "api.md").read_text())
    modules = [
        module.name
        for module in pkgutil.walk_packages(jaxkd.__path__, "jaxkd.")
        if not module.ispkg
    ]
    assert sorted(listed) == sorted(modules)


def test_every_page_is_in_the_table_of_contents():
    contents = re.search(r"{toctree}(.*?)```", (DOCS / "index.md").read_text(), re.S)
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    # The papers' pages are made when the site is built.
    assert pages | {"papers/index"} == set(contents[1].split()[2:])
