"""Training some of a network's weights and leaving the others as they are."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PRNGKeyArray

from jaxkd.arguments import checked, expression, floating
from jaxkd.network import Network
from jaxkd.types import Variables

FROZEN = "frozen weights"
"""Where `train_only` keeps them in ``stats``: no name that a layer could have."""


@checked(dtype=floating)
def train_only(network: Network, pattern: str, *, dtype: Any = None) -> Network:
    """Return a network of whose weights only those that match are parameters.

    The others are among its ``stats``: no gradient is computed for them, no optimizer
    keeps anything of them, and they stay the same bit for bit. `programs.distill`'s
    checkpoints and averages (`programs.with_average`) leave them out. Wrap last, as in
    ``train_only(network.computing_in("bfloat16"), ...)``.

    Args:
        network: any.
        pattern: regular expression that the whole path of a weight must match, such as
            ``"blocks.attention.query.kernel"``, for it to be trained.
        dtype: of the weights that are not; None for their own.

    Raises:
        ValueError: from ``init``, a pattern that no weight matches.
    """
    wanted = expression("pattern", pattern)

    def init(key: PRNGKeyArray) -> Variables:
        variables = network.init(key)
        flat = flatten_dict(variables["params"])
        chosen = {path for path in flat if wanted.fullmatch(".".join(path))}
        if not chosen:
            raise ValueError(
                f"pattern {pattern!r} matches none of the weights, such as "
                f"{'.'.join(next(iter(flat)))!r}: nothing would be trained"
            )
        trained = {path: flat[path] for path in chosen}
        kept = {
            path: weight if dtype is None else jnp.asarray(weight, dtype)
            for path, weight in flat.items()
            if path not in chosen
        }
        return frozen(
            {**variables, "params": unflatten_dict(kept)}, unflatten_dict(trained)
        )

    def apply(variables, inputs, **kwargs):
        outputs, changed = network.apply(all_weights(variables), inputs, **kwargs)
        stats = {**variables["stats"], "own": changed["stats"]}
        return outputs, {**variables, "stats": stats}

    return replace(network, init=init, apply=apply, spec=None, module=None)


@checked()
def frozen(variables: Variables, trained: Mapping[str, Any]) -> Variables:
    """Return the variables of `train_only`'s network.

    Args:
        variables: a network's, of which the params are those that are not trained.
        trained: those that are.
    """
    stats = {FROZEN: variables["params"], "own": variables["stats"]}
    return {"params": trained, "stats": stats}


def all_weights(variables: Variables) -> Variables:
    """Return the variables of the network that `train_only` was given.

    Args:
        variables: of the network that it returned.
    """
    stats = variables["stats"]
    parts = flatten_dict(stats[FROZEN]) | flatten_dict(variables["params"])
    return {"params": unflatten_dict(parts), "stats": stats["own"]}


def frozen_weights(variables: Variables) -> list[Any]:
    """Return those of a network's arrays that `train_only` keeps from training.

    Args:
        variables: of any network, such as an ensemble of which some members are
            `train_only`'s.
    """
    stats = flatten_dict(variables["stats"])
    return jax.tree.leaves([x for path, x in stats.items() if FROZEN in path])
