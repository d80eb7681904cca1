"""Sources are checked, whole or record by record, and know when they change."""

import dataclasses

import numpy as np
import pytest

from jaxkd import data


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def toy(examples=10, classes=3, **changes):
    arrays = {
        "image": np.arange(examples * 4, dtype=np.float32).reshape(examples, 2, 2, 1),
        "label": np.arange(examples, dtype=np.int32) % classes,
    }
    return data.Source("toy", {**arrays, **changes}, classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.ones((0, 2)), "label": np.ones(0, int)}, "the batch is empty"),
        ({"image": np.full((10, 2), np.nan)}, r"holds 20 values that are not finite"),
        ({"label": np.full(10, 3)}, "label 3 at example 0, but the classes are 0 to 2"),
        ({"label": np.arange(9) % 3}, "unequal length"),
        ({"extra": np.array(1)}, r"extra is array\(1\), not one an example"),
        ({"index": np.arange(10)[::-1]}, "index is the name of .*: give yours another"),
        ({"extra": np.ma.masked_less(np.ones(10), 2)}, "extra is a masked array"),
    ],
)
def test_a_bad_source_is_refused_with_its_name(changes, message):
    with pytest.raises(ValueError, match=rf"data set 'toy': .*{message}"):
        toy(**changes)


def test_take_returns_the_examples_and_their_index():
    batch = toy().take(np.array([7, 2]))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [28, 8])
    np.testing.assert_array_equal(batch["label"], [1, 2])
    np.testing.assert_array_equal(batch["index"], [7, 2])


def test_subset_is_balanced_deterministic_and_of_the_seed(digits):
    subset = digits.train.subset(57, seed=3)
    counts = np.bincount(subset.arrays["label"], minlength=10)
    assert len(subset) == 57
    assert set(counts.tolist()) == {5, 6}
    assert subset.name == "digits/train[57]"
    same = digits.train.subset(57, seed=3).arrays["image"]
    np.testing.assert_array_equal(same, subset.arrays["image"])
    other = digits.train.subset(57, seed=4).arrays["image"]
    assert not np.array_equal(other, subset.arrays["image"])
    whole = toy().subset(10)
    np.testing.assert_array_equal(whole.arrays["image"], toy().arrays["image"])


@pytest.mark.parametrize("examples", [0, -1, 11])
def test_subset_of_impossible_size_is_refused(examples):
    with pytest.raises(ValueError, match=rf"1 to 10 \(the size of toy\).*{examples}"):
        toy().subset(examples)


def test_an_image_neither_uint8_nor_float_is_refused():
    with pytest.raises(ValueError, match=r"'toy': image is int64: give uint8 .*floats"):
        toy(image=np.ones((10, 2, 2, 1), np.int64))
    toy(image=np.ones((10, 2, 2, 1), np.uint8))


def changed(array, position, value):
    array = array.copy()
    array[position] = value
    return array


def test_the_fingerprint_changes_with_every_array():
    arrays = toy().arrays
    found = {
        source.fingerprint
        for source in (
            toy(),
            toy(image=changed(arrays["image"], (9, 1, 1, 0), 0.5)),
            toy(label=changed(arrays["label"], 4, 0)),
            toy(weight=np.ones(10, np.float32)),
        )
    }
    assert len(found) == 4
    assert toy().fingerprint == toy(image=arrays["image"].copy()).fingerprint
    # A view with other strides holds the same data.
    turned = np.asfortranarray(arrays["image"])
    assert toy(image=turned).fingerprint == toy().fingerprint


def decode(record, rng):
    image, label = record
    noise = 0 if rng is None else rng.integers(0, 100)
    return {"image": image + np.uint8(noise), "label": np.int32(label)}


def records(examples=12):
    return [(np.full((2, 3, 3), 5 * i, np.uint8), i % 4) for i in range(examples)]


def test_records_are_decoded_and_stacked():
    source = data.RecordSource("records", records(), decode, 4)
    assert isinstance(source, data.Examples)
    assert len(source) == 12
    batch = source.take(np.array([7, 2]))
    assert set(batch) == {"image", "label", "index"}
    assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (2, 2, 3, 3))
    np.testing.assert_array_equal(batch["image"][:, 1, 2, 0], [35, 10])
    np.testing.assert_array_equal(batch["label"], [3, 2])
    np.testing.assert_array_equal(batch["index"], [7, 2])
    assert (batch["label"].dtype, batch["index"].dtype) == (np.int32, np.int32)


def test_decoding_is_random_only_with_a_generator():
    source = data.RecordSource("records", records(), decode, 4)
    rows = np.arange(12)
    plain, drawn, again, other = (
        source.take(rows, rng and np.random.default_rng(rng))["image"]
        for rng in (None, 1, 1, 2)
    )
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(drawn, plain)
    assert not np.array_equal(drawn, other)
    # Each record has draws of its own.
    assert len(np.unique(drawn[:, 0, 0, 0] - plain[:, 0, 0, 0])) > 6


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            (np.zeros((4, 3, 3), np.uint8), 0),
            r"record 5 has shapes .*\(4, 3, 3\).*record 0 has .*\(2, 3, 3\).*CropR",
        ),
        (
            (np.zeros((2, 3, 3), np.int32), 0),
            "record 5: image is int32: give uint8",
        ),
        ((None, 0), r"record 5 cannot be read \(TypeError: .*NoneType.*damaged"),
        (None, r"record 5 cannot be read \(TypeError: .*unpack.*prepare the"),
    ],
    ids=["shape", "dtype", "image", "record"],
)
def test_a_bad_record_is_named(bad, message):
    spoiled = [*records()[:5], bad, *records()[6:]]
    source = data.RecordSource("records", spoiled, decode, 4)
    source.take(np.array([0, 4]))
    with pytest.raises(ValueError, match=rf"data set 'records': {message}"):
        source.take(np.array([0, 5]))


def test_an_index_of_the_records_own_is_not_overwritten():
    def numbered(record, rng):
        return {**decode(record, rng), "index": 7}

    source = data.RecordSource("records", records(), numbered, 4)
    with pytest.raises(ValueError, match="record 5: index is the name of the examples"):
        source.take(np.array([7, 5]))


def test_the_fingerprint_of_records_changes_with_them():
    source = data.RecordSource("records", records(), decode, 4)
    fewer = dataclasses.replace(source, records=records(11))
    changed = dataclasses.replace(source, records=records()[::-1])
    assert len({s.fingerprint for s in (source, fewer, changed)}) == 3
    assert dataclasses.replace(source, name="again").fingerprint == source.fingerprint


def test_a_split_has_every_example_once_and_is_of_the_seed():
    source = toy(10)
    rest, held_out = data.split(source, 3, seed=1)
    assert (len(rest), len(held_out)) == (7, 3)
    found = [part.arrays["image"][:, 0, 0, 0] for part in (rest, held_out)]
    assert sorted(np.concatenate(found)) == [4 * i for i in range(10)]
    again = data.split(source, 3, seed=1)[1]
    assert again.fingerprint == held_out.fingerprint
    assert data.split(source, 3, seed=2)[1].fingerprint != held_out.fingerprint


def test_a_split_of_records_reads_none_and_agrees_with_one_in_memory():
    source, read = toy(10), []

    def decode(record, rng):
        read.append(record)
        return {name: array[record] for name, array in source.arrays.items()}

    records = data.RecordSource("toy", range(10), decode, 3)
    parts = data.split(records, 3, seed=1)
    assert not read
    for part, expected in zip(parts, data.split(source, 3, seed=1), strict=True):
        rows = np.arange(len(part))
        for name, array in part.take(rows).items():
            np.testing.assert_array_equal(array, expected.take(rows)[name])


@pytest.mark.parametrize("held_out", [0, 10])
def test_a_split_with_an_empty_part_is_refused(held_out):
    with pytest.raises(ValueError, match=rf"held_out must be 1 to 9 .*got {held_out}"):
        data.split(toy(10), held_out)


def test_a_share_of_the_examples_is_a_number_of_them():
    source = toy(10)
    for given, number in ((0.2, 2), (0.25, 2)):
        rest, held_out = data.split(source, given)
        assert (len(rest), len(held_out)) == (10 - number, number)
        assert held_out.fingerprint == data.split(source, number)[1].fingerprint
        assert source.subset(given).fingerprint == source.subset(number).fingerprint
    for given in (1.0, 1.5, -0.2, float("nan")):
        with pytest.raises(ValueError, match=r"held_out must be .* share of them such"):
            data.split(source, given)
    with pytest.raises(ValueError, match=r"held_out must be 1 to 9 .*got 0"):
        data.split(source, 0.01)


def test_sources_are_shown_without_their_values():
    source = toy(10)
    shown = "Source(name='toy', arrays={'image': float32[10, 2, 2, 1], "
    assert repr(source).startswith(shown)
    assert repr(source).endswith(", classes=3)")
    windows = data.Windows("text", np.arange(9999), 4, 10_000)
    records = data.RecordSource("records", [{"a": "x" * 99}] * 100, len, 3)
    documents = data.Documents("d", np.arange(9999), np.array([0, 9, 9999]), 10_000)
    for each, part in (
        (data.Dataset(source, source), shown),
        (data.Subset(source, np.arange(5)), "positions=int64[5]"),
        (windows, "tokens=int64[9999]"),
        (records, "records=list of 100"),
        (documents, "offsets=int64[3]"),
        (data.pack(documents, 8), "documents=Documents("),
    ):
        assert part in repr(each)
        assert len(repr(each)) < 400


@pytest.mark.parametrize("label", [None, np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]])
def test_a_subset_is_balanced_by_class_indices_alone(label):
    arrays = {"image": np.zeros((4, 2, 2, 1), np.float32), "label": label}
    source = data.Source("s", {k: v for k, v in arrays.items() if v is not None}, 3)
    with pytest.raises(ValueError, match="'s' is balanced by label, one class index"):
        source.subset(2)
