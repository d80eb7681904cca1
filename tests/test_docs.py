"""The documentation's promises: every module is in the reference, every page exists."""

import pkgutil
import re
from pathlib import Path

import jaxkd

DOCS = Path(__file__).parent.parent / "docs"
OPERATION = re.compile(r"jaxkd\.kernels\.\w+")


def test_every_module_is_in_the_reference():
    listed = re.findall(r"automodule:: (\S+)", (DOCS / "api.md").read_text())
    modules = [
        module.name
        for module in pkgutil.walk_packages(jaxkd.__path__, "jaxkd.")
        # An operation is documented whole, not the versions in its folder.
        if OPERATION.fullmatch(module.name)
        or not (module.ispkg or OPERATION.match(module.name))
    ]
    assert sorted(listed) == sorted(modules)


def test_every_page_is_in_the_table_of_contents():
    contents = re.search(r"{toctree}(.*?)```", (DOCS / "index.md").read_text(), re.S)
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    # The papers' pages are made when the site is built.
    assert pages | {"papers/index"} == set(contents[1].split()[2:])
