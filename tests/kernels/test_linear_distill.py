"""Distillation through linear heads: values, gradients, meshes, memory, bad input."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from scipy.special import log_softmax

from jaxkd.kernels.linear_distill import (
    LinearDistill,
    forward_kl,
    jensen_shannon,
    linear_distill,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from jaxkd.training.ahead import compile_for, lower_for_gpu

XLA: Any = sys.modules["jaxkd.kernels.linear_distill.xla"]
TOKENS, VOCABULARY = 13, 11


def kl(p, q):
    return np.sum(p * np.log(p / q), -1)


DIVERGENCES: dict[str, tuple[Any, Any]] = {
    "forward": (forward_kl, kl),
    "reverse": (reverse_kl, lambda p, q: kl(q, p)),
    "jsd": (
        jensen_shannon(0.3),
        lambda p, q: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
    ),
    "skew": (skew_kl(0.1), lambda p, q: kl(p, 0.1 * p + 0.9 * q)),
    "skew reverse": (skew_reverse_kl(0.1), lambda p, q: kl(q, 0.1 * q + 0.9 * p)),
    "total variation": (total_variation, lambda p, q: np.abs(p - q).sum(-1) / 2),
    "soft": (soft_cross_entropy, lambda p, q: -np.sum(p * np.log(q), -1)),
}


def inputs(tokens=TOKENS, vocabulary=VOCABULARY, widths=(3, 5), dtype="f8"):
    """Return hidden states and heads, weights and label weights, and labels."""
    rng = np.random.default_rng(0)
    shapes = [s for w in widths for s in ((tokens, w), (w, vocabulary))]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    kept = rng.random(tokens) < 0.7
    kept[0] = True
    weights = rng.random((2, tokens)) * kept
    labels = jnp.asarray(rng.integers(0, vocabulary, tokens), jnp.int32)
    return (*arrays, *(jnp.asarray(w, dtype) for w in weights)), labels


def run(labels, implementation="xla", **options):
    """Return the function of `inputs`, with a chunk that divides nothing."""

    def function(*arrays):
        weights = dict(zip(("weights", "label_weights"), arrays[4:], strict=True))
        options.setdefault("chunk", 5 if implementation == "xla" else None)
        return linear_distill(
            *arrays[:4], labels, implementation=implementation, **weights, **options
        )

    return function


def loss_and_gradients(function, arrays):
    """Return the loss times 3 and its gradients by all of the arrays."""
    wanted = tuple(range(len(arrays)))
    return jax.jit(jax.value_and_grad(lambda *x: 3 * function(*x).loss, wanted))(
        *arrays
    )


def assert_close(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, "f8"), np.asarray(b, "f8")
        largest = max(np.abs(b).max(), 1e-30)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)


@pytest.fixture(autouse=True)
def narrow_blocks(request, monkeypatch):
    """Several blocks of columns, the last narrower; the compiled have the real size."""
    if "compiled" not in request.node.name:
        monkeypatch.setattr(XLA, "COLUMNS", 4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_values_by_numpy(name, implementation):
    arrays, labels = inputs()
    divergence, by_numpy = DIVERGENCES[name]
    h, w, th, tw, weights, label_weights = map(np.asarray, arrays)
    p, q = (np.exp(log_softmax(x / 2, -1)) for x in (th @ tw, h @ w))
    each = np.where(weights != 0, 4 * by_numpy(p, q), 0)
    hard = -log_softmax(h @ w, -1)[np.arange(TOKENS), labels]
    found = run(labels, implementation, divergence=divergence, temperature=2.0)(*arrays)
    assert_close(found.divergence, each, 1e-13)
    assert_close(found.cross_entropy, np.where(label_weights != 0, hard, 0), 1e-13)
    assert_close(found.loss, weights @ each + label_weights @ hard, 1e-13)


OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"divergence": pair[0]} for name, pair in DIVERGENCES.items()},
    "top": {"top_k": 4},
    "interpolated": {"divergence": soft_cross_entropy, "interpolation": 0.3},
    "both": {"divergence": jensen_shannon(0.5), "interpolation": 0.3, "top_k": 4},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_the_reference_s(name):
    arrays, labels = inputs()
    options = {**OPTIONS[name], "temperature": 2.0}
    expected = loss_and_gradients(run(labels, "reference", **options), arrays)
    assert all(np.any(x) for x in expected[1])
    assert_close(
        loss_and_gradients(run(labels, **options), arrays), expected, tolerance=1e-13
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_a_low_bias_takes_classes_away(implementation):
    arrays, labels = inputs()
    kept = np.array([1, 2, 4, 5, 8, 10])
    gone, labels = np.setdiff1d(np.arange(VOCABULARY), kept), labels % len(kept)
    # The last feature is 1, and its row of the heads the bias.
    hidden = [x.at[:, -1].set(1) for x in arrays[:3:2]]
    low, fewer = (
        [arrange(x) for x in arrays[1:4:2]]
        for arrange in (lambda x: x.at[-1, gone].set(-1e30), lambda x: x[:, kept])
    )

    def total(hidden, heads, labels):
        loss = 0
        for divergence, share in (
            (reverse_kl, None),
            (jensen_shannon(0.3), None),
            (soft_cross_entropy, 1.0),
        ):
            function = run(
                *(labels, implementation),
                **{"divergence": divergence, "interpolation": share},
                temperature=2.0,
            )
            pairs = zip(hidden, heads, strict=True)
            loss += function(*(x for pair in pairs for x in pair), *arrays[4:]).loss
        return loss

    both = jax.jit(jax.value_and_grad(total, (0, 1)))
    value, (of_hidden, of_heads) = both(hidden, low, jnp.asarray(kept)[labels])
    expected = both(hidden, fewer, labels)
    found = value, (of_hidden, [x[:, kept] for x in of_heads])
    assert_close(found, expected, 1e-13)
    assert not any(x[:, gone].any() for x in of_heads)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("f4", 2e-6), ("bfloat16", 1e-2), ("f2", 2e-3)]
)
def test_low_precision_against_float64(dtype, tolerance):
    arrays, labels = inputs(dtype=dtype)
    found = loss_and_gradients(run(labels, divergence=jensen_shannon()), arrays)
    assert [x.dtype for x in found[1]] == [x.dtype for x in arrays]
    with jax.enable_x64(True):
        arrays = [jnp.asarray(np.asarray(x, "f8")) for x in arrays]
        reference = run(labels, "reference", divergence=jensen_shannon())
        expected = loss_and_gradients(reference, arrays)
    assert_close(found, expected, tolerance)


@pytest.mark.usefixtures("x64")
def test_forward_kl_in_closed_form():
    (h, w, th, tw, *_), _ = inputs()
    gradient = jax.grad(lambda w: linear_distill(h, w, th, tw, chunk=5).loss)(w)
    p, q = jax.nn.softmax(th @ tw), jax.nn.softmax(h @ w)
    assert_close(gradient, h.T @ (q - p), 1e-13)


@pytest.mark.usefixtures("x64")
def test_interpolation_from_nothing_to_the_teacher():
    arrays, labels = inputs()
    arrays = (*arrays[:5], jnp.zeros(TOKENS))

    @jax.jit
    def slope(t):
        function = run(labels, interpolation=t)
        return jax.grad(lambda w: function(arrays[0], w, *arrays[2:]).loss)(arrays[1])

    plain = run(labels)
    expected = jax.grad(lambda w: plain(arrays[0], w, *arrays[2:]).loss)(arrays[1])
    assert np.abs(slope(0.0)).max() < 1e-14
    assert_close(slope(1.0), expected, 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_top_k_renormalises_the_teacher_alone(implementation):
    (h, w, th, tw, *_), _ = inputs()
    found = linear_distill(h, w, th, tw, top_k=2, implementation=implementation)
    logits, log_q = np.asarray(th @ tw), log_softmax(h @ w, -1)
    for token, value in enumerate(found.divergence):
        best = np.argsort(logits[token])[-2:]
        log_p = log_softmax(logits[token, best])
        expected = np.sum(np.exp(log_p) * (log_p - log_q[token, best]))
        assert value == pytest.approx(expected, rel=1e-12)


def test_masked_tokens_may_hold_anything():
    (h, *rest, weights, _), labels = inputs(dtype="f4")
    rest[1] = jnp.where(weights[:, None] == 0, jnp.inf, rest[1])
    bad = jnp.where(weights[:, None] == 0, jnp.nan, h)
    good = jnp.where(weights[:, None] == 0, 7.0, h)
    wrong = jnp.where(weights == 0, -100, labels)
    found = loss_and_gradients(run(wrong), (bad, *rest, weights, weights))
    rest[1] = jnp.where(weights[:, None] == 0, 1.0, rest[1])
    expected = loss_and_gradients(run(labels), (good, *rest, weights, weights))
    assert_close(found, expected, 1e-6)


def test_all_masked_is_zero():
    arrays, labels = inputs(dtype="f4")
    arrays = (*arrays[:4], jnp.zeros(TOKENS), jnp.zeros(TOKENS))
    value, gradients = loss_and_gradients(run(labels), arrays)
    assert value == 0
    assert not any(np.any(x) for x in gradients)


@pytest.mark.parametrize("name", OPTIONS)
def test_extreme_logits_are_finite(name):
    (h, w, th, tw, *weights), labels = inputs(dtype="f4")
    arrays = (1e2 * jnp.sign(h), 1e2 * jnp.sign(w), 1e2 * th, -1e2 * tw, *weights)
    found = loss_and_gradients(run(labels, **OPTIONS[name]), arrays)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
    "name", ["forward", "reverse", "jsd", "skew", "total variation"]
)
def test_identical_networks_have_no_loss(name):
    (h, w, *_), _ = inputs(dtype="f4")
    divergence = DIVERGENCES[name][0]
    value, slope = jax.value_and_grad(
        lambda w: linear_distill(h, w, h, jnp.copy(w), divergence=divergence).loss
    )(w)
    assert abs(value) < 1e-6
    # |p − q| has no derivative at 0, where 0 is taken.
    assert np.abs(slope).max() < 1e-6


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "widths"), [(1, 1, (1, 1)), (1, 9, (2, 1))]
)
def test_single_sizes(tokens, vocabulary, widths):
    arrays, labels = inputs(tokens, vocabulary, widths, "f4")
    expected = loss_and_gradients(run(labels, "reference"), arrays)
    assert_close(loss_and_gradients(run(labels), arrays), expected, 1e-5)


def test_batches_of_sequences_and_vmap():
    (h, w, th, tw, weights, _), labels = inputs(tokens=12, dtype="f4")
    rows = [x.reshape(3, 4, *x.shape[1:]) for x in (h, th, weights, labels)]

    def function(h, th, weights, labels):
        return linear_distill(h, w, th, tw, labels, weights=weights)

    whole = function(*rows)
    assert whole.divergence.shape == (3, 4)
    each = jax.vmap(function)(*rows)
    assert_close(each.divergence, whole.divergence, 1e-6)
    assert_close(each.loss.sum(), whole.loss, 1e-6)
    slopes = jax.vmap(jax.grad(lambda *x: function(*x).loss))(*rows)
    assert_close(slopes, jax.grad(lambda *x: function(*x).loss)(*rows), 1e-5)


def test_labels_outside_the_vocabulary_are_nan():
    (h, w, th, tw, *_), labels = inputs(dtype="f4")
    found = linear_distill(h, w, th, tw, labels.at[2].set(VOCABULARY))
    assert np.flatnonzero(np.isnan(found.cross_entropy)).tolist() == [2]
    assert np.isnan(found.loss)


def test_interpolation_has_no_gradient():
    (h, w, th, tw, *_), _ = inputs(dtype="f4")
    slope = jax.grad(lambda t: linear_distill(h, w, th, tw, interpolation=t).loss)(0.5)
    assert slope == 0


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("implementation", "name"), [("xla", "jsd"), ("xla", "both"), ("reference", "both")]
)
def test_a_split_vocabulary(implementation, name):
    arrays, labels = inputs(tokens=14, vocabulary=12)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    options = {**OPTIONS[name], "temperature": 2.0}
    if name == "both":
        options["chunk"] = None
    tokens, columns = P("data"), P(None, "tensor")
    specs = (tokens, columns, tokens, columns, tokens, tokens)

    def local(labels, *arrays):
        split = run(labels, implementation, axis_name="tensor", **options)
        found = split(*arrays)
        return found._replace(loss=lax.psum(found.loss, "data"))

    function = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(tokens, *specs),
        out_specs=LinearDistill(P(), tokens, tokens),
    )
    whole = run(labels, "reference", **options)
    expected = loss_and_gradients(whole, arrays)
    found = loss_and_gradients(lambda *x: function(labels, *x), arrays)
    assert_close(found, expected, 1e-13)

    def inside(labels, *arrays):
        wanted = tuple(range(4))
        return jax.grad(lambda *x: 3 * local(labels, *x).loss, wanted)(*arrays)

    inside = jax.shard_map(
        inside, mesh=mesh, in_specs=(tokens, *specs), out_specs=specs[:4]
    )
    assert_close(jax.jit(inside)(labels, *arrays), expected[1][:4], 1e-13)


REAL = (8192, 128_256, 2048, 4096)


def real_arguments(tokens, vocabulary, *widths):
    shapes = [s for w in widths for s in ((tokens, w), (w, vocabulary))]
    arrays = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes]
    return *arrays, jax.ShapeDtypeStruct((tokens,), jnp.int32)


def student_gradients(h, w, th, tw, labels):
    def loss(h, w):
        return linear_distill(h, w, th, tw, labels, divergence=jensen_shannon()).loss

    return jax.value_and_grad(loss, (0, 1))(h, w)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        ("v5e:2x2", REAL),
        ("v5p:2x2x1", (101, 5003, 100, 77)),
        ("v6e:2x2", (37, 1003, 33, 130)),
    ],
)
def test_compiled_for_tpus(topology, sizes):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")
    compiled = compile_for(topology, student_gradients, *real_arguments(*sizes))
    memory: Any = compiled.memory_analysis()
    if sizes == REAL:
        # 8,016 MiB as they are written plainly.
        assert memory.temp_size_in_bytes < 780 * 2**20


def test_lowered_for_gpus_compiled_elsewhere():
    assert "dot_general" in lower_for_gpu(student_gradients, *real_arguments(*REAL))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "width": (
        {"student_head": (4, 11)},
        "student_hidden has shape .* but student_head",
    ),
    "tokens": ({"teacher_hidden": (12, 5)}, "give both networks the same tokens"),
    "vocabulary": (
        {"teacher_head": (5, 10)},
        "vocabulary of 11 but teacher_head one of 10",
    ),
    "labels": ({"labels": (12,)}, "labels has shape .* give one value a token"),
    "weights": ({"weights": (1,)}, "weights has shape .* give one value a token"),
    "no labels": ({"label_weights": (13,)}, "label_weights without labels"),
    "temperature": ({"temperature": 0.0}, "temperature must be above 0"),
    "chunk": ({"chunk": 0}, "chunk must be a number above 0"),
    "top_k": ({"top_k": 12}, "top_k must be in 1 … 11"),
    "reverse": ({"top_k": 2, "divergence": reverse_kl}, "reverse_kl with top_k is inf"),
    "version": ({"implementation": "cuda"}, "unknown implementation 'cuda'"),
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", BAD)
def test_bad_inputs(name):
    changed, message = BAD[name]
    (h, w, th, tw, *_), _ = inputs(dtype="f4")
    given: dict[str, Any] = {"student_hidden": h, "student_head": w}
    given |= {"teacher_hidden": th, "teacher_head": tw}
    for key, value in changed.items():
        zeros = isinstance(value, tuple)
        kind = jnp.int32 if key == "labels" else jnp.float32
        given[key] = jnp.zeros(value, kind) if zeros else value
    with pytest.raises(ValueError, match=message):
        linear_distill(**given)


def test_a_vocabulary_that_is_not_split_is_refused():
    (h, w, th, tw, *_), _ = inputs(dtype="f4")
    with pytest.raises(ValueError, match="student_head is not split over axis 'x'"):
        linear_distill(h, w, th, tw, axis_name="x")


@pytest.mark.parametrize("make", [jensen_shannon, skew_kl, skew_reverse_kl])
def test_shares_are_between_0_and_1(make):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\), got 1.0: use"):
        make(1.0)
