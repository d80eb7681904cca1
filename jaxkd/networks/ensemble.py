"""Several networks as one: an ensemble of teachers, or peers that learn together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxkd.adapters import NO_EDITS, Edits
from jaxkd.arguments import checked, natural
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import log_softmax, logsumexp
from jaxkd.network import Network
from jaxkd.types import Inputs, Outputs, Variables


@checked()
def ensemble(
    networks: Sequence[Network],
    mean: Literal["logits", "probabilities"] = "probabilities",
) -> Network:
    """Return one network that runs all of them on the same batch.

    It reads what any member reads, and each member takes its own of that.

    Its logits are the mean of the members' logits, or the logarithm of the mean of
    their probabilities. Its taps are the members' with their position in front:
    ``0.stage2``, and ``0.logits`` for a member's own logits.

    Args:
        networks: the members; their variables are kept under ``"0"``, ``"1"``, ….
        mean: what is averaged.

    Raises:
        ValueError: no networks, an unknown mean, or members of different classes.
    """
    if not networks:
        raise ValueError("networks is empty: an ensemble needs at least one network")
    valid = tuple(
        f"{i}.{tap}" for i, n in enumerate(networks) for tap in ("logits", *n.taps)
    )

    reads = tuple(dict.fromkeys(name for n in networks for name in n.reads))

    def init(key: PRNGKeyArray) -> Variables:
        keys = jax.random.split(key, len(networks))
        members = [n.init(k) for n, k in zip(networks, keys, strict=True)]
        return {
            part: {str(i): m[part] for i, m in enumerate(members)}
            for part in ("params", "stats")
        }

    def apply(
        variables: Variables,
        inputs: Inputs,
        *,
        taps: tuple[str, ...] = (),
        edits: Edits = NO_EDITS,
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        for tap in (*taps, *edits):
            if tap not in valid:
                raise ValueError(unknown_name("tap", tap, valid))
        all_logits, features, stats = [], {}, {}
        for i, network in enumerate(networks):
            own = _of_member(dict.fromkeys(taps), i)
            outputs, changed = network.apply(
                member(variables, i),
                inputs if network.reads == reads else network.read(inputs),
                taps=tuple(tap for tap in own if tap != "logits"),
                edits=_of_member(edits, i),
                train=train,
                key=None if key is None else jax.random.fold_in(key, i),
            )
            named = {**outputs.features, "logits": outputs.logits}
            features |= {f"{i}.{tap}": named[tap] for tap in own}
            all_logits.append(outputs.logits)
            stats[str(i)] = changed["stats"]
        shapes = {logits.shape for logits in all_logits}
        if len(shapes) > 1:
            raise ValueError(
                f"the members' logits have shapes {sorted(shapes)}: an ensemble's "
                "networks must have the same classes"
            )
        return Outputs(_mean(jnp.stack(all_logits), mean), features), {
            **variables,
            "stats": stats,
        }

    axes = {
        (str(i), *path): axes
        for i, network in enumerate(networks)
        for path, axes in network.axes.items()
    }
    return Network(init, apply, valid, reads, axes=axes)


def _of_member(named: Mapping[str, Any], position: int) -> dict[str, Any]:
    """Return what the names of one member stand for, by the member's own names."""
    prefix = f"{position}."
    return {
        name.removeprefix(prefix): value
        for name, value in named.items()
        if name.startswith(prefix)
    }


def _mean(logits: jax.Array, mean: str) -> jax.Array:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if mean == "logits":
        return logits.mean(0)
    return logsumexp(log_softmax(logits), axis=0) - jnp.log(len(logits))


@checked(position=natural)
def member(variables: Variables, position: int) -> Variables:
    """Return one member's variables out of an ensemble's."""
    return {part: tree[str(position)] for part, tree in variables.items()}


@checked()
def with_logits(
    network: Network, tap: str, classify: Callable[[Array], Array] | None = None
) -> Network:
    """Return the network with one of its taps, or a function of it, as its logits.

    It makes one peer of an ensemble, or one branch, a classifier of its own; XLA drops
    what the others compute. CLIP becomes a zero-shot classifier of images by
    ``with_logits(clip, "image_embeds", lambda x: cosine_logits(x, prototypes))``.

    Args:
        network: any.
        tap: of logits (batch, classes), such as ``0.logits``.
        classify: ``activation -> logits``; None where the tap holds them.
    """

    def apply(variables, inputs, *, taps=(), **kwargs):
        asked = tuple(dict.fromkeys((*taps, tap)))
        outputs, changed = network.apply(variables, inputs, taps=asked, **kwargs)
        features = {name: outputs.features[name] for name in taps}
        logits = outputs.features[tap]
        if classify is not None:
            logits = classify(logits)
        return Outputs(logits, features), changed

    return replace(network, apply=apply, spec=None, cuts=(), module=None)
