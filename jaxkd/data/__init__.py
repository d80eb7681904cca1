"""Data sets, transforms, and the grain pipelines that feed programs."""

from jaxkd.data.datasets import (
    DATA_VARIABLE,
    DATASETS,
    cifar10,
    cifar100,
    data_file,
    digits,
    fashion_mnist,
    load,
    mnist,
    tfds_dataset,
)
from jaxkd.data.pipeline import batches, steps_per_epoch
from jaxkd.data.prefetch import Prefetch
from jaxkd.data.sources import Dataset, Examples, RecordSource, Source
from jaxkd.data.transforms import (
    Compose,
    CropResize,
    CutMix,
    Flip,
    Mixup,
    Normalize,
    PadCrop,
    Transform,
)

__all__ = [
    "DATASETS",
    "DATA_VARIABLE",
    "Compose",
    "CropResize",
    "CutMix",
    "Dataset",
    "Examples",
    "Flip",
    "Mixup",
    "Normalize",
    "PadCrop",
    "Prefetch",
    "RecordSource",
    "Source",
    "Transform",
    "batches",
    "cifar10",
    "cifar100",
    "data_file",
    "digits",
    "fashion_mnist",
    "load",
    "mnist",
    "steps_per_epoch",
    "tfds_dataset",
]
