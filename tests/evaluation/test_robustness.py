"""Accuracies on corrupted images, of a network that can be looked through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Network, data
from jaxkd.data.corruptions import Corrupt
from jaxkd.evaluation.robustness import mean_corruption_error, robustness_evaluator

NAMES = ("gaussian_noise", "brightness", "contrast")


def bright(key):
    return {"threshold": jnp.full((), 0.5)}


NETWORK = Network.from_apply(
    bright,
    lambda params, x: jnp.stack(
        [
            params["threshold"] - x.mean((1, 2, 3)),
            x.mean((1, 2, 3)) - params["threshold"],
        ],
        -1,
    ),
)
"""Says 1 of images that are brighter than a threshold."""


def source(scale=255):
    levels = np.linspace(0.3, 0.7, 20)
    image = np.broadcast_to(levels[:, None, None, None], (20, 6, 6, 1))
    image = np.round(image * 255).astype(np.uint8) if scale == 255 else image
    label = (levels > 0.5).astype(np.int32)
    return data.Source(
        "grey", {"image": np.ascontiguousarray(image), "label": label}, 2
    )


class Scale:
    """To floats in [0, 1], as a user's own transform may do."""

    def __call__(self, batch, rng):
        return {**batch, "image": (batch["image"] / 255).astype(np.float32)}


def test_accuracies_are_those_of_the_images_corrupted_by_hand():
    measure = robustness_evaluator(
        NETWORK, source(), NAMES, (2, 5), Scale(), batch_size=7
    )
    variables = NETWORK.init(jax.random.key(0))
    found = measure(variables)
    for name in NAMES:
        right = []
        for severity in (2, 5):
            batch = Corrupt(name, severity)(source().take(np.arange(20)), None)
            said = batch["image"].mean((1, 2, 3)) / 255 > 0.5
            right.append((said == batch["label"]).mean())
        assert found[f"{name}_accuracy"] == pytest.approx(np.mean(right))
    # Light alone crosses the threshold: 0.3 and 0.1 more of 0.3 … 0.5 is too bright.
    assert found["brightness_accuracy"] < 0.8
    assert found["contrast_accuracy"] == 1
    mean = np.mean([found[f"{name}_accuracy"] for name in NAMES])
    assert found["corruption_accuracy"] == pytest.approx(mean)


def test_mean_corruption_error_is_relative_to_the_reference():
    found = {"a_accuracy": 0.9, "b_accuracy": 0.4, "corruption_accuracy": 0.65}
    reference = {"a_accuracy": 0.8, "b_accuracy": 0.2, "corruption_accuracy": 0.5}
    expected = (0.1 / 0.2 + 0.6 / 0.8) / 2
    assert mean_corruption_error(found, reference) == pytest.approx(expected)
    assert mean_corruption_error(found, found) == 1
    with pytest.raises(ValueError, match="same corruptions"):
        mean_corruption_error(found, {"a_accuracy": 0.5})
    with pytest.raises(ValueError, match="no error in a_accuracy"):
        mean_corruption_error({"a_accuracy": 0.5}, {"a_accuracy": 1.0})


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="did you mean 'contrast'"):
        robustness_evaluator(NETWORK, source(), ("contrst",))
    with pytest.raises(ValueError, match="at least one of each"):
        robustness_evaluator(NETWORK, source(), ())
    with pytest.raises(ValueError, match="severity must be 1 to 5, got 0"):
        robustness_evaluator(NETWORK, source(), ("contrast",), (0,))
    bare = data.Source("bare", {"image": source().arrays["image"]}, 2)
    measure = robustness_evaluator(NETWORK, bare, ("contrast",), (1,), Scale())
    with pytest.raises(ValueError, match="'bare' has no label"):
        measure(NETWORK.init(jax.random.key(0)))
