"""How a network knows what it is: its constructor's name and arguments."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace

from jaxkd.arguments import checked
from jaxkd.network import Network


@checked()
def recorded[**Arguments](
    constructor: Callable[Arguments, Network],
) -> Callable[Arguments, Network]:
    """Return the constructor with its name and arguments kept in ``Network.spec``.

    An argument ``vocabulary`` is kept as ``Network.vocabulary`` too.

    Args:
        constructor: one of `jaxkd.models.MODELS`, whose name there is its own.
    """
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Network:
        network = constructor(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return replace(
            network,
            spec=(constructor.__name__, bound.arguments),
            vocabulary=bound.arguments.get("vocabulary"),
        )

    return build
