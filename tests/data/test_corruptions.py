"""Corruptions: what each does to a picture, and that a test set is always the same."""

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data.corruptions import CORRUPTIONS, SEVERITIES, Corrupt


def pictures(channels=3, side=32, examples=3):
    """Smooth pictures with an edge, away from black and white."""
    y, x = np.mgrid[:side, :side] / side
    image = 0.3 + 0.2 * np.sin(6 * x + 4 * y) + 0.2 * (x > 0.5)
    image = np.repeat(image[None, :, :, None], channels, -1)
    image = image * np.linspace(1, 0.6, channels)
    image = np.round(np.repeat(image, examples, 0) * 255).astype(np.uint8)
    return {"image": image, "index": np.arange(examples)}


def change(name, severity, batch):
    """Return the mean squared change, in [0, 1]."""
    found = Corrupt(name, severity)(batch, None)["image"]
    return (((found - batch["image"].astype(float)) / 255) ** 2).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_changes_more_at_higher_severities(name):
    for channels in (1, 3):
        batch = pictures(channels)
        found = Corrupt(name, 3)(batch, None)["image"]
        assert (found.dtype, found.shape) == (np.uint8, batch["image"].shape)
        changes = [change(name, severity, batch) for severity in SEVERITIES]
        # Elastic exchanges a smooth field for a sharper one; the others only grow.
        assert min(changes) > 0
        assert changes[-1] > changes[0] or name == "elastic"


def test_an_images_corruption_depends_on_its_index_alone():
    batch = pictures()
    corrupt = Corrupt("gaussian_noise", 5)
    whole = corrupt(batch, None)["image"]
    alone = corrupt({name: x[2:] for name, x in batch.items()}, None)["image"]
    np.testing.assert_array_equal(whole[2:], alone)
    assert (whole[0] != whole[1]).any()
    other = Corrupt("gaussian_noise", 5, seed=1)(batch, None)["image"]
    assert (whole != other).any()
    # In training every look at an image is another.
    rng = np.random.default_rng(0)
    assert (corrupt(batch, rng)["image"] != corrupt(batch, rng)["image"]).any()


def test_noise_has_the_deviation_of_its_severity():
    grey = {"image": np.full((1, 64, 64, 3), 0.5), "index": np.arange(1)}
    for severity, deviation in zip(
        SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.1), strict=True
    ):
        noise = Corrupt("gaussian_noise", severity)(grey, None)["image"] - 0.5
        assert noise.std() == pytest.approx(deviation, rel=0.03)
    shot = Corrupt("shot_noise", 5)(grey, None)["image"]
    assert shot.var() == pytest.approx(0.5 / 50, rel=0.05)
    struck = Corrupt("impulse_noise", 5)(grey, None)["image"]
    assert (struck != 0.5).mean() == pytest.approx(0.07, rel=0.1)
    assert set(np.unique(struck)) == {0.0, 0.5, 1.0}


def test_light_is_its_formula():
    batch = pictures()
    x = batch["image"] / 255.0
    found = Corrupt("contrast", 5)({**batch, "image": x}, None)["image"]
    mean = x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(found, mean + 0.15 * (x - mean))
    found = Corrupt("brightness", 2)({**batch, "image": x}, None)["image"]
    np.testing.assert_allclose(found.max(-1), x.max(-1) + 0.1)  # HSV's value …
    np.testing.assert_allclose(found[..., 1] / found[..., 0], x[..., 1] / x[..., 0])
    black = {"image": np.zeros((1, 4, 4, 3)), "index": np.arange(1)}
    found = Corrupt("brightness", 5)(black, None)["image"]
    np.testing.assert_allclose(found, 0.3)


def test_blur_and_pixels_keep_a_flat_image_and_the_mean():
    flat = {"image": np.full((1, 16, 16, 1), 0.4), "index": np.arange(1)}
    for name in ("gaussian_blur", "defocus_blur", "motion_blur", "pixelate", "elastic"):
        found = Corrupt(name, 5)(flat, None)["image"]
        np.testing.assert_allclose(found, 0.4, rtol=1e-6, err_msg=name)
    x = np.random.default_rng(0).random((1, 20, 20, 1))
    found = Corrupt("pixelate", 5)({"image": x, "index": np.arange(1)}, None)["image"]
    assert found.mean() == pytest.approx(x.mean(), rel=0.02)
    assert len(np.unique(found)) == 13 * 13


def test_shifts_and_turns_move_a_dot_as_far_as_they_say():
    side = 41
    dot = np.zeros((1, side, side, 1))
    dot[0, 20, 30] = 1
    batch = {"image": dot, "index": np.arange(1)}
    y, x = np.mgrid[:side, :side]

    def place(image):
        mass = image[0, ..., 0] / image.sum()
        return np.array([(mass * y).sum(), (mass * x).sum()])

    moved = place(Corrupt("translate", 3)(batch, None)["image"])
    assert np.hypot(*(moved - (20, 30))) == pytest.approx(0.14 * side, rel=0.02)
    turned = place(Corrupt("rotate", 5)(batch, None)["image"]) - 20
    assert np.hypot(*turned) == pytest.approx(10, rel=0.02)
    assert abs(np.degrees(np.arctan2(*turned))) == pytest.approx(30, abs=1)


def test_lengths_grow_with_the_image():
    """The same picture at twice the size is blurred twice as far."""
    small, large = pictures(side=64, examples=1), pictures(side=128, examples=1)
    changes = [change("gaussian_blur", 5, batch) for batch in (small, large)]
    assert changes[1] == pytest.approx(changes[0], rel=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Corrupt("gausian_noise", 1), "did you mean 'gaussian_noise'"),
        (lambda: Corrupt("jpeg", 6), "severity must be 1 to 5, got 6"),
        (
            lambda: Corrupt("jpeg", 1)({"image": pictures()["image"]}, None),
            "an image is corrupted by its index",
        ),
        (
            lambda: Corrupt("contrast", 1)(
                {"image": np.full((1, 2, 2, 3), -0.5), "index": np.arange(1)}, None
            ),
            "put it before Normalize",
        ),
        (
            lambda: Corrupt("jpeg", 1)(
                {"image": np.zeros((1, 8, 8, 2)), "index": np.arange(1)}, None
            ),
            "JPEG takes 1 or 3",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_stands_in_a_pipeline_before_normalize():
    source = data.Source(
        "photos", {**pictures(), "label": np.zeros(3, np.int32)}, classes=2
    )
    steps = data.Compose(
        (Corrupt("contrast", 2), data.Normalize((0.5,) * 3, (0.5,) * 3))
    )
    batch = next(iter(data.batches(source, 3, epochs=1, transform=steps)))
    assert batch["image"].dtype == np.float32
