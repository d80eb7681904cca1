"""Graphs of tokens: an independent float64 computation, laws, masks, bad arguments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import (
    contextual_similarity,
    dynamic_temperature,
    gather_tokens,
    info_nce_loss,
    knn_adjacency,
    matched_tokens,
    sample_token_indices,
    tokenize_feature_map,
    trg_contextual_loss,
    trg_local_loss,
)

RNG = np.random.default_rng(0)
NODES_S, NODES_T = RNG.normal(size=(9, 4)), RNG.normal(size=(9, 6))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def units(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def graph(nodes, k, sigma, edges=None):
    """Node by node, in float64."""
    count = len(nodes)
    found = np.zeros((count, count))
    edges = [] if edges is None else edges
    for j in range(count):
        distances = ((nodes - nodes[j]) ** 2).sum(1)
        if len(edges) <= j:
            order = np.argsort(distances)
            edges.append([i for i in order if i != j][:k])
        for i in edges[j]:
            found[i, j] = np.exp(-distances[i] / (2 * sigma))
    return found, edges


def reference_local(student, teacher, k, sigma, shared, reverse, alone):
    """Return every node's loss."""
    student, teacher = units(student), units(teacher)
    of_teacher, edges = graph(teacher, k, sigma)
    of_student, _ = graph(student, k, sigma, edges if shared else None)
    inside = np.zeros_like(of_teacher, bool)
    for j, neighbors in enumerate(edges):
        inside[neighbors, j] = True
    losses = []
    for i in range(len(student)):
        columns = inside[i] if alone else np.ones(len(student), bool)
        if not columns.any():
            losses.append(0.0)
            continue
        p, q = (softmax(a[i, columns]) for a in (of_student, of_teacher))
        p, q = (p, q) if reverse else (q, p)
        losses.append((p * np.log(p / q)).sum())
    return np.array(losses)


@pytest.mark.parametrize(
    ("shared", "reverse", "alone"),
    [
        (True, True, False),
        (False, True, False),
        (True, False, False),
        (True, True, True),
    ],
)
@pytest.mark.usefixtures("x64")
def test_local_loss_is_the_printed_formula(shared, reverse, alone):
    options = {
        "shared_neighbors": shared,
        "reverse": reverse,
        "mask_non_neighbors": alone,
    }
    loss = jax.jit(partial(trg_local_loss, k=3, sigma=0.7, **options))
    found = loss(jnp.array(NODES_S), jnp.array(NODES_T))
    expected = reference_local(NODES_S, NODES_T, 3, 0.7, shared, reverse, alone)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
    single = loss(*map(jnp.float32, (NODES_S, NODES_T)))
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_global_and_contextual_losses_are_the_printed_formulas():
    a, b = RNG.normal(size=(2, 7, 5))
    scores = units(a) @ units(b).T / 0.2
    expected = -np.log(np.diagonal(softmax(scores)))
    found = info_nce_loss(jnp.array(a), jnp.array(b), 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    s, t = RNG.normal(size=(3, 4, 5)), RNG.normal(size=(3, 4, 9))
    of_s, of_t = (softmax(x @ x.swapaxes(1, 2) / x.shape[2] ** 0.5) for x in (s, t))
    found = trg_contextual_loss(jnp.array(s), jnp.array(t))
    np.testing.assert_allclose(found, ((of_t - of_s) ** 2).mean((1, 2)), rtol=1e-10)


def test_edges_cross_images_and_leave_the_node_itself_out():
    # Three pairs of near nodes, the two of a pair in different images.
    nodes = jnp.array([[0.0], [5], [9], [0.1], [5.1], [9.1]])
    weights, edges = knn_adjacency(nodes, 1, 0.5)
    expected = np.roll(np.eye(6, dtype=bool), 3, axis=0)
    np.testing.assert_array_equal(edges, expected)
    np.testing.assert_allclose(weights, expected * np.exp(-0.01), rtol=1e-4)


def test_column_j_holds_the_neighbors_of_j():
    nodes = jnp.array([[0.0], [1], [3]])
    _, edges = knn_adjacency(nodes, 1)
    np.testing.assert_array_equal(edges, [[0, 1, 0], [1, 0, 1], [0, 0, 0]])


def test_an_absent_node_is_as_good_as_not_there():
    s, t = jnp.float32(NODES_S), jnp.float32(NODES_T)
    weights = jnp.array([1.0, 1, 0, 1, 1, 0, 1, 1, 1])
    kept = np.flatnonzero(weights)
    spoil = jnp.where(weights[:, None] > 0, 0, jnp.nan)

    @jax.jit
    def losses(s, t, weights):
        a = trg_local_loss(s, t, 3, weights=weights)
        c = info_nce_loss(s, t[:, :4], weights=weights)
        return jnp.stack([a, c])

    @jax.jit
    def graded(s, weights):
        return jax.value_and_grad(lambda s: losses(s, t + spoil, weights).sum())(s)

    found = losses(s + spoil, t + spoil, weights)
    np.testing.assert_allclose(
        found[:, kept], losses(s[kept], t[kept], None), rtol=1e-5, atol=1e-7
    )
    assert (np.delete(found, kept, axis=1) == 0).all()
    gradient = graded(s + spoil, weights)[1]
    assert np.isfinite(gradient).all()
    assert (np.delete(gradient, kept, axis=0) == 0).all()
    value, gradient = graded(s + jnp.nan, 0 * weights)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("student", ["zeros", "huge", "teacher", "equal"])
def test_values_and_gradients_are_finite(student):
    t = jnp.float32(NODES_T)
    s = {
        "zeros": 0 * t,
        "huge": 1e4 * jnp.sign(t),
        "teacher": t,
        "equal": jnp.ones_like(t),
    }[student]

    @jax.jit
    @jax.grad
    def gradient(s):
        local = trg_local_loss(s, t, 3) + trg_local_loss(s, t, 3, normalize=False)
        images = [x.reshape(3, 3, 6) for x in (s, t)]
        return (local + info_nce_loss(s, t)).sum() + trg_contextual_loss(
            images[0], images[1]
        ).sum()

    assert np.isfinite(gradient(s)).all()
    if student == "teacher":
        same = trg_local_loss(s, t, 3)
        np.testing.assert_allclose(same, 0, atol=1e-7)


def test_the_teacher_gets_no_gradient_and_the_projection_does():
    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(frozen, projected):
        student = jnp.float32(NODES_S)
        images = [x.reshape(3, 3, -1) for x in (student, frozen)]
        loss = trg_local_loss(student, frozen, 3).sum()
        loss += trg_contextual_loss(images[0], images[1]).sum()
        return loss + info_nce_loss(student, projected).sum()

    frozen, projected = gradients(*(jnp.float32(x) for x in (NODES_T, NODES_S + 1)))
    assert not frozen.any()
    assert projected.any()


def test_patches_are_cut_row_by_row_and_grids_matched():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    tokens = tokenize_feature_map(image, 2)
    np.testing.assert_array_equal(tokens[0, :2], [[0, 1, 4, 5], [2, 3, 6, 7]])
    # Four patches of a transformer behind its class token, beside a map of 4x4.
    patches = jnp.arange(10.0).reshape(1, 5, 2)
    own, taught = matched_tokens(patches, image)
    np.testing.assert_array_equal(own, patches[:, 1:])
    np.testing.assert_array_equal(taught[0, :, 0], [2.5, 4.5, 10.5, 12.5])


def test_both_networks_give_the_same_tokens():
    indices = sample_token_indices(jax.random.key(0), 5, 9, 4)
    assert indices.shape == (5, 4)
    assert all(len(set(row)) == 4 for row in indices.tolist())
    assert len({tuple(row) for row in indices.tolist()}) > 1
    tokens = jnp.arange(45.0).reshape(5, 9, 1)
    expected = 9 * np.arange(5)[:, None] + np.asarray(indices)
    np.testing.assert_array_equal(
        gather_tokens(tokens, indices)[:, 0], expected.ravel()
    )
    again = sample_token_indices(jax.random.key(0), 2, 3, 7, replace=True)
    assert again.max() < 3


def test_context_can_be_normalised_and_the_temperature_falls():
    wide = 100 * jax.random.normal(jax.random.key(0), (1, 4, 8))
    assert contextual_similarity(wide).max() > 0.999
    rows = contextual_similarity(wide, normalize=True)
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-6)
    assert rows.max() < 0.99
    course = [float(dynamic_temperature(u, 0.6, 0.1)) for u in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(course, [0.6, 0.35, 0.1], rtol=1e-6)


MAP, TOKENS, NODES = jnp.zeros((2, 4, 6, 3)), jnp.zeros((2, 4, 3)), jnp.zeros((4, 3))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokenize_feature_map(MAP, 4), "patch is 4, .* 4x6"),
        (lambda: tokenize_feature_map(TOKENS), "features must have 4 axes"),
        (lambda: matched_tokens(NODES, MAP), "student must have 3 axes"),
        (lambda: sample_token_indices(jax.random.key(0), 2, 4, 5), "samples is 5"),
        (lambda: knn_adjacency(NODES, 4), "k is 4"),
        (lambda: knn_adjacency(NODES, 1, 0.0), "sigma must be above 0"),
        (lambda: trg_local_loss(NODES, NODES[:3], 1), "4 nodes but teacher_nodes"),
        (
            lambda: trg_local_loss(
                *(NODES, NODES, 1), mask_non_neighbors=True, shared_neighbors=False
            ),
            "mask_non_neighbors needs shared_neighbors",
        ),
        (lambda: trg_contextual_loss(TOKENS, TOKENS[:, :3]), "matched_tokens"),
        (lambda: info_nce_loss(NODES, NODES[:3]), "student_embedding has shape"),
        (lambda: info_nce_loss(NODES, NODES, 0.0), "temperature must be above 0"),
        (lambda: dynamic_temperature(1.5), r"progress must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
