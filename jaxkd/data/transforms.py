"""What happens to a batch on its way to the device: crops, flips, scales.

A transform is ``(batch, rng) -> batch`` on NumPy arrays, whole batches at a time. The
generator is seeded by the batch's place in the run, so a resumed run draws the same
numbers. Where there is none (in evaluation), the random ones leave the batch alone.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from jaxkd.arguments import checked, count, integer, positive_share, probability

Arrays = dict[str, Any]


@runtime_checkable
class Transform(Protocol):
    """Any callable of a batch and a generator; its ``repr`` identifies the pipeline."""

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Return the batch with some arrays replaced."""
        ...


@checked()
@dataclass(frozen=True)
class Compose:
    """Transforms one after another.

    Attributes:
        transforms: in their order.
    """

    transforms: tuple[Transform, ...]

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Return what the last one returns."""
        for transform in self.transforms:
            batch = transform(batch, rng)
        return batch


@checked(padding=integer)
@dataclass(frozen=True)
class PadCrop:
    """Pad with zeros on every side and cut out the old size at random.

    Attributes:
        padding: pixels a side; 4 is the custom for CIFAR.
    """

    padding: int = 4

    def __post_init__(self):
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0 pixels, got {self.padding}")

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Shift every image by its own offset."""
        image = batch_images(batch)
        if rng is None:
            return batch
        p, (examples, height, width, _) = self.padding, image.shape
        padded = np.pad(image, ((0, 0), (p, p), (p, p), (0, 0)))
        windows = sliding_window_view(padded, (height, width), axis=(1, 2))
        y, x = rng.integers(0, 2 * p + 1, (2, examples))
        cut = windows[np.arange(examples), y, x]
        return {**batch, "image": np.ascontiguousarray(cut.transpose(0, 2, 3, 1))}


@dataclass(frozen=True)
class Flip:
    """Mirror every second image, on average, left to right."""

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Mirror each image with probability one half."""
        image = batch_images(batch)
        if rng is None:
            return batch
        mirrored = rng.random(len(image)) < 0.5
        image = image.copy()
        image[mirrored] = image[mirrored, :, ::-1]
        return {**batch, "image": image}


@checked(mean=probability, std=positive_share)
@dataclass(frozen=True)
class Normalize:
    """Bring uint8 images to float32 with mean 0 and deviation 1 in every channel.

    Attributes:
        mean: of each channel in [0, 1].
        std: standard deviation of each channel, in (0, 1].

    Raises:
        ValueError: they are of 0 … 255, or one a channel is missing.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} channels but std {len(self.std)}: give one "
                "of each a channel"
            )

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Return (image / 255 − mean) / std.

        Raises:
            ValueError: an image that is not uint8, or has other channels.
        """
        image = batch_images(batch)
        if image.dtype != np.uint8 or image.shape[-1] != len(self.mean):
            raise ValueError(
                f"batch['image'] is {image.dtype} of shape {image.shape}, but "
                f"Normalize takes uint8 images of {len(self.mean)} channels in 0 … "
                "255: leave it out where images are scaled already"
            )
        mean, std = (np.asarray(x, np.float32) for x in (self.mean, self.std))
        # Whole rows at once: NumPy is slow over an axis as short as the channels.
        width = image.shape[2]
        rows = image.reshape(*image.shape[:2], -1)
        scaled = rows * np.tile(np.float32(1 / 255) / std, width)
        scaled -= np.tile(mean / std, width)
        return {**batch, "image": scaled.reshape(image.shape)}


@checked()
@dataclass(frozen=True)
class ForTeacher:
    """Give the teacher the images as they are here, transformed in its own way.

    After the crops and before the student's `Normalize`, both see the same crop.

    Attributes:
        transform: of the teacher's images, such as another `Normalize`.
        name: of its array in the batch: ``teacher_`` and the key that it reads, see
            `jaxkd.Network.read`.
    """

    transform: Transform
    name: str = "teacher_image"

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Return the batch with the teacher's images besides."""
        image = self.transform({"image": batch_images(batch)}, rng)["image"]
        return {**batch, self.name: image}


@checked(size=count, smallest=positive_share)
@dataclass(frozen=True)
class CropResize:
    """Crop an image and bring it to one size, as ImageNet classifiers are trained.

    With a generator: a crop of 8 to 100 % of the area and of 3:4 to 4:3 (Szegedy et al.
    2014, arXiv:1409.4842), mirrored half of the time. Without: the centre, 7/8 of the
    shorter side.

    Attributes:
        size: pixels of the result's side.
        smallest: share of the area that a random crop has at least.
        flip: whether random crops are mirrored.
    """

    size: int
    smallest: float = 0.08
    flip: bool = True

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator | None
    ) -> np.ndarray:
        """Return uint8 (size, size, 3) of a uint8 image (height, width, 3)."""
        from PIL import Image

        height, width = image.shape[:2]
        if rng is None:
            side = min(height, width) * 7 / 8
            box = (width - side) / 2, (height - side) / 2
            corners = (*box, box[0] + side, box[1] + side)
        else:
            corners = _random_box(height, width, self.smallest, rng)
        picture = Image.fromarray(image).resize(
            (self.size, self.size), Image.Resampling.BILINEAR, box=corners
        )
        result = np.asarray(picture)
        mirrored = self.flip and rng is not None and rng.random() < 0.5
        return result[:, ::-1] if mirrored else result


def _random_box(
    height: int, width: int, smallest: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a box that fits, or of the whole."""
    for _ in range(10):
        area = height * width * rng.uniform(smallest, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return 0.0, 0.0, float(width), float(height)


@checked()
def batch_images(batch: Arrays, floating: bool = False) -> np.ndarray:
    """Return the batch's images.

    Args:
        batch: with ``image``.
        floating: whether they must be floats.

    Raises:
        ValueError: there are none, or not of the shape or dtype that is needed.
    """
    image = batch.get("image")
    if image is None or np.ndim(image) != 4:
        found = sorted(batch) if image is None else f"shape {np.shape(image)}"
        raise ValueError(
            f"the batch must hold image (batch, height, width, channels), got {found}"
        )
    if floating and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(
            f"batch['image'] is {image.dtype}, but Mixup needs floats: put Normalize "
            "before it"
        )
    return image
