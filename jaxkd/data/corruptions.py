"""Corrupted images in the style of CIFAR-10-C, at five severities, of any data.

Hendrycks, Dietterich 2019, arXiv:1903.12261. A network is tested on corruptions that it
was not trained on. Severities are those of the authors' code for CIFAR-10, and lengths
in pixels grow with the image: those are for images 32 high. Shifts and turns are not
among theirs; MNIST-C (Mu, Gilmer 2019, arXiv:1906.02337) has the like.

`Corrupt` is a transform, so it fits wherever one does; `jaxkd.evaluation.robustness`
measures accuracies with it.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.data.transforms import Arrays, batch_images

SEVERITIES = (1, 2, 3, 4, 5)
FULL = 32
"""Pixels of the side that lengths are given for."""

Image = np.ndarray
"""(height, width, channels) of floats in [0, 1]."""

Corruption = Callable[[Image, int, np.random.Generator], Image]


def _gaussian_noise(x: Image, severity: int, rng: np.random.Generator) -> Image:
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return x + rng.normal(0, deviation, x.shape)


def _shot_noise(x: Image, severity: int, rng: np.random.Generator) -> Image:
    photons = (500, 250, 100, 75, 50)[severity - 1]
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: Image, severity: int, rng: np.random.Generator) -> Image:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    draw = rng.random(x.shape)
    return np.where(draw < share / 2, 0, np.where(draw < share, 1, x))


def _gaussian_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] * _scale(x)
    return ndimage.gaussian_filter(x, (sigma, sigma, 0))


def _defocus_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    radius = (0.3, 0.4, 0.5, 1.0, 1.5)[severity - 1] * _scale(x)
    soft = (0.4, 0.5, 0.6, 0.2, 0.1)[severity - 1] * _scale(x)
    reach = math.ceil(radius + 3 * soft)
    y, x_ = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (y**2 + x_**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), soft, mode="constant")
    return ndimage.convolve(x, (kernel / kernel.sum())[..., None], mode="mirror")


def _motion_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    radius = (6, 6, 6, 8, 9)[severity - 1] * _scale(x)
    sigma = (1.0, 1.5, 2.0, 2.0, 2.5)[severity - 1] * _scale(x)
    angle = np.deg2rad(rng.uniform(-45, 45))
    # The image is averaged over the places that it moves through, half a pixel apart.
    way = np.arange(0, max(radius, 0.5) + 1e-9, 0.5)
    weights = np.exp(-(way**2) / (2 * sigma**2))
    found = sum(
        w * ndimage.shift(x, (*s * _direction(angle), 0), order=1, mode="nearest")
        for w, s in zip(weights / weights.sum(), way, strict=True)
    )
    return np.asarray(found)


def _brightness(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Raise HSV's value: all channels grow in proportion to the brightest."""
    value = x.max(-1, keepdims=True)
    raised = np.minimum(value + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 1)
    black = value == 0
    return np.where(black, raised, x * raised / np.where(black, 1, value))


def _contrast(x: Image, severity: int, rng: np.random.Generator) -> Image:
    mean = x.mean((0, 1), keepdims=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1] * (x - mean)


def _pixelate(x: Image, severity: int, rng: np.random.Generator) -> Image:
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    for axis in (0, 1):
        size = x.shape[axis]
        small = max(int(share * size), 1)
        fewer = np.moveaxis(np.tensordot(_box(size, small), x, (1, axis)), 0, axis)
        x = fewer.take((np.arange(size) * 2 + 1) * small // (2 * size), axis)
    return x


def _jpeg(x: Image, severity: int, rng: np.random.Generator) -> Image:
    from PIL import Image as Pictures

    grey = x.shape[-1] == 1
    if x.shape[-1] not in (1, 3):
        raise ValueError(
            f"images have {x.shape[-1]} channels, but JPEG takes 1 or 3: leave 'jpeg' "
            "out of the corruptions"
        )
    whole = np.round(x * 255).astype(np.uint8)
    file = io.BytesIO()
    picture = Pictures.fromarray(whole[..., 0] if grey else whole)
    picture.save(file, "JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
    found = np.asarray(Pictures.open(file), float) / 255
    return found[..., None] if grey else found


def _elastic(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Move every pixel: an affine change of three corners, then a smooth field."""
    height, width = x.shape[:2]
    side = min(height, width)
    strength, sigma, corner = (
        values[severity - 1] * side
        for values in (
            (0.0, 0.05, 0.08, 0.1, 0.1),
            (0.0, 0.2, 0.06, 0.04, 0.03),
            (0.08, 0.07, 0.06, 0.05, 0.03),
        )
    )
    third = side / 3
    corners = np.array([[third, third], [third, -third], [-third, -third]])
    moved = corners + rng.uniform(-corner, corner, corners.shape)
    affine = np.linalg.solve(np.c_[corners, np.ones(3)], moved)
    y, x_ = np.mgrid[:height, :width].astype(float)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    places = np.stack([y, x_], -1) - middle
    places = places @ affine[:2] + affine[2] + middle
    if strength:
        field = rng.uniform(-1, 1, (height, width, 2))
        smooth = ndimage.gaussian_filter(field, (sigma, sigma, 0), mode="reflect")
        places = places + strength * smooth
    return _read(x, places)


def _translate(x: Image, severity: int, rng: np.random.Generator) -> Image:
    angle = rng.uniform(0, 2 * np.pi)
    length = (0.06, 0.1, 0.14, 0.18, 0.22)[severity - 1] * min(x.shape[:2])
    return ndimage.shift(x, (*length * _direction(angle), 0), **_ZEROS)


def _rotate(x: Image, severity: int, rng: np.random.Generator) -> Image:
    degrees = (6, 12, 18, 24, 30)[severity - 1] * rng.choice([-1, 1])
    return ndimage.rotate(x, degrees, reshape=False, **_ZEROS)


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
    "elastic": _elastic,
    "translate": _translate,
    "rotate": _rotate,
}
"""All corruptions by name."""


@checked()
@dataclass(frozen=True)
class Corrupt:
    """Corrupt every image, in evaluation too: put it before `Normalize`.

    Without a generator an image is corrupted by ``seed`` and its ``index`` alone, so
    that a test set is the same however it is cut into batches.

    Attributes:
        name: one of `CORRUPTIONS`.
        severity: 1, hardly seen, to 5.
        seed: of the random corruptions, where the batch comes without a generator.
    """

    name: str
    severity: int
    seed: int = 0

    def __post_init__(self):
        if self.name not in CORRUPTIONS:
            raise ValueError(unknown_name("corruption", self.name, CORRUPTIONS))
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity must be 1 to 5, got {self.severity}")

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Return the batch with corrupted images, of the dtype they had.

        Raises:
            ValueError: images that are neither uint8 nor floats in [0, 1], or a batch
                without ``index`` and without a generator.
        """
        image = batch_images(batch)
        if rng is None and "index" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)} and no generator is given, but an "
                "image is corrupted by its index: take the batch from a data.Source, "
                "or add index, a number for each image"
            )
        seeds: Any = (
            batch["index"] if rng is None else rng.integers(2**32, size=len(image))
        )
        whole = image.dtype == np.uint8
        pixels = image / 255.0 if whole else image.astype(float)
        if not whole and len(image) and not 0 <= image.min() <= image.max() <= 1:
            raise ValueError(
                f"batch['image'] lies in {image.min():g} … {image.max():g}, but "
                "Corrupt takes uint8 or floats in 0 … 1: put it before Normalize"
            )
        found = np.empty_like(image)
        for i, seed in enumerate(seeds):
            own = np.random.default_rng([self.seed, int(seed)])
            one = CORRUPTIONS[self.name](pixels[i], self.severity, own)
            one = np.clip(one, 0, 1)
            found[i] = np.round(one * 255) if whole else one
        return {**batch, "image": found}


_ZEROS: dict[str, Any] = {"order": 1, "mode": "grid-constant"}


def _scale(x: Image) -> float:
    return min(x.shape[:2]) / FULL


def _direction(angle: float) -> np.ndarray:
    return np.array([np.sin(angle), np.cos(angle)])


def _box(size: int, new: int) -> np.ndarray:
    """Return (new, size): each new pixel is the mean of the old under it."""
    edges = np.arange(new + 1) * size / new
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)
    shared = np.minimum(high, pixel + 1) - np.maximum(low, pixel)
    return np.maximum(shared, 0) * new / size


def _read(x: Image, places: np.ndarray) -> Image:
    """Return an image read at (row, column) places, mirrored at its edges."""
    at = np.moveaxis(places, -1, 0)
    channels = [
        ndimage.map_coordinates(x[..., c], at, order=1, mode="reflect")
        for c in range(x.shape[-1])
    ]
    return np.stack(channels, -1)
