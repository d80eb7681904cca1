"""Several teachers, each with a tokenizer and a method of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Pairs

from jaxkd import Network, Outputs, data, distill, methods, networks

BYTES, PLAIN = data.ByteTokenizer(), data.ByteTokenizer(specials=False)
PAIRS = Pairs()
CHATS = [
    {"prompt": "ab", "response": "abba"},
    {"prompt": "ba", "response": "bab"},
    {"prompt": "b", "response": "a"},
]
READERS = PLAIN, PAIRS


def table(reader, seed):
    shape = reader.vocabulary, reader.vocabulary
    return Network.from_apply(
        lambda key: {"table": jax.random.normal(jax.random.key(seed), shape)},
        lambda params, ids: params["table"][ids],
        reads=("input_ids",),
    )


@functools.cache
def rows():
    student, *others = (
        data.tokenize_chats("chats", CHATS, reader) for reader in (BYTES, *READERS)
    )
    return [
        data.two_tokenizers(student, other, BYTES, reader)
        for other, reader in zip(others, READERS, strict=True)
    ]


STUDENT = table(BYTES, 0)
TEACHERS = [table(reader, 1 + i) for i, reader in enumerate(READERS)]
METHODS = [methods.aligned_kd(data.common_tokens(BYTES, reader)) for reader in READERS]
DOMAINS = np.array([[1.0, 0.0], [0.25, 0.75]])


def batch():
    found = data.several_tokenizers(rows()).take(np.arange(3))
    return {**found, "domain": np.array([0, 1, 1])}


def outputs():
    together = networks.side_by_side(TEACHERS)
    variables = together.init(jax.random.key(0))
    inputs = together.read(batch(), "teacher")
    teacher = together.apply(variables, inputs, taps=("0.logits", "1.logits"))[0]
    logits = STUDENT.apply(
        STUDENT.init(jax.random.key(0)), STUDENT.read(batch(), "student")
    )[0].logits
    return Outputs(logits), teacher


@functools.partial(jax.jit, static_argnames="i")
def alone(i, student, teacher, batch):
    """Return the loss of one teacher and one example."""
    return METHODS[i].loss({"state": {}}, student, teacher, batch, None, 0)[0]


def test_rows_have_every_teacher_s_tokens():
    found, one = batch(), [pair.take(np.arange(3)) for pair in rows()]
    assert found["teacher_1_label"].tolist() == one[1]["teacher_label"].tolist()
    assert found["label"].tolist() == one[0]["label"].tolist()
    assert data.several_tokenizers(rows()[:1]).fingerprint != (
        data.several_tokenizers(rows()).fingerprint
    )
    documents = data.tokenize_chats("chats", CHATS[:2], BYTES)
    other = data.two_tokenizers(documents, documents, BYTES, BYTES)
    with pytest.raises(ValueError, match="2 pairs with 2 different students' rows"):
        data.several_tokenizers([rows()[0], other])


@pytest.mark.slow
def test_examples_weigh_their_domain_s_teachers():
    student, teacher = outputs()
    given = jax.tree.map(jnp.asarray, batch())
    method = methods.several_teachers(METHODS, methods.by_domain(DOMAINS))
    found, _ = jax.jit(method.loss)(
        method.init(jax.random.key(0), student, teacher, given),
        student,
        teacher,
        given,
        jax.random.key(0),
        0,
    )
    expected = 0.0
    for i, pair in enumerate(rows()):
        own = jax.tree.map(jnp.asarray, pair.take(np.arange(3)))
        one, count = Outputs(teacher.features[f"{i}.logits"]), 0.0
        total = 0.0
        for example, weight in enumerate(DOMAINS[[0, 1, 1], i]):
            mask = jnp.zeros(3).at[example].set(1)
            loss = alone(i, student, one, {**own, "weight": mask})
            total += weight * float(loss.total)
            count += float(loss.weight)
        expected += total / count
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)


def test_the_more_confident_teacher_counts_more():
    label = jnp.array([[1, 2], [0, 0]])
    mask = jnp.array([[1, 1], [0, 1]])
    sure = 5 * jax.nn.one_hot(label, 3)
    views = [{"teacher_mask": mask, "teacher_label": label, "mask": mask}] * 2
    for logits, first in ((sure, 1.0), (-sure, 0.0)):
        other = jnp.zeros((2, 2, 3)).at[1, 0].set(jnp.nan)
        weigh = jax.jit(methods.by_confidence(0.1))
        weights = weigh([Outputs(logits), Outputs(other)], views)
        np.testing.assert_allclose(weights[:, 0], first, atol=1e-3)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


@pytest.mark.slow
def test_a_student_learns_from_all_of_them():
    program = distill(
        STUDENT,
        networks.side_by_side(TEACHERS),
        methods.several_teachers(METHODS, methods.by_confidence()),
        optax.sgd(1.0),
    )
    given = batch()
    state = jax.jit(program.init)(jax.random.key(0), given)
    program.check(state, given)
    step = jax.jit(program.step)
    state, first = step(state, given)
    assert step(state, given)[1]["loss"] < first["loss"]
    np.testing.assert_allclose(first["teacher_0"] + first["teacher_1"], 1, rtol=1e-5)


def test_bad_teachers_are_named():
    with pytest.raises(ValueError, match="methods is empty"):
        methods.several_teachers([], methods.by_confidence())
    with pytest.raises(ValueError, match="weights must be at least 0"):
        methods.by_domain(-DOMAINS)
    with pytest.raises(ValueError, match=r"methods\[1\] has parameters, a state"):
        methods.several_teachers(
            [METHODS[0], methods.fitnets("a")], methods.by_domain(DOMAINS)
        )
    with pytest.raises(ValueError, match=r"by_domain\(\) needs domain"):
        methods.by_domain(DOMAINS)([], [{"label": 0}])
    together = networks.side_by_side(TEACHERS)
    variables = together.init(jax.random.key(0))
    with pytest.raises(ValueError, match="stand still"):
        together.apply(variables, together.read(batch(), "teacher"), train=True)
