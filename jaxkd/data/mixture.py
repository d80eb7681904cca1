"""Batches of several sources, drawn by weights that may change during training."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Float

from jaxkd.arguments import checked, own_check
from jaxkd.data.sources import Examples

Weights = Sequence[float] | Float[np.ndarray, "sources"]


@checked(weights=own_check)
def mixture_weights(
    sources: Mapping[str, Examples], weights: Weights | None = None
) -> Float[np.ndarray, "sources"]:
    """Return the probability of each source of a mixture.

    Args:
        sources: by name.
        weights: in their order, and in proportion; None for the sources' sizes, as if
            all were one.

    Raises:
        ValueError: no sources, an empty one, or weights that are not one a source,
            finite, at least 0 and not all 0.
    """
    sizes = {name: len(source) for name, source in sources.items()}
    if not sizes or min(sizes.values()) < 1:
        raise ValueError(f"a mixture needs sources with examples, got sizes {sizes}")
    found = np.asarray([*sizes.values()] if weights is None else weights, np.float64)
    if (
        found.shape != (len(sizes),)
        or not np.isfinite(found).all()
        or found.min() < 0
        or not found.sum()
    ):
        raise ValueError(
            f"weights must be a finite number of at least 0 for each of "
            f"{', '.join(sizes)}, and not 0 for all, got {weights}"
        )
    return found / found.sum()


@checked(weights=own_check)
def mixture_batches(
    sources: Mapping[str, Examples],
    batch_size: int,
    *,
    weights: Weights | None = None,
    seed: int = 0,
) -> grain.IterDataset:
    """Return batches without end of examples of several sources.

    Each example's source is drawn by the weights, and is its next unused one in a
    random order; a source that is used up begins anew in another order. Every batch
    holds the sources' arrays, ``index`` (in the source) and ``domain`` (the source's
    number). The same seed gives the same batches on every process, of which process p
    of P gets the p-th of P equal parts.

    The iterators' state holds how far each source is used, but not the weights: an
    iterator with other weights goes on from it with the same examples of each source.

    Args:
        sources: by name; with the same arrays, of the same shapes.
        batch_size: of all processes together.
        weights: of the sources, in proportion; None for their sizes.
        seed: of the draws.

    Raises:
        ValueError: sources or weights as in `mixture_weights`, or a batch size that the
            processes cannot share; from the iterator, sources whose arrays differ.
    """
    processes = jax.process_count()
    if batch_size < 1 or batch_size % processes:
        raise ValueError(
            f"batch_size must be at least 1 and a multiple of the {processes} "
            f"processes, got {batch_size}"
        )
    return _Mixture(sources, batch_size, mixture_weights(sources, weights), seed)


class _Mixture(grain.IterDataset):
    """See `mixture_batches`."""

    def __init__(
        self,
        sources: Mapping[str, Examples],
        batch_size: int,
        weights: np.ndarray,
        seed: int,
    ):
        super().__init__()
        self.sources = list(sources.values())
        self.batch_size, self.weights, self.order_seed = batch_size, weights, seed
        parts = [
            f"{name} ({len(source)} examples with checksum {source.fingerprint})"
            for name, source in sources.items()
        ]
        self.name = f"Mixture({', '.join(parts)}, size {batch_size}, seed {seed})"

    def __iter__(self) -> grain.DatasetIterator:
        return _MixtureIterator(self)


class _MixtureIterator(grain.DatasetIterator):
    """The place in a mixture: batches drawn, and examples used of each source."""

    def __init__(self, mixture: _Mixture):
        super().__init__()
        self._mixture = mixture
        self._step, self._used = 0, [0] * len(mixture.sources)
        self._order = functools.lru_cache(2 * len(mixture.sources))(self._permutation)

    def _permutation(self, domain: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._mixture.order_seed, 1, domain, epoch])
        return rng.permutation(len(self._mixture.sources[domain]))

    def __next__(self) -> dict[str, Any]:
        mixture = self._mixture
        rng = np.random.default_rng([mixture.order_seed, 0, self._step])
        domains = rng.choice(
            len(mixture.weights), mixture.batch_size, p=mixture.weights
        )
        positions = np.zeros(mixture.batch_size, np.int64)
        for row, domain in enumerate(domains):
            epoch, place = divmod(self._used[domain], len(mixture.sources[domain]))
            positions[row] = self._order(int(domain), epoch)[place]
            self._used[domain] += 1
        self._step += 1
        return self._read(domains, positions)

    def _read(self, domains: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
        """Return this process's rows of a batch, read source by source."""
        mixture, process = self._mixture, jax.process_index()
        share = mixture.batch_size // jax.process_count()
        mine = slice(process * share, (process + 1) * share)
        domains, positions = domains[mine], positions[mine]
        batch: dict[str, Any] = {}
        for domain in np.unique(domains):
            rows = np.flatnonzero(domains == domain)
            rng = np.random.default_rng(
                [mixture.order_seed, 2, self._step, process, int(domain)]
            )
            source = mixture.sources[domain]
            part = source.take(positions[rows], rng)
            shapes = {name: array.shape[1:] for name, array in part.items()}
            if batch and shapes != {k: v.shape[1:] for k, v in batch.items()}:
                raise ValueError(
                    f"{source.name!r} has examples of shapes {shapes}, other sources "
                    f"of {dict((k, v.shape[1:]) for k, v in batch.items())}: a mixture "
                    "needs them alike"
                )
            for name, array in part.items():
                if name not in batch:
                    batch[name] = np.zeros((share, *array.shape[1:]), array.dtype)
                batch[name][rows] = array
        return {**batch, "domain": domains.astype(np.int32)}

    def get_state(self) -> dict[str, Any]:
        """Return the place after the batch returned last."""
        return {
            "step": self._step,
            "used": list(self._used),
            "batches": self._mixture.name,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on after a place, with this mixture's weights.

        Raises:
            ValueError: it is a place in another mixture.
        """
        if state.get("batches") != self._mixture.name:
            raise ValueError(
                f"the data iterator's state is of {state.get('batches')}, but this is "
                f"{self._mixture.name}: resume with the sources and settings it was "
                "saved with, or start in another folder"
            )
        self._step, self._used = state["step"], list(state["used"])
