"""Talking models: the exchange against NumPy, and gradients through frozen layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial
from tiny import call

import jaxkd
from jaxkd import combine, methods, models
from jaxkd.papers.talking_models import (
    Codecs,
    MessageCodec,
    interact,
    interaction_loss,
    message_consistency_loss,
    state_consistency_loss,
    talking,
)
from jaxkd.programs.distill import teach
from jaxkd.types import Outputs

KEY = jax.random.key(0)
TAPS, TEACHER_TAPS = ("hidden0", "hidden1"), ("hidden1", "hidden2")
WIDTHS, MESSAGE, HIDDEN = (3, 4, 6, 5), 2, 7


def small(**arguments):
    arguments = {"message": MESSAGE, "hidden": HIDDEN, **arguments}
    return talking(TAPS, TEACHER_TAPS, **arguments)


def codecs(rounds=2):
    return Codecs(WIDTHS, MESSAGE, HIDDEN, rounds, rngs=nnx.Rngs(0))


def run(codec, x):
    """Return what a codec makes of x, in NumPy."""
    first, last = (
        (np.asarray(part.kernel[...], float), np.asarray(part.bias[...], float))
        for part in (codec.first, codec.last)
    )
    return np.maximum(x @ first[0] + first[1], 0) @ last[0] + last[1]


@pytest.mark.slow
def test_two_rounds_are_the_codecs_and_upper_layers_in_turn():
    made, low = codecs(), jax.random.normal(KEY, (8, 3))
    upper = jnp.linspace(-1, 1, 30).reshape(6, 5)
    said = interact(low, lambda x: jnp.tanh(x @ upper), made, rounds=2)
    state = np.asarray(low, float)
    for encoder, exchange in zip((made.ask, made.ask_again), said, strict=True):
        message = run(encoder, state)
        decoded = run(made.heard, message)
        interpreted = np.tanh(decoded @ np.asarray(upper, float))
        answer = run(made.answer, interpreted)
        state = run(made.received, answer)
        expected = message, decoded, interpreted, answer, state
        for a, b in zip(exchange, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_losses_are_means_over_values_and_own_states_stand_still():
    rng = np.random.default_rng(0)
    a, b, c = (jnp.asarray(rng.normal(size=(3, 4)), "f4") for _ in range(3))
    expected = (((a - b) ** 2).mean(1) + ((a - c) ** 2).mean(1)) / 2
    np.testing.assert_allclose(interaction_loss(a, [b, c]), expected, rtol=1e-5)
    found = message_consistency_loss(a, b)
    np.testing.assert_allclose(found, ((a - b) ** 2).mean(1), rtol=1e-5)
    found, (decoded, own) = jax.value_and_grad(
        lambda pair: state_consistency_loss([pair, pair]).sum()
    )((a, b))
    np.testing.assert_allclose(found, 2 * ((a - b) ** 2).mean(1).sum(), rtol=1e-5)
    assert np.abs(decoded).max() > 0
    assert not np.asarray(own).any()


@pytest.fixture(scope="module")
def step():
    """Return a train step of networks of two tasks, its first state and a batch."""
    student, teacher = models.mlp(8, (3, 4), 3), models.mlp(8, (6, 6, 5), 10)
    method = combine((1.0, methods.cross_entropy()), (1.0, small(rounds=2)))
    program = jaxkd.distill(student, teacher, method, optax.adam(1e-2))
    batch = {"image": jax.random.normal(KEY, (12, 8)), "label": jnp.arange(12) % 3}
    return jax.jit(program.step), jax.jit(program.init)(KEY, batch), batch


def test_training_lowers_the_loss_and_leaves_the_teacher(step):
    step, first, batch = step
    state, losses = first, []
    for _ in range(60):
        state, metrics = step(state, batch)
        losses.append(float(metrics["talking"]))
    assert losses[-1] < 0.7 * losses[0]
    for a, b in zip(*map(jax.tree.leaves, (first.teacher, state.teacher)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (first.method, state.method)), strict=True):
        assert (a != b).any()


def test_gradients_go_through_the_teachers_layers_not_into_them(step):
    """The student's message is learnt from what frozen layers make of it."""
    _, state, batch = step
    student, teacher = models.mlp(8, (3, 4), 3), models.mlp(8, (6, 6, 5), 10)
    method = small(messages=0.0, states=0.0)

    @jax.jit
    def gradients(student_variables, teacher_variables):
        def loss(student_variables, teacher_variables, params):
            own, _ = student.apply(student_variables, batch["image"], taps=TAPS)
            taught = teach(teacher, method, teacher_variables, batch)
            held = {"params": params, "state": {}}
            return call(method, held, own, taught, batch, KEY)[0]

        own, _ = student.apply(student_variables, batch["image"], taps=TAPS)
        taught = teach(teacher, method, teacher_variables, batch)
        params = method.init(KEY, own, taught, batch)["params"]
        return jax.grad(loss, (0, 1, 2))(student_variables, teacher_variables, params)

    own, others, params = gradients(state.student, state.teacher)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(others))
    # The first two lie before the teacher's layers.
    for name in ("ask", "heard", "answer", "received"):
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(params[name])), name
    assert np.abs(own["params"]["hidden"]["0"]["kernel"]).max() > 0


def test_a_fixed_answer_pulls_the_student_alone():
    student, teacher = (
        Outputs(None, {tap: jax.random.normal(KEY, (2, 3, w)) for tap, w in named})
        for named in (
            zip(TAPS, (3, 4), strict=True),
            zip(TEACHER_TAPS, (6, 5), strict=True),
        )
    )
    teacher = teacher.replace(
        segments={"hidden1:hidden2": Partial(lambda x: x[..., :5])}
    )
    method = small(messages=0.0, states=0.0, detach_received=True)
    held = method.init(KEY, student, teacher, {})

    def loss(params, student):
        full = {**held, "params": params}
        return call(method, full, student, teacher, {"image": jnp.zeros(2)})[0]

    codecs, states = jax.grad(loss, (0, 1))(held["params"], student)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(codecs))
    # Of tokens too, on the last axis.
    assert np.abs(states.features["hidden1"]).max() > 0
    assert not np.asarray(states.features["hidden0"]).any()


def test_without_interaction_no_layer_of_the_teacher_is_called():
    assert small(interaction=0.0).teacher_segments == ()
    assert combine((1.0, small())).teacher_segments == (TEACHER_TAPS,)
    linear = MessageCodec(2, 3, rngs=nnx.Rngs(0))
    assert len(jax.tree.leaves(nnx.state(linear))) == 2


def distilled(method, teacher):
    return jaxkd.distill(models.mlp(8, (3, 4), 3), teacher, method, optax.sgd(0.1))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(rounds=0), "rounds must be at least 1, got 0"),
        (lambda: small(states=-1.0), "states must be at least 0, got -1"),
        (lambda: interact(jnp.zeros((2, 3)), abs, codecs(1), 2), "made for one"),
        (lambda: interaction_loss(jnp.zeros((2, 3)), []), "received is empty"),
        (lambda: state_consistency_loss([]), "pairs is empty"),
        (
            lambda: interaction_loss(jnp.zeros((2, 3)), [jnp.zeros((2, 4))]),
            r"shape \(2, 3\)",
        ),
        (lambda: distilled(small(), None), "teacher is None"),
        (
            lambda: distilled(
                talking(TAPS, ("hidden2", "hidden1")), models.mlp(8, (6, 6, 5))
            ),
            "start 'hidden2' must come before stop 'hidden1'",
        ),
        (
            lambda: distilled(
                talking(TAPS, ("hidden0", "pooled")),
                jaxkd.networks.ensemble([models.mlp(8, (6,))] * 2),
            ),
            "unknown cut 'hidden0'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
