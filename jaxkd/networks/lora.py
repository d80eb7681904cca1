"""Low-rank adapters: a network of which small matrices beside frozen weights learn.

LoRA (Hu et al. 2021, arXiv:2106.09685) with the scale of rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732), DoRA's magnitude (Liu et al. 2024, arXiv:2402.09353), and, over
quantised weights, QLoRA (Dettmers et al. 2023, arXiv:2305.14314).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from jaxkd.arguments import checked, count, expression, fraction, positive
from jaxkd.kernels.quant_matmul import QuantizedWeights
from jaxkd.models.parts.adapted import AdaptedWeights, plain_weights
from jaxkd.models.parts.linear import Linear
from jaxkd.network import Network
from jaxkd.networks.freezing import all_weights, frozen, train_only
from jaxkd.types import Axes, Inputs, Variables

GATES = "gates"
"""What of the inputs mixes several adapters, in place of the trained gates."""

Path = tuple[str, ...]


@checked(rank=count, alpha=positive, dropout=fraction, adapters=count)
@dataclass(frozen=True)
class LoraConfig:
    """Which weights get adapters, and of what kind.

    Patterns are regular expressions that the whole path of a weight must match, such as
    ``r"blocks\\.attention\\.(query|value)\\.kernel"``.

    Attributes:
        rank: of the adapters.
        alpha: an adapter counts alpha/rank.
        targets: pattern of the weights; None for all linear layers but those onto a
            vocabulary.
        ranks: others by pattern, the first that matches; of stacked layers one number
            for all or one each, 0 for a layer without an adapter.
        alphas: likewise.
        rank_stabilised: whether an adapter counts alpha/√rank instead (rsLoRA).
        dora: whether the norms of the weights' columns learn by themselves (DoRA).
        dropout: share of an adapter's inputs left out in training. It is for the
            zoo's linear layers.
        adapters: of each weight. Of several the As and the Bs are summed, each with its
            gate: a trained one, or those in the inputs' ``gates`` (adapters,).
        initial: what A is drawn from: uniform in ±1/√inputs, as Kaiming's with a = √5,
            or a normal of deviation 1/rank. B is 0.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | None = None
    ranks: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    alphas: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    rank_stabilised: bool = False
    dora: bool = False
    dropout: float = 0.0
    adapters: int = 1
    initial: Literal["kaiming", "gaussian"] = "kaiming"


class Target(NamedTuple):
    """A weight that gets an adapter.

    Attributes:
        stack: the axes of layers before those of one layer's weight.
        inputs: of a layer.
        outputs: of a layer.
        ranks: of each layer, of shape ``stack``.
        alphas: likewise.
        inside: whether the layer itself multiplies by W and by the adapter; else it
            gets their sum.
    """

    stack: tuple[int, ...]
    inputs: int
    outputs: int
    ranks: np.ndarray
    alphas: np.ndarray
    inside: bool

    @property
    def rank(self) -> int:
        """The highest rank of a layer."""
        return int(self.ranks.max())

    def scale(self, stabilised: bool) -> np.ndarray:
        """Return what every row of B counts, ``(*stack, rank)``."""
        ranks = np.maximum(self.ranks, 1)
        counts = self.alphas / (np.sqrt(ranks) if stabilised else ranks)
        there = np.arange(self.rank) < self.ranks[..., None]
        return np.where(there, counts[..., None], 0).astype(np.float32)


@checked()
def with_lora(network: Network, config: LoraConfig | None = None) -> Network:
    """Return the network of which low-rank adapters are trained, and nothing else.

    Its weights are frozen, as `networks.freezing.train_only` keeps them: no gradient is
    computed for them, no optimizer keeps anything of them, and checkpoints hold a
    fingerprint of them. They may be of bfloat16 (``load_pretrained(…, dtype=…)``) or
    quantised (`jaxkd.compression`); adapters are float32. The zoo's linear layers add
    (x·A)·B to x·W; other layers get W + A·B, made before they run. At first the network
    is what it was, since B is 0. Wrap last: ``with_lora(network.computing_in(…))``.

    Args:
        network: any; to start from weights, its ``with_variables``.
        config: None for rank 8 on all linear layers.

    Raises:
        ValueError: a pattern that matches no weight, a weight that is no matrix, ranks
            or alphas that are not as many as a weight's layers, or dropout of layers
            that are not the zoo's.
    """
    config = config or LoraConfig()
    if network.lora is not None:
        raise ValueError("the network has adapters: give adapters= for several of them")
    targets = lora_targets(network, config)

    def init(key: PRNGKeyArray) -> Variables:
        variables = network.init(key)
        weights = _flat(variables["params"])
        # Not the network's own numbers.
        keys = jax.random.split(jax.random.fold_in(key, len(weights)), len(targets))
        drawn = {
            (*path, name): value
            for (path, target), own in zip(targets.items(), keys, strict=True)
            for name, value in _drawn(config, target, weights[path], own).items()
        }
        if config.adapters > 1:
            drawn[(GATES,)] = jnp.full(config.adapters, 1 / config.adapters)
        params = {**variables["params"], "lora": unflatten_dict(drawn)}
        return {**variables, "params": params}

    def apply(variables, inputs, *, train=False, key=None, **kwargs):
        inputs, gates = _without_gates(network, inputs)
        dropped = key if train and config.dropout else None
        if train and config.dropout and key is None:
            raise ValueError("key is None, but adapters' dropout draws random numbers")
        params = _adapted(config, targets, variables["params"], gates, dropped)
        outputs, changed = network.apply(
            {**variables, "params": params}, inputs, train=train, key=key, **kwargs
        )
        return outputs, {**variables, "stats": changed["stats"]}

    whole = replace(network, init=init, apply=apply, axes=_axes(network.axes, targets))
    return replace(train_only(whole, r"lora\..*"), lora=(network, config))


@checked()
def with_adapters(variables: Variables, adapters: Mapping[str, Any]) -> Variables:
    """Return the variables of `with_lora`'s network: given adapters beside weights.

    Args:
        variables: of the network without adapters.
        adapters: by the paths of their weights, ``a``, ``b`` and ``magnitude``.
    """
    return frozen(variables, {"lora": adapters})


@checked()
def merged(
    network: Network,
    variables: Variables,
    gates: Float[Array, " adapters"] | None = None,
) -> tuple[Network, Variables]:
    """Return the network without adapters, and its weights with them added.

    ``save_pretrained(folder, *merged(student, state.student))`` writes them as any
    others. What was quantised is not any more.

    Args:
        network: of `with_lora`.
        variables: its own.
        gates: of several adapters; None for the trained ones.

    Raises:
        ValueError: another network.
    """
    inner, config = adapted_network(network)
    whole = all_weights(variables)
    targets = lora_targets(inner, config)
    params = _adapted(config, targets, whole["params"], gates, None)
    dense = {
        path: weight.dense() if isinstance(weight, AdaptedWeights) else weight
        for path, weight in _flat(params).items()
    }
    return inner, {"params": unflatten_dict(dense), "stats": whole["stats"]}


@checked()
def adapted_network(network: Network) -> tuple[Network, LoraConfig]:
    """Return the network and the configuration that `with_lora` was given.

    Raises:
        ValueError: the network is not `with_lora`'s.
    """
    if network.lora is None:
        raise ValueError(
            "network has no adapters: give the one that with_lora returned"
        )
    return network.lora


@checked()
def lora_targets(network: Network, config: LoraConfig) -> dict[Path, Target]:
    """Return the weights that get adapters, by their paths.

    Args:
        network: without adapters.
        config: of those that it gets.

    Raises:
        ValueError: as `with_lora`.
    """
    for name in ("ranks", "alphas"):
        for pattern in getattr(config, name):
            expression(name, pattern)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    weights = _flat(shapes["params"])
    layers = _layers(network)
    if config.targets is None:
        chosen = [
            path
            for path in weights
            if isinstance(layers.get(path), nnx.Linear)
            and "vocabulary" not in network.axes.get(path, ())
        ]
    else:
        wanted = expression("targets", config.targets)
        chosen = [path for path in weights if wanted.fullmatch(".".join(path))]
    if not chosen:
        raise ValueError(
            f"targets {config.targets!r} matches none of the network's weights, such "
            f"as {'.'.join(next(iter(weights)))!r}: give a pattern that does"
        )
    found = {
        path: _target(config, path, weights[path], layers.get(path)) for path in chosen
    }
    names = [".".join(path) for path in chosen]
    for pattern in (*config.ranks, *config.alphas):
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(
                f"the pattern {pattern!r} of ranks or alphas matches none of the "
                f"weights that get adapters, such as {names[0]!r}"
            )
    return {path: target for path, target in found.items() if target.rank}


def _layers(network: Network) -> dict[Path, nnx.Module]:
    """Return the layer of every kernel, where the network says of what it is made."""
    if not isinstance(network.module, nnx.Module):
        return {}
    return {
        (*map(str, path), "kernel"): module
        for path, module in nnx.iter_modules(network.module)
        if isinstance(module, nnx.Linear | nnx.Conv)
    }


def _target(config: LoraConfig, path: Path, weight: Any, layer: Any) -> Target:
    """Return what is known of a weight that gets an adapter."""
    codes = weight.codes if isinstance(weight, QuantizedWeights) else weight
    shape, name = codes.shape, ".".join(path)
    # A convolution reads its window's places and channels.
    read = len(layer.kernel_size) + 1 if isinstance(layer, nnx.Conv) else 1
    stack, inputs = shape[: -read - 1], math.prod(shape[-read - 1 : -1])
    if len(shape) < 2:
        raise ValueError(
            f"targets {config.targets!r} matches {name} of shape {shape}, which is no "
            "matrix: give a narrower pattern"
        )
    inside = isinstance(layer, Linear)
    if config.dropout and not inside:
        raise ValueError(
            f"dropout is {config.dropout}, but {name} is not of the zoo's linear "
            "layers, whose adapters alone can drop inputs: give 0"
        )
    ranks, alphas = (
        _by_layer(name, stack, default, by_pattern)
        for default, by_pattern in (
            (config.rank, config.ranks),
            (config.alpha, config.alphas),
        )
    )
    if ranks.max() > max(inputs, shape[-1]):
        raise ValueError(
            f"{name} is {inputs} by {shape[-1]}, and an adapter of rank {ranks.max()} "
            "is no smaller: give a lower rank"
        )
    return Target(stack, inputs, shape[-1], ranks, alphas, inside)


def _by_layer(
    name: str, stack: tuple[int, ...], default: Any, by_pattern: Mapping[str, Any]
) -> np.ndarray:
    """Return a weight's number for each of its layers."""
    value = next((v for p, v in by_pattern.items() if re.fullmatch(p, name)), default)
    try:
        return np.broadcast_to(value, stack)
    except ValueError:
        raise ValueError(
            f"{value!r:.80} is of {np.shape(value)} layers, but {name} of {stack}: "
            "give one number, or one for each"
        ) from None


def _drawn(
    config: LoraConfig, target: Target, weight: Any, key: PRNGKeyArray
) -> dict[str, Array]:
    """Return a weight's first adapters."""
    several = (config.adapters,) if config.adapters > 1 else ()
    stack, rank = (*several, *target.stack), target.rank
    if config.initial == "kaiming":
        bound = target.inputs**-0.5
        a = jax.random.uniform(key, (*stack, target.inputs, rank), None, -bound, bound)
    else:
        ranks = np.maximum(target.ranks, 1)[..., None, None]
        a = jax.random.normal(key, (*stack, target.inputs, rank)) / ranks
    found = {"a": a, "b": jnp.zeros((*stack, rank, target.outputs))}
    if config.dora:
        base = plain_weights(_as_matrix(target, weight)).astype(jnp.float32)
        found["magnitude"] = jnp.linalg.norm(base, axis=-2)
    return found


def _adapted(
    config: LoraConfig,
    targets: Mapping[Path, Target],
    params: Mapping[str, Any],
    gates: Array | None,
    key: PRNGKeyArray | None,
) -> dict[str, Any]:
    """Return a network's own params, its weights with their adapters.

    Args:
        config: of the adapters.
        targets: the weights that have them.
        params: of the network, and ``lora``.
        gates: of several adapters; None for the trained ones.
        key: of the dropout; None for none.
    """
    adapters = params["lora"]
    weights = _flat({name: tree for name, tree in params.items() if name != "lora"})
    parts = _flat(adapters)
    gates = adapters.get(GATES) if gates is None else gates
    for i, (path, target) in enumerate(targets.items()):
        a, b = (parts[*path, name] for name in "ab")
        if gates is not None:
            a, b = (jnp.tensordot(gates.astype(y.dtype), y, 1) for y in (a, b))
        weight = weights[path]
        own = None if key is None else jax.random.fold_in(key, i)
        adapted = AdaptedWeights(
            _as_matrix(target, weight),
            a,
            b,
            jnp.asarray(target.scale(config.rank_stabilised)),
            parts.get((*path, "magnitude")),
            own if own is None else jax.random.split(own, target.stack),
            config.dropout,
        )
        if not target.inside:
            adapted = adapted.dense().reshape(weight.shape)
        weights[path] = adapted
    return unflatten_dict(weights)


def _as_matrix(target: Target, weight: Any) -> Any:
    """Return a layer's weight as (inputs, outputs); a convolution's has more axes."""
    if isinstance(weight, QuantizedWeights):
        return weight
    return weight.reshape(*target.stack, target.inputs, target.outputs)


def _without_gates(network: Network, inputs: Inputs) -> tuple[Inputs, Any]:
    """Return a network's own inputs, and the gates among those given, or None."""
    if not isinstance(inputs, Mapping) or GATES not in inputs:
        return inputs, None
    own = {name: value for name, value in inputs.items() if name != GATES}
    return (own[network.reads[0]] if len(network.reads) == 1 else own), inputs[GATES]


def _axes(axes: Axes, targets: Mapping[Path, Target]) -> Axes:
    """Return the weights' logical axes, and those of their adapters."""
    found = dict(axes)
    for path in targets:
        if len(own := axes.get(path, ())) == 2:
            inputs, outputs = own
            found[*path, "a"] = inputs, None
            found[*path, "b"] = None, outputs
            found[*path, "magnitude"] = (outputs,)
    return found


def _flat(tree: Any) -> dict[Path, Any]:
    return flatten_dict(tree)  # type: ignore[return-value]
