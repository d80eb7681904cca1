"""How a checkpoint's state is compared, and what to do when one is not written."""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def check_state(state: PyTree) -> None:
    """Refuse what a checkpoint cannot hold.

    Raises:
        ValueError: it is a single array, holds none, or something that is none.
    """
    named = list(zip(array_paths(state), jax.tree.leaves(state), strict=True))
    for name, leaf in named or [("", None)]:
        if not name or not hasattr(leaf, "dtype"):
            raise ValueError(
                "a state to save or restore is a dict, list or other tree of arrays, "
                f"but {name or 'state'} is {leaf!r:.60}: give an array, in a dict if "
                "it is the only one"
            )


def array_paths(tree: PyTree) -> list[str]:
    """Return a name for each of a tree's leaves, such as ``student/params/bias``."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def without(tree: PyTree, paths: Sequence[str]) -> PyTree:
    """Return the tree with None for some of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    left_out = set(paths)
    kept = [
        None if path in left_out else leaf
        for path, leaf in zip(array_paths(tree), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, kept)


def changes(saved: Any, mine: Mapping[str, Any] | None) -> list[str]:
    """Return how settings differ from those that were saved, if there are both."""
    if saved is None or mine is None:
        return []
    return [
        f"{name} was {saved.get(name)!r}, is {mine.get(name)!r}"
        for name in sorted({*saved, *mine})
        # As text, in which NaN is NaN.
        if json.dumps(saved.get(name)) != json.dumps(mine.get(name))
    ]


def difference(saved: PyTree, like: PyTree) -> str:
    """Return the first difference in shape of a checkpoint from a state, or ``""``."""
    shapes = _shapes(saved), _shapes(like)
    for name in sorted({*shapes[0], *shapes[1]}):
        found, expected = (tree.get(name) for tree in shapes)
        # Keys are saved as the integers they are made of.
        if found != expected and not (found and expected == _KEY):
            return (
                f"{name} has shape {found} in the checkpoint and {expected} in this "
                "program (None: absent)"
            )
    return ""


_KEY = ("key",)


def _shapes(tree: PyTree) -> dict[str, tuple]:
    return {
        path: (
            _KEY
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else tuple(leaf.shape)
        )
        for path, leaf in zip(array_paths(tree), jax.tree.leaves(tree), strict=True)
        if hasattr(leaf, "shape")
    }


def first_cause(error: BaseException) -> BaseException:
    """Return the error that another one says was its cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def remedy(cause: BaseException, folder: Path) -> str:
    """Return what to do about a checkpoint that could not be written."""
    number, text = getattr(cause, "errno", None), str(cause)
    lost = isinstance(cause, (TimeoutError, jax.errors.JaxRuntimeError))
    if lost and jax.process_count() > 1:
        return (
            "Another process of this run has ended or hangs, and its log says why: "
            "start all of them again"
        )
    # tensorstore has no numbers, only what the system says of them.
    if number in _DENIED or any(os.strerror(n) in text for n in _DENIED):
        return "Allow writing there and start again"
    if number in _FULL or any(os.strerror(n) in text for n in _FULL):
        free = shutil.disk_usage(folder).free / 2**20
        return f"{free:,.0f} MiB are free there: make room and start again"
    return "Start again"


_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
