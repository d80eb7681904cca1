"""The loss of a language model over a text, to the last token."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxkd.data import Source, Windows
from jaxkd.evaluation.language import fidelity_evaluator, token_evaluator
from jaxkd.network import Network
from jaxkd.programs import AveragedState, BestState
from jaxkd.types import TrainState

TABLE = np.random.default_rng(0).normal(size=(5, 5))
BIGRAMS = Network.from_apply(
    lambda key: jnp.asarray(TABLE),
    lambda params, ids: params[ids],
    reads=("input_ids",),
)
VARIABLES = {"params": jnp.asarray(TABLE), "stats": {}}
TOKENS = np.random.default_rng(1).integers(0, 5, 41)


def test_every_token_counts_once():
    """Also in a last batch that is not full."""
    windows = Windows("toy", TOKENS, 4, 5)
    metrics = token_evaluator(BIGRAMS, windows, batch_size=4)(VARIABLES)
    expected = -log_softmax(TABLE, axis=1)[TOKENS[:-1], TOKENS[1:]].mean()
    np.testing.assert_allclose(metrics["nll"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(expected), rtol=1e-5)


def test_masked_tokens_do_not_count():
    batch = Windows("toy", TOKENS, 4, 5).take(np.arange(6))
    mask = np.random.default_rng(2).random((6, 4)) < 0.5
    source = Source("masked", {**batch, "mask": mask}, 5)
    found = token_evaluator(BIGRAMS, source, batch_size=4)(VARIABLES)
    losses = -log_softmax(TABLE, axis=1)[batch["input_ids"], batch["label"]]
    np.testing.assert_allclose(found["nll"], losses[mask].mean(), rtol=1e-5)
    nothing = Source("nothing", {**batch, "mask": np.zeros_like(mask)}, 5)
    with pytest.raises(ValueError, match=r"'nothing' has no token"):
        token_evaluator(BIGRAMS, nothing)(VARIABLES)


def test_a_students_own_tokens_are_the_students_alone():
    batch = Windows("toy", TOKENS, 4, 5).take(np.arange(6))
    own = (batch["input_ids"] + 1) % 5
    source = Source("own", {**batch, "student_input_ids": own}, 5)
    evaluate = fidelity_evaluator(BIGRAMS, BIGRAMS, VARIABLES, source, batch_size=4)
    log_p, log_q = (log_softmax(TABLE, axis=1)[x] for x in (batch["input_ids"], own))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    np.testing.assert_allclose(evaluate(VARIABLES)["teacher_kl"], expected, rtol=1e-5)


def test_of_an_encoder_decoder_the_outputs_padding_does_not_count():
    batch = Windows("toy", TOKENS, 4, 5).take(np.arange(6))
    real = np.arange(4) < np.array([4, 2, 3, 1, 4, 2])[:, None]
    arrays = {
        "decoder_input_ids": batch["input_ids"],
        "decoder_attention_mask": real.astype("i4"),
        "attention_mask": np.ones((6, 4), "i4"),
        "label": batch["label"],
    }
    decoder = replace(BIGRAMS, reads=("decoder_input_ids",))
    source = Source("outputs", arrays, 5)
    found = token_evaluator(decoder, source, batch_size=4)(VARIABLES)
    losses = -log_softmax(TABLE, axis=1)[batch["input_ids"], batch["label"]]
    np.testing.assert_allclose(found["nll"], losses[real].mean(), rtol=1e-5)


def test_of_a_state_it_measures_the_weights_that_are_deployed():
    evaluate = token_evaluator(BIGRAMS, Windows("toy", TOKENS, 4, 5), batch_size=4)
    state = TrainState(0, None, VARIABLES, None, None, None)
    average = {"params": VARIABLES["params"] / 2, "stats": {}}
    best = {"params": VARIABLES["params"] / 3, "stats": {}}
    states = [
        (state, VARIABLES),
        (AveragedState(state, average), average),
        (BestState(AveragedState(state, average), best, 0, 0, 0), best),
    ]
    found = [evaluate(state) for state, _ in states]
    assert found == [evaluate(variables) for _, variables in states]
    assert len({metrics["nll"] for metrics in found}) == 3
    with pytest.raises(AttributeError, match="has no attribute 'deployed'"):
        evaluate(object())
