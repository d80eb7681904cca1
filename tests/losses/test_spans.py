"""Distillation span by span: texts that two tokenizers cut differently."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data import align_pieces
from jaxkd.kernels.linear_distill import forward_kl, jensen_shannon
from jaxkd.losses import aligned_kd_loss, kd_loss, uld_loss

# A little language: "the" or "a", then a noun, then a verb.
STUDENT = ["the", "a", " ca", "t", "r", " dog", " sat", " ran"]
TEACHER = ["the", "a", " cat", " car", " dog", " sat", " ran"]
COMMON = np.array(
    [(i, TEACHER.index(x)) for i, x in enumerate(STUDENT) if x in TEACHER]
)
NOUNS, VERBS = {" cat": 0.45, " car": 0.45, " dog": 0.1}, {" sat": 0.6575}
VERBS[" ran"] = 1 - VERBS[" sat"]
ARTICLES = {"the": 0.6, "a": 0.4}


def row(vocabulary, *distributions):
    """Return the logits of one row, of which the last tells what follows."""
    found = np.full((1, len(distributions), len(vocabulary)), -np.inf, np.float32)
    for place, distribution in enumerate(distributions):
        for piece, p in distribution.items():
            found[0, place, vocabulary.index(piece)] = np.log(p)
    return jnp.asarray(found)


# Both say the same of every text: " ca" goes on with "t" as often as with "r".
OF_STUDENT = row(
    STUDENT, ARTICLES, {" ca": 0.9, " dog": 0.1}, {"t": 0.5, "r": 0.5}, VERBS
)
OF_TEACHER = row(TEACHER, ARTICLES, NOUNS, VERBS)


def labels(vocabulary, pieces):
    return jnp.array([[vocabulary.index(piece) for piece in pieces]])


def aligned(student_pieces, teacher_pieces):
    spans = align_pieces(
        *([x.encode() for x in pieces] for pieces in (student_pieces, teacher_pieces))
    )
    return [jnp.asarray(x[None]) for x in spans]


CUTS = ["the", " ca", "t", " sat"], ["the", " cat", " sat"]


def arguments(cuts=CUTS):
    both = labels(STUDENT, cuts[0]), labels(TEACHER, cuts[1])
    return (*both, *aligned(*cuts), COMMON)


@functools.partial(jax.jit, static_argnames=("divergence", "alike"))
def value(z_s, z_t, l_s, l_t, spans_s, spans_t, divergence=forward_kl, alike=False):
    common = np.stack([np.arange(8)] * 2, axis=1) if alike else COMMON
    return aligned_kd_loss(z_s, z_t, l_s, l_t, spans_s, spans_t, common, divergence)


def test_equal_predictions_in_other_pieces_are_no_loss():
    """Four tokens against three: by position ULD sees 0.405 where nothing differs."""
    shared, tail, places = value(OF_STUDENT, OF_TEACHER, *arguments()[:-1])
    assert places.tolist() == [[0, 1, 3]]
    np.testing.assert_allclose(shared, 0, atol=1e-6)
    np.testing.assert_allclose(tail, 0, atol=1e-6)
    by_position = uld_loss(OF_STUDENT, OF_TEACHER, jnp.ones((1, 4)), jnp.ones((1, 3)))
    np.testing.assert_allclose(by_position, 0.405, atol=1e-6)


def classes(vocabulary, logits, pieces, spans, side):
    """Return each span's classes and tail in float64, from the definition."""
    p = np.exp(np.asarray(logits[0], np.float64))
    p /= p.sum(-1, keepdims=True)
    for number in range(1, spans.max() + 1):
        (places,) = np.nonzero(spans == number)
        tokens = [vocabulary.index(pieces[i]) for i in places]
        whole = np.prod([p[i, token] for i, token in zip(places, tokens, strict=True)])
        here = p[places[0]].copy()
        here[tokens[0]] -= whole
        others = np.setdiff1d(np.arange(len(vocabulary)), COMMON[:, side])
        shared = [whole, *here[COMMON[:, side]], here[others].sum()]
        yield np.array(shared), np.sort(here[others])[::-1]


@pytest.mark.parametrize(
    "cuts",
    [CUTS, (["a", " dog", " ran"], ["a", " dog", " ran"])],
    ids=["four and three", "alike"],
)
def test_is_what_the_definition_says(cuts):
    rng = np.random.default_rng(len(cuts[0]))
    z_s, z_t = (
        jnp.asarray(rng.normal(0, 2, (1, len(pieces), len(vocabulary))), jnp.float32)
        for pieces, vocabulary in zip(cuts, (STUDENT, TEACHER), strict=True)
    )
    given = arguments(cuts)
    shared, tail, places = value(z_s, z_t, *given[:-1])
    of_student, of_teacher = (
        list(classes(vocabulary, z, pieces, np.asarray(spans[0]), side))
        for side, (vocabulary, z, pieces, spans) in enumerate(
            zip((STUDENT, TEACHER), (z_s, z_t), cuts, given[2:4], strict=True)
        )
    )
    for i, ((q, own), (p, others)) in enumerate(
        zip(of_student, of_teacher, strict=True)
    ):
        kept = p > 1e-9
        expected = (p[kept] * np.log(p[kept] / np.maximum(q[kept], 1e-7))).sum()
        np.testing.assert_allclose(shared[0, i], expected, rtol=2e-5, atol=2e-6)
        own, others = (np.pad(x, (0, 3 - len(x))) for x in (own, others))
        np.testing.assert_allclose(tail[0, i], abs(own - others).sum(), rtol=1e-5)
    assert (places[0, len(of_student) :] == -1).all()


def test_of_one_tokenizer_it_is_the_divergence_token_by_token():
    rng = np.random.default_rng(0)
    z_s, z_t = (jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32) for _ in range(2))
    label = jnp.asarray(rng.integers(0, 8, (2, 4)))
    spans = jnp.array([[1, 2, 3, 4], [0, 1, 2, 0]])
    shared, tail, _ = value(z_s, z_t, label, label, spans, spans, alike=True)
    expected = np.asarray(kd_loss(z_s, z_t, 1.0))
    np.testing.assert_allclose(shared[0], expected[0], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(shared[1, :2], expected[1, 1:3], rtol=1e-5, atol=2e-6)
    assert (shared[1, 2:] == 0).all()
    assert not tail.any()


@functools.partial(jax.jit, static_argnames="inside")
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def total(z_s, z_t, inside=True):
    given = arguments()
    spans = given[2:4]
    if not inside:
        spans = jnp.array([[1, 0, 0, 2]]), jnp.array([[1, 0, 2]])
    shared, tail, _ = aligned_kd_loss(
        z_s, z_t, *given[:2], *spans, COMMON, jensen_shannon(0.5)
    )
    return (shared + tail).sum()


def test_what_is_in_no_span_reaches_neither_value_nor_gradient():
    z_s, z_t = OF_STUDENT.clip(-9), OF_TEACHER.clip(-9)
    right, (slope, of_teacher) = total(z_s, z_t, inside=False)
    assert np.isfinite(slope).all()
    assert not slope[0, 1:3].any()
    assert not of_teacher.any()
    for bad in (np.nan, np.inf, -np.inf, 1e4):
        spoilt = z_s.at[0, 1:3].set(bad), z_t.at[0, 1].set(bad)
        found, (other, _) = total(*spoilt, inside=False)
        np.testing.assert_allclose(found, right, rtol=1e-6)
        np.testing.assert_allclose(other, slope, rtol=1e-6, atol=1e-8)


def test_extreme_logits_stay_finite():
    for scale in (0.0, 1e4):
        signs = np.where(np.arange(8) % 2, scale, -scale).astype("f4")
        z_s = jnp.broadcast_to(signs, OF_STUDENT.shape)
        z_t = jnp.broadcast_to(-signs[:7], OF_TEACHER.shape)
        found, (slope, _) = total(z_s, z_t)
        assert np.isfinite(found)
        assert np.isfinite(slope).all()


def test_bad_arguments_are_named(unchecked_shapes):
    given = arguments()
    with pytest.raises(ValueError, match=r"teacher_spans .* but teacher_logits has"):
        aligned_kd_loss(OF_STUDENT, OF_TEACHER, *given[:3], given[2], COMMON)
    with pytest.raises(ValueError, match="common is empty"):
        aligned_kd_loss(OF_STUDENT, OF_TEACHER, *given[:-1], COMMON[:0])
    beyond = COMMON + np.array([[0, 7]])
    with pytest.raises(ValueError, match="common has the teacher's token 13"):
        aligned_kd_loss(OF_STUDENT, OF_TEACHER, *given[:-1], beyond)
