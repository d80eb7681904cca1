"""Batches of labelled and unlabelled examples, and examples with a cache."""

import numpy as np
import pytest

from jaxkd.data import (
    Compose,
    ForTeacher,
    Joined,
    Normalize,
    PadCrop,
    Source,
    semi_supervised_batches,
)


class Halve:
    """A transform of images alone."""

    def __call__(self, batch, rng):
        return {**batch, "image": batch["image"] / 2}


LABELLED, UNLABELLED = np.array([3, 8]), np.array([0, 1, 2, 17])


def make(source, **options):
    defaults = {"sizes": (4, 6), "steps": 30, "seed": 5}
    return semi_supervised_batches(
        source, LABELLED, UNLABELLED, **{**defaults, **options}
    )


def test_batches_hold_both_kinds_and_hide_labels(source):
    batches = list(make(source))
    assert len(batches) == 30
    for batch in batches:
        assert batch["labelled"].tolist() == [True] * 4 + [False] * 6
        assert set(batch["index"][:4]) <= set(LABELLED)
        assert set(batch["index"][4:]) <= set(UNLABELLED)
        expected = source.arrays["label"][batch["index"][:4]]
        np.testing.assert_array_equal(batch["label"], [*expected, *[0] * 6])
        np.testing.assert_array_equal(
            batch["image"], source.arrays["image"][batch["index"]]
        )
    drawn = np.concatenate([b["index"] for b in batches])
    assert set(drawn) == {*LABELLED, *UNLABELLED}


def test_the_seed_decides_and_a_state_resumes(source):
    first, again, other = (
        [b["index"].tolist() for b in make(source, seed=seed)] for seed in (5, 5, 6)
    )
    assert first == again != other
    iterator = iter(make(source))
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    resumed = iter(make(source))
    resumed.set_state(state)
    assert next(resumed)["index"].tolist() == first[3]
    with pytest.raises(ValueError, match="resume with the data set and settings"):
        iter(make(source, steps=31)).set_state(state)


def test_one_kind_can_be_left_out_and_transforms_apply(source):
    transform = Compose((Halve(),))
    batch = next(iter(make(source, sizes=(5, 0), transform=transform)))
    assert batch["labelled"].all()
    np.testing.assert_array_equal(
        2 * batch["image"], source.arrays["image"][batch["index"]]
    )
    assert not next(iter(make(source, sizes=(0, 5))))["labelled"].any()


def test_a_cache_is_joined_by_position(source):
    cache = np.arange(40.0).reshape(20, 2)
    both = Joined(source, {"teacher_logits": cache})
    batch = next(iter(make(both)))
    np.testing.assert_array_equal(batch["teacher_logits"], cache[batch["index"]])
    assert (len(both), both.classes) == (20, 3)
    assert both.fingerprint != source.fingerprint
    assert both.fingerprint != Joined(source, {"teacher_logits": 2 * cache}).fingerprint
    with pytest.raises(ValueError, match="teacher_logits has 19 rows but 'toy' has 20"):
        Joined(source, {"teacher_logits": cache[1:]})
    with pytest.raises(ValueError, match="'toy' has index, label of its own: give"):
        Joined(source, {"label": cache, "index": cache, "other": cache})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (0, 0)}, "steps must be at least 1 and sizes"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"sizes": (-1, 4)}, "sizes has -1 labelled"),
    ],
)
def test_bad_sizes_are_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        make(source, **options)


def test_bad_positions_are_refused(source):
    for wrong in (np.arange(20) < 3, np.array([0.7, 1.2])):
        with pytest.raises(
            ValueError, match=r"labelled is (bool|float64), but must be"
        ):
            semi_supervised_batches(source, wrong, UNLABELLED, (1, 1), steps=1)
    with pytest.raises(ValueError, match="labelled holds 0 positions"):
        semi_supervised_batches(source, np.zeros(0), UNLABELLED, (1, 1), steps=1)
    with pytest.raises(ValueError, match="unlabelled holds positions from 0 to 20"):
        semi_supervised_batches(source, LABELLED, np.array([0, 20]), (1, 1), steps=1)


def test_the_source_keeps_its_labels(source):
    next(iter(make(source)))
    assert isinstance(source, Source)
    assert source.arrays["label"].any()


def test_cycles_show_every_example_once_a_pass(source):
    pool = np.arange(20)
    batches = list(
        semi_supervised_batches(
            source, LABELLED, pool, (3, 4), steps=10, seed=1, cycle=True
        )
    )
    rows = np.stack([batch["index"] for batch in batches])
    first, second = rows[:5, 3:].ravel(), rows[5:, 3:].ravel()
    assert sorted(first) == sorted(second) == pool.tolist()
    assert first.tolist() != second.tolist()
    # The labelled ones begin again at their own pace, in the midst of a batch.
    pairs = rows[:, :3].ravel().reshape(-1, 2)
    assert (np.sort(pairs, 1) == LABELLED).all()


def test_the_teacher_sees_the_same_crop_in_its_own_scale(source):
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    own, scale = Normalize((0.5,), (0.1,)), Normalize((0.0,), (1.0,))
    moved = Compose((PadCrop(2), ForTeacher(own), scale))
    batch = moved({"image": image}, np.random.default_rng(1))
    np.testing.assert_allclose(
        batch["teacher_image"], (batch["image"] - 0.5) / 0.1, atol=1e-5
    )
    assert np.abs(batch["image"] - image / 255).max() > 0
