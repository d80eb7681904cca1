"""LeNet against a convolution written out, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from jaxkd import models


@pytest.fixture(scope="module")
def toy():
    network = models.lenet(16, 2, (3, 4), 6, 5)
    return network, jax.jit(network.init)(jax.random.key(0))


def test_the_forward_pass_written_out(toy):
    network, variables = toy
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 2))
    taps = ("stage0", "stage1", "pooled")
    found, _ = network.apply(variables, jnp.asarray(image, jnp.float32), taps=taps)
    params, x = variables["params"], image
    for i in ("0", "1"):
        conv = params["convs"][i]
        kernel, bias = np.asarray(conv["kernel"], "f8"), np.asarray(conv["bias"], "f8")
        maps = [
            sum(
                correlate(x[n, ..., c], kernel[..., c, out], "valid")
                for c in range(x.shape[-1])
            )
            for n in range(2)
            for out in range(kernel.shape[-1])
        ]
        x = np.moveaxis(np.reshape(maps, (2, -1, *maps[0].shape)), 1, -1) + bias
        side = x.shape[1] // 2
        x = x.reshape(2, side, 2, side, 2, -1).max((2, 4)).clip(0)
        np.testing.assert_allclose(found.features[f"stage{i}"], x, rtol=1e-4, atol=1e-5)
    hidden, head = params["hidden"], params["head"]
    x = (x.reshape(2, -1) @ hidden["kernel"] + hidden["bias"]).clip(0)
    np.testing.assert_allclose(found.features["pooled"], x, rtol=1e-4, atol=1e-5)
    logits = x @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)


def test_it_is_the_demonstrations_network_by_default():
    shapes = jax.eval_shape(models.lenet().init, jax.random.key(0))
    weights = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert weights == 260 + 5020 + 16_050 + 510
    assert not jax.tree.leaves(shapes["stats"])


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_arguments(toy):
    network, variables = toy
    with pytest.raises(ValueError, match=r"was built for \(16, 16, 2\): build"):
        network.apply(variables, jnp.ones((1, 28, 28, 2)))
    with pytest.raises(ValueError, match=r"size must be at least 16 .* got 12"):
        models.lenet(12)
    with pytest.raises(ValueError, match=r"channels two numbers, got 28 and \(1,\)"):
        models.lenet(channels=(1,))
