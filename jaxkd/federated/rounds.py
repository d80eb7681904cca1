"""The data of federated rounds as examples, so that grain and the loop can feed them.

What a client trains on in a round depends on the seed, the round and the client alone:
a client in a process of its own (`jaxkd.federated.flower`) draws the same.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from jaxkd.arguments import checked, natural
from jaxkd.data.sources import Examples
from jaxkd.data.transforms import Transform


@checked(seed=natural, round_number=natural, client=natural)
def draw_private(
    part: np.ndarray, size: int, seed: int, round_number: int, client: int
) -> np.ndarray:
    """Return a client's examples of one round, in random order.

    Args:
        part: the positions it holds.
        size: how many; none twice unless the part is smaller.
        seed: of the run.
        round_number: from 0.
        client: from 0.
    """
    rng = np.random.default_rng([seed, round_number, client])
    return np.resize(rng.permutation(part), size)


@checked(seed=natural, round_number=natural)
def draw_proxies(total: int, size: int, seed: int, round_number: int) -> np.ndarray:
    """Return the proxies that the server asks about in one round, none twice."""
    return np.random.default_rng([seed, round_number]).permutation(total)[:size]


@checked()
@dataclass(frozen=True)
class Rounds:
    """Examples of which each is one client's data in one round, the clients in turn.

    ``data.batches(rounds, batch_size=clients, epochs=1, seed=None)`` gives a batch a
    round: ``private`` (clients, size, …) with labels, ``proxy`` (clients, share, …)
    without, which the clients' rows make up the round's proxies together, and ``mask``
    (clients, share, clients), whether the last axis's client contributes there.

    Attributes:
        source: of all clients' examples.
        parts: the positions each client holds.
        proxies: the proxies' positions.
        masks: (clients, proxies), whether a client shares its prediction.
        rounds: how many.
        size: private examples of a client in a round.
        proxy_size: proxies in a round; a multiple of the clients.
        seed: of what is drawn.
        transform: of private and proxy examples, such as ``Normalize``.

    Raises:
        ValueError: sizes that do not fit one another.
    """

    source: Examples
    parts: list[np.ndarray]
    proxies: np.ndarray
    masks: np.ndarray
    rounds: int
    size: int
    proxy_size: int
    seed: int = 0
    transform: Transform | None = None

    def __post_init__(self):
        if self.masks.shape != (self.clients, len(self.proxies)):
            raise ValueError(
                f"masks has shape {self.masks.shape}, but there are {self.clients} "
                f"clients and {len(self.proxies)} proxies: give one a client and proxy"
            )
        if (
            not 0 < self.proxy_size <= len(self.proxies)
            or self.proxy_size % self.clients
        ):
            raise ValueError(
                f"proxy_size must be a multiple of the {self.clients} clients and at "
                f"most the {len(self.proxies)} proxies, got {self.proxy_size}"
            )
        if self.rounds < 1 or self.size < 1:
            raise ValueError(
                f"rounds and size must be at least 1, got {self.rounds} and {self.size}"
            )

    @property
    def clients(self) -> int:
        """Return the number of clients: the batch size."""
        return len(self.parts)

    @property
    def name(self) -> str:
        """For messages and results."""
        return f"{self.source.name} of {self.clients} clients"

    @property
    def classes(self) -> int:
        """Labels are below it."""
        return self.source.classes

    def __len__(self) -> int:
        """Return clients times rounds."""
        return self.clients * self.rounds

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict:
        """Return the data of these (round, client) pairs, and who they are of."""
        where = [divmod(int(position), self.clients) for position in positions]
        private = np.concatenate(
            [
                draw_private(self.parts[client], self.size, self.seed, number, client)
                for number, client in where
            ]
        )
        drawn = np.stack(
            [
                draw_proxies(
                    len(self.proxies), self.proxy_size, self.seed, number
                ).reshape(self.clients, -1)[client]
                for number, client in where
            ]
        )
        proxy = self._examples(self.proxies[drawn.ravel()], None)
        del proxy["label"]

        def by_client(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {
                name: array.reshape(len(where), -1, *array.shape[1:])
                for name, array in batch.items()
            }

        return {
            "private": by_client(self._examples(private, rng)),
            "proxy": by_client(proxy),
            "mask": np.moveaxis(self.masks[:, drawn], 0, -1),
            "index": np.asarray(positions, np.int32),
        }

    def _examples(
        self, positions: np.ndarray, rng: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        batch = self.source.take(positions, rng)
        if self.transform is not None:
            batch = self.transform(batch, rng)
        return {k: v for k, v in batch.items() if k != "index"}

    @property
    def fingerprint(self) -> str:
        """A checksum of the source's, and of how it is divided and drawn from."""
        arrays = (*self.parts, self.proxies, self.masks)
        total = zlib.crc32(self.source.fingerprint.encode())
        for array in arrays:
            total = zlib.crc32(np.ascontiguousarray(array), total)
        numbers = (self.rounds, self.size, self.proxy_size, self.seed, self.transform)
        return f"{zlib.crc32(repr(numbers).encode(), total):08x}"
