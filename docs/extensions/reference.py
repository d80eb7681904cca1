"""The API reference: every module of the package, found at every build."""

import pkgutil
from pathlib import Path

from sphinx.application import Sphinx

import jaxkd

HEAD = """# API

Every public function and class, by module.
"""


def modules() -> list[tuple[str, bool]]:
    """Return the package's modules with something to document, and which are packages.

    An operation of `jaxkd.kernels` is documented whole, not the versions in its folder.
    """
    found = []
    for module in pkgutil.walk_packages(jaxkd.__path__, "jaxkd."):
        inside = module.name.count(".") > 2 and module.name.startswith("jaxkd.kernels.")
        if not inside:
            found.append((module.name, module.ispkg))
    return found


def write_reference(app: Sphinx) -> None:
    """Write the page into the source folder, where Sphinx reads it."""
    lines = [HEAD]
    for name, package in modules():
        lines.append(f"{'##' if name.count('.') == 1 else '###'} {name}\n")
        document = not package or name.startswith("jaxkd.kernels.")
        option = "" if document else "\n   :no-members:"
        lines.append(f"```{{eval-rst}}\n.. automodule:: {name}{option}\n```\n")
    (Path(app.srcdir) / "api.md").write_text("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_reference)
    return {"parallel_read_safe": True}
