"""The zero-cost proxies of a supernet's networks; compiled once for all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.arguments import checked
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.search.proxies import grad_norm, nwot, snip, synflow
from jaxkd.search.supernets import Supernet
from jaxkd.types import Batch


@checked()
def zero_cost(net: Supernet) -> Callable[[dict, tuple[int, ...], Batch], dict]:
    """Return what measures one network by all of `jaxkd.search.proxies`.

    Args:
        net: with the tap ``codes``, such as a `depth_supernet`.

    Returns:
        ``(params, architecture, batch) -> {proxy: score}``, of a batch of images with
        labels. ``synflow`` is computed in float64.
    """

    @jax.jit
    def measure(params, architecture, batch):
        def loss(params):
            outputs = net.apply(params, batch["image"], architecture, taps=("codes",))
            losses = cross_entropy_loss(outputs.logits, batch["label"])
            return losses.mean(), outputs.features["codes"]

        gradients, codes = jax.grad(loss, has_aux=True)(params)
        return {
            "grad_norm": grad_norm(gradients),
            "snip": snip(params, gradients),
            "nwot": nwot(codes),
        }

    @jax.jit
    def flow(params, architecture, ones):
        return synflow(
            lambda p: net.apply(p, ones, architecture, train=False).logits, params
        )

    def scores(params: dict, architecture: tuple[int, ...], batch: Batch) -> dict:
        found = measure(params, jnp.array(architecture), batch)
        exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        ones = np.ones((1, *batch["image"].shape[1:]))
        with jax.enable_x64(True):
            found["synflow"] = flow(exact, jnp.array(architecture), jnp.asarray(ones))
        return {name: float(value) for name, value in found.items()}

    return scores
