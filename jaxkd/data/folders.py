"""Images in a folder for each class, as ImageNet's are laid out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxkd.arguments import checked, count
from jaxkd.data.sources import Example, RecordSource
from jaxkd.data.transforms import CropResize

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""Of the files that are images, by their names' ends in small letters."""

LARGEST = 2**26
"""Pixels of an image, which are looked at before it is decoded: 8,192 by 8,192."""


class ImageFile(NamedTuple):
    """An image of a class.

    Attributes:
        path: of the file.
        label: the class's number.
    """

    path: Path
    label: int


@checked()
def folder_classes(folder: str | Path) -> tuple[str, ...]:
    """Return the names of a folder's folders, in order: the classes.

    Raises:
        FileNotFoundError: it is no folder, or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: name one of class folders")
    found = sorted(
        p.name for p in folder.iterdir() if p.is_dir() and p.name[:1] not in "._"
    )
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no folders: put each class's images in one of its name"
        )
    return tuple(found)


@checked(size=count)
def image_folder(
    folder: str | Path, size: int = 224, *, classes: Sequence[str] | None = None
) -> RecordSource:
    """Return the images below a folder of class folders, read when they are asked for.

    JPEG, PNG and WebP files, at any depth within a class's folder, become RGB of one
    size, uint8: random crops to train on, the centre to evaluate on (`CropResize`).
    Give them to a network through `Normalize`.

    Args:
        folder: such as ImageNet's ``train``.
        size: pixels of an image's side.
        classes: names of the folders, whose order numbers the classes; None for the
            folders there are, sorted. Give ``folder_classes(train)``, or a teacher's
            list, for a part that may lack some.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a folder that is not among ``classes``, or a name twice.
    """
    folder, found = Path(folder), folder_classes(folder)
    names = found if classes is None else tuple(classes)
    number = {name: i for i, name in enumerate(names)}
    unknown = [name for name in found if name not in number]
    if unknown or len(number) < len(names):
        raise ValueError(
            f"classes has {len(names)} names, {len(number)} of them different, and not "
            f"{', '.join(map(repr, unknown[:5])) or 'a folder missing'}: name every "
            f"folder in {folder} once"
        )
    files = [
        ImageFile(path, number[name])
        for name in found
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in FORMATS and path.is_file()
    ]
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no image in {len(found)} folders: files must end in "
            f"{', '.join(FORMATS)}"
        )
    crop = CropResize(size)

    def decode(file: ImageFile, rng: np.random.Generator | None) -> Example:
        return {
            "image": crop(read_image(file.path), rng),
            "label": np.int32(file.label),
        }

    return RecordSource(str(folder), files, decode, len(names))


@checked()
def read_image(path: str | Path) -> np.ndarray:
    """Return an image (height, width, 3), uint8, of a JPEG, PNG or WebP file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another format, or has too many pixels.
    """
    from PIL import Image

    path = Path(path)
    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(
                    f"it has {image.width:,} by {image.height:,} pixels, and may have "
                    f"{LARGEST:,} in all"
                )
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged image causes
        raise ValueError(f"{path} cannot be read as an image ({error})") from None
