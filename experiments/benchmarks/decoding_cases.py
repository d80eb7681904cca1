"""The decoders and lengths of `decoding`; only the standard library."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A decoder, a batch of prompts, and how far they are continued.

    Attributes:
        width: of the residual stream.
        layers: blocks.
        heads: of the queries.
        kv_heads: of keys and values.
        hidden: width of the MLPs.
        vocabulary: tokens that there are.
        batch: prompts.
        prompt: tokens of a prompt that is only read.
        short: tokens of a prompt that is continued.
        new: tokens that continue it.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    batch: int = 8
    prompt: int = 256
    short: int = 16
    new: int = 64

    @property
    def head_dim(self) -> int:
        """Return the features of a head."""
        return self.width // self.heads

    @property
    def slots(self) -> int:
        """Return the tokens that there are at most."""
        return max(self.prompt, self.short + self.new)


CASES = {
    "1M": Case(128, 4, 4, 2, 320, 256),
    "7M": Case(256, 6, 4, 2, 704, 4096),
    "35M": Case(512, 8, 8, 4, 1408, 8192),
}
"""By the number of parameters."""
