"""What a family of Hugging Face models is: its config, and where its tensors go.

A family is data and small functions, so that reading, placing on a mesh, checking and
writing are done once for all of them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from jaxkd.arguments import checked

LINEAR = "outputs inputs -> inputs outputs"
"""The layout of a PyTorch linear layer's weight, which is our kernel transposed."""

_AXIS = re.compile(r"\([^)]*\)|\S+")

Place = tuple[slice, ...]
"""A part of an array: a slice, with start and stop, of each axis."""


class Source(NamedTuple):
    """The tensors of a checkpoint that make up one of our arrays.

    Attributes:
        names: of tensors that lie side by side along ``axis``, all of one width, such
            as queries, keys and values. With ``layers`` they have ``{}`` for a layer's
            number, with ``experts`` another for an expert's.
        layout: how einops brings a tensor to ours, such as `LINEAR`; as it is if empty.
        layers: how many are stacked along our first axis; None for no such axis.
        share: (which, of how many) parts along our last axis a tensor has of which
            only one is ours, such as the keys of queries, keys and values. They are
            counted in widths of ours: a fraction, where others are narrower.
        sizes: of the axes that the layout splits or joins.
        axis: of ours, counted from the last.
        first: number of the first of the ``layers``.
        experts: of a layer, each in tensors of its own, stacked along our next axis;
            None for no such axis.
    """

    names: tuple[str, ...]
    layout: str = ""
    layers: int | None = None
    share: tuple[int, int | Fraction] = (0, 1)
    sizes: Mapping[str, int] = MappingProxyType({})
    axis: int = -1
    first: int = 0
    experts: int | None = None

    @property
    def stacked(self) -> int:
        """How many of our first axes count tensors."""
        return sum(size is not None for size in (self.layers, self.experts))

    def places(self, shape: Sequence[int]) -> dict[str, Place]:
        """Return where in our array of that shape each tensor lies, by its name."""
        found = {}
        counted = [size for size in (self.layers, self.experts) if size is not None]
        for numbers in np.ndindex(*counted):
            for i, name in enumerate(self.names):
                place = [slice(0, size) for size in shape]
                place[: len(numbers)] = [slice(n, n + 1) for n in numbers]
                if len(self.names) > 1:
                    width = shape[self.axis] // len(self.names)
                    place[self.axis] = slice(i * width, (i + 1) * width)
                layer, *expert = numbers or (0,)
                found[name.format(self.first + layer, *expert)] = tuple(place)
        return found

    def theirs(self, parts: Sequence[Any]) -> Any:
        """Return a tensor from the pieces of our arrays that share it, in order."""
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        whole = whole[(0,) * self.stacked + (...,)]
        if not self.layout:
            return whole
        theirs, ours = self.layout.split("->")
        return rearrange(whole, f"{ours}->{theirs}", **self.sizes)

    def read(
        self,
        part: Place,
        shape: Sequence[int],
        dtype: np.dtype,
        tensor: Callable[[str, Any], np.ndarray],
    ) -> np.ndarray:
        """Return a part of our array, reading no more than it needs.

        Args:
            part: of our array.
            shape: of our array.
            dtype: of the result.
            tensor: ``(name, index) -> part of that tensor``.
        """
        found = np.empty([at.stop - at.start for at in part], dtype)
        for name, place in self.places(shape).items():
            both = [
                slice(max(at.start, own.start), min(at.stop, own.stop))
                for at, own in zip(part, place, strict=True)
            ]
            if all(at.start < at.stop for at in both):
                own = _shifted(both, place)
                if self.share[0]:
                    start = self.share[0] * shape[-1]
                    last = slice(start + own[-1].start, start + own[-1].stop)
                    own = (*own[:-1], last)
                own = own[self.stacked :]
                found[_shifted(both, part)] = self._piece(name, own, tensor)
        return found

    def _piece(self, name: str, index: Place, tensor: Callable) -> np.ndarray:
        """Return a part of a tensor in our layout."""
        if not self.layout:
            return tensor(name, index)
        theirs, ours = (_AXIS.findall(side) for side in self.layout.split("->"))
        # Axes that are split or joined are read whole, and cut afterwards.
        known = dict(zip(ours, index, strict=True))
        part = tensor(name, tuple(known.get(axis, slice(None)) for axis in theirs))
        cut = [slice(None) if axis in theirs else known[axis] for axis in ours]
        return rearrange(part, self.layout, **self.sizes)[tuple(cut)]


def _shifted(place: Sequence[slice], origin: Place) -> Place:
    """Return a place counted from another's start."""
    return tuple(
        slice(at.start - zero.start, at.stop - zero.start)
        for at, zero in zip(place, origin, strict=True)
    )


class Family(NamedTuple):
    """Models of one constructor, as Hugging Face's folders hold them.

    Attributes:
        model: the constructor's name in `jaxkd.models.MODELS`.
        architectures: names of ``config.json`` that it reads.
        arguments: ``config -> the constructor's arguments``; refuses with a ValueError
            what the constructor cannot build.
        config: ``all of the constructor's arguments -> config``, with ``architectures``
            and ``model_type``; refuses with a ValueError what transformers cannot
            build.
        tensors: ``all of the constructor's arguments -> the source of every array``, by
            its path such as ``params/blocks/mlp/up/kernel``.
        renamed: (regular expression, replacement) after which the names of a file, of
            older releases or of the model without its head, equal those of
            ``tensors`` after the same.
        ignored: regular expressions of tensors that files may have beyond those, such
            as buffers.
        writes: whether transformers has a model of these arguments; else it is written
            in the library's own format.
        head: the head's tensor, if it alone tells whether a model is ``tied``, whatever
            its config says.
    """

    model: str
    architectures: tuple[str, ...]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    tensors: Callable[[Mapping[str, Any]], dict[str, Source]]
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    writes: Callable[[Mapping[str, Any]], bool] = lambda arguments: True
    head: str | None = None


@checked()
def require(config: Mapping[str, Any], key: str, *supported: Any) -> None:
    """Refuse a config with another value than those that are built here.

    Args:
        config: of ``config.json``.
        key: may be missing.
        *supported: values.

    Raises:
        ValueError: the value is another.
    """
    if key in config and config[key] not in supported:
        raise ValueError(
            f"config.json has {key} = {config[key]!r}, which jaxkd does not build: it "
            f"knows {', '.join(map(repr, supported))}"
        )


@checked()
def linear_sources(ours: str, *theirs: str) -> dict[str, Source]:
    """Return the sources of a linear layer's kernel and bias.

    Args:
        ours: the layer's path.
        *theirs: layers of the file that make it up side by side.
    """
    weights, biases = (
        tuple(f"{name}.{kind}" for name in theirs) for kind in ("weight", "bias")
    )
    return {f"{ours}/kernel": Source(weights, LINEAR), f"{ours}/bias": Source(biases)}


@checked()
def norm_sources(ours: str, theirs: str) -> dict[str, Source]:
    """Return the sources of a layer norm's scale and bias."""
    return {
        f"{ours}/scale": Source((f"{theirs}.weight",)),
        f"{ours}/bias": Source((f"{theirs}.bias",)),
    }


@checked()
def class_count(config: Mapping[str, Any]) -> int:
    """Return how many classes a config names; two if it says nothing."""
    return len(config.get("id2label") or range(2))


@checked()
def class_names(classes: int) -> dict[str, Any]:
    """Return what a config says of as many classes without names."""
    labels = {str(i): f"LABEL_{i}" for i in range(classes)}
    return {
        "id2label": labels,
        "label2id": {name: int(i) for i, name in labels.items()},
    }
