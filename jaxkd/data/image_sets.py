"""Image sets of any kind by their path: which kind it is, and rows and arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.arguments import checked, count
from jaxkd.data.columns import COLUMNS, Chained, Rows, open_columns
from jaxkd.data.folders import TABLES, image_folder, image_table
from jaxkd.data.images import (
    Classes,
    Crop,
    Picture,
    number_labels,
    picture_source,
)
from jaxkd.data.sources import RecordSource
from jaxkd.data.splits import (
    DICT,
    STATE,
    features_of,
    split_files,
    words_of,
)
from jaxkd.data.tarred import webdataset
from jaxkd.untrusted import arrays_file


@checked(size=count)
def open_images(
    path: str | Path,
    size: int = 224,
    *,
    split: str = "train",
    label: str | None = None,
    classes: Classes = None,
    crop: Crop | None = None,
) -> RecordSource:
    """Return the labelled images of one split of a data set, of whatever kind it is.

    * a folder of class folders, see `image_folder`;
    * a folder with ``metadata.jsonl`` or ``.csv``, see `image_table`;
    * Parquet and Arrow files, or a folder of them, see `image_rows`;
    * tar files, or a folder or pattern of them, see `webdataset`;
    * an ``.npz`` file, see `image_arrays`.

    The first two may lie in folders of their splits, such as ``train`` and ``val``.

    Args:
        path: of the files or the folder; or a pattern of tar files.
        size: pixels of an image's side.
        split: ``train``, ``validation``, ``test``, or a name of the user's.
        label: the column, field or array of the classes, where it is not found.
        classes: names in the order that numbers the classes, or how many there are;
            None for the data's own.
        crop: brings an image to its size; None for ``CropResize(size)``.

    Raises:
        FileNotFoundError: nothing is there, no images, or no such split.
        ValueError: something there is damaged, or of no kind that is known.
    """
    path, options = Path(path), {"classes": classes, "crop": crop}
    named = options if label is None else {**options, "label": label}
    if path.suffix == ".npz":
        return image_arrays(path, size, split=split, **named)
    if split != "train" and not path.is_dir():
        raise FileNotFoundError(
            f"{path} is of one split, and no {split!r} is known of it: give a folder "
            "whose files say which is which, or the file of that split itself"
        )
    if path.suffix in COLUMNS or (path / STATE).is_file() or (path / DICT).is_file():
        return image_rows(path, size, split=split, **named)
    if not path.is_dir():
        return webdataset(path, size, **named)
    inner = next(filter(_has_parts, (path / word for word in words_of(split))), None)
    if any(((inner or path) / table).is_file() for table in TABLES):
        return image_table(_of_split(path, inner, split), size, **named)
    for end, read in ((".tar", webdataset), (".parquet", image_rows)):
        if any(path.rglob(f"*{end}")):
            return read(split_files(path, split, [end]), size, **named)
    if isinstance(classes, int):
        options["classes"] = None  # Folders have names.
    return image_folder(_of_split(path, inner, split), size, **options)


def _has_parts(folder: Path) -> bool:
    """Return whether a folder is of a split: one with images in it is of a class."""
    found = folder.iterdir() if folder.is_dir() else ()
    return any(path.is_dir() or path.name in TABLES for path in found)


def _of_split(folder: Path, inner: Path | None, split: str) -> Path:
    if inner is None and split != "train":
        raise FileNotFoundError(
            f"{folder} has no split {split!r}: it has no folder "
            f"{' or '.join(words_of(split))} with class folders or a table in it"
        )
    return inner or folder


@checked(size=count)
def image_rows(
    files: str | Path | Sequence[str | Path],
    size: int = 224,
    *,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    classes: Classes = None,
    crop: Crop | None = None,
) -> RecordSource:
    """Return the images in rows of Parquet or Arrow files, as `datasets` keeps them.

    An image is ``{"bytes", "path"}`` or bytes alone, its label a class's number or
    name. Classes' names are those that the schema, dataset_info.json or README.md say.

    Rows that are read in any order are found in memory up to `columns.CACHED` bytes of
    Parquet; of more, every row costs reading its group: save the set by
    ``save_to_disk``, whose Arrow files stay on disk.

    Args:
        files: of one split; or a folder, see `split_files`.
        size: pixels of an image's side.
        split: of a folder.
        image: the column of the images; None for the one that holds some.
        label: the column of the labels; None for the only one that holds classes, or
            the one called ``label`` or ``labels``.
        classes: names in the order that numbers the classes, or how many there are;
            None for the data's own.
        crop: brings an image to its size; None for ``CropResize(size)``.

    Raises:
        FileNotFoundError: there are no files.
        ImportError: pyarrow is not installed.
        ValueError: a file is damaged, or has no such columns; later, a row without its
            image.
    """
    given = [files] if isinstance(files, str | Path) else list(files)
    paths = [
        file
        for path in map(Path, given)
        for file in (split_files(path, split, COLUMNS) if path.is_dir() else [path])
    ]
    parts = [open_columns(path) for path in paths]
    folders = [path for path in map(Path, given) if path.is_dir()]
    features = features_of(parts[0].schema, (folders or [paths[0].parent])[0])
    if not features:
        features = features_of(parts[0].schema, paths[0].parent)
    image = image or _column("image", parts[0], features, "Image", ("image", "img"))
    label = label or _column(
        "label", parts[0], features, "ClassLabel", ("label", "labels")
    )
    for part in parts:
        if missing := {image, label} - set(part.schema.names):
            raise ValueError(
                f"{part.path} has no column {' and no '.join(sorted(missing))}: it has "
                f"{', '.join(part.schema.names)}"
            )
    values = [value for part in parts for value in part.column(label)]
    name = " ".join(map(str, given))
    if not values:
        raise ValueError(f"{name} has no rows")
    own = features.get(label, {}).get("names") or ()
    labels, known, names = number_labels(values, classes, name, own)
    pictures = _Rows(Chained(parts), image, labels, name)
    return picture_source(name, pictures, known, names, size, crop)


def _column(
    what: str, rows: Rows, features: Any, kind: str, usual: Sequence[str]
) -> str:
    """Return the column of a kind, or of a usual name."""
    there = rows.schema.names
    typed = [x for x in there if features.get(x, {}).get("_type") == kind]
    named = [x for x in usual if x in there]
    found = typed if len(typed) == 1 else [x for x in named if x in (typed or there)]
    if not found:
        raise ValueError(
            f"{rows.path} has the columns {', '.join(there)}: say by {what}= which of "
            f"them holds the {what}s"
        )
    return found[0]


class _Rows(Sequence):
    """Pictures in rows."""

    def __init__(self, rows: Any, image: str, labels: np.ndarray, name: str):
        self._rows, self._image = rows, image
        self._labels, self._name = labels, name

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: Any) -> Picture:
        image = self._rows[position][self._image]
        image = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(image, bytes):
            raise ValueError(
                f"{self._image} holds no image's bytes: save the data set with its "
                "images in it (embed_external_files)"
            )
        name = f"row {position} of {self._name}"
        return Picture(image, int(self._labels[position]), name)


@checked(size=count)
def image_arrays(
    path: str | Path,
    size: int = 224,
    *,
    split: str = "train",
    label: str | None = None,
    classes: Classes = None,
    crop: Crop | None = None,
) -> RecordSource:
    """Return the images of an ``.npz`` file, which are in memory.

    Images (examples, height, width[, channels]), uint8, are called ``images`` or ``x``,
    labels (examples,) ``labels`` or ``y``, with the split before or after it where the
    file has several: ``train_images``, ``x_test``, …

    Args:
        path: of the file.
        size: pixels of an image's side.
        split: of a file that has several.
        label: the array of the labels, where it is called otherwise.
        classes: their names, or how many there are; None for the numbers there are.
        crop: brings an image to its size; None for ``CropResize(size)``.

    Raises:
        FileNotFoundError: there is no file, or no such split in it.
        ValueError: it is damaged, or its arrays are no images and labels.
    """
    path = Path(path)
    arrays = arrays_file(path)
    images = _array(arrays, ("images", "image", "x", "data"), split)
    labels = label or _array(arrays, ("labels", "label", "y", "targets"), split)
    if images is None or labels not in arrays:
        raise FileNotFoundError(
            f"{path} has no images and labels of {split}: it has {', '.join(arrays)}, "
            f"and needs such as {split}_images and {split}_labels"
        )
    x, y = arrays[images], arrays[labels]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    pixels = x.dtype == np.uint8 and x.ndim in (3, 4)
    if (
        not pixels
        or x.shape[3:] not in ((), (1,), (3,), (4,))
        or y.shape != x.shape[:1]
    ):
        raise ValueError(
            f"{path} has {images} {x.shape} {x.dtype} and {labels} {y.shape}: give "
            "uint8 images (examples, height, width[, channels]) and a label for each"
        )
    if not x.size:
        raise ValueError(f"{path} has no pixels in {images}, which is {x.shape}")
    numbers, known, names = number_labels(y.tolist(), classes, str(path))
    pictures = _Arrays(x[..., 0] if x.shape[3:] == (1,) else x, numbers, str(path))
    return picture_source(str(path), pictures, known, names, size, crop)


def _array(arrays: Any, names: Sequence[str], split: str) -> str | None:
    """Return which array is called by one of some names, with the split or without."""
    words = [
        f"{a}_{b}" for s in words_of(split) for n in names for a, b in ((s, n), (n, s))
    ]
    plain = list(names) if split == "train" else []
    return next((name for name in words + plain if name in arrays), None)


class _Arrays(Sequence):
    """Pictures in an array."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str):
        self._images, self._labels, self._name = images, labels, name

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: Any) -> Picture:
        label, name = int(self._labels[position]), f"image {position} of {self._name}"
        return Picture(self._images[position], label, name)
