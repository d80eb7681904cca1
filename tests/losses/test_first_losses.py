"""FIRST's losses: the authors' numbers, laws and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import call

from jaxkd import Outputs
from jaxkd.losses import first_loss, recalibrate_top_k, smooth_top_k, top_k_log_probs
from jaxkd.methods import first

CONFIGS = {
    "linear": {},
    "linear_alltok": {},
    "softmax_T1": {"space": "probability", "student_space": "probability"},
    "softmax_c03": {
        "temperature": 0.3,
        "space": "probability",
        "student_space": "probability",
    },
}


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


@pytest.fixture(params=["a", "b"])
def numbers(request, load_golden, precision):
    found = load_golden("48-first")
    start = f"{request.param}/"
    found = {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)}
    return {
        k: jnp.asarray(v, precision) if v.dtype == np.float64 else jnp.asarray(v)
        for k, v in found.items()
    }


def close(found, expected, precision):
    rtol = 1e-10 if precision == "float64" else 1e-5
    atol = rtol * float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_authors_numbers(numbers, config, precision):
    mask = "attention_mask" if config == "linear_alltok" else "loss_mask"
    batch = {
        "mask": numbers[mask],
        "teacher_ids": numbers["teacher_top_ids"],
        "teacher_log_probs": jnp.log(numbers["teacher_top_prob"]),
    }
    method = first(**CONFIGS[config], reduction="sequence")

    def loss(logits):
        variables = {"params": {}, "state": {}}
        return call(method, variables, Outputs(logits), Outputs(None), batch)[0]

    value, gradient = jax.value_and_grad(loss)(numbers["student_logits"])
    close(value, numbers[f"{config}/loss"], precision)
    close(gradient, numbers[f"{config}/grad_student"], precision)


@pytest.mark.parametrize("config", CONFIGS)
def test_authors_targets(numbers, config, precision):
    options = CONFIGS[config]
    found = recalibrate_top_k(
        jnp.log(numbers["teacher_top_prob"]),
        options.get("temperature", 1.0),
        options.get("space", "log"),
    )
    close(found, numbers[f"{config}/teacher_log_target"], precision)


def test_a_teacher_in_the_step_is_its_cache(numbers, precision):
    ids, log_probs = top_k_log_probs(numbers["teacher_logits"], 5)
    assert (ids == numbers["teacher_top_ids"]).all()
    close(jnp.exp(log_probs), numbers["teacher_top_prob"], precision)


def log_probs(seed, k=5, scale=3.0):
    z = np.random.default_rng(seed).normal(0, scale, (4, 12)).astype("f4")
    return top_k_log_probs(jnp.asarray(z), k)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.05, 10),
    space=st.sampled_from(["log", "probability"]),
)
def test_recalibration_keeps_the_order_and_sums_to_one(seed, temperature, space):
    found = recalibrate_top_k(log_probs(seed)[1], temperature, space)
    np.testing.assert_allclose(jnp.exp(found).sum(-1), 1, rtol=1e-5)
    assert (jnp.diff(found) <= 1e-6).all()


def test_probability_space_is_bounded_as_the_paper_says():
    # The best of five gets at most e^(1/c) / (e^(1/c) + 4).
    sure = jnp.log(jnp.array([1.0, 0, 0, 0, 0]))
    for c, most in [(1.0, 0.40), (0.28, 0.90), (0.1, 0.999)]:
        found = jnp.exp(recalibrate_top_k(sure, c, "probability"))[0]
        np.testing.assert_allclose(found, most, atol=0.006)


def test_log_space_is_the_temperature_of_the_logits():
    z = jnp.asarray(np.random.default_rng(0).normal(0, 2, (3, 5)), jnp.float32)
    ids, found = top_k_log_probs(z, 5)
    expected = jnp.take_along_axis(jax.nn.log_softmax(z / 2.5), ids, -1)
    np.testing.assert_allclose(
        recalibrate_top_k(found, 2.5, eps=0.0), expected, rtol=1e-5
    )


def test_smoothing_moves_mass_from_the_best():
    smooth = jnp.exp(smooth_top_k(log_probs(1)[1], 0.1))
    plain = jax.nn.softmax(log_probs(1)[1])
    np.testing.assert_allclose(smooth[:, 0], plain[:, 0] - 0.1, rtol=1e-5)
    np.testing.assert_allclose(smooth[:, 1:], plain[:, 1:] + 0.025, rtol=1e-5)
    np.testing.assert_allclose(smooth.sum(-1), 1, rtol=1e-6)


def test_reductions_are_a_mean_and_a_sum_over_sequences():
    rng = np.random.default_rng(0)
    student, teacher = (
        Outputs(jnp.asarray(rng.normal(size=(3, 4, 8)), jnp.float32)) for _ in range(2)
    )
    mask = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])

    def run(reduction):
        method = first(2.0, k=5, reduction=reduction)
        variables = {"params": {}, "state": {}}
        return call(method, variables, student, teacher, {"mask": mask}, None, 0)[0]

    # Four tokens in the two sequences that have any.
    np.testing.assert_allclose(run("sequence"), run("token") * 4 / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: recalibrate_top_k(x, 0.0), "temperature must be above 0"),
        (lambda x: recalibrate_top_k(x, 1.0, "logits"), "unknown space 'logits'"),
        (lambda x: smooth_top_k(x, 0.2), "below 1/5, got 0.2"),
        (lambda x: smooth_top_k(x, -0.1), "at least 0"),
        (lambda x: smooth_top_k(x[:, :1]), "1 token"),
        (
            lambda x: first_loss(jnp.zeros((4, 12)), jnp.zeros((4, 3), int), x),
            r"teacher_ids has shape \(4, 3\) but targets has \(4, 5\)",
        ),
        (lambda x: first(reduction="mean"), "token or sequence, got 'mean'"),
    ],
)
def test_bad_arguments_are_named(call, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        call(log_probs(0)[1])
