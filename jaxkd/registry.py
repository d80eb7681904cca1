"""Registries that are read off the modules, so that no name is typed twice."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def constructors(
    namespace: Mapping[str, Any], kind: Any, besides: tuple[str, ...] = ()
) -> dict[str, Callable[..., Any]]:
    """Return a package's public functions that make a ``kind``, by name.

    Args:
        namespace: ``globals()`` of the package.
        kind: that they are annotated to return.
        besides: names that are no constructors of their own, as they take a ``kind``.
    """
    return {
        name: function
        for name, function in sorted(namespace.items())
        if inspect.isfunction(function)
        and not name.startswith("_")
        and name not in besides
        and inspect.unwrap(function).__annotations__.get("return") is kind
    }
