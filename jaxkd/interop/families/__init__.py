"""The families of Hugging Face models that are read and written."""

from collections.abc import Mapping
from typing import Any

from jaxkd.checks import unknown_name
from jaxkd.interop.families import bert, clip, gpt2, llama, mamba2, resnet, t5, vit
from jaxkd.interop.families.base import Family

FAMILIES: tuple[Family, ...] = (
    bert.FAMILY,
    clip.FAMILY,
    gpt2.FAMILY,
    llama.FAMILY,
    mamba2.FAMILY,
    resnet.FAMILY,
    t5.FAMILY,
    vit.FAMILY,
)
"""One for each constructor."""


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


def family_writing(model: str, arguments: Mapping[str, Any]) -> Family | None:
    """Return the family of a constructor, or None if transformers has no such model.

    Args:
        model: a name in `jaxkd.models.MODELS`.
        arguments: all of the constructor's.
    """
    families = (family for family in FAMILIES if family.model == model)
    return next((family for family in families if family.writes(arguments)), None)
