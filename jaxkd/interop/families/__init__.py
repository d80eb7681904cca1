"""The families of Hugging Face models that are read and written."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.interop.families.base import Family

FAMILIES: tuple[Family, ...] = tuple(
    importlib.import_module(f"{__name__}.{module.name}").FAMILY
    for module in pkgutil.iter_modules(__path__)
    if not module.name.endswith("base")
)
"""Of each constructor one at least, and a module each."""


@checked()
def family_reading(config: Mapping[str, Any]) -> Family:
    """Return the family of a ``config.json``.

    Raises:
        ValueError: none reads its architecture.
    """
    known = {name: family for family in FAMILIES for name in family.architectures}
    given = config["architectures"][0]
    if given not in known:
        raise ValueError(unknown_name("architecture", given, known))
    return known[given]


@checked()
def family_writing(
    model: str, arguments: Mapping[str, Any], architecture: str | None = None
) -> Family | None:
    """Return the family of a constructor, or None if transformers has no such model.

    Args:
        model: a name in `jaxkd.models.MODELS`.
        arguments: all of the constructor's.
        architecture: whose family goes before others that write the same arguments, as
            the folder that a network was read from names it.
    """
    families = [family for family in FAMILIES if family.model == model]
    families.sort(key=lambda family: architecture not in family.architectures)
    return next((family for family in families if family.writes(arguments)), None)
