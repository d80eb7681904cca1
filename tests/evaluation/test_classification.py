"""Accuracy, likelihood, calibration, agreement and KL, against other computations."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxkd import models
from jaxkd.data import Normalize, RecordSource, Source
from jaxkd.evaluation.classification import (
    accuracy,
    adaptive_calibration_error,
    agreement,
    classification_metrics,
    classwise_calibration_error,
    evaluator,
    expected_calibration_error,
    negative_log_likelihood,
    predictor,
    teacher_kl,
    top_k_accuracy,
)

PROBABILITIES = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.55, 0.45]])
LOGITS = jnp.log(PROBABILITIES)
LABELS = jnp.array([0, 0, 0, 1])


@pytest.mark.slow
def test_accuracy_and_likelihood():
    assert accuracy(LOGITS, LABELS) == 0.5
    expected = -np.log([0.9, 0.2, 0.7, 0.45]).mean()
    np.testing.assert_allclose(
        negative_log_likelihood(LOGITS + 7, LABELS), expected, rtol=1e-5
    )


def test_agreement():
    other = jnp.array([[1.0, 0], [0, 1], [0, 1], [0, 3]])
    assert agreement(LOGITS, other) == 0.5
    assert agreement(LOGITS, LOGITS * 3) == 1


@pytest.mark.parametrize(
    ("bins", "expected"),
    [
        # Bins (0.5, 0.75] and (0.75, 1]: gaps |1.25 − 1| and |1.7 − 1|.
        (4, (0.25 + 0.7) / 4),
        # One bin: |2.95 − 2|.
        (1, 0.95 / 4),
        # Every example alone: 0.1 + 0.8 + 0.3 + 0.55.
        (20, 1.75 / 4),
    ],
)
def test_calibration_error_by_hand(bins, expected):
    found = expected_calibration_error(LOGITS, LABELS, bins)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_calibration_error_is_zero_where_confidence_is_accuracy():
    # Confidence 3/4 in ten examples of four, right three times of four; then 1.
    logits = jnp.log(jnp.tile(jnp.array([[0.75, 0.25]]), (40, 1)))
    labels = jnp.tile(jnp.array([0, 0, 0, 1]), 10)
    np.testing.assert_allclose(expected_calibration_error(logits, labels), 0, atol=1e-6)
    sure = jnp.array([[1e4, 0.0], [0.0, 1e4]])
    assert expected_calibration_error(sure, jnp.array([0, 1])) == 0
    assert expected_calibration_error(sure, jnp.array([1, 0])) == 1


def test_adaptive_calibration_error_is_over_bins_of_equal_mass():
    logits = jnp.asarray(np.random.default_rng(3).normal(0, 2, (47, 4)), jnp.float32)
    labels = jnp.arange(47) % 4
    p = np.exp(np.asarray(logits, float))
    p /= p.sum(1, keepdims=True)
    order = np.argsort(p.max(1), kind="stable")
    gap = p.max(1) - (p.argmax(1) == np.asarray(labels))
    for bins in (1, 5, 47):
        which = np.arange(47) * bins // 47
        sizes = np.bincount(which)
        assert sizes.max() - sizes.min() <= 1
        expected = sum(abs(gap[order][which == b].sum()) for b in range(bins)) / 47
        found = adaptive_calibration_error(logits, labels, bins)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = adaptive_calibration_error(logits[:2], labels[:2])
    np.testing.assert_allclose(alone, np.abs(gap[:2]).mean(), rtol=1e-5)


def test_bf16_logits_are_measured_in_f32():
    half = classification_metrics(LOGITS.astype(jnp.bfloat16), LABELS)
    full = classification_metrics(LOGITS, LABELS)
    assert set(full) == {"accuracy", "nll", "ece", "adaptive_ece", "classwise_ece"}
    for name in full:
        assert half[name].dtype == jnp.float32
        np.testing.assert_allclose(half[name], full[name], rtol=2e-2)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(10, 4, 4, 1)).astype("f4"),
        "label": rng.integers(0, 3, 10),
    }
    network = models.cnn(1, (3,), 3)
    return network, network.init(jax.random.key(0)), Source("toy", arrays, 3)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 1000])
def test_predictor_equals_one_forward_pass(case, batch_size):
    network, variables, source = case
    logits = predictor(network, source, batch_size)(variables)
    expected = network.apply(variables, jnp.asarray(source.arrays["image"]))[0].logits
    assert logits.shape == (10, 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    # The source is left as it was: only a copy of the last batch is filled up.
    assert source.arrays["image"].shape == (10, 4, 4, 1)


def test_evaluator_returns_floats_and_agreement_only_with_a_teacher(case):
    network, variables, source = case
    logits = network.apply(variables, jnp.asarray(source.arrays["image"]))[0].logits
    plain = evaluator(network, source, batch_size=4)(variables)
    assert set(plain) == {"accuracy", "nll", "ece", "adaptive_ece", "classwise_ece"}
    assert all(type(value) is float for value in plain.values())
    taught = evaluator(network, source, np.asarray(logits), batch_size=4)(variables)
    assert set(taught) == {*plain, "agreement", "teacher_kl"}
    assert taught["agreement"] == 1
    assert taught["teacher_kl"] == pytest.approx(0, abs=1e-6)
    expected = classification_metrics(logits, jnp.asarray(source.arrays["label"]))
    for name in plain:
        assert plain[name] == pytest.approx(float(expected[name]), rel=1e-5)


def test_top_k_accuracy():
    logits = jnp.asarray([[3.0, 2, 1, 0], [0, 1, 2, 3], [1, 1, 1, 1]])
    labels = jnp.asarray([1, 0, 2])
    found = [float(top_k_accuracy(logits, labels, k)) for k in (1, 2, 3, 4)]
    # Of equal logits the lower classes count as the larger.
    np.testing.assert_allclose(found, [0, 1 / 3, 2 / 3, 1])
    assert top_k_accuracy(logits, labels, 1) == accuracy(logits, labels)
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"k must be 1 to 4 .*, got {k}"):
            top_k_accuracy(logits, labels, k)
    assert "top5" in classification_metrics(jnp.ones((2, 6)), jnp.zeros(2, int))


def test_classwise_calibration_error():
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    p = softmax(logits, axis=1)
    total = 0.0
    for c in range(4):
        for low, high in pairwise(np.linspace(0, 1, 16)):
            inside = (p[:, c] > low) & (p[:, c] <= high)
            if inside.any():
                gap = p[inside, c].mean() - (labels[inside] == c).mean()
                total += inside.mean() * abs(gap) / 4
    found = classwise_calibration_error(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    )
    assert found == pytest.approx(total, rel=1e-4)
    # Certain and right in every class.
    certain = jnp.where(jnp.eye(4) > 0, 100.0, 0.0)
    assert classwise_calibration_error(certain, jnp.arange(4)) == pytest.approx(0)


def test_teacher_kl():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 30, 5))
    p, q = softmax(teacher, axis=1), softmax(student, axis=1)
    found = teacher_kl(*(jnp.asarray(z, jnp.float32) for z in (student, teacher)))
    assert found == pytest.approx(np.mean(np.sum(p * np.log(p / q), 1)), rel=1e-5)


def test_classes_at_minus_infinity_are_as_if_they_did_not_exist():
    student, teacher = (
        jnp.asarray(np.random.default_rng(seed).normal(size=(30, 5)), jnp.float32)
        for seed in (0, 1)
    )
    labels = jnp.arange(30) % 5
    padded = [
        jnp.insert(x, jnp.array([2, 5]), -jnp.inf, axis=1) for x in (student, teacher)
    ]
    moved = labels + (labels >= 2)
    expected = classification_metrics(student, labels, teacher)
    found = classification_metrics(padded[0], moved, padded[1])
    assert found.pop("top5") == 1
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name


def test_uint8_images_are_normalised_and_records_are_streamed(case, unchecked_shapes):
    network, variables, _ = case
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (7, 4, 4, 1), dtype=np.uint8)
    label = rng.integers(0, 3, 7).astype("i4")
    kept = Source("kept", {"image": image, "label": label}, 3)
    read = RecordSource(
        "read", range(7), lambda i, rng: {"image": image[i], "label": label[i]}, 3
    )
    scale = Normalize((0.5,), (0.25,))
    inputs = jnp.asarray((image / np.float32(255) - 0.5) / 0.25, jnp.float32)
    expected = network.apply(variables, inputs)[0].logits
    for source in (kept, read):
        predict = predictor(network, source, 3, scale)
        np.testing.assert_allclose(predict(variables), expected, rtol=1e-4, atol=1e-5)
    found = evaluator(network, read, batch_size=3, transform=scale)(variables)
    assert found["accuracy"] == accuracy(expected, jnp.asarray(label))
    with pytest.raises(ValueError, match=r"is uint8, but this model takes floats"):
        predictor(network, kept)(variables)


def test_an_evaluation_reads_each_record_once(case):
    network, variables, source = case
    read = []

    def decode(i, rng):
        read.append(i)
        return {name: array[i] for name, array in source.arrays.items()}

    records = RecordSource("read", range(10), decode, 3)
    evaluate = evaluator(network, records, batch_size=4)
    for _ in range(2):
        read.clear()
        found = evaluate(variables)
        assert read == list(range(10))
    assert found == pytest.approx(evaluator(network, source)(variables), rel=1e-5)


def test_labels_that_are_no_classes_are_not_counted_as_wrong(unchecked_shapes):
    logits = jnp.eye(3)
    for measure in (
        *(accuracy, negative_log_likelihood, expected_calibration_error),
        *(adaptive_calibration_error, classwise_calibration_error),
        lambda z, y: top_k_accuracy(z, y, 2),
    ):
        for label in (-100, -1, 3):
            with pytest.raises(ValueError, match=f"labels has label {label} at exampl"):
                measure(logits, jnp.array([0, label, 2]))
        with pytest.raises(ValueError, match=r"(labels|correct) has shape"):
            measure(logits, jnp.arange(3)[:, None])
    with pytest.raises(ValueError, match="other has shape"):
        agreement(logits, logits[:1])


def test_missing_labels_and_another_sources_teacher_are_refused(case):
    network, variables, source = case
    bare = Source("bare", {"image": source.arrays["image"]}, 3)
    assert predictor(network, bare)(variables).shape == (10, 3)
    with pytest.raises(ValueError, match="'bare' has no label to evaluate by"):
        evaluator(network, bare)(variables)
    with pytest.raises(ValueError, match="has 9 rows but 'toy' has 10 examples: comp"):
        evaluator(network, source, np.zeros((9, 3), "f4"))
