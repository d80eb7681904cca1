"""Users' labelled images as batches for a student and a teacher."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxkd import data
from jaxkd.arguments import checked
from jaxkd.data.sources import Example
from jaxkd.recipes.image_models import SMALL, Model

Augmentation = Literal["none", "crop", "shift", "flip", "mixup", "cutmix"]

IN_MEMORY = 2**28
"""Bytes of images to evaluate on that are kept instead of being read every time."""

SHIFT = 8
"""The part of an image's side by which `data.PadCrop` shifts it at most."""


@checked()
@dataclass(frozen=True)
class Images:
    """What a run trains on, and what is held out of it: pictures of any size.

    Attributes:
        train: the examples to train on.
        held_out: the others.
        names: of the classes; empty if nothing says them.
    """

    train: data.RecordSource
    held_out: data.RecordSource
    names: tuple[str, ...]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.train.classes

    @property
    def side(self) -> int:
        """Pixels of the shorter side of the first picture."""
        return min(self.train.take(np.arange(1))["image"].shape[1:3])


def _whole(image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    return image


@checked()
def read_images(
    path: str | Path,
    validation: str | Path | None,
    share: float,
    seed: int,
    label: str | None,
) -> Images:
    """Return the images to train on and those held out.

    Args:
        path: of the data, as `data.open_images` reads them.
        validation: those that are held out; None for the data's own split of that kind,
            or for a share of them.
        share: that is held out, at least one.
        seed: of their choice.
        label: the column, field or array of the classes, where it is not found.

    Raises:
        FileNotFoundError: nothing is there, or no images.
        ValueError: one class or image alone.
    """

    def opened(path: str | Path, split: str, classes: Any = None) -> Any:
        return data.open_images(
            path, split=split, label=label, classes=classes, crop=_whole
        )

    train = opened(path, "train")
    if train.classes < 2:
        raise ValueError(
            f"{path} has one class alone ({', '.join(train.names) or 'number 0'}): "
            "name the folder that holds the classes' folders"
        )
    known = train.names or train.classes
    if validation is not None:
        return Images(train, opened(validation, "train", known), train.names)
    for split in ("validation", "test"):
        try:
            return Images(train, opened(path, split, known), train.names)
        except FileNotFoundError:
            continue
    if len(train) < 2:
        raise ValueError(f"{path} has one image, and none could be held out")
    held_out = min(max(1, round(share * len(train))), len(train) - 1)
    rest, kept = data.split(train, held_out, seed)
    return Images(rest, kept, train.names)


@checked()
def as_teacher_counts(
    images: Images, teacher: Model, match: Literal["names", "numbers"]
) -> Images:
    """Return images whose classes are numbered as a teacher numbers them.

    Args:
        images: of the data.
        teacher: whose ``id2label`` says its classes, if it has names for them.
        match: ``names`` or ``numbers``: class i of the data is the teacher's class i.

    Raises:
        ValueError: classes that the teacher does not know, another number of them, or
            numbers where the teacher has names.
    """
    own, theirs, width = images.names, teacher.classes, teacher.width
    if match == "names" and theirs and not own:
        raise ValueError(
            f"the data number their classes, but {teacher.name} names its own "
            f"({', '.join(theirs[:5])}, …): if the numbers are in its order, say so by "
            "--match numbers"
        )
    if match == "numbers" or not own or not theirs:
        if images.classes != width:
            raise ValueError(
                f"the data have {images.classes} classes, but {teacher.name} has "
                f"{width}: give a teacher of these classes, or a model's name such as "
                "--teacher resnet50, which is trained on them first"
            )
        return dataclasses.replace(images, names=own or theirs)
    if len(set(theirs)) < len(theirs):
        raise ValueError(
            f"{teacher.name} has two classes of one name (id2label of config.json): if "
            "the data's classes are in its order, say so by --match numbers"
        )
    number = {name: i for i, name in enumerate(theirs)}
    unknown = [name for name in own if name not in number]
    if unknown:
        raise ValueError(
            f"{teacher.name} does not know the classes {', '.join(unknown[:5])}: its "
            f"id2label has {', '.join(theirs[:5])}, …. Rename the data's classes; or, "
            "if they are in its order, say so by --match numbers; or give a model's "
            "name such as --teacher resnet50, which is trained on them first"
        )
    if own == theirs:
        return images
    order = np.asarray([number[name] for name in own], np.int32)

    def renumbered(source: data.RecordSource) -> data.RecordSource:
        def decode(record: Any, rng: np.random.Generator | None) -> Example:
            example = source.decode(record, rng)
            return {**example, "label": order[example["label"]]}

        return dataclasses.replace(
            source, decode=decode, classes=len(theirs), names=theirs
        )

    train, held_out = map(renumbered, (images.train, images.held_out))
    return Images(train, held_out, theirs)


@checked()
def augmentations(
    asked: Sequence[Augmentation] | None, size: int
) -> tuple[Augmentation, ...]:
    """Return the augmentations of a run: those asked for, or the size's custom."""
    if asked is None:
        return ("crop", "flip") if size >= SMALL else ("shift", "flip")
    return tuple(name for name in asked if name != "none")


@checked()
def training_source(
    images: Images, model: Model, names: Sequence[Augmentation]
) -> data.RecordSource:
    """Return the training pictures, cut out square, of the size that a model takes."""
    random = data.CropResize(model.size, flip=False) if "crop" in names else None
    return _cut(images.train, model, random)


@checked()
def evaluation_source(source: data.RecordSource, model: Model) -> Any:
    """Return pictures as a model's own processor cuts them out, still uint8.

    They are in memory, if there are not too many.
    """
    found = _cut(source, model, None)
    if len(found) * model.size**2 * 3 > IN_MEMORY:
        return found
    arrays = found.take(np.arange(len(found)))
    del arrays["index"]
    return data.Source(found.name, arrays, found.classes)


def _cut(source: data.RecordSource, model: Model, random: Any) -> data.RecordSource:
    cut = dataclasses.replace(model.processor, scale=1.0, mean=None, std=None)

    def decode(record: Any, rng: np.random.Generator | None) -> Example:
        example = source.decode(record, rng)
        if random is not None and rng is not None:
            return {**example, "image": random(example["image"], rng)}
        # Whole numbers of 0 … 255, which float32 holds as they are.
        return {**example, "image": cut.image(example["image"]).astype(np.uint8)}

    return dataclasses.replace(source, decode=decode)


@checked()
def transform(
    student: Model,
    teacher: Model | None,
    size: int,
    classes: int,
    names: Sequence[Augmentation],
) -> data.Transform:
    """Return what a batch of uint8 pictures goes through in training.

    Args:
        student: sees them in its way.
        teacher: likewise, the same crops.
        size: of the pictures.
        classes: of the labels.
        names: of the augmentations.

    Raises:
        ValueError: Mixup, where both see images in different ways.
    """
    parts: list[data.Transform] = []
    if "shift" in names:
        parts.append(data.PadCrop(max(size // SHIFT, 1)))
    if "flip" in names:
        parts.append(data.Flip())
    if "cutmix" in names:
        parts.append(data.CutMix(1.0, classes))
    own = student.sees(size)
    if teacher is not None and teacher.sees(size) != own:
        if "mixup" in names:
            raise ValueError(
                "mixup adds images up as the student sees them, but the teacher sees "
                "them in another way: take --augment cutmix"
            )
        parts.append(data.ForTeacher(teacher.sees(size)))
    parts.append(own)
    if "mixup" in names:
        parts.append(data.Mixup(0.2, classes))
    return data.Compose(tuple(parts))
