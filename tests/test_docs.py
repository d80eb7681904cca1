"""The documentation's promises: every module is in the reference, every page exists."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def test_the_reference_finds_every_module():
    file = DOCS / "extensions" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", file)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    found = {name for name, package in reference.modules() if not package}
    package = DOCS.parent / "jaxkd"
    files = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.stem != "__init__" and path.parent.parent.name != "kernels"
    }
    assert files == found


def test_every_page_is_in_the_table_of_contents():
    contents = re.search(r"{toctree}(.*?)```", (DOCS / "index.md").read_text(), re.S)
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    # The reference and the papers' pages are made when the site is built.
    assert pages | {"api", "papers/index"} == set(contents[1].split()[2:])


def python_blocks(file):
    """Return the Python of a page, whose blocks go on from one another."""
    blocks = re.findall(
        r"```(?:python|\{code-cell\})\n(.*?)```", file.read_text(), re.S
    )
    return "\n".join(blocks)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(python_blocks(DOCS.parent / page), {"__name__": "__main__"})
