"""Beartype at a function's first call: decorating all of them takes seconds."""

import functools
from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, its arguments checked by beartype."""

    @functools.cache
    def made() -> Callable[..., Any]:
        return beartype(function)

    return functools.wraps(function)(lambda *args, **kwargs: made()(*args, **kwargs))
