"""Samples as a picture: rows of small images, each row named."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

GAP = 2  # pixels between images
TEXT = 13  # points


def plot_images(
    rows: Mapping[str, Float[np.ndarray, "examples height width channels"]],
    path: str | Path,
    *,
    pixel: int = 4,
) -> Path:
    """Draw rows of images as a PNG file; every pixel becomes a square of pixels.

    Args:
        rows: name -> images in [-1, 1] with 1 or 3 channels, all of one shape; values
            outside are clipped.
        path: the file to write.
        pixel: the square's side.

    Returns:
        The path.

    Raises:
        ValueError: no rows, or images of different shapes or other channels.
    """
    shapes = {np.shape(images) for images in rows.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 4 or shape[-1] not in (1, 3):
        raise ValueError(
            "rows must be one or more arrays (examples, height, width, 1 or 3), all of "
            f"one shape, got { ({name: np.shape(x) for name, x in rows.items()}) }"
        )
    count, height, width, _ = shape
    tall, wide = height * pixel + GAP, width * pixel + GAP
    font = ImageFont.load_default(TEXT)
    left = GAP + 8 + max(round(font.getlength(name)) for name in rows)
    size = left + count * wide, GAP + len(rows) * tall
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for i, (name, images) in enumerate(rows.items()):
        top = GAP + i * tall
        draw.text((GAP + 2, top + tall / 2), name, "black", font, anchor="lm")
        scaled = np.clip((np.asarray(images, np.float64) + 1) * 127.5, 0, 255)
        bytes_ = np.broadcast_to(scaled, (*shape[:3], 3)).round().astype(np.uint8)
        for j, image in enumerate(bytes_):
            block = image.repeat(pixel, axis=0).repeat(pixel, axis=1)
            picture.paste(Image.fromarray(block), (left + j * wide, top))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="png")
    return path
