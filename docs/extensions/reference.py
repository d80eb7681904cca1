"""The API reference: every module of the package, found at every build."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

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


def exports(name: str) -> list[str]:
    """Return directives for what a package has by ``import x as x``."""
    module = importlib.import_module(name)
    found = []
    for node in ast.parse(inspect.getsource(module)).body:
        for alias in node.names if isinstance(node, ast.ImportFrom) else []:
            if alias.asname == alias.name:
                value = getattr(module, alias.name)
                kind = "class" if inspect.isclass(value) else "function"
                found.append(f"\n.. auto{kind}:: {name}.{alias.name}")
    return found


def restore_docstring(app: Sphinx, what: str, name: str, obj: Any, *rest: Any) -> None:
    """Give a method's module its own docstring: it has that of its constructor."""
    if what == "module" and hasattr(obj, "__wrapped__"):
        own = ast.get_docstring(ast.parse(Path(obj.__file__).read_text())) or ""
        lines = rest[-1]
        lines[:] = own.split("\n")


def write_reference(app: Sphinx) -> None:
    """Write the page into the source folder, where Sphinx reads it."""
    lines = [HEAD]
    for name, package in modules():
        lines.append(f"{'##' if name.count('.') == 1 else '###'} {name}\n")
        kernel = name.startswith("jaxkd.kernels.")
        option = "\n   :no-members:" if package and not kernel else ""
        option += "".join(exports(name)) if kernel else ""
        lines.append(f"```{{eval-rst}}\n.. automodule:: {name}{option}\n```\n")
    (Path(app.srcdir) / "api.md").write_text("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", restore_docstring)
    return {"parallel_read_safe": True}
