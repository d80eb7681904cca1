"""The decoders of `decoding` in jaxkd: ``jax_decoding.py CASE KIND``."""

from collections.abc import Callable

import jax
from decoding_cases import CASES
from worker import serve

from jaxkd.generation import GREEDY, generate
from jaxkd.models import llama


def build(name: str, kind: str) -> Callable[[int], None]:
    """Return ``steps -> None``, which reads, or continues, that many batches."""
    case = CASES[name]
    network = llama(
        case.vocabulary,
        case.width,
        case.layers,
        case.heads,
        case.hidden,
        kv_heads=case.kv_heads,
    )
    variables = jax.jit(network.init)(jax.random.key(0))
    length = case.prompt if kind == "prefill" else case.short
    ids = jax.random.randint(
        jax.random.key(1), (case.batch, length), 0, case.vocabulary
    )
    new = 1 if kind == "prefill" else case.new

    def run(steps: int) -> None:
        for _ in range(steps):
            found = generate(
                *(network, variables, {"input_ids": ids}),
                max_new_tokens=new,
                sampling=GREEDY,
            )
            jax.block_until_ready(found)

    return run


if __name__ == "__main__":
    serve(build)
