"""The student's answers in the tokens of a teacher that has another tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Pairs

from jaxkd import data, methods, models, teachers
from jaxkd.data.text.two_tokenizers import END, token_bytes
from jaxkd.programs.on_policy import answered, on_policy

BYTES, PAIRS = data.ByteTokenizer(), Pairs()
NEW, LENGTH = 4, 6


def prompts(**more):
    rows = data.left_pad([BYTES.encode("ab"), BYTES.encode("bab")], pad=BYTES.pad)
    return {name: jnp.asarray(x) for name, x in (rows | more).items()}


def rows(answers, **more):
    ids = np.zeros((2, NEW), np.int32)
    for row, answer in zip(ids, answers, strict=True):
        row[: len(answer)] = answer
    mask = np.arange(NEW) < np.array([[len(answer)] for answer in answers])
    return answered(prompts(), jnp.asarray(ids), jnp.asarray(mask, jnp.int32)) | more


ANSWERS = [*b"aba", BYTES.eos], [*b"ab"]


def test_answers_are_written_and_aligned():
    ask = teachers.retokenized(BYTES, PAIRS, length=LENGTH)
    batch = jax.device_get(jax.jit(ask)({}, rows(ANSWERS)))
    # "ab" + "ab", "a", end; "ba", "b" + "ab".
    assert batch["teacher_input_ids"].tolist() == [
        [3, 3, 0, 0, 0, 0],
        [4, 1, 0, 0, 0, 0],
    ]
    assert batch["teacher_label"].tolist() == [[3, 0, 8, 0, 0, 0], [1, 3, 0, 0, 0, 0]]
    assert batch["teacher_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert batch["teacher_span_ids"].tolist() == [
        [1, 2, 3, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
    ]
    aligned = batch["teacher_student_span_ids"][:, -NEW:]
    assert aligned.tolist() == [[1, 1, 2, 3], [1, 1, 0, 0]]
    assert token_bytes(PAIRS)[8] == END


def test_the_teacher_s_own_prompt_comes_before():
    own = {
        "teacher_input_ids": jnp.array([[5, 5, 5], [0, 0, 5]]),
        "teacher_attention_mask": jnp.array([[1, 1, 1], [0, 0, 1]]),
    }
    ask = teachers.retokenized(BYTES, PAIRS, length=4)
    batch = jax.device_get(jax.jit(ask)({}, rows(ANSWERS, **own)))
    assert batch["teacher_input_ids"].tolist() == [[5, 5, 5, 3], [5, 0, 0, 0]]
    # The answer's end does not fit the first row, and is in no span.
    assert batch["teacher_span_ids"].tolist() == [[0, 0, 1, 2], [1, 0, 0, 0]]
    aligned = batch["teacher_student_span_ids"][:, -NEW:]
    assert aligned.tolist() == [[1, 1, 2, 0], [1, 1, 0, 0]]


@pytest.mark.slow
def test_a_student_learns_from_its_own_answers():
    student = models.llama(BYTES.vocabulary, 8, 1, 2, 16, scan=False)
    teacher = models.llama(PAIRS.vocabulary, 8, 1, 2, 16, scan=False)
    own = jnp.full((2, 2), 5), jnp.ones((2, 2), jnp.int32)
    batch = prompts(teacher_input_ids=own[0], teacher_attention_mask=own[1])
    program = on_policy(
        student,
        teacher,
        methods.aligned_kd(data.common_tokens(BYTES, PAIRS)),
        optax.sgd(0.1),
        max_new_tokens=NEW,
        ask=teachers.retokenized(BYTES, PAIRS, length=LENGTH),
        student_share=1.0,
        eos=BYTES.eos,
        accumulate=2,
    )
    state = jax.jit(program.init)(jax.random.key(0), batch)
    program.check(state, batch)
    after, metrics = jax.jit(program.step)(state, batch)
    assert np.isfinite(float(metrics["loss"]))
    assert int(after.step) == 1
