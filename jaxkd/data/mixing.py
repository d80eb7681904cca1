"""Batches whose examples are mixed with one another: Mixup, CutMix, and either of them.

Labels of mixed examples are probabilities (examples, classes). A teacher is to answer
to the mixed examples: its answers to the plain ones, mixed, are not the same.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxkd.arguments import checked, count, positive, probability
from jaxkd.checks import check_labels
from jaxkd.data.transforms import Arrays, Transform, batch_images


class Mixing(NamedTuple):
    """Which examples are mixed: share · first + (1 − share) · second.

    Attributes:
        first: positions in the batch (examples,).
        second: positions in the batch (examples,).
        share: of the first, in [0, 1], (examples,); 1 for an example left unmixed.
    """

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray


@checked(alpha=positive, mixed=probability)
def sample_mixup(
    rng: np.random.Generator,
    examples: int,
    alpha: float,
    mixed: float = 1.0,
    *,
    per_example: bool = False,
    replace: bool = False,
) -> Mixing:
    """Draw which examples of a batch are mixed, and in which shares.

    Args:
        rng: where the numbers come from.
        examples: of the batch.
        alpha: shares are drawn from Beta(alpha, alpha).
        mixed: share of the examples that are mixed, in [0, 1].
        per_example: whether each example has a share of its own, and both sides are
            shuffled, as in MIX-KD (Choi et al. 2023, arXiv:2211.03946). Else the batch
            has one share, and the first side is the batch in its order, as in Zhang et
            al. 2017.
        replace: whether the examples that stay unmixed are drawn with replacement, as
            the authors of MIX-KD do: of their 90 % about 59 % stay so, 1 − exp(−0.9).
    """
    share = rng.beta(alpha, alpha, examples if per_example else 1)
    share = np.broadcast_to(share, examples).astype(np.float32)
    first = rng.permutation(examples) if per_example else np.arange(examples)
    second = rng.permutation(examples)
    # Rounded down as the authors do, but not because of a product's last digit.
    count = int((1 - mixed) * examples + 1e-9)
    unmixed = rng.choice(examples, count, replace)
    share[unmixed], second[unmixed] = 1, first[unmixed]
    return Mixing(first, second, share)


@checked()
def apply_mixup(
    x: np.ndarray, labels: np.ndarray, mixing: Mixing, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mixed inputs, and their labels as probabilities (examples, classes).

    Args:
        x: inputs (examples, …).
        labels: class indices, or the classes' probabilities (of mixed examples).
        mixing: from `sample_mixup`.
        classes: of the labels.

    Raises:
        ValueError: inputs, labels and mixing are not of as many examples, or a label is
            no class.
    """
    sizes = [len(a) for a in (x, labels, *mixing)]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"x has {sizes[0]} examples, labels has {sizes[1]} and mixing has "
            f"{sizes[2:]}: give all of one batch"
        )

    def mix(a: np.ndarray) -> np.ndarray:
        share = mixing.share.reshape(-1, *(1,) * (a.ndim - 1))
        return share * a[mixing.first] + (1 - share) * a[mixing.second]

    return mix(x), mix(_probabilities(labels, classes))


@checked(alpha=positive, classes=count, mixed=probability)
@dataclass(frozen=True)
class Mixup:
    """Mix every image and label with another's (Zhang et al. 2017, arXiv:1710.09412).

    Labels become probabilities (batch, classes), which `methods.cross_entropy` takes.
    Other arrays are the first example's; a ``mask`` or ``weight`` is the smaller one.

    Attributes:
        alpha: shares are drawn from Beta(alpha, alpha).
        classes: of the labels.
        mixed: as in `sample_mixup`, in [0, 1].
        per_example: likewise.
        replace: likewise.
    """

    alpha: float
    classes: int
    mixed: float = 1.0
    per_example: bool = False
    replace: bool = False

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Return share · one example + (1 − share) · another.

        Raises:
            ValueError: no images of floats, or a teacher's answers beside them.
        """
        image = batch_images(batch, floating=True)
        if rng is None:
            return batch
        _check_uncached(batch)
        mixing = sample_mixup(
            rng,
            len(image),
            self.alpha,
            self.mixed,
            per_example=self.per_example,
            replace=self.replace,
        )
        mixed, label = apply_mixup(image, batch["label"], mixing, self.classes)
        others = {k: x for k, x in batch.items() if k not in ("image", "label")}
        found = {name: x[mixing.first] for name, x in others.items()}
        for name in {"mask", "weight"} & set(batch):
            found[name] = np.minimum(found[name], batch[name][mixing.second])
        return {**found, "image": mixed, "label": label}


@checked(alpha=positive, classes=count)
@dataclass(frozen=True)
class CutMix:
    """Replace a box of every image by another's (Yun et al. 2019, arXiv:1905.04899).

    Labels become probabilities (batch, classes) by the share of pixels, which
    `methods.cross_entropy` takes.

    Attributes:
        alpha: the box's share is drawn from Beta(alpha, alpha), once a batch.
        classes: of the labels.
    """

    alpha: float
    classes: int

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Return the batch with one box of every image from the shuffled batch."""
        image = batch_images(batch)
        if rng is None:
            return batch
        _check_uncached(batch)
        height, width = image.shape[1:3]
        side = np.sqrt(1 - rng.beta(self.alpha, self.alpha))
        y, x = rng.integers(0, (height, width))
        rows, columns = (
            slice(
                max(int(centre - size * side / 2), 0),
                min(int(centre + size * side / 2), size),
            )
            for centre, size in ((y, height), (x, width))
        )
        other = rng.permutation(len(image))
        mixed = image.copy()
        mixed[:, rows, columns] = image[other, rows, columns]
        # The box may have been cut at the border.
        cut = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = np.float32(1 - cut / (height * width))
        label = _probabilities(batch["label"], self.classes)
        label = share * label + (1 - share) * label[other]
        return {**batch, "image": mixed, "label": label}


@checked()
@dataclass(frozen=True)
class EitherOf:
    """One of two transforms for a whole batch, each as often, such as Mixup or CutMix.

    Attributes:
        first: of the two.
        second: of the two.
    """

    first: Transform
    second: Transform

    def __call__(self, batch: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Return the batch as the transform that was drawn leaves it."""
        if rng is None:
            return batch
        return (self.first if rng.random() < 0.5 else self.second)(batch, rng)


def _check_uncached(batch: Arrays) -> None:
    found = sorted(name for name in batch if name.startswith("teacher_"))
    if found:
        raise ValueError(
            f"the batch has {', '.join(found)}, answers to examples that are not "
            "mixed: let the teacher run on the mixed ones, by distill(student, "
            "teacher, …), or leave Mixup and CutMix out"
        )


def _probabilities(labels: np.ndarray, classes: int) -> np.ndarray:
    check_labels("labels", labels, classes)
    return np.eye(classes, dtype=np.float32)[labels] if labels.ndim == 1 else labels
