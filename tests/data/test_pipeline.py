"""Batches: shuffled by seed, divided among processes, and resumable bit for bit."""

import json
from itertools import chain

import jax
import numpy as np
import pytest

from jaxkd import data


def toy(examples=10, classes=3, **changes):
    arrays = {
        "image": np.arange(examples * 4, dtype=np.float32).reshape(examples, 2, 2, 1),
        "label": np.arange(examples, dtype=np.int32) % classes,
    }
    return data.Source("toy", {**arrays, **changes}, classes)


def indices(iterator):
    return [batch["index"].tolist() for batch in iterator]


def test_every_epoch_is_a_new_permutation():
    source = toy(12)
    found = list(data.batches(source, 4, epochs=3, seed=5))
    assert len(found) == 3 * data.steps_per_epoch(source, 4)
    for batch in found:
        taken = source.take(batch["index"])
        assert set(batch) == {"image", "label", "index"}
        for name, array in batch.items():
            np.testing.assert_array_equal(array, taken[name])
    epochs = [np.concatenate(indices(found[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_batches_are_of_the_seed():
    source = toy(12)
    first = indices(data.batches(source, 4, epochs=2, seed=5))
    assert first == indices(data.batches(source, 4, epochs=2, seed=5))
    assert first != indices(data.batches(source, 4, epochs=2, seed=6))
    in_order = indices(data.batches(source, 4, epochs=2, seed=None))
    assert in_order == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] * 2


def test_a_rest_smaller_than_a_batch_is_left_out():
    found = indices(data.batches(toy(10), 4, epochs=2))
    assert [len(batch) for batch in found] == [4] * 4
    assert len(set(found[0] + found[1])) == 8


@pytest.mark.parametrize("position", [0, 2, 3, 7, 9])
def test_iterator_resumes_exactly(position):
    source = toy(12)
    whole = indices(data.batches(source, 4, epochs=3, seed=1))
    iterator = iter(data.batches(source, 4, epochs=3, seed=1))
    read = [next(iterator)["index"].tolist() for _ in range(position)]
    state = iterator.get_state()
    assert read + indices(iterator) == whole
    fresh = iter(data.batches(source, 4, epochs=3, seed=1))
    fresh.set_state(state)
    assert indices(fresh) == whole[position:]


@pytest.mark.parametrize(
    ("other", "settings"),
    [
        (toy(12), {"batch_size": 4, "epochs": 3, "seed": 2}),
        (toy(12), {"batch_size": 3, "epochs": 3, "seed": 1}),
        (toy(11), {"batch_size": 4, "epochs": 3, "seed": 1}),
    ],
    ids=["seed", "batch_size", "examples"],
)
def test_another_pipelines_state_is_refused(other, settings):
    state = iter(data.batches(toy(12), 4, epochs=3, seed=1)).get_state()
    iterator = iter(data.batches(other, **settings))
    with pytest.raises(ValueError, match=r"is of Batches\(toy, 12 .*size 4, seed 1"):
        iterator.set_state(state)


def in_processes(monkeypatch, count, read):
    """Return what each of several processes reads."""
    monkeypatch.setattr(jax, "process_count", lambda: count)
    found = []
    for process in range(count):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(read())
    return found


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_parts_join_to_the_whole_batch(monkeypatch, processes):
    source = toy(12)
    whole = list(data.batches(source, 4, epochs=2))
    parts = in_processes(
        monkeypatch, processes, lambda: list(data.batches(source, 4, epochs=2))
    )
    for batch, *shares in zip(whole, *parts, strict=True):
        assert {len(share["index"]) for share in shares} == {4 // processes}
        for name, array in batch.items():
            joined = np.concatenate([share[name] for share in shares])
            np.testing.assert_array_equal(joined, array)


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"3 cannot be divided among 2.* multiple of"):
        data.batches(toy(12), 3, epochs=1)


def test_each_process_decodes_its_own_records_only(monkeypatch):
    decoded = []

    def decode(record, rng):
        if rng is not None:  # not the fingerprint's
            decoded.append(record)
        return {"image": np.zeros((1, 1, 1), np.uint8), "label": np.int32(0)}

    source = data.RecordSource("records", range(12), decode, 1)

    def read():
        decoded.clear()
        batches = indices(data.batches(source, 4, epochs=1))
        assert sorted(decoded) == sorted(chain(*batches))
        return batches

    first, second = in_processes(monkeypatch, 2, read)
    assert sorted(chain(*first, *second)) == list(range(12))


def noise(batch, rng):
    return {**batch, "noise": rng.random(len(batch["index"]))}


def noises(batches):
    return [batch["noise"].tolist() for batch in batches]


def test_a_transform_draws_by_seed_place_and_process(monkeypatch):
    def read(seed=1):
        return noises(data.batches(toy(12), 4, epochs=2, seed=seed, transform=noise))

    first = read()
    assert first == read()
    # No number is drawn twice: not in another epoch, run or process.
    for parts in ((first, read(2)), in_processes(monkeypatch, 2, read)):
        drawn = [number for part in parts for row in part for number in row]
        assert len(set(drawn)) == len(drawn)


AUGMENT = data.Compose(
    (data.PadCrop(1), data.Flip(), data.Mixup(1.0, 3), data.CutMix(1.0, 3))
)


def pictures(examples=12, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.random((examples, 4, 4, 1), np.float32),
        "label": rng.integers(0, 3, examples),
    }
    return data.Source("pictures", {**arrays, **changes}, 3)


def random_records():
    def decode(record, rng):
        image = np.full((4, 4, 1), record, np.float32)
        shift = 0 if rng is None else rng.random()
        return {"image": image + np.float32(shift), "label": np.int32(record % 3)}

    return data.RecordSource("records", range(12), decode, 3)


@pytest.mark.parametrize("position", [0, 1, 4, 5])
@pytest.mark.parametrize("build", [pictures, random_records])
def test_augmented_batches_resume_bit_for_bit(build, position):
    def start():
        settings = {"epochs": 2, "seed": 3, "transform": AUGMENT}
        return iter(data.batches(build(), 4, **settings))

    iterator = start()
    for _ in range(position):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = start()
    resumed.set_state(state)
    rest = 0
    for expected, found in zip(iterator, resumed, strict=True):
        rest += 1
        assert set(found) == {"image", "label", "index"}
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    assert rest == 6 - position


def test_a_state_of_changed_data_is_refused():
    source = pictures()
    image, label = (source.arrays[name].copy() for name in ("image", "label"))
    image[11, 3, 3, 0] += 1
    label[0] = (label[0] + 1) % 3
    state = iter(data.batches(source, 4, epochs=1)).get_state()
    for other in (pictures(image=image), pictures(label=label)):
        iterator = iter(data.batches(other, 4, epochs=1))
        message = (
            rf"Batches\(pictures, 12 examples with checksum {source.fingerprint}.*"
            rf"but this is .*checksum {other.fingerprint}.*resume with the data set"
        )
        with pytest.raises(ValueError, match=message):
            iterator.set_state(state)


def test_a_state_of_another_transform_is_refused():
    def start(transform):
        return iter(data.batches(toy(12), 4, epochs=1, transform=transform))

    state = start(data.PadCrop(1)).get_state()
    start(data.PadCrop(1)).set_state(state)
    for transform, name in ((data.PadCrop(2), r"PadCrop\(padding=2\)"), (None, "None")):
        message = rf"transform PadCrop\(padding=1\)\), but this is .*transform {name}\)"
        with pytest.raises(ValueError, match=message):
            start(transform).set_state(state)


def test_a_function_is_known_by_its_name_not_its_address():
    def build():
        def add_noise(batch, rng):
            return noise(batch, rng)

        return iter(data.batches(toy(12), 4, epochs=1, transform=add_noise))

    first, second = build(), build()
    second.set_state(first.get_state())
    assert noises(first) == noises(second)
    with pytest.raises(ValueError, match=r"transform <function .*add_noise>"):
        iter(data.batches(toy(12), 4, epochs=1)).set_state(build().get_state())


def test_impossible_batches_are_refused():
    for size in (0, 13):
        with pytest.raises(ValueError, match=rf"must be 1 to 12 .*toy\), got {size}"):
            data.batches(toy(12), size, epochs=1)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        data.batches(toy(12), 4, epochs=0)


def test_validation_batches_ride_along_without_end_and_resume():
    def batches():
        return data.with_validation(
            data.batches(toy(12), 4, epochs=3, seed=5), toy(8), 4, seed=6
        )

    alone = indices(data.batches(toy(12), 4, epochs=3, seed=5))
    whole = list(batches())
    assert indices(whole) == alone
    seen = indices(batch["validation"] for batch in whole)
    for epoch in (seen[0:2], seen[2:4], seen[6:8]):
        assert sorted(epoch[0] + epoch[1]) == list(range(8))
    assert set(whole[0]["validation"]) == {"image", "label", "index"}
    iterator = iter(batches())
    for _ in range(4):
        next(iterator)
    fresh = iter(batches())
    fresh.set_state(json.loads(json.dumps(iterator.get_state())))
    assert indices(b["validation"] for b in fresh) == seen[4:]
    other = data.with_validation(data.batches(toy(12), 4, epochs=3, seed=5), toy(9), 4)
    with pytest.raises(ValueError, match=r"is of Batches\(toy, 8 examples"):
        iter(other).set_state(iterator.get_state())


def test_a_validation_batch_larger_than_its_source_is_refused():
    with pytest.raises(ValueError, match="batch_size must be 1 to 3"):
        data.with_validation(data.batches(toy(12), 4, epochs=1), toy(3), 4)
