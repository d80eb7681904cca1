"""Networks as folders: weights in safetensors beside a readable config.json.

Models that `transformers` has are read and written in its format (see
`jaxkd.interop.families`), so that either library takes the other's; the rest of the zoo
in the same files with the constructor's arguments as the config.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxkd import models, papers
from jaxkd.arguments import checked
from jaxkd.interop.checkpoint import (
    check_variables,
    nbytes,
    network_sources,
    read_variables,
    tensor_reader,
    tensor_shapes,
)
from jaxkd.interop.families import family_reading, family_writing
from jaxkd.interop.shards import INDEX, WEIGHTS, Shards, write_shards
from jaxkd.network import Network
from jaxkd.types import Variables

CONFIG = "config.json"
PROGRAM = "model.stablehlo"
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

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""What a config says of the tokeniser."""


@checked()
def load_pretrained(
    folder: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    **arguments: Any,
) -> tuple[Network, Variables]:
    """Return the network and variables of a folder: Hugging Face's or this library's.

    The arrays are read slice by slice into their places, from one file or several;
    pickles are not read.

    Args:
        folder: with config.json and safetensors, as `save_pretrained`, ``jaxkd export``
            or transformers write them.
        mesh: to place the arrays on, from `jaxkd.training.make_mesh`; None for the
            default device.
        dtype: of the floating-point arrays; None for the files'.
        **arguments: of the constructor in place of the config's, such as
            ``remat=True``.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a file is damaged, names no model of this library, or the weights
            are not the model's. It names the file and the remedy.
    """
    folder = Path(folder)
    config, shards = _read_config(folder), Shards(folder)
    if "architectures" in config:
        family = family_reading(config)
        model, given = family.model, family.arguments(config)
        if family.head is not None:
            given["tied"] = family.head not in shards.tensors
    else:
        family, model, given = None, config["model"], config["arguments"]
    try:
        network = models.create(
            model,
            {**models.MODELS, **papers.constructors(Network)},
            **{**given, **arguments},
        )
    except TypeError as error:
        raise ValueError(
            f"{folder / CONFIG} and what was given make arguments that {model!r} does "
            f"not take ({error}): export the model again"
        ) from None
    return network, read_variables(network, family, shards, mesh, dtype)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: load_pretrained needs {CONFIG} and {WEIGHTS}, as "
            "transformers or `jaxkd export` write them"
        )
    try:
        config = json.loads(path.read_text())
        theirs = "model" not in config
        needed = ("architectures", "model_type") if theirs else ("model", "arguments")
        for key in needed:
            if not config[key]:
                raise ValueError(f"{key} is empty")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error!r}): fetch or export the model again"
        ) from None
    if config.get("quantization_config"):
        raise ValueError(
            f"{path} is of quantised weights, which are not read: fetch the model as "
            "it was before"
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

    A write that is cut off leaves a folder without config.json, which is no model.

    Args:
        folder: made if it is missing; a model that is there is replaced.
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
            "was changed since: its weights have no format that could be read again"
        )
    model, arguments = network.spec
    family = family_writing(model, arguments)
    arrays = check_variables(network, variables)
    if family is None:
        described = {"library": "jaxkd", "model": model, "arguments": dict(arguments)}
    else:
        dtype = jnp.result_type(*(array.dtype for array in arrays.values()))
        described = {**family.config(arguments), "dtype": str(dtype)}
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
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_shards(partial, sizes, read, max_shard_size)
    for file in carried:
        shutil.copyfile(file, partial / file.name)
    (partial / CONFIG).write_text(text)
    _move(partial, folder)
    return folder


def _tokenizer_files(folder: Path) -> tuple[list[Path], dict[str, Any]]:
    found = [folder / name for name in TOKENIZER if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no tokeniser, such as {', '.join(TOKENIZER[:2])}"
        )
    path = folder / CONFIG
    config = json.loads(path.read_text()) if path.is_file() else {}
    return found, {key: config[key] for key in SPECIAL if key in config}


def _move(partial: Path, folder: Path) -> None:
    """Move a written model into its folder; config.json goes first and comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (CONFIG, INDEX, WEIGHTS, "model-*-of-*.safetensors"):
        for file in folder.glob(old):
            file.unlink()
    for file in sorted(partial.iterdir(), key=lambda file: file.name == CONFIG):
        file.replace(folder / file.name)
    partial.rmdir()


@checked()
def export_program(folder: str | Path) -> Path:
    """Write a folder's forward pass as a portable StableHLO program.

    The weights are inside, the batch size is free, and it runs on CPU, GPU and TPU:
    ``jax.export.deserialize(file.read_bytes()).call(images)`` returns the logits.

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
    path.write_bytes(exported.serialize())
    return path
