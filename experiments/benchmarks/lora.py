"""What a step that trains an 8B Llama needs of a TPU: all of it, or adapters alone.

Compiled for a v5e-8 (16 GiB a chip), nothing is run: Llama-3.1-8B's shapes, 8 rows of
2,048 tokens, next-token cross-entropy in bfloat16, blocks computed anew in the backward
pass, AdamW in float32. Adapters of rank 16 are on all linear layers but the head,
beside weights of bfloat16, int8 or int4 (groups of 64); embedding and head are
bfloat16.

    python experiments/benchmarks/lora.py          # about 2 minutes a program
    python experiments/benchmarks/lora.py --only full lora
"""

import argparse

import jax
import jax.numpy as jnp
import optax

from jaxkd import Network, Program, distill
from jaxkd.compression.quantise.mixed_bits import quantized
from jaxkd.methods import cross_entropy
from jaxkd.models import llama
from jaxkd.networks import LoraConfig, with_lora
from jaxkd.reporting.plans import plan_markdown
from jaxkd.training import decay_mask
from jaxkd.training.ahead import DoesNotFit, StepPlan, plan_step

ROWS, LENGTH = 8, 2048
LORA = LoraConfig(rank=16, alpha=32)


def student() -> Network:
    """Return Llama-3.1-8B's network."""
    return llama(
        vocabulary=128_256,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        hidden=14_336,
        rope_theta=500_000.0,
        epsilon=1e-5,
        remat=True,
    )


def adapted(kind: str | None) -> Network:
    """Return it with adapters beside frozen weights, quantised or of bfloat16."""
    network = student().astype(jnp.bfloat16)
    if kind is not None:
        network = quantized(network, [(r"blocks\..*kernel", kind), (".*", None)], 64)
    return with_lora(network, LORA)


NETWORKS = {
    "full": lambda: student().computing_in(jnp.bfloat16),
    "lora": lambda: adapted(None),
    "qlora, int8": lambda: adapted("int8"),
    "qlora, int4": lambda: adapted("int4"),
}


def program(network: Network) -> Program:
    """Return the program that trains it."""
    optimizer = optax.adamw(1e-4, mask=decay_mask)
    return distill(network, None, cross_entropy(), optimizer)


def main() -> None:
    """Compile, and print the table or what does not fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    batch = {"input_ids": tokens, "label": tokens}
    plans: dict[str, StepPlan] = {}
    for name in parser.parse_args().only:
        try:
            plans[name] = plan_step(
                program(NETWORKS[name]()), batch, "v5e:2x4", "v5e-8"
            )
            print(name, plans[name], flush=True)
        except DoesNotFit as error:
            print(f"{name}: {error}", flush=True)
    if plans:
        print(plan_markdown(plans))


if __name__ == "__main__":
    main()
