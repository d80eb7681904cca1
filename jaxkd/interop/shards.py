"""Safetensors in one file or several: read slice by slice, written shard by shard.

Several are those that ``model.safetensors.index.json`` names, as Hugging Face writes
models too large for one. No pickle is ever loaded.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxkd.arguments import checked
from jaxkd.files import check_plain, inside, write_tensors
from jaxkd.untrusted import json_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@checked()
class Shards:
    """The tensors of a folder, known by their headers and read on demand.

    A file is open only while a slice of it is read, so the host holds no more than was
    asked for.

    Args:
        folder: with ``model.safetensors``, or an index and the shards that it names.
        only: the one file to read; None for those of a model.

    Attributes:
        folder: as given.
        files: their names.
        tensors: the shape and dtype of each, by its name.

    Raises:
        FileNotFoundError: there are no such files, or a shard is missing.
        ValueError: a file or the index is damaged, or they contradict each other.
    """

    def __init__(self, folder: Path, only: str | None = None):
        self.folder = folder
        self.tensors: dict[str, jax.ShapeDtypeStruct] = {}
        self._paths: dict[str, Path] = {}
        named = _read_index(folder) if only is None else None
        self.files = [only or WEIGHTS] if named is None else sorted({*named.values()})
        for path in [inside(folder, file, folder / INDEX) for file in self.files]:
            if not path.is_file():
                raise FileNotFoundError(_missing(path, named))
            with _opened(path) as file:
                check_plain([*file.keys()], f"the names of tensors in {path}")
                for name in file.keys():  # noqa: SIM118, it is no dict
                    found = file.get_slice(name)
                    empty = found[(slice(0, 0),) * len(found.get_shape())]
                    self.tensors[name] = jax.ShapeDtypeStruct(
                        found.get_shape(), empty.dtype
                    )
                    self._paths[name] = path
        for name, file in (named or {}).items():
            if self._paths.get(name) != folder / file:
                raise ValueError(
                    f"{folder / INDEX} says that {name} is in {file}, but it is not: "
                    "fetch the folder again"
                )

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Return a tensor, or the part of it that an index takes."""
        with _opened(self._paths[name]) as file:
            return np.asarray(file.get_slice(name)[index])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "np") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}): fetch or export it again"
        ) from None


def _read_index(folder: Path) -> dict[str, str] | None:
    """Return the file of each tensor, or None where one file has all."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        found = dict(json_file(path)["weight_map"])
        if not all(isinstance(file, str) for file in found.values()):
            raise ValueError("a file's name is no text")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error!r}): fetch the folder again"
        ) from None


def _missing(path: Path, named: Mapping[str, str] | None) -> str:
    if named is not None:
        return f"{path} is missing, which {INDEX} names: fetch it too"
    pickled = sorted(file.name for file in path.parent.glob("*.bin"))
    if not pickled and path.name != WEIGHTS:
        return f"{path} is missing: fetch the folder again"
    if not pickled:
        return f"{path} is missing, and so is {INDEX}: one of them holds the weights"
    return (
        f"{path} is missing. {pickled[0]} is a pickle, which may run any code and is "
        "not read: fetch the model's safetensors, or convert it where you trust it"
    )


@checked()
def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], np.ndarray],
    max_size: int,
) -> None:
    """Write tensors as one file, or as several with an index.

    Args:
        folder: is there.
        sizes: bytes of every tensor, by its name, in their order.
        read: returns a tensor by its name.
        max_size: bytes of a file's tensors; only a single tensor may be larger.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = [WEIGHTS]
    if len(shards) > 1:
        files = [
            f"model-{i:05}-of-{len(shards):05}.safetensors"
            for i in range(1, len(shards) + 1)
        ]
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {
                name: file
                for file, names in zip(files, shards, strict=True)
                for name in names
            },
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for file, names in zip(files, shards, strict=True):
        # The metadata tells transformers that the layouts are PyTorch's.
        arrays = {name: np.asarray(read(name), order="C") for name in names}
        write_tensors(arrays, folder / file, {"format": "pt"})
