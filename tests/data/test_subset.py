"""Some of a source's examples."""

import numpy as np
import pytest

from jaxkd.data import Subset


def test_the_chosen_examples_under_new_numbers(source):
    some = Subset(source, np.array([7, 2, 11]))
    found, expected = some.take(np.array([2, 0])), source.take(np.array([11, 7]))
    np.testing.assert_array_equal(found["image"], expected["image"])
    assert found["index"].tolist() == [2, 0]
    assert (len(some), some.classes, some.name) == (3, 3, "toy[3]")


def test_the_fingerprint_is_of_source_and_choice(source):
    first = Subset(source, np.array([1, 2])).fingerprint
    assert first == Subset(source, np.array([1, 2])).fingerprint
    assert first != Subset(source, np.array([2, 1])).fingerprint
    assert first != source.fingerprint


@pytest.mark.parametrize("positions", [[], [0, 20], [-1]])
def test_positions_must_be_examples(source, positions):
    with pytest.raises(ValueError, match="some of 0 to 19"):
        Subset(source, np.array(positions, int))


def test_a_mask_is_no_positions_and_a_list_is(source, unchecked_shapes):
    with pytest.raises(ValueError, match="positions is bool, but must be integers"):
        Subset(source, np.arange(20) < 3)
    assert len(Subset(source, [3, 1])) == 2
