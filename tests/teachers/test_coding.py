"""Best tokens in few bytes: what comes back, how exact it is, and what is refused."""

import numpy as np
import pytest

from jaxkd.teachers.coding import decode, encode


def best(seed=0, places=16, k=8, vocabulary=32_000, deviation=3.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, deviation, (places, vocabulary))
    ids = np.argsort(-logits, axis=1)[:, :k]
    total = np.log(np.exp(logits).sum(1, keepdims=True))
    log_probs = np.take_along_axis(logits, ids, axis=1) - total
    return ids.astype(np.uint16), log_probs.astype(np.float32)


@pytest.mark.parametrize(
    ("places", "k", "vocabulary", "deviation"),
    [(16, 8, 32_000, 3.0), (1, 1, 5, 1.0), (3, 5, 5, 0.0), (2, 64, 65_536, 30.0)],
)
def test_comes_back_off_by_its_rounding(places, k, vocabulary, deviation):
    ids, log_probs = best(0, places, k, vocabulary, deviation)
    content = encode(ids, log_probs)
    found = decode(content, places, k)
    assert (found[0] == ids).all()
    np.testing.assert_allclose(found[1], log_probs, rtol=2**-12, atol=1e-37)
    assert (np.diff(found[1], axis=1) <= 0).all()
    # Coded once, nothing more is lost.
    assert encode(ids, found[1]) == content


def test_takes_fewer_bytes_than_float16():
    ids, log_probs = best(places=64, k=32)
    assert len(encode(ids, log_probs)) < 0.75 * (ids.nbytes + log_probs.nbytes / 2)


def test_extreme_numbers_come_back():
    lowest = np.finfo(np.float32).min
    log_probs = np.array(
        [[0, -1e-30, -1, lowest], [-0.0, lowest, lowest, lowest]], "f4"
    )
    ids = np.array([[0, 65_535, 1, 2], [3, 2, 1, 0]], np.uint16)
    found = decode(encode(ids, log_probs), 2, 4)
    assert (found[0] == ids).all()
    np.testing.assert_allclose(found[1], log_probs, rtol=2**-11)
    assert np.isfinite(found[1]).all()
    # A log-probability that is above 0 by rounding is 0.
    assert decode(encode(ids[:, :1], np.full((2, 1), 1e-7, "f4")), 2, 1)[1].max() == 0


def test_unsorted_numbers_are_refused():
    with pytest.raises(
        ValueError, match=r"log_probs at place 1 are .*best token first"
    ):
        encode(np.zeros((2, 2), np.uint8), np.array([[-1, -2], [-2, -1]], np.float32))


def test_what_was_not_written_is_refused_or_finite():
    ids, log_probs = best(places=4, k=4)
    content = encode(ids, log_probs)
    for size in range(len(content)):
        with pytest.raises(ValueError, match=r"has widths|is too short"):
            decode(content[:size], 4, 4)
    with pytest.raises(ValueError, match="is too short or too long"):
        decode(content + b"\0", 4, 4)
    rng = np.random.default_rng(0)
    for _ in range(300):
        spoilt = bytearray(content)
        spoilt[rng.integers(len(content))] = rng.integers(256)
        try:
            _, found = decode(bytes(spoilt), 4, 4)
        except ValueError:
            continue
        assert np.isfinite(found).all()
        assert found.max() <= 0
