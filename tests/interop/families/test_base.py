"""Sources: reading any part is reading all and taking it, and writing undoes both."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.interop.families.base import LINEAR, Source, require

CASES = {
    "as it is": (Source(("a",)), (4, 6)),
    "transposed": (Source(("a",), LINEAR), (4, 6)),
    "scalar": (Source(("a",)), ()),
    "stacked": (Source(("a{}",), LINEAR, layers=3), (3, 4, 6)),
    "stacked scalars": (Source(("a{}",), layers=3), (3,)),
    "side by side": (Source(("q", "k", "v"), LINEAR), (4, 6)),
    "stacked side by side": (Source(("q{}", "k{}"), LINEAR, layers=2), (2, 4, 6)),
    "stacked biases": (Source(("q{}", "k{}"), layers=2), (2, 6)),
    "patches": (
        Source(("a",), "o c h w -> (h w c) o", sizes={"h": 2, "w": 2}),
        (12, 5),
    ),
    "squeezed": (Source(("a",), "1 1 width -> width"), (5,)),
    "experts": (
        Source(("a{}.{}",), LINEAR, layers=2, first=1, experts=3),
        (2, 3, 4, 6),
    ),
    "interleaved": (
        Source(
            ("a{}",),
            "experts embed (hidden two) -> experts embed (two hidden)",
            layers=2,
            share=(1, 2),
            sizes={"two": 2},
        ),
        (2, 3, 4, 6),
    ),
    "shared": (Source(("a{}",), LINEAR, layers=2, share=(1, 3)), (2, 4, 6)),
}


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_reading_a_part_is_taking_it_from_the_whole(case, data):
    source, shape = CASES[case]
    which, parts = source.share
    array = np.arange(np.prod((*shape, parts), dtype=int), dtype=np.float32)
    arrays = array.reshape(parts, *shape)
    files = {
        name: source.theirs([part[(*place, ...)] for part in arrays])
        for name, place in source.places(shape).items()
    }
    part = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        part.append(slice(start, data.draw(st.integers(start + 1, size))))
    part = tuple(part)
    found = source.read(
        part, shape, np.dtype("f4"), lambda name, index: np.asarray(files[name][index])
    )
    np.testing.assert_array_equal(found, arrays[which][part])


def test_only_what_is_needed_is_read():
    source = Source(("q{}", "k{}"), LINEAR, layers=3)
    taken = []

    def tensor(name, index):
        taken.append((name, index))
        return np.zeros([at.stop - at.start for at in index])

    part = (slice(1, 2), slice(0, 4), slice(2, 6))
    source.read(part, (3, 4, 8), np.dtype("f4"), tensor)
    whole = slice(0, 4)
    assert taken == [("q1", (slice(2, 4), whole)), ("k1", (slice(0, 2), whole))]


def test_layouts_are_those_of_pytorch():
    patches = CASES["patches"][0]
    weights = np.arange(5 * 3 * 2 * 2).reshape(5, 3, 2, 2)
    read = patches.read(
        (slice(0, 12), slice(0, 5)), (12, 5), np.dtype("i4"), lambda _, at: weights[at]
    )
    np.testing.assert_array_equal(read, weights.transpose(2, 3, 1, 0).reshape(12, 5))


def test_other_values_of_a_key_are_refused():
    require({}, "act", "silu")
    require({"act": "silu"}, "act", "silu", "gelu")
    with pytest.raises(
        ValueError, match=r"act = 'relu', which .* knows 'silu', 'gelu'"
    ):
        require({"act": "relu"}, "act", "silu", "gelu")
