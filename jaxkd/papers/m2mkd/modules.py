"""A network as modules in a row: split, put together again, loaded into a student."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.arguments import checked, count
from jaxkd.network import Network
from jaxkd.networks.trimmed import trimmed
from jaxkd.types import Inputs, Variables


@checked(num_blocks=count, modules=count)
def split_depths(num_blocks: int, modules: int) -> list[int]:
    """Return how many blocks each module gets; the outer ones get what is left over.

    32 blocks make 10 modules of 4, 3, 3, …, 3, 4.

    Args:
        num_blocks: of the network.
        modules: how many.

    Raises:
        ValueError: more modules than blocks.
    """
    if modules > num_blocks:
        raise ValueError(
            f"modules is {modules}, but there are {num_blocks} blocks: each module has "
            "at least one"
        )
    depths = [num_blocks // modules] * modules
    # From both ends inwards: last, first, last but one, second, ….
    order = [i // 2 if i % 2 else modules - 1 - i // 2 for i in range(modules)]
    for i in order[: num_blocks % modules]:
        depths[i] += 1
    return depths


@checked()
def split_modules(
    network: Network, depths: Sequence[int], inputs: Inputs
) -> list[Network]:
    """Return a network as modules in a row, each with the weights that it reads.

    The first has all that comes before the first block (patches, class token,
    positions) as well, the last all that comes after the last one (norm and head).

    Args:
        network: whose blocks are the cuts ``block0``, ``block1``, …, as those of `vit`.
        depths: blocks of each module, see `split_depths`.
        inputs: that it takes, arrays or their shapes.

    Raises:
        ValueError: the depths do not add up to the network's blocks.
    """
    blocks = [name for name in network.cuts if name.removeprefix("block").isdigit()]
    if min(depths, default=0) < 1 or sum(depths) != len(blocks):
        raise ValueError(
            f"depths {list(depths)} must be positive and add up to the network's "
            f"{len(blocks)} blocks, of its cuts {', '.join(network.cuts) or 'none'}"
        )
    ends = [blocks[i - 1] for i in list(accumulate(depths))[:-1]]
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    modules, given = [], inputs
    for start, stop in pairwise([None, *ends, None]):
        part = network.segment(start, stop)
        modules.append(trimmed(part, given))
        given = jax.eval_shape(lambda v, x, p=part: p.apply(v, x)[0], shapes, given)
        given = given.logits
    return modules


@checked()
def variables_of(module: Network, variables: Variables) -> Variables:
    """Return a module's own of the whole network's variables.

    Args:
        module: from `split_modules`.
        variables: of the network that was split.

    Raises:
        ValueError: the variables lack one of the module's.
    """
    own = _flat(jax.eval_shape(module.init, jax.random.key(0)))
    flat = _flat(variables)
    if lacking := [".".join(path) for path in own if path not in flat]:
        raise ValueError(
            f"variables lack {lacking[0]}, which the module reads: give those of the "
            "network that it was split from"
        )
    return _nested({path: flat[path] for path in own})


@checked()
def assemble_modules(
    network: Network, modules: Sequence[Network], parts: Sequence[Variables]
) -> Variables:
    """Return a network's variables, put together from its modules'.

    Args:
        network: that was split.
        modules: by `split_modules`.
        parts: the variables of each.

    Raises:
        ValueError: other numbers of modules and variables, or a weight that is in none.
    """
    if len(parts) != len(modules):
        raise ValueError(
            f"parts has {len(parts)} entries, but there are {len(modules)} modules: "
            "give the variables of each"
        )
    found: dict[Any, Any] = {}
    for part in parts:
        found |= _flat(part)
    whole = _flat(jax.eval_shape(network.init, jax.random.key(0)))
    if lacking := [".".join(path) for path in whole if path not in found]:
        raise ValueError(
            f"no module has {lacking[0]}: they must be all of the network's"
        )
    return _nested(found)


class LoadReport(NamedTuple):
    """What `load_modules` has done.

    Attributes:
        loaded: weights that were taken over.
        missing: weights of the student that no module has.
        unused: weights of modules that the student does not have, or of another shape;
            stitches are among them.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


@checked()
def load_modules(
    variables: Variables, modules: Sequence[Variables]
) -> tuple[Variables, LoadReport]:
    """Return a student's variables with those of trained modules in their place.

    What modules have around them, their stitches, is left out; `chained` makes a
    student that keeps them.

    Args:
        variables: of the student, which was split into the modules.
        modules: trained, each with or without stitches.

    Raises:
        ValueError: nothing of any module fits.
    """
    mine = _flat(variables)
    loaded, unused = {}, []
    for number, module in enumerate(modules):
        for path, value in _flat(module).items():
            inside = path[:1] + path[2:] if path[1] == "module" else path
            if inside in mine and mine[inside].shape == value.shape:
                loaded[inside] = value
            else:
                unused.append(".".join((str(number), *path)))
    if not loaded:
        raise ValueError(
            "no weight of the modules is one of the student's: give variables of the "
            "network that the modules were split from"
        )
    missing = [".".join(path) for path in mine if path not in loaded]
    names = tuple(".".join(path) for path in loaded)
    return _nested(mine | loaded), LoadReport(names, tuple(missing), tuple(unused))


def _nested(flat: dict[Any, Any]) -> Variables:
    nested = unflatten_dict(flat)
    return {part: nested.get(part, {}) for part in ("params", "stats")}


def _flat(variables: Variables) -> dict[Any, Any]:
    return flatten_dict(variables)  # type: ignore[return-value]
