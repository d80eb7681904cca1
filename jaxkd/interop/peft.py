"""Adapters as PEFT's folders: adapter_config.json beside adapter_model.safetensors.

The names are those of the model's own tensors (`jaxkd.interop.families`) with
``lora_A`` and ``lora_B`` behind them. Where one layer of the model is several of ours,
as GPT-2's queries, keys and values, each has a copy of its A and a part of its B.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.arguments import checked
from jaxkd.digests import DIGESTS, verify_digests, write_digests
from jaxkd.files import replaced_folder, write_tensors
from jaxkd.hub import model_folder
from jaxkd.interop.adapter_config import CONFIG, AdapterConfig, described, read_config
from jaxkd.interop.checkpoint import (
    network_family,
    network_shapes,
    network_sources,
    on_host,
)
from jaxkd.interop.families.base import LINEAR, Family
from jaxkd.interop.shards import Shards
from jaxkd.network import Network
from jaxkd.networks.lora import (
    LoraConfig,
    adapted_network,
    lora_targets,
    with_adapters,
    with_lora,
)
from jaxkd.types import Variables

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
KINDS = {
    "a": "lora_A.weight",
    "b": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}
"""PEFT's names of what an adapter is made of."""

TENSOR = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.({'|'.join(KINDS.values())})")


class Part(NamedTuple):
    """What a linear layer of the model is here: a layer of a weight, all of it or part.

    Attributes:
        path: of the weight.
        layer: the layer's number, if the weight is of several.
        first: of the model's layer's outputs that it has.
        inputs: of the layer.
        outputs: of the part.
        transposed: whether the model holds it as (inputs, outputs), as GPT-2 does.
    """

    path: tuple[str, ...]
    layer: tuple[int, ...]
    first: int
    inputs: int
    outputs: int
    transposed: bool


class Adapter(NamedTuple):
    """The adapter of one layer, in our layout."""

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of B; 0 of a layer that has none."""
        return len(self.b)


@checked()
def load_adapter(
    folder: str | Path,
    network: Network,
    variables: Variables,
    *,
    revision: str | None = None,
) -> tuple[Network, Variables]:
    """Return a network with the LoRA adapter of a PEFT folder, and its variables.

    The adapter is kept beside the weights, and trained if the network is: see
    `jaxkd.networks.with_lora`; `jaxkd.networks.merged` adds it to them. The tensors say
    which layers have adapters. The base model that the folder names is not looked for:
    it is the network.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors, or its name on
            the Hugging Face hub.
        network: of a family that transformers has, such as from `load_pretrained`.
        variables: its own, which are not copied.
        revision: of the hub's adapter; None for the newest.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a file is damaged, another kind of adapter, or not of this network.
            It names what is wrong.
    """
    folder = model_folder(folder, revision)
    said, shards = read_config(folder), Shards(folder, WEIGHTS)
    modules = _modules(network)
    tensors = _by_module(shards, modules, _family(network))
    _check_tensors(folder, said, shards, modules, tensors)
    weights = network_shapes(network)
    ranks: dict[tuple[str, ...], np.ndarray] = {}
    alphas: dict[tuple[str, ...], np.ndarray] = {}
    for module in tensors:
        for part in modules[module]:
            stack = weights["/".join(("params", *part.path))].shape[:-2]
            own = ranks.setdefault(part.path, np.zeros(stack, int))
            counts = alphas.setdefault(part.path, np.ones(stack))
            own[part.layer], counts[part.layer] = said.of(module)
    names = {path: re.escape(".".join(path)) for path in ranks}
    config = LoraConfig(
        rank=said.rank,
        alpha=said.alpha,
        targets="|".join(names.values()),
        ranks={names[path]: own.tolist() for path, own in ranks.items()},
        alphas={names[path]: own.tolist() for path, own in alphas.items()},
        rank_stabilised=said.rank_stabilised,
        dora=said.dora,
        dropout=said.dropout,
    )
    adapters = _arrays(network, config, shards, modules, tensors)
    # Last, since what was wrong above says more than that a file has changed.
    verify_digests(folder, [CONFIG, WEIGHTS])
    return with_lora(network, config), with_adapters(variables, adapters)


@checked()
def save_adapter(
    folder: str | Path,
    network: Network,
    variables: Variables,
    *,
    base: str | None = None,
) -> Path:
    """Write a network's adapters as a folder that PEFT reads.

    The weights beside them are not written. A write that is cut off leaves the adapter
    before; the files' digests are written along, as SHA256SUMS.

    Args:
        folder: made if it is missing; an adapter that is there is replaced.
        network: of `jaxkd.networks.with_lora`, around one of a constructor in
            ``jaxkd.models.MODELS``; of quantised weights, around the one before.
        variables: its params.
        base: name or folder of the model, for those who load the adapter.

    Raises:
        ValueError: the folder is a model's; there are several adapters of each weight,
            or one of a weight that is no linear layer in transformers; or the variables
            are not the network's.
    """
    folder = Path(folder)
    inner, config = adapted_network(network)
    modules = _modules(inner)
    _check_writable(folder, network, modules, variables)
    arrays = {
        path: on_host(x)
        for path, x in flatten_dict(variables["params"]["lora"]).items()
    }
    read = _adapters(inner, config, arrays)
    adapters, tensors = {}, {}
    for module, parts in modules.items():
        own = [read(part) for part in parts]
        if any(adapter.rank for adapter in own):
            whole = _joined(module, own, config.rank_stabilised)
            adapters[module] = whole.rank, whole.alpha
            for kind, name in KINDS.items():
                if (array := getattr(whole, kind)) is not None:
                    tensor = np.asarray(array.T, order="C")
                    tensors[f"{PREFIX}{module}.{name}"] = tensor
    text = described(
        config,
        adapters,
        [*modules],
        architecture=_family(inner).config(_spec(inner)[1])["architectures"][0],
        transposed=any(part.transposed for name in adapters for part in modules[name]),
        base=base,
    )
    if not jax.process_index():
        with replaced_folder(
            folder, {CONFIG, WEIGHTS, DIGESTS}.__contains__
        ) as partial:
            write_tensors(tensors, partial / WEIGHTS, {"format": "pt"})
            (partial / CONFIG).write_text(json.dumps(text, indent=2) + "\n")
            write_digests(partial)
    return folder


def _spec(network: Network) -> tuple[str, Mapping[str, Any]]:
    if network.spec is None:
        raise ValueError(
            "network was not made by a constructor of jaxkd.models, or was changed "
            "since: what transformers calls its layers is not known"
        )
    return network.spec


def _family(network: Network) -> Family:
    model, _ = _spec(network)
    family = network_family(network)
    if family is None:
        raise ValueError(f"transformers has no model such as this {model}")
    return family


def _modules(network: Network) -> dict[str, list[Part]]:
    """Return what every linear layer of transformers' model is here, by its name."""
    sources = network_sources(network, _family(network))
    shapes, found = network_shapes(network), defaultdict(list)
    for name, source in sources.items():
        top, *path = name.split("/")
        shape, stacked = shapes[name].shape, source.stacked
        kernel = (top, path[-1], len(shape)) == ("params", "kernel", 2 + stacked)
        if not kernel or source.layout not in ("", LINEAR) or len(source.names) > 1:
            continue
        for tensor, place in source.places(shape).items():
            part = Part(
                tuple(path),
                tuple(at.start for at in place[:stacked]),
                source.share[0] * shape[-1],
                shape[-2],
                shape[-1],
                source.layout != LINEAR,
            )
            found[tensor.removesuffix(".weight")].append(part)
    return {name: sorted(own, key=lambda x: x.first) for name, own in found.items()}


def _by_module(
    shards: Shards, modules: Mapping[str, Any], family: Family
) -> dict[str, dict[str, str]]:
    """Return the names of a file's tensors by module and kind."""

    def plain(name: str) -> str:
        for pattern, replacement in family.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    named = {plain(name): name for name in modules}
    kinds = {name: kind for kind, name in KINDS.items()}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for tensor in shards.tensors:
        match = TENSOR.fullmatch(tensor)
        if match is None or plain(match[1]) not in named:
            raise ValueError(
                f"{shards.folder / WEIGHTS} has {tensor!r:.200}, which is no adapter "
                f"of the network's linear layers, such as {next(iter(modules))!r}"
            )
        found[named[plain(match[1])]][kinds[match[2]]] = tensor
    return found


def _check_tensors(
    folder: Path,
    said: AdapterConfig,
    shards: Shards,
    modules: Mapping[str, Sequence[Part]],
    tensors: Mapping[str, Mapping[str, str]],
) -> None:
    """Refuse tensors that are not what the config and the network say."""
    if not tensors:
        raise ValueError(f"{folder / WEIGHTS} holds no adapters")
    for module, own in tensors.items():
        rank, _ = said.of(module)
        inputs = modules[module][0].inputs
        outputs = sum(part.outputs for part in modules[module])
        wanted = {"a": (rank, inputs), "b": (outputs, rank)}
        wanted |= {"magnitude": (outputs,)} if said.dora else {}
        given = {kind: shards.tensors[name].shape for kind, name in own.items()}
        if given != wanted:
            raise ValueError(
                f"{folder}: the adapter of {module} has {_shown(given)}, but by "
                f"{CONFIG} and the network it is {_shown(wanted)}"
            )


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{KINDS[kind]} {shape}" for kind, shape in shapes.items())


def _arrays(
    network: Network,
    config: LoraConfig,
    shards: Shards,
    modules: Mapping[str, Sequence[Part]],
    tensors: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """Return adapters in our layout from a file's tensors."""
    dtype = jnp.result_type(*(tensor.dtype for tensor in shards.tensors.values()))
    found: dict[tuple[str, ...], np.ndarray] = {}
    for path, target in lora_targets(network, config).items():
        stack, rank = target.stack, target.rank
        found[*path, "a"] = np.zeros((*stack, target.inputs, rank), dtype)
        found[*path, "b"] = np.zeros((*stack, rank, target.outputs), dtype)
        if config.dora:
            found[*path, "magnitude"] = np.ones((*stack, target.outputs), dtype)
    for module, own in tensors.items():
        read = {kind: shards.read(name).T for kind, name in own.items()}
        rank = len(read["b"])
        for part in modules[module]:
            cut = slice(part.first, part.first + part.outputs)
            found[*part.path, "a"][*part.layer, :, :rank] = read["a"]
            found[*part.path, "b"][*part.layer, :rank] = read["b"][:, cut]
            if config.dora:
                found[*part.path, "magnitude"][*part.layer, :] = read["magnitude"][cut]
    return unflatten_dict({path: jnp.asarray(array) for path, array in found.items()})


def _check_writable(
    folder: Path,
    network: Network,
    modules: Mapping[str, Sequence[Part]],
    variables: Variables,
) -> None:
    """Refuse what is no adapter that PEFT has, or would spoil a model's folder."""
    if (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds a model: name another folder for its adapter")
    inner, config = adapted_network(network)
    if config.adapters > 1:
        raise ValueError(
            f"network has {config.adapters} adapters of each weight, mixed by gates, "
            "which PEFT has not: write the weights with them, networks.merged"
        )
    known = {part.path for parts in modules.values() for part in parts}
    for path in lora_targets(inner, config):
        if path not in known:
            raise ValueError(
                f"{'.'.join(path)} has an adapter, but is no linear layer of the model "
                "of transformers: write the weights with it, networks.merged"
            )
    expected = jax.eval_shape(network.init, jax.random.key(0))["params"]
    given = jax.tree.map(np.shape, variables["params"])
    if given != jax.tree.map(np.shape, expected):
        raise ValueError(
            "variables are not the network's: its adapters have other shapes"
        )


def _adapters(network: Network, config: LoraConfig, arrays: Mapping[Any, np.ndarray]):
    """Return ``part -> its adapter``, of rank 0 where it has none."""
    targets = lora_targets(network, config)

    def read(part: Part) -> Adapter:
        if part.path not in targets or not targets[part.path].ranks[part.layer]:
            shapes = (part.inputs, 0), (0, part.outputs)
            a, b = (np.zeros(shape, np.float32) for shape in shapes)
            return Adapter(a, b, None, 1.0)
        target = targets[part.path]
        rank = target.ranks[part.layer]
        own = {
            kind: arrays[*part.path, kind][part.layer]
            for kind in KINDS
            if (*part.path, kind) in arrays
        }
        a, b = own["a"][:, :rank], own["b"][:rank]
        return Adapter(a, b, own.get("magnitude"), float(target.alphas[part.layer]))

    return read


def _joined(module: str, own: Sequence[Adapter], stabilised: bool) -> Adapter:
    """Return the adapter of a layer of transformers from those of its parts here."""
    first = max(own, key=lambda adapter: adapter.rank)
    magnitudes = [x.magnitude for x in own if x.magnitude is not None]
    if magnitudes and len(magnitudes) < len(own):
        raise ValueError(
            f"{module} is one layer of transformers, of which only a part has DoRA's "
            "magnitude: adapt all of it, or none"
        )
    magnitude = np.concatenate(magnitudes) if magnitudes else None
    if all(x.alpha == first.alpha and np.array_equal(x.a, first.a) for x in own):
        b = np.concatenate([adapter.b for adapter in own], axis=-1)
        return Adapter(first.a, b, magnitude, first.alpha)

    def counts(alpha: float, rank: int) -> float:
        return alpha / max(rank**0.5 if stabilised else rank, 1)

    from scipy.linalg import block_diag

    # Side by side, each counted as the first is.
    scale = counts(first.alpha, first.rank)
    b: Any = block_diag(
        *(x.b * np.float32(counts(x.alpha, x.rank) / scale) for x in own)
    )
    a = np.concatenate([adapter.a for adapter in own], axis=-1)
    return Adapter(a, b.astype(first.b.dtype), magnitude, scale / counts(1.0, len(b)))
