"""``jaxkd distill``: a recipe from flags and a file, carried out."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from jaxkd.arguments import checked, unknown_name
from jaxkd.recipes.images import ImagesRecipe, distill_images
from jaxkd.recipes.recipe import Recipe, as_flags, read_yaml, required, to_yaml
from jaxkd.recipes.text import TextRecipe, distill_text

RECIPES: dict[str, tuple[type[Recipe], Callable[..., Any]]] = {
    "text": (TextRecipe, distill_text),
    "images": (ImagesRecipe, distill_images),
}
"""What can be distilled: the arguments of each, and the call that takes them."""

Words = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="|".join(RECIPES), help_behavior_hint=""),
]


@checked()
def distill(words: Words) -> int:
    """Distil your model on your data: `jaxkd distill text --help` has all flags.

    With --config FILE the recipe comes from a file of YAML, and flags change it;
    --print-config prints such a file and trains nothing.

    Args:
        words: what to distil, and the flags of that recipe.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--print-config", action="store_true")
    own, rest = parser.parse_known_args(words)
    said = {} if own.config is None else read_yaml(own.config)
    kind = said.pop("recipe", None)
    if rest and not rest[0].startswith("-"):
        kind = rest.pop(0)
    if not isinstance(kind, str) or kind not in RECIPES:
        raise ValueError(
            f"{unknown_name('recipe', str(kind), RECIPES)}. Say it as in `jaxkd "
            "distill text …`, or by `recipe: text` in the file"
        )
    fields, carry_out = RECIPES[kind]
    flags = [*as_flags(fields, said, str(own.config)), *rest]
    if own.print_config:
        missing = {name: name.upper() for name in required(fields) if name not in said}
        flags = [*as_flags(fields, missing, ""), *flags]
    recipe = tyro.cli(
        fields,
        args=flags,
        prog=f"jaxkd distill {kind}",
        description=(inspect.getdoc(carry_out) or "").partition("\n\nArgs:")[0],
    )
    if own.print_config:
        print(to_yaml(kind, recipe), end="")
        return 0
    carry_out(recipe, console=Console())
    return 0


@checked()
def distill_command(words: Sequence[str]) -> int:
    """Return the exit status of ``jaxkd distill`` with these words."""
    if not words or words[0] in ("-h", "--help"):
        tyro.cli(distill, args=["--help"], prog="jaxkd distill")
    return distill(tuple(words))
