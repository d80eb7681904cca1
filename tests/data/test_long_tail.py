"""Long tails: as many of each class as asked, of any source; accuracy by frequency."""

import numpy as np
import pytest

from jaxkd.data import (
    RecordSource,
    Source,
    Subset,
    batches,
    digits,
    example_labels,
    long_tailed,
    long_tailed_counts,
)
from jaxkd.evaluation.long_tail import (
    class_accuracies,
    class_groups,
    group_accuracies,
)

LABELS = np.arange(60) % 3
RECORDS = RecordSource(
    "mine",
    list(LABELS),
    lambda record, rng: {"image": np.full((2, 2, 1), record, "f4"), "label": record},
    3,
)


def test_counts_fall_exponentially_to_the_imbalance():
    found = long_tailed_counts(10, 5000, 100.0)
    assert found[[0, -1]].tolist() == [5000, 50]
    np.testing.assert_allclose(found[1:] / found[:-1], 100 ** (-1 / 9), rtol=0.01)
    assert long_tailed_counts(1, 7, 50.0).tolist() == [7]
    assert long_tailed_counts(3, 2, 100.0).tolist() == [2, 1, 1]
    assert long_tailed_counts(4, 9, 1.0).tolist() == [9] * 4


@pytest.mark.parametrize("source", [RECORDS, Subset(RECORDS, np.arange(60)[::-1])])
def test_any_source_gets_a_tail(source):
    some = long_tailed(source, 10.0, seed=1)
    assert np.bincount(example_labels(some)).tolist() == [20, 6, 2]
    other = long_tailed(source, 10.0, seed=2)
    assert not np.array_equal(some.positions, other.positions)
    assert some.fingerprint != other.fingerprint
    reverse = long_tailed(source, 4.0, largest=8, order=np.array([2, 1, 0]))
    assert np.bincount(example_labels(reverse)).tolist() == [2, 4, 8]
    assert next(iter(batches(some, 4, epochs=1, seed=0)))["image"].shape == (4, 2, 2, 1)


def test_labels_that_are_given_are_not_read():
    def fail(record, rng):
        raise AssertionError

    unread = RecordSource("unread", list(LABELS), fail, 3)
    assert len(long_tailed(unread, 10.0, labels=LABELS)) == 28


def test_the_cards_digits():
    some = long_tailed(digits().train, 25.0)
    found = np.bincount(example_labels(some))
    assert found.tolist() == [100, 70, 49, 34, 24, 17, 12, 8, 6, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imbalance": 0.5}, "imbalance must be at least 1, got 0.5"),
        ({"largest": 30}, "class 0 of mine has 20 examples and is to keep 30"),
        ({"order": np.array([0, 0, 1])}, "order must name each of the 3 classes"),
        ({"labels": LABELS[:5]}, "labels has 5 entries, but mine has 60"),
    ],
)
def test_bad_tails_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tailed(RECORDS, **{"imbalance": 10.0, **arguments})


def test_accuracy_by_class_and_group():
    labels = np.array([0, 0, 0, 0, 1, 1, 3])
    predictions = np.array([0, 0, 0, 1, 1, 0, 3])
    found = class_accuracies(predictions, labels, 4)
    np.testing.assert_array_equal(found, [0.75, 0.5, np.nan, 1])
    groups = {"head": np.array([0, 1]), "middle": np.array([2]), "tail": np.array([3])}
    assert group_accuracies(predictions, labels, groups) == {
        "head": 0.625,
        "tail": 1.0,
        "balanced": 0.75,
    }


def test_groups_are_thirds_or_between_borders():
    counts = [5, 300, 20, 100, 101, 19, 7]
    thirds = class_groups(counts)
    assert {k: v.tolist() for k, v in thirds.items()} == {
        "head": [1, 3, 4],
        "middle": [2, 5],
        "tail": [0, 6],
    }
    few = class_groups(counts, (20, 100))
    assert {k: v.tolist() for k, v in few.items()} == {
        "head": [1, 4],
        "middle": [2, 3],
        "tail": [0, 5, 6],
    }


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_predictions_are_refused():
    with pytest.raises(ValueError, match=r"predictions has shape \(3,\)"):
        class_accuracies(np.zeros(3, int), np.zeros(4, int), 2)
    with pytest.raises(ValueError, match="labels must be below classes, 2, got 0 to 2"):
        class_accuracies(np.arange(3), np.arange(3), 2)
    with pytest.raises(ValueError, match="groups is empty"):
        group_accuracies(np.zeros(3, int), np.zeros(3, int), {})
    source = Source("own", {"image": np.zeros((4, 1)), "label": np.zeros(4, int)}, 2)
    with pytest.raises(ValueError, match="class 1 of own has 0 examples"):
        long_tailed(source, 2.0)
