"""The bookkeeping of labelled and unlabelled examples."""

import numpy as np
import pytest

from jaxkd.selection import initial_pool, label_picked

LABELS = np.array([0, 1, 2, 0, 1, 2, 2, 0])


def test_the_start_has_every_class_and_loses_no_example():
    labelled, unlabelled = initial_pool(LABELS, 2, seed=0)
    assert LABELS[labelled].tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted([*labelled, *unlabelled]) == list(range(8))
    starts = {tuple(initial_pool(LABELS, 1, seed)[0]) for seed in range(10)}
    assert len(starts) > 3
    again = initial_pool(LABELS, 2, seed=0)[0]
    np.testing.assert_array_equal(labelled, again)


def test_picks_are_positions_in_the_pool_of_the_round():
    labelled, unlabelled = np.array([4]), np.array([9, 2, 7, 5])
    labelled, unlabelled = label_picked(labelled, unlabelled, np.array([2, 0]))
    assert labelled.tolist() == [4, 7, 9]
    assert unlabelled.tolist() == [2, 5]
    labelled, unlabelled = label_picked(labelled, unlabelled, np.array([1]))
    assert labelled.tolist() == [4, 7, 9, 5]
    assert unlabelled.tolist() == [2]


@pytest.mark.parametrize(
    ("picks", "message"), [([1, 1], "twice"), ([4], "0 to 3"), ([-1], "0 to 3")]
)
def test_bad_picks_are_refused(picks, message):
    with pytest.raises(ValueError, match=message):
        label_picked(np.array([4]), np.array([9, 2, 7, 5]), np.array(picks))


@pytest.mark.parametrize("per_class", [0, 3])
def test_a_start_that_classes_cannot_give_is_refused(per_class):
    with pytest.raises(ValueError, match=f"1 to 2 .*class 1.*, got {per_class}"):
        initial_pool(LABELS, per_class, 0)
