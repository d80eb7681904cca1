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
from jaxkd.data.graphs import GRAPHS, GraphDataset, load_graph, repeated
from jaxkd.data.partitions import Kind, build_proxy, partition
from jaxkd.data.pipeline import batches, steps_per_epoch, with_validation
from jaxkd.data.prefetch import Prefetch
from jaxkd.data.semi_supervised import Joined, semi_supervised_batches
from jaxkd.data.sources import (
    Conditions,
    Dataset,
    Examples,
    RecordSource,
    Source,
    split,
)
from jaxkd.data.text import Windows, tiny_shakespeare, token_files
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
    "GRAPHS",
    "Compose",
    "Conditions",
    "CropResize",
    "CutMix",
    "Dataset",
    "Examples",
    "Flip",
    "GraphDataset",
    "Joined",
    "Kind",
    "Mixup",
    "Normalize",
    "PadCrop",
    "Prefetch",
    "RecordSource",
    "Source",
    "Transform",
    "Windows",
    "batches",
    "build_proxy",
    "cifar10",
    "cifar100",
    "data_file",
    "digits",
    "fashion_mnist",
    "load",
    "load_graph",
    "mnist",
    "partition",
    "repeated",
    "semi_supervised_batches",
    "split",
    "steps_per_epoch",
    "tfds_dataset",
    "tiny_shakespeare",
    "token_files",
    "with_validation",
]
