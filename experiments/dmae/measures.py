"""What is measured beside accuracy: painted pixels, and what the teacher costs."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification
from experiments.dmae.config import Config
from jaxkd.evaluation.cost import compiled_cost
from jaxkd.methods import mae
from jaxkd.methods.base import resolved
from jaxkd.network import Network
from jaxkd.programs.distill import prepared
from jaxkd.programs.update import Keys
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import records
from jaxkd.types import Batch, Outputs, Variables

PASS = "teacher's pass"


def reconstruction(config: Config, network: Network, images: Classification) -> float:
    """Return the error of hidden pixels on test images, three quarters being hidden.

    Args:
        config: of the run.
        network: a trained autoencoder.
        images: whose test images are painted, in one epoch of whole batches.
    """
    method = mae(patch_size=config.student.patch)
    tested = replace(images, train=images.test, transform=images.test_transform)
    variables = network.init(jax.random.key(0))

    @jax.jit
    def error(variables: Variables, key: jax.Array, batch: Batch) -> jax.Array:
        masked = prepared(method, Keys(key), batch)
        outputs, _ = network.apply(variables, network.read(masked), taps=("pixels",))
        held = {"params": {}, "state": {}}
        found = method.loss(held, outputs, Outputs(None), masked, key, 0)
        return resolved(found)[0]

    errors = [
        error(variables, jax.random.key(i), {"image": batch["image"]})
        for i, batch in enumerate(tested.batches(seed=0, epochs=1))
    ]
    return float(np.mean(errors))


def teachers_pass(config: Config, folder: Path) -> list[Record]:
    """Return what the teacher's pass costs: whole, on visible patches, and its part.

    The FLOPs are the compiler's. Each is compared with the share that blocks and
    tokens are of the whole; the difference is of the aligned block's features.
    """
    sizes, size = config.teacher, 8
    variables = sizes.plain().init(jax.random.key(0))
    image = jax.random.normal(
        jax.random.key(1), (size, sizes.image, sizes.image, sizes.channels)
    )
    method, whole = mae(patch_size=sizes.patch), {"image": image}
    masked = prepared(method, Keys(jax.random.key(2)), whole)
    tokens = masked["ids_keep"].shape[1] + 1
    of_tokens = tokens / (1 + sizes.side**2)
    of_blocks = (config.layers[1] + 1) / sizes.size[1]
    last, found, flops, features = f"block{sizes.size[1] - 1}", [], {}, {}
    for name, stop, predicted, seen in (
        ("whole", last, 1.0, False),
        ("visible patches", last, of_tokens, True),
        ("first blocks", config.stop, of_tokens * of_blocks, True),
    ):
        network = sizes.first_blocks(stop, variables)
        inputs = network.read(masked if seen else whole)

        def run(variables, inputs, network=network):
            return network.apply(variables, inputs, taps=(config.stop,))[0]

        flops[name] = compiled_cost(run, variables, inputs).flops
        features[name] = jax.jit(run)(variables, inputs).features[config.stop]
        share = flops[name] / flops["whole"]
        values = {
            "gflop": flops[name] / size / 1e9,
            "share": share,
            "predicted_share": predicted,
            "excess": share / predicted - 1,
        }
        if name == "first blocks":
            apart = jnp.abs(features[name] - features["visible patches"]).max()
            values["difference"] = float(apart)
        found += records(PASS, name, 0, values, 0.0)
    return found
