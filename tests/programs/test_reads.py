"""Networks read any keys of a batch, and a role's own in place of the shared ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import Network, methods, models, networks

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LABEL = jnp.asarray(RNG.integers(0, 3, 16))


def values(*shape):
    return jnp.asarray(RNG.normal(size=(16, *shape)), jnp.float32)


def linear(size, reads, features=lambda inputs: inputs):
    """Return a linear classifier of what ``features`` makes of the inputs."""
    return Network.from_apply(
        lambda key: 0.1 * jax.random.normal(key, (size, 3)),
        lambda w, inputs: features(inputs) @ w,
        reads=reads,
    )


def spectrum(wave):
    return jnp.abs(jnp.fft.rfft(wave))[:, :4]


def both(inputs):
    assert set(inputs) == {"imu", "video"}
    return jnp.concatenate([inputs["imu"], inputs["video"].mean((1, 2, 3))], axis=1)


CASES = {
    "tabular": ({"features": values(5)}, linear(5, ("features",))),
    "audio": ({"waveform": values(16)}, linear(4, ("waveform",), spectrum)),
    "several": (
        {"imu": values(6), "video": values(2, 3, 3, 2)},
        linear(8, ("imu", "video", "map"), both),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_inputs_of_any_name_are_distilled(name):
    """A teacher that knows the labels, and a student that has its inputs only."""
    inputs, student = CASES[name]
    teacher = linear(3, ("privileged",))
    batch = {**inputs, "privileged": 9 * jax.nn.one_hot(LABEL, 3), "label": LABEL}
    teacher = teacher.with_variables({"params": jnp.eye(3), "stats": {}})
    program = jaxkd.distill(student, teacher, methods.kd(2.0), optax.sgd(0.05))
    state = program.init(KEY, batch)
    first, step = state.student["params"], jax.jit(program.step)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[1] < losses[0]
    assert not np.array_equal(first, state.student["params"])


def test_a_role_s_own_inputs_stand_in_for_all_shared_ones():
    network = models.llama(9, 4, 1, 2, 4)
    shared = {"input_ids": 1, "attention_mask": 2, "label": 3}
    assert network.read(shared) == {"input_ids": 1, "attention_mask": 2}
    assert network.read(shared, "teacher") == {"input_ids": 1, "attention_mask": 2}
    own = {**shared, "teacher_input_ids": 4}
    assert network.read(own, "teacher") == {"input_ids": 4}
    assert network.read(own) == {"input_ids": 1, "attention_mask": 2}
    one = Network.from_apply(lambda key: {}, lambda p, x: x, reads=("input_ids",))
    assert one.read(own, "teacher") == 4
    message = (
        r"the network reads image, but the batch has input_ids, label: make the "
        r"network with reads="
    )
    with pytest.raises(ValueError, match=message):
        models.cnn().read({"label": 1, "input_ids": 2})


def test_wrappers_read_what_is_inside():
    image, wave = models.mlp(4, (5,), 3), linear(4, ("waveform",), spectrum)
    for network in (
        wave.astype(jnp.bfloat16),
        wave.with_variables(wave.init(KEY)),
        networks.with_logits(wave, "x"),
    ):
        assert network.reads == ("waveform",)
    pair = networks.ensemble([image, wave], "logits")
    assert pair.reads == ("image", "waveform")
    batch = {"image": values(4), "waveform": values(16), "label": LABEL}
    variables = pair.init(KEY)
    found, _ = pair.apply(variables, pair.read(batch), taps=("0.logits", "1.logits"))
    for i, network in enumerate((image, wave)):
        own = networks.member(variables, i)
        expected, _ = network.apply(own, network.read(batch))
        np.testing.assert_allclose(found.features[f"{i}.logits"], expected.logits)


def test_casting_keeps_one_number_an_example_and_what_is_no_input():
    seen = {}

    def apply(params, inputs):
        seen.update({name: x.dtype.name for name, x in inputs.items()})
        return inputs["image"] * params

    reads = "image", "time", "condition"
    network = Network.from_apply(lambda key: jnp.ones(3), apply, reads=reads)
    half = network.astype(jnp.bfloat16)
    inputs = {"image": values(3), "time": values(), "cache": values(3)}
    outputs, _ = half.apply(half.init(KEY), inputs)
    assert outputs.logits.dtype == jnp.bfloat16
    assert seen == {"image": "bfloat16", "time": "float32", "cache": "float32"}
