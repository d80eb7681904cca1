"""Which examples Mixup mixes: the authors' draws, shares of a batch, other arrays."""

from unittest import mock

import numpy as np
import pytest

from jaxkd import data


@pytest.mark.parametrize("case", ["pmu0", "pmu1"])
def test_authors_draws_give_the_authors_mixtures(load_golden, case):
    found = load_golden("40-mixkd")
    get = {k[len(case) + 1 :]: v for k, v in found.items() if k.startswith(case)}
    rng = mock.create_autospec(np.random.Generator, instance=True)
    rng.beta.return_value = get["lam_drawn"].reshape(-1)
    rng.permutation.side_effect = [get["perm1"], get["perm2"].copy()]
    rng.choice.return_value = get["unmixed_index"]
    size, kept = len(get["values"]), float(get["percent_unmixed"])
    beta = float(get["beta"])
    drawn = data.sample_mixup(rng, size, beta, 1 - kept, per_example=True, replace=True)
    rng.beta.assert_called_once_with(beta, beta, size)
    rng.choice.assert_called_once_with(size, len(get["unmixed_index"]), True)
    np.testing.assert_allclose(drawn.share, get["lam_used"].reshape(-1), rtol=1e-6)
    unmixed = np.mean(drawn.first == drawn.second)
    assert unmixed >= get["unmixed_fraction"]

    image = np.broadcast_to(get["values"][:, None, None], (size, 2, 3))
    for mixing, names in (
        (drawn, ("mixed_value", "mixed_targets")),
        (
            data.Mixing(get["perm1"], get["perm2"], get["lam_drawn"].reshape(-1)),
            ("full_mixed_value", "full_mixed_targets"),
        ),
    ):
        mixed, label = data.apply_mixup(image, get["labels"], mixing, 100)
        expected = np.broadcast_to(get[names[0]].reshape(-1, 1, 1), mixed.shape)
        np.testing.assert_allclose(mixed, expected, rtol=2e-6)
        np.testing.assert_allclose(label, get[names[1]], atol=1e-6)


@pytest.mark.parametrize(("mixed", "count"), [(0.0, 0), (0.1, 1), (0.3, 3), (1.0, 10)])
def test_an_exact_share_is_mixed_without_replacement(mixed, count):
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = data.sample_mixup(rng, 10, 1.0, mixed, per_example=True)
        assert (drawn.share < 1).sum() == count
        assert len(np.unique(drawn.share[drawn.share < 1])) == count
        for side in (drawn.first, np.flatnonzero(drawn.share == 1)):
            assert len(np.unique(side)) == len(side)


def test_with_replacement_more_is_mixed_than_was_asked_for():
    rng = np.random.default_rng(0)
    draws = [
        data.sample_mixup(rng, 64, 1.0, 0.1, per_example=True, replace=True)
        for _ in range(300)
    ]
    mixed = np.mean([(drawn.share < 1).mean() for drawn in draws])
    assert mixed == pytest.approx((1 - 1 / 64) ** 57, abs=0.01)


def make_batch(size=8):
    label = np.arange(size)
    image = (label + 1.0).astype("f4")[:, None, None, None] * np.ones(
        (1, 2, 2, 1), "f4"
    )
    return {"image": image, "label": label, "index": label}


def test_labels_and_other_arrays_follow_the_images():
    mask = (np.arange(8) != 3).astype("f4")
    batch = {**make_batch(), "mask": mask}
    mix = data.Mixup(1.0, 8, mixed=0.5, per_example=True)
    for seed in range(20):
        found = mix(batch, np.random.default_rng(seed))
        value = found["label"] @ (batch["label"] + 1.0)
        np.testing.assert_allclose(found["image"][:, 0, 0, 0], value, rtol=1e-5)
        for index, label, counts in zip(
            found["index"], found["label"], found["mask"], strict=True
        ):
            assert label[index] > 0
            # What does not count is in no example that does.
            assert counts == (label[3] == 0)


def test_a_teachers_answers_to_plain_images_are_refused():
    batch = {**make_batch(), "teacher_logits": np.zeros((8, 8))}
    for mix in (data.Mixup(1.0, 8), data.CutMix(1.0, 8)):
        assert mix(batch, None) is batch
        with pytest.raises(ValueError, match="the batch has teacher_logits, answers"):
            mix(batch, np.random.default_rng(0))


def test_bad_mixtures_are_named():
    rng, batch = np.random.default_rng(0), make_batch()
    for build in (
        lambda share: data.Mixup(1.0, 8, mixed=share),
        lambda share: data.sample_mixup(rng, 8, 1.0, share),
    ):
        with pytest.raises(ValueError, match=r"mixed must be in \[0, 1\], got 1.5"):
            build(1.5)
    with pytest.raises(ValueError, match="alpha must be above 0, got 0"):
        data.sample_mixup(rng, 8, 0.0)
    drawn = data.sample_mixup(rng, 7, 1.0)
    with pytest.raises(ValueError, match=r"x has 8 .* labels has 8 .* \[7, 7, 7\]"):
        data.apply_mixup(batch["image"], batch["label"], drawn, 8)
