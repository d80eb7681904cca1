"""DisWOT's score: the authors' numbers, closed forms, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import cross_entropy_loss, sp_loss
from jaxkd.papers.diswot import (
    Scorer,
    Statistics,
    channel_similarity,
    diswot_score,
    fc_grad,
    gaussian_reinit,
    relation_similarity,
    semantic_similarity,
)
from jaxkd.papers.diswot.scores import MODES
from jaxkd.search import ChoiceSpace, Supernet
from jaxkd.types import Outputs

LABELS = jnp.array([0, 2, 1, 4])


def statistics(seed, channels=6, side=3):
    rng = np.random.default_rng(seed)
    features = jnp.asarray(rng.normal(size=(4, side, side, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(channels, 5)), jnp.float32)
    return Statistics(features, features.mean((1, 2)) @ kernel, kernel)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_authors_pipeline(load_golden, precision, request):
    if precision == "float64":
        request.getfixturevalue("x64")
    golden = load_golden("20-diswot")
    labels = jnp.asarray(golden["pipe1_labels"])
    gradients = {}
    for who in "st":
        pooled, weight, bias = (
            jnp.asarray(golden[f"pipe1_{name}_{who}"], precision)
            for name in ("feat", "fc_w", "fc_b")
        )
        logits = pooled @ weight.T + bias
        gradients[who] = jax.jit(fc_grad)(pooled, logits, labels)
        expected = golden[f"pipe1_fcgrad_{who}"]
        # The authors' features are stored rounded to float32.
        np.testing.assert_allclose(
            gradients[who] / np.abs(expected).max(),
            expected / np.abs(expected).max(),
            atol=1e-6,
        )
    score = -channel_similarity(gradients["s"], gradients["t"])
    np.testing.assert_allclose(score, golden["pipe1_score"], rtol=1e-5)


def test_fc_grad_is_the_gradient_of_the_layer():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)

    def loss(kernel):
        return cross_entropy_loss(features @ kernel, LABELS).mean()

    expected = jax.grad(loss)(kernel).T
    found = fc_grad(features, features @ kernel, LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    # Logits of ±1e4 saturate the softmax, no more.
    assert jnp.all(jnp.isfinite(fc_grad(features, 1e4 * (features @ kernel), LABELS)))


def test_fc_grad_refuses_labels_out_of_range():
    features, logits = jnp.ones((2, 3)), jnp.ones((2, 5))
    for labels in ([0, 5], [-1, 0]):
        with pytest.raises(ValueError, match="labels must be 0 to 4"):
            fc_grad(features, logits, jnp.array(labels))
    found = jax.jit(fc_grad)(features, logits, jnp.array([0, 5]))
    assert jnp.all(jnp.isnan(found))


@pytest.mark.parametrize("mode", MODES)
def test_identical_networks_have_the_best_score(mode):
    teacher, student = statistics(0), statistics(1)
    assert diswot_score(teacher, teacher, LABELS, mode) == 0
    found = diswot_score(student, teacher, LABELS, mode)
    assert found < 0
    parts = (
        semantic_similarity(student, teacher, LABELS, mode),
        relation_similarity(student.features, teacher.features),
    )
    np.testing.assert_allclose(found, -sum(parts), rtol=1e-6)
    traced = jax.jit(diswot_score, static_argnums=3)(student, teacher, LABELS, mode)
    np.testing.assert_allclose(traced, found, rtol=1e-5)


def test_modes_see_what_their_name_says():
    teacher, student = statistics(0), statistics(1)
    other = student._replace(kernel=student.kernel[:, ::-1])

    def changes(changed, labels=LABELS):
        return [
            semantic_similarity(changed, teacher, labels, mode).item()
            != semantic_similarity(student, teacher, LABELS, mode).item()
            for mode in MODES
        ]

    assert changes(other) == [False, True, False]
    assert changes(student, LABELS[::-1]) == [True, False, False]
    assert changes(student._replace(logits=0 * student.logits)) == [True, False, False]


def test_sizes_may_differ_where_the_mode_allows(unchecked_shapes):
    teacher = statistics(0, channels=6, side=3)
    smaller = statistics(1, channels=6, side=2)
    for mode in MODES:
        assert diswot_score(smaller, teacher, LABELS, mode) < 0
    narrow = statistics(1, channels=4)
    assert diswot_score(narrow, teacher, LABELS, "cam") < 0
    for mode in ("fc_grad", "channel"):
        with pytest.raises(ValueError, match="last axis"):
            diswot_score(narrow, teacher, LABELS, mode)


def test_relation_similarity_is_similarity_preserving(unchecked_shapes):
    student, teacher = statistics(1).features, statistics(0).features
    assert relation_similarity(student, teacher) == sp_loss(student, teacher)
    # One example is related to itself alone, in every network alike.
    assert relation_similarity(student[:1], teacher[:1]) == 0
    with pytest.raises(ValueError, match="need at least 2"):
        relation_similarity(student[:0], teacher[:0])
    with pytest.raises(ValueError, match="holds 3 examples"):
        relation_similarity(student[:3], teacher)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_arguments_are_named():
    s = statistics(0)
    with pytest.raises(ValueError, match="unknown mode 'fc_gradd': did you mean"):
        diswot_score(s, s, LABELS, "fc_gradd")
    with pytest.raises(ValueError, match="hold 4, 4 and 3 examples"):
        fc_grad(jnp.ones((4, 2)), s.logits, LABELS[:3])
    with pytest.raises(ValueError, match="class indices"):
        fc_grad(jnp.ones((4, 2)), s.logits, jnp.ones((4, 5)))


def test_gaussian_reinit_follows_the_parameters_names():
    def leaf(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    shapes = {
        "conv1": {"kernel": leaf(8, 40)},
        "bn1": {"scale": leaf(8), "bias": leaf(8)},
        "fc": {"kernel": leaf(8, 40), "bias": leaf(40)},
    }
    params = gaussian_reinit(shapes, jax.random.key(1))
    chex.assert_trees_all_equal_shapes(params, shapes)
    assert jnp.all(params["bn1"]["scale"] == 1)
    assert jnp.all(params["bn1"]["bias"] == 0)
    assert jnp.all(params["fc"]["bias"] == 0)
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        if path[-1].key == "kernel"
    ]
    drawn = np.concatenate([k.ravel() for k in kernels])
    assert abs(drawn.mean()) < 0.1
    assert abs(drawn.std() - 1) < 0.05
    # No two kernels are alike, and the key decides.
    assert len({float(k.ravel()[0]) for k in kernels}) == len(kernels)
    again = gaussian_reinit(params, jax.random.key(1))
    assert jnp.all(again["fc"]["kernel"] == params["fc"]["kernel"])
    other = gaussian_reinit(params, jax.random.key(2))
    assert jnp.any(other["fc"]["kernel"] != params["fc"]["kernel"])
    assert gaussian_reinit({"table": 3.0}, jax.random.key(0)) == {"table": 3.0}


def test_a_scorers_terms_are_the_scores_whatever_the_order():
    """Of networks of one pointwise layer, scaled by their architecture."""

    def init(key):
        first, last = jax.random.split(key)
        return {
            "conv": {"kernel": jax.random.normal(first, (3, 6))},
            "fc": {"kernel": jax.random.normal(last, (6, 5)) / 10},
        }

    def apply(params, image, architecture, *, taps=(), train=True):
        x = jnp.tanh(image @ params["conv"]["kernel"] * architecture[0])
        return Outputs(x.mean((1, 2)) @ params["fc"]["kernel"], {"stage3": x})

    net = Supernet(init, apply, lambda p, a: p, ("stage3",))
    image = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 3, 3)), jnp.float32)
    batch, key = {"image": image, "label": LABELS}, jax.random.key(7)
    scorer = Scorer(ChoiceSpace((1, 2), 1), net, net, (3,))

    def of(position, architecture):
        params = init(jax.random.fold_in(key, position))
        outputs = apply(params, image, architecture)
        kernel = params["fc"]["kernel"]
        return Statistics(outputs.features["stage3"], outputs.logits, kernel)

    student, teacher = of(1, (2,)), of(2**20 + 1, (3,))
    score = scorer.against(key, batch, "default")
    score((1,))
    found = score((2,))
    assert found == scorer.against(key, batch, "default")((2,))
    total = found["fc_grad"] + found["relation"]
    np.testing.assert_allclose(total, diswot_score(student, teacher, LABELS), rtol=1e-4)
    # By default the weights are drawn larger.
    assert scorer.against(key, batch)((2,)) != found
