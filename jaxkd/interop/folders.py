"""Networks as folders: weights in safetensors beside a readable config.json.

Models that `transformers` has are read and written in its format (see
`jaxkd.interop.families`), so that either library takes the other's; the rest of the zoo
in the same files with the constructor's arguments as the config.
"""

import dataclasses
import fnmatch
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxkd import models, papers
from jaxkd.arguments import checked
from jaxkd.digests import DIGESTS, verify_digests, write_digests
from jaxkd.files import kept_aside, replaced, replaced_folder
from jaxkd.hub import model_folder
from jaxkd.interop.checkpoint import (
    check_variables,
    nbytes,
    network_family,
    network_shapes,
    network_sources,
    read_variables,
    tensor_reader,
    tensor_shapes,
)
from jaxkd.interop.families import family_reading
from jaxkd.interop.families.base import Family
from jaxkd.interop.limits import check_layers, check_sizes
from jaxkd.interop.mxfp4 import Mxfp4Shards
from jaxkd.interop.shards import INDEX, WEIGHTS, Shards, write_shards
from jaxkd.network import Network
from jaxkd.types import Variables
from jaxkd.untrusted import blaming, json_file

CONFIG = "config.json"
PROGRAM = "model.stablehlo"
PACKED = "mxfp4"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files that a tokeniser may have."""

SIDE = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
"""Small files beside the weights that go along from a folder to the next."""

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""What a config says of the tokeniser."""


class Origin(NamedTuple):
    """What a folder held: its config, the arguments in it, and its side files' text."""

    config: dict[str, Any]
    given: dict[str, Any]
    sides: dict[str, str]


@checked()
def load_pretrained(
    folder: str | Path,
    *,
    revision: str | None = None,
    mesh: Mesh | None = None,
    dtype: Any = None,
    **arguments: Any,
) -> tuple[Network, Variables]:
    """Return the network and variables of a folder: Hugging Face's or this library's.

    The arrays are read slice by slice into their places, from one file or several;
    pickles are not read. Where the folder has SHA256SUMS, as `save_pretrained` writes
    it, the files are compared with it, which reads all of them once.

    Args:
        folder: with config.json and safetensors, as `save_pretrained`, ``jaxkd export``
            or transformers write them; or a model's name on the Hugging Face hub, such
            as ``"Qwen/Qwen3-0.6B"``, which the extra ``hub`` fetches.
        revision: of the hub's model: a branch, tag or commit; None for the newest.
        mesh: to place the arrays on, from `jaxkd.training.make_mesh`; None for the
            default device.
        dtype: of the floating-point arrays; None for the files'.
        **arguments: of the constructor in place of the config's, such as
            ``remat=True``.

    Raises:
        FileNotFoundError: a file of the folder is missing, or a model of the hub can
            not be had.
        ImportError: a name of the hub without its client.
        ValueError: a file is damaged, names no model of this library, or the weights
            are not the model's. It names the file and the remedy.
    """
    folder = model_folder(folder, revision)
    config = _read_config(folder)
    # What is read is written as plain weights.
    packed = config.pop("quantization_config", None)
    shards = Mxfp4Shards(folder) if packed else Shards(folder)
    if "architectures" in config:
        with blaming(str(folder / CONFIG)):
            family = family_reading(config)
            model, given = family.model, family.arguments(config)
        if family.head is not None:
            given["tied"] = family.head not in shards.tensors
    else:
        family, model, given = None, config["model"], config["arguments"]
    check_layers(given, shards.tensors, folder / CONFIG)
    try:
        network = models.create(
            model,
            {**models.MODELS, **papers.constructors(Network)},
            **{**given, **arguments},
        )
        shapes = network_shapes(network)
        check_sizes(shapes, shards.tensors)
        tensor_shapes(network_sources(network, family), shapes)
    except Exception as error:  # whatever numbers of other kinds and sizes cause
        raise ValueError(
            f"{folder / CONFIG} and what was given make arguments that {model!r} does "
            f"not take ({error}): export the model again"
        ) from None
    sides = {name: _side(folder / name) for name in SIDE if (folder / name).is_file()}
    network = dataclasses.replace(network, origin=Origin(config, given, sides))
    variables = read_variables(network, family, shards, mesh, dtype)
    processes = set() if mesh is None else {d.process_index for d in mesh.devices.flat}
    # Last, since what was wrong above says more than that a file has changed.
    verify_digests(
        folder,
        [CONFIG, INDEX, *shards.files, *sides],
        together=len(processes) == jax.process_count(),
    )
    return network, variables


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        if kept_aside(folder).is_dir():
            raise FileNotFoundError(
                f"{folder} is missing: a save was stopped as the new model took its "
                f"place. Rename {kept_aside(folder)}, the model before, or save again"
            )
        raise FileNotFoundError(
            f"{path} is missing: load_pretrained needs {CONFIG} and {WEIGHTS}, as "
            "transformers or `jaxkd export` write them"
        )
    try:
        config = json_file(path)
        kinds: dict[str, type] = {"architectures": list, "model_type": str}
        if "model" in config:
            kinds = {"model": str, "arguments": dict}
        for key, kind in kinds.items():
            if not config[key] or not isinstance(config[key], kind):
                raise ValueError(f"{key} is empty, or no {kind.__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error!r}): fetch or export the model again"
        ) from None
    packed = config.get("quantization_config") or {"quant_method": PACKED}
    if not isinstance(packed, dict) or packed.get("quant_method") != PACKED:
        raise ValueError(
            f"{path} is of quantised weights, which are not read, but in {PACKED}: "
            "fetch the model as it was before, or convert it to bfloat16"
        )
    return config


@checked()
def save_pretrained(
    folder: str | Path,
    network: Network,
    variables: Variables,
    *,
    input_shape: Sequence[int] | None = None,
    tokenizer: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    max_shard_size: int = 5 * 10**9,
) -> Path:
    """Write a network of the zoo, as transformers reads it if it has such a model.

    Of a network that `load_pretrained` has read, what its folder said beyond the
    network goes along: all keys of config.json that the network does not change, such
    as the labels' names, and the files of `SIDE`. A tokeniser is asked for.

    A write that is cut off leaves the model before. The files' digests are written
    along, as SHA256SUMS.

    Args:
        folder: made if it is missing; a model that is there is replaced, and other
            files stay.
        network: of a constructor in ``jaxkd.models.MODELS``.
        variables: its params and stats.
        input_shape: of one example, such as (8, 8, 1), for `export_program`.
        tokenizer: a folder whose tokeniser goes along, with the numbers that its
            config.json gives of special tokens.
        config: further keys of config.json, such as ``{"eos_token_id": 2}``.
        max_shard_size: bytes above which the weights go into several files.

    Raises:
        ValueError: the network is not the zoo's or has no such format, or the variables
            are not the network's.
        FileNotFoundError: there is no tokeniser in its folder.
    """
    if network.spec is None:
        raise ValueError(
            "network was not made by a constructor of jaxkd.models or jaxkd.papers, or "
            "was changed since: its weights have no format that could be read again. "
            "jaxkd.save_weights keeps them in one file"
        )
    model, arguments = network.spec
    family = network_family(network)
    arrays = check_variables(network, variables)
    if family is None:
        described = {"library": "jaxkd", "model": model, "arguments": dict(arguments)}
    else:
        described = family.config(arguments)
    if network.origin is not None:
        described = _with_origin(described, network.origin, family, arguments)
    if family is not None:
        dtype = jnp.result_type(*(array.dtype for array in arrays.values()))
        described["torch_dtype" if "torch_dtype" in described else "dtype"] = str(dtype)
    if input_shape is not None:
        described["input_shape"] = list(input_shape)
    carried, special = [], {}
    if tokenizer is not None:
        carried, special = _tokenizer_files(Path(tokenizer))
    described |= {**special, **(config or {})}
    text = json.dumps(described, indent=2, default=dataclasses.asdict) + "\n"
    sources = network_sources(network, family)
    sizes = {n: nbytes(t) for n, t in sorted(tensor_shapes(sources, arrays).items())}
    read = tensor_reader(sources, arrays)
    folder = Path(folder)
    if jax.process_index():
        for name in sizes:  # The first process writes; reading takes all of them.
            read(name)
        return folder
    with replaced_folder(folder, _is_model) as partial:
        write_shards(partial, sizes, read, max_shard_size)
        for file in carried:
            shutil.copyfile(file, partial / file.name)
        for name, side in (network.origin.sides if network.origin else {}).items():
            (partial / name).write_text(_with_tokens(side, described))
        (partial / CONFIG).write_text(text)
        write_digests(partial)
    return folder


def _is_model(name: str) -> bool:
    """Return whether a file is of a model, which another model replaces."""
    patterns = (CONFIG, INDEX, WEIGHTS, "model-*-of-*.safetensors", PROGRAM, DIGESTS)
    return any(fnmatch.fnmatch(name, pattern) for pattern in (*patterns, *SIDE))


def _with_origin(
    ours: dict[str, Any],
    origin: Origin,
    family: Family | None,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a network's config with what the folder it comes from said beside it."""
    theirs = origin.config
    if ("model" in theirs) != (family is None):  # It has the other format now.
        return ours
    before = {} if family is None else family.config({**arguments, **origin.given})
    if any(theirs.get(k) != before.get(k) for k in ("architectures", "model_type")):
        before = {}  # The same model by another name: what we write has ours.
    return _changed(theirs, before, ours)


def _changed(theirs: Mapping, before: Mapping, ours: Mapping) -> dict[str, Any]:
    """Return a config with what of ours is another than it was before."""
    found = dict(theirs)
    for key, value in ours.items():
        old, was = theirs.get(key, {}), before.get(key, {})
        nested = all(isinstance(part, Mapping) for part in (old, was, value))
        if nested and key in theirs and key in before and "label" not in key:
            found[key] = _changed(old, was, value)
        elif key not in before or before[key] != value:
            found[key] = value
    return found


def _side(path: Path) -> str:
    if not isinstance(json_file(path), dict):
        raise ValueError(f"{path} holds no object: fetch the folder again")
    return path.read_text()


def _with_tokens(side: str, described: Mapping[str, Any]) -> str:
    """Return a side file's text, with the special tokens that the config has now."""
    found = json.loads(side)
    new = {k: described[k] for k in SPECIAL if k in described and k in found}
    if all(found[key] == token for key, token in new.items()):
        return side
    return json.dumps({**found, **new}, indent=2) + "\n"


def _tokenizer_files(folder: Path) -> tuple[list[Path], dict[str, Any]]:
    found = [folder / name for name in TOKENIZER if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no tokeniser, such as {', '.join(TOKENIZER[:2])}"
        )
    path = folder / CONFIG
    config = json_file(path) if path.is_file() else {}
    return found, {key: config[key] for key in SPECIAL if key in config}


@checked()
def export_program(folder: str | Path) -> Path:
    """Write a folder's forward pass as a portable StableHLO program.

    The weights are inside, the batch size is free, and it runs on CPU, GPU and TPU:
    ``jax.export.deserialize(file.read_bytes()).call(images)`` returns the logits, and
    ``load_program(folder).call(images)`` does so after it has checked the file.

    Args:
        folder: as `save_pretrained` writes it with ``input_shape``; the program goes
            there as ``model.stablehlo``.

    Raises:
        ValueError: config.json has no ``input_shape``.
    """
    folder = Path(folder)
    network, variables = load_pretrained(folder)
    shape = _read_config(folder).get("input_shape")
    if shape is None:
        raise ValueError(
            f"{folder / CONFIG} has no input_shape: save the network with the shape of "
            "one example, such as input_shape=(8, 8, 1)"
        )
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    forward = jax.jit(lambda x: network.apply(variables, x)[0].logits)
    exported = jax.export.export(forward, platforms=("cpu", "cuda", "tpu"))(inputs)
    path = folder / PROGRAM
    with replaced(path) as partial:
        partial.write_bytes(exported.serialize())
    write_digests(folder, [PROGRAM])
    return path


@checked()
def load_program(folder: str | Path) -> jax.export.Exported:
    """Return the program of a folder, whose ``call`` takes inputs and returns logits.

    Args:
        folder: of `export_program`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = Path(folder) / PROGRAM
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: write it by export_program")
    verify_digests(path.parent, [PROGRAM])
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers' own
        raise ValueError(f"{path} is damaged ({error}): export it again") from None
