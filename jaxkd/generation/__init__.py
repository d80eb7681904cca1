"""Text from language models: prefill, then one token at a time from a cache."""

from jaxkd.generation.decoding import Generated, generate
from jaxkd.generation.sampling import (
    GREEDY,
    Sampling,
    keep_top_k,
    keep_top_p,
    sample,
    sampling_logits,
)

__all__ = [
    "GREEDY",
    "Generated",
    "Sampling",
    "generate",
    "keep_top_k",
    "keep_top_p",
    "sample",
    "sampling_logits",
]
