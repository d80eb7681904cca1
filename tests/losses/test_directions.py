"""Norm and direction: the authors' numbers, both branches, and the class means."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import call

import jaxkd
from jaxkd import Outputs, data, methods, models
from jaxkd.evaluation.class_means import feature_means
from jaxkd.losses import (
    class_means,
    class_sums,
    direction_loss,
    feature_alignment,
    nd_loss,
    norm_loss,
)

MEANS = jnp.eye(3)
LABELS = jnp.array([0, 2])


@pytest.mark.parametrize("name", ["c0", "c1"])
def test_the_authors_loss_and_gradient(load_golden, x64, name):
    golden = load_golden("32-ndkd")
    g = {key[3:]: jnp.asarray(golden[key]) for key in golden if key.startswith(name)}

    def loss(features):
        found = nd_loss(features, g["t_emb"], g["class_means"], g["labels"])
        return g["nd_loss_factor"] * found.mean()

    value, gradient = jax.value_and_grad(loss)(g["s_emb"])
    np.testing.assert_allclose(value, g["loss"], rtol=1e-9)
    np.testing.assert_allclose(gradient, g["grad"], rtol=1e-7, atol=1e-12)


def test_the_authors_means_but_for_their_rounding(load_golden):
    g = load_golden("32-ndkd")
    labels = jnp.asarray(g["means_labels"])
    means = class_means(*class_sums(jnp.asarray(g["means_embeddings"]), labels, 3))
    np.testing.assert_allclose(means, g["means_class_means"], atol=1e-4)


def test_short_features_grow_and_long_ones_only_turn():
    teacher = jnp.array([[3.0, 4.0, 0.0], [0.0, 3.0, 4.0]])

    def slopes(student):
        return jax.grad(lambda s: nd_loss(s, teacher, MEANS, LABELS).sum())(student)

    # Shorter: −e_y / ‖f_t‖, whatever the feature.
    np.testing.assert_allclose(slopes(teacher / 5), [[-0.2, 0, 0], [0, 0, -0.2]])
    # Longer, or as long: none along the feature itself.
    for long in (teacher, 2 * teacher):
        along = (slopes(long) * long).sum(-1)
        np.testing.assert_allclose(along, 0, atol=1e-7)
    assert np.isfinite(slopes(jnp.zeros((2, 3)))).all()


def test_the_parts_alone():
    student = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    cosine = np.array([1, np.sqrt(0.5)])
    np.testing.assert_allclose(direction_loss(student, MEANS, LABELS), 1 - cosine)
    np.testing.assert_allclose(norm_loss(student, 0.3), 0.09, rtol=1e-6)
    slope = jax.grad(lambda s: norm_loss(s, 0.3).sum())(student)
    unit = student / jnp.linalg.norm(student, axis=-1, keepdims=True)
    np.testing.assert_allclose(slope, -0.6 * unit, rtol=1e-5)
    found = feature_alignment(student, MEANS, LABELS)
    np.testing.assert_allclose(found["cosine"], cosine, rtol=1e-6)
    np.testing.assert_allclose(found["norm"], [2, np.sqrt(2)], rtol=1e-6)


def test_a_class_without_examples_has_no_direction():
    features = jnp.array([[1.0, 2.0], [3.0, 4.0], [jnp.nan, 1.0]])
    sums, counts = class_sums(
        features, jnp.array([0, 0, 1]), 2, weights=jnp.array([1.0, 1.0, 0.0])
    )
    means = class_means(sums, counts)
    np.testing.assert_array_equal(means, [[2, 3], [0, 0]])
    student = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    loss = nd_loss(student, student, means, jnp.array([0, 1]))
    np.testing.assert_allclose(loss, [1 - 2 / np.sqrt(13), 0], rtol=1e-6)


def test_bad_input_is_refused():
    features = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"project the student's to the teacher's"):
        nd_loss(features, jnp.ones((2, 5)), MEANS, LABELS)
    with pytest.raises(ValueError, match=r"means \(3, 3\)"):
        nd_loss(jnp.ones((2, 4)), jnp.ones((2, 4)), MEANS, LABELS)
    with pytest.raises(ValueError, match="labels must be 0 to 2"):
        nd_loss(features, features, MEANS, jnp.array([0, 3]))
    outside = jax.jit(nd_loss)(features, features, MEANS, jnp.array([-1, 3]))
    assert np.isnan(outside).all()


@pytest.mark.slow
def test_means_of_batches_come_to_those_of_one_pass():
    found = data.load("digits").train
    teacher, student = (models.mlp(64, (width,), found.classes) for width in (12, 8))
    variables = teacher.init(jax.random.key(0))
    whole = feature_means(teacher, variables, found, batch_size=300)
    features = teacher.apply(
        variables, jnp.asarray(found.arrays["image"]), taps=("pooled",)
    )[0]
    labels = found.arrays["label"]
    expected = [features.features["pooled"][labels == c].mean(0) for c in range(10)]
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)

    program = jaxkd.distill(
        student, teacher.with_variables(variables), methods.nd(), optax.sgd(0.1)
    )
    parts = [found.take(rows) for rows in np.arange(1000).reshape(2, 500)]
    batches = [jax.tree.map(jnp.asarray, part) for part in parts]
    state = program.init(jax.random.key(0), batches[0])
    step = jax.jit(program.step)
    for batch in batches:
        state, metrics = step(state, batch)
    kept = state.method["state"]
    means = kept["sums"] / kept["counts"][:, None]
    np.testing.assert_allclose(means, whole, rtol=1e-5, atol=1e-6)
    assert 0 < metrics["nd"] < 2

    rest = data.Source("rest", {k: v[labels > 0] for k, v in found.arrays.items()}, 10)
    with pytest.raises(ValueError, match="class 0 of 'rest' has no example"):
        feature_means(teacher, variables, rest)


@pytest.mark.parametrize("kind", ["both", "direction", "norm", "own"])
def test_what_the_method_takes_in_its_place(kind):
    rng = np.random.default_rng(0)
    own, taught = (jnp.asarray(rng.normal(size=(2, 3)), jnp.float32) for _ in range(2))
    student, teacher = (Outputs(x, {"pooled": x}) for x in (own, taught))
    method = methods.nd(MEANS, kind=kind)
    batch = {"label": LABELS}
    variables = method.init(jax.random.key(0), student, teacher, batch)
    found, _ = call(method, variables, student, teacher, batch)
    expected = {
        "both": nd_loss(own, taught, MEANS, LABELS),
        "direction": direction_loss(own, MEANS, LABELS),
        "norm": jnp.ones(2),
        # As if each example were a class of its own.
        "own": nd_loss(own, taught, taught, jnp.arange(2)),
    }
    np.testing.assert_allclose(found, expected[kind].mean(), rtol=1e-6)
