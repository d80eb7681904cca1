"""The weights of one network in one safetensors file, with their structure.

The tensors have the names of their paths, such as ``params/layers/0/kernel``; what is a
dict, a list or a tuple stands in the file's metadata, and so does the file's digest. No
pickle is ever loaded.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open

from jaxkd.arguments import checked
from jaxkd.files import replaced, write_tensors
from jaxkd.interop.checkpoint import on_host

STRUCTURE = "jaxkd.structure"
"""Where the metadata has the structure: JSON of ``["dict", {key: …}]``, ``["list",
[…]]``, ``["tuple", […]]`` and ``null`` for an array."""

SHA256 = "jaxkd.sha256"
"""Where it has the digest of the file, with zeros in place of the digest."""

ZEROS = "0" * 64


@checked()
def save_weights(path: str | Path, variables: PyTree) -> Path:
    """Write a network's variables to one file, such as ``student.safetensors``.

    The file is complete or absent. What it was trained with (the optimizer, the
    teacher) is not in it; `jaxkd.training.Checkpoints` keeps that.

    Args:
        path: of the file; one that is there is replaced.
        variables: nested dicts, lists and tuples of arrays and numbers, of any dtype.
            They may be spread over devices and processes.

    Returns:
        The path.

    Raises:
        ValueError: something else among them, or a key that cannot be part of a path.
        OSError: the file cannot be written.
    """
    path = Path(path)
    structure = _structure(variables, ())
    arrays = {
        name: np.asarray(on_host(leaf), order="C")
        for name, leaf in _leaves(structure, variables, ())
    }
    if not jax.process_index():
        metadata = {STRUCTURE: json.dumps(structure), SHA256: ZEROS}
        with replaced(path) as partial:
            write_tensors(arrays, partial, metadata)
            _, digest, place = _digests(partial)
            with partial.open("r+b") as file:
                file.seek(place)
                file.write(digest.encode())
    return path


@checked()
def load_weights(path: str | Path) -> PyTree:
    """Return the variables that `save_weights` has written.

    ``network.with_variables(jaxkd.load_weights(path))`` starts from them.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, damaged, or not of `save_weights`.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"path {path} is a folder, but save_weights writes one file: name it, or "
            "read a folder of transformers' with jaxkd.interop.load_pretrained"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        written, found, _ = _digests(path)
        if written != found:
            raise ValueError(
                f"{path} is damaged: it changed since it was saved. Save or fetch it "
                "again"
            )
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if STRUCTURE not in metadata:
                raise ValueError(
                    f"{path} has no structure of save_weights: read a folder of "
                    "transformers' with jaxkd.interop.load_pretrained"
                )
            structure = json.loads(metadata[STRUCTURE], object_pairs_hook=_unique)
            names = [name for name, _ in _leaves(structure, None, ())]
            if sorted(names) != sorted(file.keys()):
                raise ValueError(f"{path} has other tensors than its structure names")
            return _filled(structure, (jnp.asarray(file.get_tensor(n)) for n in names))
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): save or fetch it again"
        ) from None


def _digests(path: Path) -> tuple[str, str, int]:
    """Return the digest that a file has, the one it should have, and its place.

    The first two are "" for a file without one, as others write it.
    """
    with path.open("rb") as file:
        size = file.read(8)
        # What is no header is safetensors' to refuse.
        length = min(int.from_bytes(size, "little"), path.stat().st_size)
        header = file.read(length)
        key = f'"{SHA256}":"'.encode()
        place = header.find(key) + len(key)
        if place < len(key):
            return "", "", 0
        written = header[place : place + 64]
        total = hashlib.sha256(size + header[:place] + ZEROS.encode())
        total.update(header[place + 64 :])
        while part := file.read(2**20):
            total.update(part)
    return written.decode(errors="replace"), total.hexdigest(), 8 + place


def _structure(tree: Any, path: tuple[str, ...]) -> Any:
    """Return what is a dict, a list or a tuple, as JSON has it; None for an array."""
    if isinstance(tree, Mapping):
        items = [(_key(key, path), key) for key in tree]
        return ["dict", {k: _structure(tree[key], (*path, k)) for k, key in items}]
    if type(tree) in (list, tuple):
        parts = [_structure(x, (*path, str(i))) for i, x in enumerate(tree)]
        return [type(tree).__name__, parts]
    numbers = isinstance(tree, int | float | np.generic | np.ndarray | jax.Array)
    if numbers and not jnp.issubdtype(jnp.result_type(tree), jax.dtypes.prng_key):
        return None
    raise ValueError(
        f"{_name(path)} is a {type(tree).__name__}: weights are nested dicts, lists "
        "and tuples of arrays (of random keys save jax.random.key_data)"
    )


def _leaves(
    structure: Any, tree: Any, path: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    """Yield the name of every array, and the array if there is a tree.

    Raises:
        ValueError: what is no structure, as a damaged or hostile file may have it.
    """
    if structure is None:
        yield _name(path), tree
        return
    match structure:
        case ["dict", dict(parts)]:
            pairs = [(_key(key, path), part) for key, part in parts.items()]
        case ["list" | "tuple", list(parts)]:
            pairs = list(enumerate(parts))
        case _:
            raise ValueError(f"{_name(path)}: {structure!r:.80} is no structure")
    for key, part in pairs:
        own = None if tree is None else tree[key]
        yield from _leaves(part, own, (*path, str(key)))


def _filled(structure: Any, arrays: Iterator[Any]) -> PyTree:
    if structure is None:
        return next(arrays)
    kind, parts = structure
    if kind == "dict":
        return {key: _filled(part, arrays) for key, part in parts.items()}
    return {"list": list, "tuple": tuple}[kind](_filled(p, arrays) for p in parts)


def _key(key: Any, path: tuple[str, ...]) -> str:
    if not isinstance(key, str) or key in ("", ".", "..") or "/" in key:
        raise ValueError(
            f"{_name(path)} has the key {key!r}: keys of weights are texts without /, "
            "and not . or .."
        )
    return key


def _name(path: tuple[str, ...]) -> str:
    return "/".join(path) or "variables"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the keys {[key for key, _ in pairs]} are not all different")
    return found
