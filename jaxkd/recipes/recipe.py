"""Recipes: what one job is made of, as a dataclass, as flags, and as a file of YAML."""

import dataclasses
import reprlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from jaxkd.arguments import Rule, checked, count, unknown_name
from jaxkd.data.sources import Examples
from jaxkd.training.optimizers import OptimizerConfig
from jaxkd.untrusted import read_bytes

LARGEST = 2**20
"""Bytes of a recipe's file."""


NUMBERS = {
    "steps": Rule("1 to 1,000,000,000", lambda steps: 1 <= steps <= 10**9),
    "seed": Rule("0 to 2,147,483,647", lambda seed: 0 <= seed < 2**31),
    **dict.fromkeys(("batch_size", "accumulate"), count),
    **dict.fromkeys(("evaluate_every", "checkpoint_every"), count),
    "epochs": Rule("above 0, at most 1,000,000", lambda epochs: 0 < epochs <= 10**6),
}
"""What the numbers of a recipe may be, for `checked` of every kind."""


@checked(**NUMBERS)
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every recipe has: a length, an optimizer, a machine, a place to write to.

    Attributes:
        to: folder to write; must not exist. What a stopped run goes on from is beside
            it, in TO.training.
        steps: updates of the weights; None for ``epochs``.
        epochs: passes over the data, where ``steps`` is None.
        batch_size: examples of an update.
        accumulate: parts in which a batch is worked through, in the memory of one.
        optimizer: and how its rate changes.
        compute: dtype that the networks compute in; weights and optimizer keep theirs.
        mesh: how the networks lie on the devices, a name of ``training.MESHES``.
        seed: of the order of the data and of whatever is drawn.
        evaluate_every: steps; None for ten times a run.
        checkpoint_every: steps; None for whenever it is evaluated.
        keep: which student is written, the ``best`` evaluated one or the ``last``.
        control: also train the student for as long without a teacher, to compare.
    """

    to: str | Path
    steps: int | None = None
    epochs: float = 3.0
    batch_size: int = 8
    accumulate: int = 1
    optimizer: OptimizerConfig = OptimizerConfig(
        "adamw", 1e-4, warmup=0.03, final=0.1, clip=1.0
    )
    compute: Literal["float32", "bfloat16"] = "float32"
    mesh: str = "one"
    seed: int = 0
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: Literal["best", "last"] = "best"
    control: bool = False

    def length_of(self, source: Examples) -> int:
        """Return the steps of a run over some examples.

        Raises:
            ValueError: there are fewer than a batch has.
        """
        if len(source) < self.batch_size:
            raise ValueError(
                f"batch_size is {self.batch_size}, but {source.name} makes "
                f"{len(source)} examples to train on: lower --batch-size, or give more "
                "data (texts make more rows of a smaller --length)"
            )
        return self.steps or max(1, round(self.epochs * len(source) / self.batch_size))


@checked()
def given[R: Recipe](
    kind: type[R], recipe: R | None, arguments: Mapping[str, Any]
) -> R:
    """Return the recipe that a call stands for.

    Args:
        kind: of recipe.
        recipe: to start from, or None.
        arguments: its fields by name; a field's own fields may be a dict.

    Raises:
        ValueError: a name that is no field, or a field that is missing.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in arguments:
        if name not in fields:
            raise ValueError(unknown_name("argument", name, fields))
    if recipe is not None:
        return dataclasses.replace(recipe, **arguments)
    missing = [name for name in required(kind) if name not in arguments]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given")
    return kind(**arguments)


@checked()
def required(kind: type) -> list[str]:
    """Return the fields of a dataclass that have no default."""
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
    ]


def plain(recipe: Any) -> Any:
    """Return a recipe, or a part of one, as YAML and JSON can hold it."""
    if dataclasses.is_dataclass(recipe):
        names = (field.name for field in dataclasses.fields(recipe))
        return {name: plain(getattr(recipe, name)) for name in names}
    if isinstance(recipe, Mapping):
        return {name: plain(value) for name, value in recipe.items()}
    if isinstance(recipe, tuple | list):
        return [plain(value) for value in recipe]
    return str(recipe) if isinstance(recipe, Path) else recipe


@checked()
def to_yaml(kind: str, recipe: Recipe) -> str:
    """Return a recipe as a file that ``jaxkd distill --config`` reads."""
    return yaml.safe_dump({"recipe": kind, **plain(recipe)}, sort_keys=False)


@checked()
def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return what a recipe's file says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no YAML, or holds no fields.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: `jaxkd distill text --print-config` writes one"
        )
    content = read_bytes(path, LARGEST)
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no fields of a recipe, such as `steps: 1000`")
    return found


@checked()
def as_flags(
    kind: type, values: Mapping[Any, Any], where: str, prefix: str = ""
) -> Iterator[str]:
    """Yield what a recipe's file says as the flags that say the same.

    Args:
        kind: the dataclass whose fields they are.
        values: by field; of a field that has fields, a mapping.
        where: the file, for messages.
        prefix: of the flags' names.

    Raises:
        ValueError: a name that is no field, or a value that no flag could have.
    """
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            valid = [prefix + field for field in hints]
            given = f"{prefix}{name}"  # YAML's keys may be numbers, too.
            raise ValueError(f"{where}: {unknown_name('field', given, valid)}")
        flag = f"{prefix}{name}".replace("_", "-")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{where}: {prefix}{name} has fields, got {_begin(value)}"
                )
            yield from as_flags(hints[name], value, where, f"{prefix}{name}.")
            continue
        if hints[name] is bool and isinstance(value, bool):
            owner, _, last = flag.rpartition(".")
            no = f"{owner}.no-{last}" if owner else f"no-{last}"
            yield f"--{flag if value else no}"
            continue
        parts = value if isinstance(value, list) else [value]
        if isinstance(value, Mapping):
            parts = [part for pair in value.items() for part in pair]
        if any(isinstance(part, list | dict) for part in parts):
            raise ValueError(f"{where}: {prefix}{name} is nested: {_begin(value)}")
        yield from (f"--{flag}", *map(str, parts))


def _begin(value: Any) -> str:
    """Return the beginning of a value: a few anchors make one that fills the memory."""
    return f"{reprlib.Repr(maxlevel=2).repr(value):.80}"
