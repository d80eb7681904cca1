"""What experiments share: optimizers by name, rates by the step, names that exist."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common.classification import shrunk
from experiments.common.configs import OptimizerConfig, choose
from jaxkd import data

STEPS = 40


def rates(config, epochs=1):
    return np.array([config.rate(STEPS, epochs)(step) for step in range(STEPS)])


def test_rates_are_those_of_optax():
    warm = OptimizerConfig("adamw", 0.1, warmup=8, final=0.1)
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.1, 8, STEPS, 0.01)
    np.testing.assert_allclose(
        rates(warm), [expected(step) for step in range(STEPS)], rtol=1e-6
    )
    share = OptimizerConfig("adamw", 0.1, warmup=0.2, final=0.1)
    np.testing.assert_array_equal(rates(share), rates(warm))
    line = OptimizerConfig(learning_rate=0.1, schedule="linear")
    falling = 0.1 * (1 - np.arange(STEPS) / STEPS)
    np.testing.assert_allclose(rates(line), falling, rtol=1e-5)


def test_milestones_are_epochs():
    config = OptimizerConfig("sgd", 0.05, schedule="steps", milestones=(2, 3))
    found = rates(config, epochs=4)
    np.testing.assert_allclose(found[[0, 19, 20, 30]], [0.05, 0.05, 5e-3, 5e-4], 1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_one_update_is_the_named_optimizers(name):
    decay, gradient, weight = 0.5, jnp.asarray(0.3), jnp.asarray(2.0)
    config = OptimizerConfig(name, 0.1, decay, "constant", clip=0.2)
    optimizer = config.build(STEPS)
    found, _ = jax.jit(optimizer.update)(gradient, optimizer.init(weight), weight)
    # Adam's first step is the gradient's sign; the gradient is clipped to 0.2.
    expected = {"adam": -0.1, "adamw": -0.1 * (1 + decay * 2), "sgd": -0.1 * 1.2}
    np.testing.assert_allclose(found, expected[name], rtol=1e-5)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown name 'adma': did you mean 'adam"):
        OptimizerConfig("adma")
    with pytest.raises(ValueError, match="unknown pair 'mpl': did you mean 'mlp'"):
        choose("pair", ["mpl"], {"mlp": 1})
    assert choose("pair", [], {"mlp": 1, "cnn": 2}) == {"mlp": 1, "cnn": 2}
    assert list(choose("pair", ["cnn", "mlp"], {"mlp": 1, "cnn": 2})) == ["cnn", "mlp"]


def test_shrunk_averages_blocks():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    source = data.Source("toy", {"image": image, "label": np.zeros(1, int)}, 2)
    small = shrunk(source, 2)
    assert small.arrays["image"].dtype == np.uint8
    # 2.5 and 12.5 are rounded to even numbers.
    assert small.arrays["image"][0, :, :, 0].tolist() == [[2, 4], [10, 12]]
    assert small.name == "toy/2x2"
    # Images that are scaled already keep their fractions.
    scaled = data.Source("toy", {**source.arrays, "image": image / 16.0}, 2)
    found = shrunk(scaled, 2).arrays["image"][0, :, :, 0]
    np.testing.assert_allclose(found, [[2.5 / 16, 4.5 / 16], [10.5 / 16, 12.5 / 16]])
