"""Trained networks as folders: weights in safetensors beside a readable config."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from jaxkd import models
from jaxkd.types import Network, Variables

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PROGRAM = "model.stablehlo"


def save_pretrained(
    folder: str | Path,
    model: str,
    arguments: Mapping[str, Any],
    variables: Variables,
    input_shape: Sequence[int],
) -> Path:
    """Write a zoo network's weights and how to build it.

    Args:
        folder: made if it is missing.
        model: its name in ``jaxkd.models.MODELS``.
        arguments: of its constructor, as JSON can hold them.
        variables: its params and stats.
        input_shape: of one example, such as (8, 8, 1).

    Raises:
        ValueError: no model has that name, or the variables are not that model's.
    """
    network = models.create(model, **arguments)
    _check(network, variables, "variables")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "library": "jaxkd",
        "model": model,
        "arguments": dict(arguments),
        "input_shape": list(input_shape),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    flat: Any = flatten_dict(jax.device_get(variables), sep="/")
    save_file(flat, folder / WEIGHTS)
    return folder


def load_pretrained(folder: str | Path) -> tuple[Network, Variables]:
    """Return the network and variables that `save_pretrained` wrote.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a file is damaged, names no model of this library, or the weights
            are not the model's. It names the file and the remedy.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: load_pretrained needs {CONFIG} and "
                f"{WEIGHTS}, as `jaxkd export` writes them"
            )
    try:
        config = json.loads((folder / CONFIG).read_text())
        model, arguments = config["model"], config["arguments"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CONFIG} cannot be read ({error!r}): export the model again"
        ) from None
    try:
        network = models.create(model, **arguments)
    except TypeError as error:
        raise ValueError(
            f"{folder / CONFIG} has arguments {arguments!r} that {model!r} does not "
            f"take ({error}): export the model again"
        ) from None
    try:
        flat = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(
            f"{folder / WEIGHTS} is damaged ({error}): export the model again"
        ) from None
    variables = {"params": {}, "stats": {}, **unflatten_dict(flat, sep="/")}
    _check(network, variables, str(folder / WEIGHTS))
    return network, variables


def _check(network: Network, variables: Variables, what: str) -> None:
    expected: Any = flatten_dict(
        jax.eval_shape(network.init, jax.random.key(0)), sep="/"
    )
    given: Any = flatten_dict(variables, sep="/")
    for name in sorted({*expected, *given}):
        shapes = [
            tree[name].shape if name in tree else None for tree in (expected, given)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{what}: {name} has shape {shapes[1]}, but the model of {CONFIG} has "
                f"{shapes[0]} there (None: absent). Use the arguments it was trained "
                "with"
            )


def export_program(folder: str | Path) -> Path:
    """Write an exported folder's forward pass as a portable StableHLO program.

    The weights are inside, the batch size is free, and it runs on CPU, GPU and TPU:
    ``jax.export.deserialize(file.read_bytes()).call(images)`` returns the logits.

    Args:
        folder: as `save_pretrained` writes it; the program goes there as
            ``model.stablehlo``.
    """
    network, variables = load_pretrained(folder)
    shape = json.loads((Path(folder) / CONFIG).read_text())["input_shape"]
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    forward = jax.jit(lambda x: network.apply(variables, x)[0].logits)
    exported = jax.export.export(forward, platforms=("cpu", "cuda", "tpu"))(inputs)
    path = Path(folder) / PROGRAM
    path.write_bytes(exported.serialize())
    return path
