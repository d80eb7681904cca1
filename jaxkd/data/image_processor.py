"""What a Hugging Face model's images go through, as its folder says."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxkd.arguments import checked, count, natural, positive
from jaxkd.checks import unknown_name
from jaxkd.data.images import LARGEST
from jaxkd.data.transforms import Arrays, batch_images
from jaxkd.hub import model_folder
from jaxkd.untrusted import blaming, json_file

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
"""Files that say it; the second, of models that read texts too, among other things."""


class Kind(NamedTuple):
    """What an image processor of transformers does unless its file says otherwise.

    Attributes:
        square: whether a size of one number is that of both sides, not of the shorter.
        crops: whether the centre is cut out.
    """

    square: bool
    crops: bool


KINDS = {
    "Bit": Kind(square=False, crops=True),
    "CLIP": Kind(square=False, crops=True),
    "ConvNext": Kind(square=False, crops=False),
    "DeiT": Kind(square=True, crops=True),
    "MobileNetV2": Kind(square=False, crops=True),
    "Siglip": Kind(square=True, crops=False),
    "ViT": Kind(square=True, crops=False),
}
"""By the name before ``ImageProcessor``: DINOv2 has Bit's, Swin ViT's, ResNet
ConvNeXt's."""

WHOLE = 384
"""From this size on ConvNeXt's takes images whole instead of cutting out the centre."""


@checked(resize=count, crop=count, resample=natural, scale=positive, std=positive)
@dataclass(frozen=True)
class ImageProcessor:
    """Resize, cut out the centre, scale and normalise, as transformers does by Pillow.

    It is a transform of batches too. Pixels are those of transformers' processors on
    Pillow, bit for bit; those on torchvision round some by 1 of 255 otherwise.

    Attributes:
        resize: pixels (height, width) of a picture, or of its shorter side; None to
            leave it.
        crop: pixels (height, width) of the centre that is cut out, with zeros around a
            smaller picture; None to take all of it.
        resample: number of Pillow's filter, such as 2, bilinear, or 3, bicubic.
        scale: by which the bytes are multiplied, such as 1 / 255.
        mean: of each channel, which is subtracted then; None not to normalise.
        std: of each channel, which the difference is divided by.

    Raises:
        ValueError: an unknown filter, a size of more pixels than an image may have, or
            a mean without a deviation.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: int
    scale: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __post_init__(self):
        if self.resample > 5:
            raise ValueError(
                f"resample is 0 … 5, Pillow's number of a filter, got {self.resample}"
            )
        for name in ("resize", "crop"):
            given, most = getattr(self, name), int(LARGEST**0.5)
            if np.max(given or 1) > most:
                raise ValueError(
                    f"{name} is {given}, but sides have {most} pixels at most"
                )
        if len(self.mean or ()) != len(self.std or ()):
            raise ValueError(
                f"mean is {self.mean} and std {self.std}: give one of each a channel"
            )

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None if they depend on the picture."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def of_crops(self) -> "ImageProcessor":
        """Return the processor of pictures that are cut out already, at random say.

        They are brought to the model's size whole.

        Raises:
            ValueError: the model has no size of its own.
        """
        if self.size is None:
            raise ValueError(
                "the processor leaves pictures their sizes: pass crops of one size to "
                "it as it is"
            )
        return dataclasses.replace(self, resize=self.size, crop=None)

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Return the batch with its images as the model takes them.

        Raises:
            ValueError: images that are not uint8 of the model's channels.
        """
        found = [self.image(picture) for picture in batch_images(batch)]
        return {**batch, "image": np.stack(found)}

    def image(
        self, picture: UInt8[np.ndarray, "height width channels"]
    ) -> Float[np.ndarray, "rows columns channels"]:
        """Return float32 of one picture.

        Raises:
            ValueError: it is not uint8 of three channels, or would become too large.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(
                f"picture is {picture.dtype} of shape {picture.shape}, but a model's "
                "processor takes uint8 (height, width, 3) in 0 … 255"
            )
        pixels = _centre(self._resized(picture), self.crop)
        scaled = (pixels.astype(np.float64) * self.scale).astype(np.float32)
        if self.mean is None:
            return scaled
        mean, std = (np.asarray(x, np.float32) for x in (self.mean, self.std))
        return (scaled - mean) / std

    def _resized(self, picture: np.ndarray) -> np.ndarray:
        from PIL import Image

        if self.resize is None:
            return picture
        height, width = picture.shape[:2]
        if isinstance(self.resize, tuple):
            size = self.resize
        elif width <= height:
            size = int(self.resize * height / width), self.resize
        else:
            size = self.resize, int(self.resize * width / height)
        if size[0] * size[1] > LARGEST:
            raise ValueError(
                f"picture of {height} x {width} pixels would have {size[0]} x {size[1]}"
                f", but may have {LARGEST:,} in all: leave it out"
            )
        resample = Image.Resampling(self.resample)
        rows, columns = size
        return np.asarray(Image.fromarray(picture).resize((columns, rows), resample))


def _centre(picture: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Return the centre of a picture, with zeros around it where it is smaller."""
    if size is None:
        return picture
    own = picture.shape[:2]
    more = [max(wanted - side, 0) for side, wanted in zip(own, size, strict=True)]
    # Of an odd rest transformers puts the larger part before.
    around = [(-(-rest // 2), rest // 2) for rest in more]
    starts = [
        (side - wanted) // 2 + before
        for side, wanted, (before, _) in zip(own, size, around, strict=True)
    ]
    rows, columns = (
        slice(start, start + wanted) for start, wanted in zip(starts, size, strict=True)
    )
    return np.pad(picture, (*around, (0, 0)))[rows, columns]


@checked()
def load_image_processor(folder: str | Path) -> ImageProcessor:
    """Return what the images of a folder's model go through.

    ``image_folder(...)``'s pictures become a teacher's by
    ``ForTeacher(load_image_processor(teacher).of_crops())``, or one by one by `image`.

    Args:
        folder: with ``preprocessor_config.json``, or a ``processor_config.json`` that
            says it, as transformers writes them.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: it is damaged, of another kind than `KINDS`, or says something that
            this function does not know. It names the file.
    """
    folder = model_folder(folder)
    path = folder / PREPROCESSOR
    if path.is_file():
        config = json_file(path)
    else:
        path = folder / PROCESSOR
        config = json_file(path) if path.is_file() else None
        if isinstance(config, Mapping):
            config = config.get("image_processor")
        if config is None:
            raise FileNotFoundError(
                f"{folder} has no {PREPROCESSOR}, which says how the model's images "
                "are made: fetch it, or give the images a transform of your own, such "
                "as Normalize"
            )
    with blaming(str(path)):
        return _read(config)


@checked()
def processor_config(processor: ImageProcessor) -> dict[str, Any]:
    """Return what ``preprocessor_config.json`` says of a processor.

    Args:
        processor: of a model that is written; `load_image_processor` reads it again.
    """
    square = isinstance(processor.resize, tuple)
    cuts = processor.crop is not None
    found: dict[str, Any] = {
        "image_processor_type": f"{'DeiT' if square else 'Bit'}ImageProcessor",
        "do_resize": processor.resize is not None,
        "size": _said(processor.resize),
        "resample": processor.resample,
        "do_center_crop": cuts,
        "crop_size": _said(processor.crop),
        "do_rescale": True,
        "rescale_factor": processor.scale,
        "do_normalize": processor.mean is not None,
        "image_mean": processor.mean,
        "image_std": processor.std,
    }
    return {key: value for key, value in found.items() if value is not None}


def _said(size: tuple[int, int] | int | None) -> dict[str, int] | None:
    if isinstance(size, tuple):
        return {"height": size[0], "width": size[1]}
    return None if size is None else {"shortest_edge": size}


def _read(config: Mapping[str, Any]) -> ImageProcessor:
    given = (
        config.get(f"{key}_type") for key in ("image_processor", "feature_extractor")
    )
    name = next(filter(None, given), "")
    name = re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name)
    if name not in KINDS:
        raise ValueError(unknown_name("image processor", name, KINDS))

    def does(what: str, usual: bool = True) -> bool:
        given = config.get(f"do_{what}")
        return usual if given is None else bool(given)

    resize = crop = None
    if does("resize"):
        resize = _sides(config["size"], KINDS[name].square)
        if name == "ConvNext" and isinstance(resize, int):
            crop = resize, resize
            if resize < WHOLE:
                resize = int(resize / config.get("crop_pct", 224 / 256))
            else:
                resize, crop = crop, None
    if does("center_crop", KINDS[name].crops):
        crop = _sides(config["crop_size"], square=True)
        if isinstance(crop, int):
            crop = crop, crop
    normalised = does("normalize")
    return ImageProcessor(
        resize=resize,
        crop=crop,
        resample=config["resample"] if does("resize") else 0,
        scale=config.get("rescale_factor", 1 / 255) if does("rescale") else 1.0,
        mean=tuple(config["image_mean"]) if normalised else None,
        std=tuple(config["image_std"]) if normalised else None,
    )


def _sides(size: Any, square: bool) -> tuple[int, int] | int:
    """Return height and width, or the shorter side, of a size in a file."""
    if isinstance(size, int):
        return (size, size) if square else size
    if set(size) == {"height", "width"}:
        return size["height"], size["width"]
    if set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    raise ValueError(
        f"its size is {size}, but jaxkd knows height and width, or shortest_edge"
    )
