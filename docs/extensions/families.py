"""The table of Hugging Face architectures, made from the families that read them."""

import importlib
import pkgutil
from pathlib import Path

from sphinx.application import Sphinx

from jaxkd.interop import families
from jaxkd.interop.families.base import Family

HEADER = ("models", "constructor", "architectures read", "written")
TABLE = "families.inc"


def rows() -> list[tuple[str, ...]]:
    """Return a family's row of the table each, under `HEADER`."""
    found = []
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        read = importlib.import_module(module.name)
        family = getattr(read, "FAMILY", None)
        if family is not None:
            models, _, _ = (read.__doc__ or "").partition(" of `jaxkd.")
            names = ", ".join(f"`{name}`" for name in family.architectures)
            always = family.writes is Family._field_defaults["writes"]
            written = "always" if always else "if transformers has it"
            found.append((models, f"`{family.model}`", names, written))
    return found


def table() -> str:
    """Return the table."""
    lines = [HEADER, ("---",) * len(HEADER), *sorted(rows(), key=lambda row: row[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_table(app: Sphinx) -> None:
    """Write the table into the source folder, where `models.md` includes it."""
    (Path(app.srcdir) / TABLE).write_text(table())


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_table)
    return {"parallel_read_safe": True}
