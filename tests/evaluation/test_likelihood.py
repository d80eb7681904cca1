"""Options by their likelihood, against the forward pass of each text alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd import data, models
from jaxkd.evaluation import likelihood as module
from jaxkd.evaluation.likelihood import (
    Question,
    choice_evaluator,
    encode_pair,
    likelihood_evaluator,
)

BYTES = data.ByteTokenizer()


@pytest.fixture(scope="module")
def network():
    return models.llama(259, 16, 2, 4, 24, kv_heads=2)


@pytest.fixture(scope="module")
def variables(network):
    return jax.jit(network.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def score(network):
    return likelihood_evaluator(network, batch_size=2)


@pytest.mark.slow
def test_continuations_are_scored_as_if_each_were_alone(network, variables, score):
    pairs = [
        ([256, *b"to be"], [*b" or"]),
        ([256], [*b"a much longer continuation than the others, over 32"]),
        ([256, *b"x"], [*b"y"]),
    ]
    found = score(variables, pairs)

    @jax.jit
    def alone(tokens):
        outputs, _ = network.apply(variables, {"input_ids": tokens[None, :-1]})
        return jax.nn.log_softmax(outputs.logits[0])

    for (context, continuation), likelihood in zip(pairs, found, strict=True):
        log_p = alone(jnp.array([*context, *continuation]))[len(context) - 1 :]
        picked = log_p[np.arange(len(continuation)), np.array(continuation)]
        assert likelihood.log_probability == pytest.approx(
            float(picked.sum()), rel=1e-5
        )
        assert not likelihood.greedy
    best = int(alone(jnp.array([256, 5]))[0].argmax())
    (likelihood,) = score(variables, [([256], [best])])
    assert likelihood.greedy


@pytest.mark.slow
def test_capped_logits_are_scored_as_they_are():
    capped = models.llama(259, 8, 1, 2, 8, soft_caps={"logits": 0.05})
    variables = capped.init(jax.random.key(0))
    (found,) = likelihood_evaluator(capped, 1)(variables, [([256, 5], [*b"to"])])
    ids = jnp.array([[256, 5, *b"t"]])
    log_p = jax.nn.log_softmax(capped.apply(variables, {"input_ids": ids})[0].logits[0])
    expected = log_p[1, ord("t")] + log_p[2, ord("o")]
    assert found.log_probability == pytest.approx(float(expected), rel=1e-5)


def test_an_option_is_chosen_by_the_whole_and_by_its_length(network, variables, score):
    options = ("a", "to be or not to be", "b")
    sums = np.array(
        [
            f.log_probability
            for f in score(variables, [encode_pair(BYTES, "So", o) for o in options])
        ]
    )
    whole = int(sums.argmax())
    each = int((sums / np.array([len(o) for o in options])).argmax())
    # An untrained model finds all bytes alike: one byte is likelier than eighteen.
    assert whole != 1
    evaluate = choice_evaluator(
        network, BYTES, [Question("So", options, i) for i in (whole, each, 1)], 2
    )
    expected = {
        "choice_accuracy": np.mean([whole == i for i in (whole, each, 1)]),
        "normalized_choice_accuracy": np.mean([each == i for i in (whole, each, 1)]),
    }
    assert evaluate(variables) == pytest.approx(expected)


def test_an_option_is_as_long_as_without_the_space_before(network, monkeypatch):
    """lm-evaluation-harness's ``acc_norm`` divides by ``len(choice)``.

    Its choices are without the space that it puts before them: −6.0 and −8.8 over 2 and
    3 letters are −3 and −2.93; over 3 and 4 signs they would be −2 and −2.2.
    """
    answers = {" ab": -6.0, " abc": -8.8}

    def score(network, batch_size):
        return lambda variables, pairs: [
            module.Likelihood(answers[BYTES.decode(option)], greedy=False)
            for _, option in pairs
        ]

    monkeypatch.setattr(module, "likelihood_evaluator", score)
    evaluate = choice_evaluator(network, BYTES, [Question("So", tuple(answers), 1)])
    assert evaluate({}) == {"choice_accuracy": 0.0, "normalized_choice_accuracy": 1.0}


@given(st.text("ab ", max_size=6), st.text("ab ", min_size=1, max_size=6))
def test_pairs_are_parts_of_the_whole(context, continuation):
    first, second = encode_pair(BYTES, context, continuation)
    assert first == [256, *context.rstrip().encode()]
    assert first + second == [256, *(context + continuation).encode()]


def test_an_empty_context_begins_with_what_there_is():
    class Ends(data.ByteTokenizer):
        bos = None

    assert encode_pair(Ends(), "", "a") == ([257], [97])
    assert encode_pair(Ends(), "b", "a") == ([98], [97])
    with pytest.raises(ValueError, match="no token to begin with: give a context"):
        encode_pair(data.ByteTokenizer(specials=False), " ", "a")


def test_bad_questions_are_refused(network, variables, score):
    with pytest.raises(ValueError, match="pair 1 has 0 tokens of context and 1 of"):
        score(variables, [([1], [2]), ([], [1])])
    with pytest.raises(ValueError, match="pair 0 has 1 tokens of context and 0 of"):
        score(variables, [([1], [])])
    with pytest.raises(ValueError, match="questions is empty"):
        choice_evaluator(network, BYTES, [])
    with pytest.raises(ValueError, match="a text to score holds 300 in example 0"):
        score(variables, [([1], [300])])
    for question in (Question("a", ("b", " "), 0), Question("a", ("b",), 1)):
        with pytest.raises(ValueError, match="question 0 has options"):
            choice_evaluator(network, BYTES, [question])
