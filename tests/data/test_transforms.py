"""Transforms against what they should do, recovered from the arrays they return."""

import dataclasses

import numpy as np
import pytest

from jaxkd import data

MIXING = (data.Mixup(1.0, 6), data.CutMix(1.0, 6))
RANDOM = (data.PadCrop(2), data.Flip(), *MIXING)


def generator(seed=0):
    return np.random.default_rng(seed)


def make_batch(examples=6, height=4, width=4, dtype=np.float32):
    """Every image has one value of its own, from 1, and a label of its own."""
    label = np.arange(examples, dtype=np.int32)
    image = np.broadcast_to(
        label[:, None, None, None] + 1, (examples, height, width, 3)
    )
    return {"image": image.astype(dtype), "label": label, "index": label}


def test_pad_crop_shifts_every_image_by_its_own_offset_evenly():
    examples, p = 2500, 2
    one = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    batch = {"image": np.repeat(one[None], examples, axis=0)}
    found = data.PadCrop(p)(batch, generator())["image"]
    assert (found.dtype, found.shape) == (np.uint8, (examples, 4, 4, 1))
    padded = np.zeros((8, 8, 1), np.uint8)
    padded[2:6, 2:6] = one
    counts = [
        (found == padded[y : y + 4, x : x + 4]).all((1, 2, 3)).sum()
        for y in range(5)
        for x in range(5)
    ]
    assert sum(counts) == examples
    # 100 expected of each; five standard deviations.
    assert min(counts) > 50
    assert max(counts) < 150


def test_flip_mirrors_half_of_the_images_left_to_right():
    rng = generator(1)
    image = rng.integers(0, 256, (1000, 2, 3, 3), dtype=np.uint8)
    kept = image.copy()
    found = data.Flip()({"image": image}, rng)["image"]
    np.testing.assert_array_equal(image, kept)
    mirrored = (found == image[:, :, ::-1]).all((1, 2, 3))
    same = (found == image).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert 420 < mirrored.sum() < 580


@pytest.mark.parametrize("rng", [None, generator()])
def test_normalize_is_the_formula(rng):
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    image = generator(2).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    found = data.Normalize(mean, std)({"image": image, "label": 1}, rng)
    expected = (image.astype(np.float64) / 255 - mean) / std
    assert found["image"].dtype == np.float32
    np.testing.assert_allclose(found["image"], expected, rtol=1e-5, atol=1e-6)
    assert found["label"] == 1


@pytest.mark.parametrize("mix", MIXING, ids=["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_two_examples(mix):
    for seed in range(20):
        label = mix(make_batch(), generator(seed))["label"]
        assert (label.dtype, label.shape) == (np.float32, (6, 6))
        np.testing.assert_allclose(label.sum(1), 1, rtol=1e-6)
        # One share for the batch: each row holds it, at the example's own class, and
        # the rest at one other class; all classes are some row's other.
        np.testing.assert_allclose(label.sum(0), 1, rtol=1e-6)
        assert ((label > 0).sum(1) <= 2).all()


def test_mixup_mixes_images_as_it_mixes_labels():
    batch = make_batch()
    for seed in range(20):
        found = data.Mixup(0.4, 6)(batch, generator(seed))
        expected = found["label"].astype(np.float64) @ (batch["label"] + 1)
        assert found["image"].dtype == np.float32
        for pixel in found["image"].reshape(6, -1).T:
            np.testing.assert_allclose(pixel, expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_is_of_the_symmetric_beta_distribution(alpha):
    drawn = data.sample_mixup(generator(3), 4000, alpha, per_example=True)
    shares = drawn.share[drawn.first != drawn.second]
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


def test_cutmix_pastes_one_box_and_counts_its_pixels():
    batch = make_batch(height=6, width=10)
    kept = batch["image"].copy()
    sizes = set()
    for seed in range(60):
        found = data.CutMix(1.0, 6)(batch, generator(seed))
        image, label = found["image"], found["label"]
        pasted = image[..., 0] != batch["image"][..., 0]
        changed = pasted.any((1, 2))
        if not changed.any():
            continue
        boxes = pasted[changed]
        assert (boxes == boxes[0]).all()
        rows, columns = boxes[0].any(1), boxes[0].any(0)
        np.testing.assert_array_equal(boxes[0], np.outer(rows, columns))
        for side in (rows, columns):  # without a gap
            assert np.abs(np.diff(side.astype(int))).sum() <= 2
        other = image[changed][boxes].reshape(changed.sum(), -1, 3)
        assert (other == other[:, :1, :1]).all()
        share = 1 - boxes[0].mean()
        sizes.add(boxes[0].sum())
        own, taken = batch["label"][changed], other[:, 0, 0].astype(int) - 1
        np.testing.assert_allclose(label[own, own], share, rtol=1e-5)
        np.testing.assert_allclose(label[own, taken], 1 - share, rtol=1e-5)
    assert len(sizes) > 10
    np.testing.assert_array_equal(batch["image"], kept)


def test_mixtures_can_be_mixed_again():
    batch = make_batch()
    found = data.Compose(MIXING)(batch, generator(5))
    np.testing.assert_allclose(found["label"].sum(1), 1, rtol=1e-6)
    expected = found["label"].astype(np.float64) @ (batch["label"] + 1)
    np.testing.assert_allclose(found["image"].mean((1, 2, 3)), expected, rtol=1e-5)


@pytest.mark.parametrize("transform", RANDOM, ids=lambda t: type(t).__name__)
def test_without_a_generator_nothing_is_drawn(transform):
    batch = make_batch()
    assert transform(batch, None) is batch
    first, again = (transform(batch, generator(7)) for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])


def test_compose_goes_from_left_to_right_with_one_generator():
    batch = make_batch(dtype=np.uint8)
    steps = data.Flip(), data.PadCrop(1), data.Normalize((0.0,) * 3, (1.0,) * 3)
    rng, expected = generator(8), batch
    for step in steps:
        expected = step(expected, rng)
    found = data.Compose(steps)(batch, generator(8))
    np.testing.assert_array_equal(found["image"], expected["image"])
    assert repr(data.Compose(steps)).startswith("Compose(transforms=(Flip(), PadCrop(")


@pytest.mark.parametrize("transform", RANDOM, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"label": np.zeros(2, int)}, r"\['label'\]"),
        ({"image": np.ones((2, 4, 4))}, r"shape \(2, 4, 4\)"),
    ],
)
def test_batches_without_images_are_refused(transform, batch, found):
    message = rf"must hold image \(batch, height, width, channels\), got {found}"
    for rng in (None, generator()):
        with pytest.raises(ValueError, match=message):
            transform(batch, rng)


def test_images_that_a_transform_cannot_take_are_refused():
    normalize = data.Normalize((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match=r"is float32 of shape .*uint8 images of 3 ch"):
        normalize(make_batch(), None)
    grey = {"image": np.zeros((2, 4, 4, 1), np.uint8)}
    with pytest.raises(ValueError, match=r"is uint8 of shape \(2, 4, 4, 1\), but"):
        normalize(grey, None)
    with pytest.raises(ValueError, match=r"is uint8, but Mixup needs floats: put Norm"):
        data.Mixup(1.0, 6)(make_batch(dtype=np.uint8), generator())


@pytest.mark.parametrize("mix", MIXING, ids=["mixup", "cutmix"])
def test_labels_that_are_no_classes_are_not_mixed(mix):
    for value in (-1, 6):
        batch = make_batch()
        batch["label"] = batch["label"].copy()
        batch["label"][2] = value
        with pytest.raises(ValueError, match=rf"has label {value} at example 2"):
            mix(batch, generator())
    with pytest.raises(ValueError, match="has label 5 at example 5"):
        dataclasses.replace(mix, classes=5)(make_batch(), generator())


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_impossible_settings_are_refused(alpha):
    for build in (data.Mixup, data.CutMix):
        with pytest.raises(ValueError, match=f"alpha must be above 0, got {alpha}"):
            build(alpha, 6)
    with pytest.raises(ValueError, match="padding must be at least 0 pixels, got -1"):
        data.PadCrop(-1)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 300), (280, 256)])
def test_the_evaluation_crop_is_the_centre(height, width):
    image = generator(9).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = data.CropResize(224)(image, None)
    # 7/8 of 256 are 224 pixels: nothing is resampled.
    top, left = (height - 224) // 2, (width - 224) // 2
    np.testing.assert_array_equal(found, image[top : top + 224, left : left + 224])


def ramp(height, width):
    """Red counts columns and green rows, so a crop's colours tell where it was cut."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


def test_the_evaluation_crop_is_scaled():
    found = data.CropResize(28)(ramp(64, 128), None).astype(float)
    centres = (np.arange(28) + 0.5) * 2 - 0.5  # 56 pixels become 28
    np.testing.assert_allclose(found[10, :, 0], 36 + centres, atol=0.51)
    np.testing.assert_allclose(found[:, 10, 1], 4 + centres, atol=0.51)


def test_training_crops_are_of_the_areas_and_ratios_of_the_paper():
    rng, crop, size = generator(10), data.CropResize(32), 240
    areas, ratios, mirrored = [], [], []
    for _ in range(300):
        found = crop(ramp(size, size), rng).astype(float)
        assert found.shape == (32, 32, 3)
        # The colours at the sides' centres are half an output pixel inside.
        width = (found[16, -1, 0] - found[16, 0, 0]) * 32 / 31
        height = (found[-1, 16, 1] - found[0, 16, 1]) * 32 / 31
        assert height > 0
        mirrored.append(width < 0)
        areas.append(abs(width) * height / size**2)
        ratios.append(abs(width) / height)
    slack = 0.04  # colours are whole numbers
    assert min(areas) > 0.08 - slack
    assert min(areas) < 0.15
    assert 0.85 < max(areas) < 1 + slack
    assert min(ratios) > 3 / 4 - slack
    assert max(ratios) < 4 / 3 + slack
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1, abs=0.03)
    assert 115 < sum(mirrored) < 185


def test_an_image_too_narrow_for_any_crop_is_taken_whole():
    image = generator(11).integers(0, 256, (4, 400, 3), dtype=np.uint8)
    found = data.CropResize(8)(image, generator(12))
    assert (found.shape, found.dtype) == ((8, 8, 3), np.uint8)
    # Every column block has its mean colour: the whole width was used.
    whole = image.reshape(4, 8, 50, 3).mean((0, 2))
    columns = found.mean(0)
    closest = min(np.abs(c - whole).max() for c in (columns, columns[::-1]))
    assert closest < 25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (((127.5,), (64.0,)), r"Normalize: mean must be in \[0, 1\], got 127.5"),
        (((0.5,), (0.0,)), r"Normalize: std must be in \(0, 1\], got 0.0"),
        (((0.5, 0.5), (0.2,)), "mean has 2 channels but std 1"),
    ],
)
def test_normalize_is_of_the_channels_between_0_and_1(settings, message):
    with pytest.raises(ValueError, match=message):
        data.Normalize(*settings)
