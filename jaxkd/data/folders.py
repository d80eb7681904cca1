"""Images in files: in a folder for each class, or named by a table beside them."""

from collections.abc import Sequence
from pathlib import Path

from jaxkd.arguments import checked, count
from jaxkd.data.images import (
    FORMATS,
    Classes,
    Crop,
    Picture,
    number_labels,
    picture_source,
)
from jaxkd.data.records import open_records
from jaxkd.data.sources import RecordSource
from jaxkd.files import inside

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names of the table beside the images, as `datasets` looks for it."""


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
    folder: str | Path,
    size: int = 224,
    *,
    classes: Sequence[str] | None = None,
    crop: Crop | None = None,
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
        crop: brings an image to its size; None for ``CropResize(size)``.

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
    pictures = [
        Picture(path, number[name], str(path))
        for name in found
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in FORMATS and path.is_file()
    ]
    if not pictures:
        raise FileNotFoundError(
            f"{folder} holds no image in {len(found)} folders: files must end in "
            f"{', '.join(FORMATS)}"
        )
    return picture_source(str(folder), pictures, len(names), names, size, crop)


@checked(size=count)
def image_table(
    folder: str | Path,
    size: int = 224,
    *,
    label: str = "label",
    classes: Classes = None,
    crop: Crop | None = None,
) -> RecordSource:
    """Return the images that a table in their folder names, as `datasets` has it.

    The table is ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet``, with
    ``file_name`` (within the folder) and a label in each row.

    Args:
        folder: with the table.
        size: pixels of an image's side.
        label: the column with classes' names or numbers.
        classes: names in the order that numbers the classes, or how many there are;
            None for the names there are, sorted.
        crop: brings an image to its size; None for ``CropResize(size)``.

    Raises:
        FileNotFoundError: no table, or an image that it names is not there.
        ValueError: a row without its image or label, or whose file is no image's name
            within the folder.
    """
    folder = Path(folder)
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if not tables:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(TABLES)}")
    table, paths, labels = tables[0], [], []
    for i, row in enumerate(open_records(table)):
        if missing := {"file_name", label} - row.keys():
            raise ValueError(
                f"row {i} of {table} has no {' and no '.join(sorted(missing))}: it has "
                f"{', '.join(row)}"
            )
        path = inside(folder, row["file_name"], table)
        if path.suffix.lower() not in FORMATS:
            raise ValueError(
                f"row {i} of {table} names {path.name!r}: files must end in "
                f"{', '.join(FORMATS)}"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: row {i} of {table} names it")
        paths.append(path)
        labels.append(row[label])
    if not paths:
        raise ValueError(f"{table} names no image")
    numbers, known, names = number_labels(labels, classes, str(table))
    rows = zip(paths, numbers.tolist(), strict=True)
    pictures = [Picture(path, number, str(path)) for path, number in rows]
    return picture_source(str(folder), pictures, known, names, size, crop)
