"""A teacher's best tokens in few bytes: what one record of a coded cache holds.

Log-probabilities are sorted, so what is kept is how much each is below the one before,
in steps of a float with 11 bits after its first: finer than float16, which has 10, and
as exact where a token is nearly certain. A difference is written as Rice writes it
(1979): its low bits as they are, how many is best for all of a rank in the record, and
the rest of it as that many zeros and a one. Tokens take as many bits as the largest.
"""

import numpy as np
from jaxtyping import Float, Integer, UInt8

from jaxkd.arguments import checked

DROPPED = 12
"""Bits that float32 has beyond those kept."""

HIGHEST = int(np.float32(np.finfo(np.float32).max).view(np.int32)) >> DROPPED
WIDEST = 31


@checked()
def encode(
    ids: Integer[np.ndarray, "places k"], log_probs: Float[np.ndarray, "places k"]
) -> bytes:
    """Return one example's best tokens and their log-probabilities in bytes.

    Args:
        ids: at each place, best first.
        log_probs: theirs, at most 0.

    Raises:
        ValueError: they are not sorted.
    """
    below = np.maximum(-log_probs.astype(np.float32), 0)
    steps = (below.view(np.int32).astype(np.int64) + (1 << (DROPPED - 1))) >> DROPPED
    gaps = np.diff(np.minimum(steps, HIGHEST), axis=1, prepend=0)
    if gaps.size and gaps.min() < 0:
        place = int(np.argmax((gaps < 0).any(1)))
        raise ValueError(
            f"log_probs at place {place} are {log_probs[place][:5]}, not sorted: give "
            "the best token first, or write the cache as float16 or float32"
        )
    widths = np.arange(WIDEST)[:, None, None]
    cost = (gaps >> widths).sum(1) + widths[..., 0] * len(gaps)
    width = cost.argmin(0)
    ones = np.cumsum((gaps >> width).ravel() + 1) - 1
    low = gaps & ((1 << width) - 1)
    unary = np.zeros(int(ones[-1]) + 1, np.uint8)
    unary[ones] = 1
    wide = max(1, int(ids.max()).bit_length())
    parts = [
        np.array([wide, *width], np.uint8),
        np.packbits(_bits(ids.ravel().astype(np.int64), wide)),
        np.packbits(
            np.concatenate(
                [_bits(*one) for one in zip(low.T, width.tolist(), strict=True)]
            )
        ),
        np.packbits(unary),
    ]
    return b"".join(part.tobytes() for part in parts)


@checked()
def decode(
    content: bytes, places: int, k: int
) -> tuple[Integer[np.ndarray, "places k"], Float[np.ndarray, "places k"]]:
    """Return what `encode` wrote.

    Args:
        content: all of it.
        places: of the example.
        k: tokens of each.

    Raises:
        ValueError: it is something else.
    """
    data, size = np.frombuffer(content, np.uint8), places * k
    wide, width = int(data[0]) if len(data) else 0, data[1 : k + 1].astype(np.int64)
    if not 1 <= wide <= WIDEST or len(width) < k or width.max() >= WIDEST:
        raise ValueError("has widths that no number has")
    ends = k + 1 + np.cumsum([-(-size * wide // 8), -(-places * int(width.sum()) // 8)])
    ones = np.flatnonzero(np.unpackbits(data[ends[1] :]))
    # All that is there, and no byte more.
    if (
        len(data) <= ends[1]
        or len(ones) != size
        or ones[-1] < 8 * (len(data) - ends[1] - 1)
    ):
        raise ValueError("is too short or too long")
    ids = _numbers(np.unpackbits(data[k + 1 : ends[0]])[: size * wide], wide)
    bits = np.unpackbits(data[ends[0] : ends[1]])
    starts = places * np.cumsum([0, *width])
    low = [
        _numbers(bits[start:end], w) if w else np.zeros(places, np.int64)
        for start, end, w in zip(starts, starts[1:], width.tolist(), strict=False)
    ]
    high = np.diff(ones, prepend=-1) - 1
    gaps = (high.reshape(places, k) << width) + np.stack(low, axis=1)
    steps = np.cumsum(gaps, axis=1)
    if steps.max() > HIGHEST:
        raise ValueError("has log-probabilities that are not finite")
    below = (steps << DROPPED).astype(np.int32).view(np.float32)
    return ids.reshape(places, k), -below


def _bits(values: Integer[np.ndarray, "values"], width: int) -> UInt8[np.ndarray, "_"]:
    """Return numbers as bits, the highest first."""
    shifts = np.arange(width)[::-1]
    return ((values[:, None] >> shifts) & 1).astype(np.uint8).ravel()


def _numbers(bits: UInt8[np.ndarray, "_"], width: int) -> Integer[np.ndarray, "values"]:
    """Return the numbers whose bits these are."""
    powers = 2.0 ** np.arange(width)[::-1]  # in float64, whose products are fast
    return (bits.reshape(-1, width) @ powers).astype(np.int64)
