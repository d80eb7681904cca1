"""Data sets and the grain pipelines that feed programs."""

from jaxkd.data.pipeline import batches, steps_per_epoch
from jaxkd.data.sources import (
    DATA_VARIABLE,
    DATASETS,
    Dataset,
    Source,
    data_file,
    digits,
    fashion_mnist,
    load,
    mnist,
)

__all__ = [
    "DATASETS",
    "DATA_VARIABLE",
    "Dataset",
    "Source",
    "batches",
    "data_file",
    "digits",
    "fashion_mnist",
    "load",
    "mnist",
    "steps_per_epoch",
]
