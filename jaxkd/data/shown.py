"""How data are shown: by dtypes and shapes, not by their values."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def brief(record: Any) -> str:
    """Return a dataclass as text: of arrays their dtypes and shapes, not their values.

    Args:
        record: the dataclass; also what stands in one.
    """
    if is_dataclass(record):
        parts = [f"{f.name}={brief(getattr(record, f.name))}" for f in fields(record)]
        return f"{type(record).__name__}({', '.join(parts)})"
    if hasattr(record, "dtype") and np.ndim(record):
        return f"{record.dtype}{list(record.shape)}"
    if isinstance(record, Mapping):
        return f"{ {name: _Text(brief(value)) for name, value in record.items()} }"
    if isinstance(record, Sequence) and not isinstance(record, str) and len(record) > 9:
        return f"{type(record).__name__} of {len(record)}"
    return repr(record)


class _Text(str):
    __slots__ = ()
    __repr__ = str.__str__
