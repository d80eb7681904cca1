"""How a network knows what it is: its constructor's name and arguments."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from jaxkd.arguments import checked
from jaxkd.network import Network

SIZES = (
    *("branches", "buckets", "cells", "channels", "channels_in", "classes", "context"),
    *("decoder_layers", "depth", "embedding_width", "features", "groups"),
    *("head_channels", "head_dim", "heads", "hidden", "image_size", "kv_heads"),
    *("layers", "mlp_ratio", "patch_size", "positions", "size", "state_size"),
    *("vocabulary", "width", "window"),
)
"""Arguments that no network has 0 of, unless that is their default."""


@checked()
def recorded[**Arguments](
    constructor: Callable[Arguments, Network],
) -> Callable[Arguments, Network]:
    """Return the constructor with its name and arguments kept in ``Network.spec``.

    An argument ``vocabulary`` is kept as ``Network.vocabulary`` too.

    Args:
        constructor: one of `jaxkd.models.MODELS`, whose name there is its own.

    Raises:
        ValueError: from the constructor, a size of 0.
    """
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Network:
        given = signature.bind_partial(*args, **kwargs).arguments
        for name in SIZES:
            zero = type(given.get(name)) is int and given[name] == 0
            if zero and signature.parameters[name].default != 0:
                raise ValueError(
                    f"{constructor.__name__}: {name} must be at least 1, got 0"
                )
        network = constructor(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return replace(
            network,
            spec=(constructor.__name__, bound.arguments),
            vocabulary=bound.arguments.get("vocabulary"),
        )

    return build


@checked()
def as_record(value: Any, kind: Any) -> Any:
    """Return a record, made of its fields if these are given, as JSON has records.

    Args:
        value: a record, its fields in a dict, or anything else, which is returned.
        kind: the dataclass, or a union of some, of which the fields must tell one. Its
            fields may be records too.

    Raises:
        ValueError: no dataclass has such fields, or several have them.
    """
    if not isinstance(value, Mapping):
        return value
    kinds: list[Any] = [k for k in get_args(kind) or (kind,) if is_dataclass(k)]
    names = {k: [field.name for field in fields(k)] for k in kinds}
    fitting = [k for k in kinds if set(value) <= {*names[k]}]
    meant = [k for k in fitting if set(value) == {*names[k]}] or fitting
    if len(meant) != 1:
        raise ValueError(
            f"{dict(value)!r:.200} are the fields of {len(meant)} of "
            f"{', '.join(f'{k.__name__}({", ".join(names[k])})' for k in kinds)}: give "
            "all fields of one"
        )
    hints = get_type_hints(meant[0])
    own = {name: as_record(part, hints[name]) for name, part in value.items()}
    return meant[0](**own)
