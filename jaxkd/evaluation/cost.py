"""What networks and steps cost: parameters, and the compiler's FLOPs and memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.arguments import checked
from jaxkd.network import Network
from jaxkd.types import Batch, Program


@checked()
@dataclass(frozen=True)
class Cost:
    """The compiler's figures for one run of a compiled function on one device.

    Attributes:
        flops: floating-point operations; the body of a loop counts once, whatever its
            trips.
        bytes_accessed: read from and written to memory.
        arguments: bytes of the arguments.
        outputs: bytes of the results that take no argument's place.
        temporaries: bytes held in between.
    """

    flops: float
    bytes_accessed: float
    arguments: int
    outputs: int
    temporaries: int


@checked()
def parameter_count(network: Network) -> int:
    """Return the number of trained parameters; no weights are made."""
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@checked()
def compiled_cost(
    function: Callable, *arguments: Any, donate: Sequence[int] = ()
) -> Cost:
    """Return what a function costs, from its compiled program; it is not run.

    Args:
        function: pure.
        *arguments: arrays, or shapes (``jax.ShapeDtypeStruct``).
        donate: positions of the arguments whose memory the results may take.
    """
    lowered = jax.jit(function, donate_argnums=tuple(donate)).lower(*arguments)
    compiled = lowered.compile()
    cost: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return Cost(
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
    )


@checked()
def forward_cost(network: Network, input_shape: Sequence[int]) -> Cost:
    """Return the cost of a network's forward pass in evaluation.

    Args:
        network: of one input array.
        input_shape: with the batch, such as (1, 32, 32, 3).
    """
    variables = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
    return compiled_cost(lambda v, x: network.apply(v, x)[0].logits, variables, image)


@checked()
def step_cost(program: Program, batch: Batch) -> Cost:
    """Return the cost of one step of a program, its state's memory being reused.

    Args:
        program: any.
        batch: arrays, or shapes (``jax.ShapeDtypeStruct``).
    """
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    return compiled_cost(program.step, state, batch, donate=(0,))
