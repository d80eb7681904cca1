"""The shapes of arrays, as the annotations of a function's arguments name their axes.

Axes of one name have one size. Nothing else keeps (batch,) and (batch, 1) from being
broadcast to (batch, batch), whose mean is a number like any other.
"""

from collections.abc import Mapping
from typing import Any


def check_axes(
    axes: Mapping[str, tuple[Any, ...]],
    given: Mapping[str, Any],
    cause: Exception | None = None,
) -> None:
    """Refuse arrays whose axes or numbers are not those of their annotations.

    Args:
        axes: the array annotations of each argument, by ``function: argument``.
        given: the arguments; what is no array is passed over.
        cause: what else went wrong, if anything did.

    Raises:
        ValueError: it names the function, the argument, and what it has and must have.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for where, hints in axes.items():
        array: Any = given.get(where.rpartition(": ")[2])
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            continue
        shape, dtype = tuple(array.shape), str(array.dtype)
        kinds = [x for x in hints if _holds(x, dtype)]
        whole = all(map(_whole, hints))
        if not kinds and (whole or dtype.startswith("complex")):
            wanted = "integers" if whole else "real numbers"
            raise ValueError(f"{where} is {dtype}, but must be {wanted}") from cause
        kinds = kinds or list(hints)
        found = [_sizes(shape, x.dim_str.split(), sizes) for x in kinds]
        fitting = [x for x in found if x is not None]
        if not fitting:
            names = [axis.lstrip("*#") for axis in kinds[0].dim_str.split()]
            known = [
                f"{x} = {', '.join(map(str, sizes[x]))}" for x in names if x in sizes
            ]
            raise ValueError(
                f"{where} has shape {shape}, but must be ({', '.join(names)})"
                + (f" with {', '.join(known)}" if known else "")
            ) from cause
        sizes = fitting[0]


def _holds(hint: Any, dtype: str) -> bool:
    """Return whether an annotation is of a dtype; of unsigned integers if of others."""
    kinds = hint.dtypes
    return not isinstance(kinds, tuple) or dtype in kinds or dtype[1:] in kinds


def _whole(hint: Any) -> bool:
    kinds = hint.dtypes
    return isinstance(kinds, tuple) and "int32" in kinds and "float32" not in kinds


def _sizes(
    shape: tuple[Any, ...], axes: list[str], known: dict[str, Any]
) -> dict[str, Any] | None:
    """Return what is known of axes and these; None if they do not fit."""
    found = dict(known)
    several = sum(axis.startswith(("*", "...")) for axis in axes)
    more = len(shape) - len(axes)
    if more < -several or (more and not several):
        return None
    at = 0
    for axis in axes:
        here: Any = shape[at : at + 1]
        if axis.startswith(("*", "...")):
            here = shape[at : at + more + 1]
        at += len(here)
        name = axis.lstrip("*#")
        if name.isdigit():
            if here != (int(name),):
                return None
        elif "#" not in axis and name != "..." and found.setdefault(name, here) != here:
            return None
    return found
