"""Labelled images as files hold them, decoded and brought to one size when read."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxkd.arguments import checked
from jaxkd.data.sources import Example, RecordSource
from jaxkd.data.transforms import CropResize
from jaxkd.files import check_plain

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""Of the files that are images, by their names' ends in small letters."""

LARGEST = 2**26
"""Pixels of an image, which are looked at before it is decoded: 8,192 by 8,192."""

MOST_CLASSES = 2**20
"""Classes that labels without names may have."""

Crop = Callable[[np.ndarray, np.random.Generator | None], np.ndarray]
"""An image (height, width, 3), uint8, and a generator to train with ``->`` one of the
size that all have."""

Classes = Sequence[str] | int | None
"""Classes' names in order, or how many there are; None for what the data say."""


class Picture(NamedTuple):
    """An image as it is stored, and its class.

    Attributes:
        image: the file, the bytes of one, or pixels (height, width[, channels]), uint8.
        label: the class's number.
        name: for messages.
    """

    image: Any
    label: int
    name: str


@checked()
def picture_source(
    name: str,
    pictures: Sequence[Any],
    classes: int,
    names: Sequence[str],
    size: int,
    crop: Crop | None,
) -> RecordSource:
    """Return pictures as examples of one size, decoded when they are asked for.

    Args:
        name: for messages.
        pictures: any random-access sequence of `Picture`.
        classes: labels are below it.
        names: of the classes; empty if they are not known.
        size: pixels of an image's side.
        crop: brings an image to its size; None for ``CropResize(size)``.
    """
    cut: Crop = CropResize(size) if crop is None else crop

    def decode(picture: Picture, rng: np.random.Generator | None) -> Example:
        image = read_image(picture.image, picture.name)
        return {"image": cut(image, rng), "label": np.int32(picture.label)}

    return RecordSource(name, pictures, decode, classes, tuple(names))


@checked()
def read_image(image: str | Path | bytes | np.ndarray, name: str = "") -> np.ndarray:
    """Return an image (height, width, 3), uint8, of a JPEG, PNG or WebP file.

    Args:
        image: the file, its bytes, or pixels that are decoded already.
        name: of what holds it, for messages; of a file its path.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another format, or has too many pixels.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        name = str(image)
    try:
        if isinstance(image, np.ndarray):
            return np.asarray(Image.fromarray(image).convert("RGB"))
        file = BytesIO(image) if isinstance(image, bytes) else image
        with Image.open(file, formats=sorted(set(FORMATS.values()))) as found:
            if found.width * found.height > LARGEST:
                raise ValueError(
                    f"it has {found.width:,} by {found.height:,} pixels, and may have "
                    f"{LARGEST:,} in all"
                )
            return np.asarray(found.convert("RGB"))
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged image causes
        raise ValueError(f"{name} cannot be read as an image ({error})") from None


@checked()
def number_labels(
    labels: Sequence[Any], classes: Classes, source: str, names: Sequence[str] = ()
) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Return labels as numbers, how many classes there are, and the classes' names.

    Args:
        labels: names of classes, sorted to number them; or numbers, also as texts.
        classes: of someone else, who numbers them.
        source: has the labels, for messages.
        names: that numbers stand for.

    Raises:
        ValueError: a label that is neither, negative, or of no class; a name twice.
    """
    if classes is not None and classes in (0, [], ()):
        raise ValueError("classes must be some: names, how many there are, or None")
    given = () if classes is None or isinstance(classes, int) else tuple(classes)
    for known in (given, names):
        if len(set(known)) < len(known) or not all(isinstance(x, str) for x in known):
            raise ValueError(f"{source} has a class twice, or one that is no text")
        check_plain(list(known), f"a class of {source}")
    texts = all(isinstance(label, str) for label in labels)
    digits = texts and all(label.isascii() and label.isdigit() for label in labels)
    if digits and not set(labels) <= set(given):
        labels, texts = [int(label[:10]) for label in labels], False
    if not texts:
        count = classes if isinstance(classes, int) else None
        most = len(names) or len(given) or count or MOST_CLASSES
        for i, label in enumerate(labels):
            whole = isinstance(label, int) and not isinstance(label, bool)
            if not whole or not 0 <= label < most:
                raise ValueError(
                    f"record {i} of {source} has the label {label!r:.80}: a label is a "
                    f"class's name, or a number from 0 to {most - 1}"
                )
        if not names:
            numbers = np.asarray(labels, np.int32)
            known = len(given) or count or int(numbers.max(initial=0)) + 1
            return numbers, known, given
        labels, given = [names[int(label)] for label in labels], given or tuple(names)
    known = given or tuple(sorted(set(labels)))
    check_plain(list(known), f"a class of {source}")
    number: dict[Any, int] = {name: i for i, name in enumerate(known)}
    if unknown := sorted(set(labels) - set(number)):
        raise ValueError(
            f"{source} has the label {unknown[0]!r:.80}, which is none of the "
            f"{len(known)} classes ({', '.join(known[:5])}, …)"
        )
    numbers = np.asarray([number[label] for label in labels], np.int32)
    return numbers, len(known), known
