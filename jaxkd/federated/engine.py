"""The two sides of federated distillation where each client is a process of its own.

`Participant` and `Coordinator` exchange NumPy arrays and know no transport;
`jaxkd.federated.flower` carries the arrays. A coordinator checks all that it is sent: a
client that is dead, late or wrong costs nothing but its own contribution.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxkd.arguments import checked, natural
from jaxkd.federated.rounds import draw_proxies
from jaxkd.losses import masked_ensemble
from jaxkd.programs.federated import Aggregate, Client, init_key, round_keys
from jaxkd.types import Batch, Variables
from jaxkd.untrusted import shown

logger = logging.getLogger(__name__)

JOINING = -1
"""The round number of what happens before the first."""

UNNAMED = -1
"""The number of a client that gave none, or one that it cannot have."""


class Upload(NamedTuple):
    """What a client sends in a round.

    Attributes:
        predictions: class probabilities (shared, classes).
        rows: (shared,) which of the round's proxies they are of.
    """

    predictions: np.ndarray
    rows: np.ndarray


class Exclusion(NamedTuple):
    """A contribution that was left out.

    Attributes:
        round_number: from 0; `JOINING` before the first.
        client: whose; `UNNAMED` if it did not say so.
        reason: why.
    """

    round_number: int
    client: int
    reason: str


@checked(number=natural)
class Participant:
    """One client: its data and its model never leave it.

    Args:
        number: of the client, from 0; its random numbers come from it.
        client: from `fd_client`.
        private: ``round -> batch`` to train on.
        own: the proxy samples it gives.
        screen: ``(proxies, own) ->`` which it speaks about, such as `edgefd_mask`.
        key: of the run, the same for all.
        evaluate: ``variables -> accuracy``, or None.
    """

    def __init__(
        self,
        number: int,
        client: Client,
        private: Callable[[int], Batch],
        own: np.ndarray,
        screen: Callable[[np.ndarray, np.ndarray], np.ndarray],
        key: PRNGKeyArray,
        evaluate: Callable[[Variables], float] | None = None,
    ):
        self.number, self.own = number, own
        self._private, self._screen = private, screen
        self._key, self._evaluate = key, evaluate
        self._learn = jax.jit(client.learn, donate_argnums=0)
        self._predict = jax.jit(client.predict)
        self._distill = jax.jit(client.distill, donate_argnums=0)
        self.state = jax.jit(client.init)(init_key(key, number))
        self._proxies = own[:0]

    def meet(self, proxies: np.ndarray, owner: np.ndarray) -> None:
        """Take the merged proxies and decide, once, which to speak about."""
        _check("proxies", proxies, "f", (*proxies.shape[:1], *self.own.shape[1:]))
        _check("owners", owner, "iu", proxies.shape[:1])
        self._proxies = proxies
        self._mask = np.asarray(self._screen(proxies, owner == self.number))

    def contribute(self, round_number: int, drawn: np.ndarray) -> Upload:
        """Train on labels, and return predictions of the drawn proxies that pass."""
        _check("drawn proxies", drawn, "iu", (drawn.size,))
        if drawn.size and not 0 <= drawn.min() <= drawn.max() < len(self._proxies):
            raise ValueError(
                f"the server asked about proxies {drawn.min()} to {drawn.max()}, but "
                f"there are {len(self._proxies)}: it is broken, or another run's"
            )
        key, self._distill_key = round_keys(self._key, round_number, self.number)
        self.state, _ = self._learn(self.state, self._private(round_number), key)
        self._inputs = self._proxies[drawn]
        rows = np.flatnonzero(self._mask[drawn]).astype(np.int32)
        predictions = np.asarray(self._predict(self.state, self._inputs))
        return Upload(predictions[rows], rows)

    def absorb(self, targets: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
        """Distil the ensemble; return the loss, and the accuracy or NaN."""
        size = len(self._inputs)
        _check("valid", valid, "b", (size,))
        _check("targets", targets, "f", (size, *targets.shape[-1:]), valid)
        self.state, loss = self._distill(
            self.state, self._inputs, targets, valid, self._distill_key
        )
        if self._evaluate is None:
            return float(loss), float("nan")
        return float(loss), float(self._evaluate(self.state.variables))


@checked()
class Coordinator:
    """The server: it merges proxies and averages predictions, and has no model.

    Args:
        classes: of the predictions.
        sample_shape: of one proxy.
        proxy_size: proxies in a round; all if there are fewer.
        seed: of the proxies drawn.
        aggregate: as in `federated_distillation`.
    """

    def __init__(
        self,
        classes: int,
        sample_shape: tuple[int, ...],
        proxy_size: int,
        seed: int = 0,
        aggregate: Aggregate = masked_ensemble,
    ):
        self.classes, self.sample_shape = classes, sample_shape
        self.proxy_size, self.seed = proxy_size, seed
        self.aggregate = aggregate
        self.members: tuple[int, ...] = ()
        self.proxies = np.zeros((0, *sample_shape), np.float32)
        self.owner = np.zeros(0, np.int32)
        self.excluded: list[Exclusion] = []

    def gather(self, proposals: Mapping[int, np.ndarray | BaseException]) -> None:
        """Merge the clients' proxies; who gave none that can be used is no member.

        Args:
            proposals: of each client, or what went wrong.

        Raises:
            ValueError: no client gave any.
        """
        good = {}
        for number, proposal in sorted(proposals.items()):
            reason = self._proposal_fault(proposal)
            if reason:
                self.exclude(JOINING, number, reason)
            else:
                good[number] = proposal
        if not good:
            raise ValueError(
                f"none of {len(proposals)} clients gave proxies: {self.excluded}"
            )
        self.members = tuple(good)
        self.proxies = np.concatenate(list(good.values())).astype(np.float32)
        self.owner = np.repeat(
            np.array(self.members, np.int32), [len(part) for part in good.values()]
        )

    def draw(self, round_number: int) -> np.ndarray:
        """Return the positions of a round's proxies."""
        return draw_proxies(
            len(self.proxies), self.proxy_size, self.seed, round_number
        ).astype(np.int32)

    def combine(
        self, round_number: int, uploads: Mapping[int, Upload | BaseException]
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the round's targets, which are valid, and the bytes of what was used.

        Args:
            round_number: from 0.
            uploads: of each member, or what went wrong.
        """
        size = len(self.draw(round_number))
        predictions = np.zeros((len(self.members), size, self.classes), np.float32)
        masks, used = np.zeros((len(self.members), size), bool), 0
        for i, number in enumerate(self.members):
            upload = uploads.get(number, KeyError("it was not there to be asked"))
            reason = self._upload_fault(upload, size)
            if reason or isinstance(upload, BaseException):
                self.exclude(round_number, number, reason)
                continue
            predictions[i, upload.rows] = upload.predictions
            masks[i, upload.rows] = True
            used += upload.predictions.nbytes + upload.rows.nbytes
        targets, valid = self.aggregate(jnp.asarray(predictions), jnp.asarray(masks))
        return np.asarray(targets), np.asarray(valid), used

    def exclude(self, round_number: int, client: int, reason: str) -> None:
        """Note, and log, that a client's contribution is left out."""
        reason = shown(reason)  # it may quote the client
        self.excluded.append(Exclusion(round_number, client, reason))
        when = "joining" if round_number == JOINING else f"round {round_number}"
        logger.warning("%s: client %s is left out: %s", when, client, reason)

    def _proposal_fault(self, proposal: Any) -> str:
        if not isinstance(proposal, np.ndarray):
            return _failure(proposal)
        if proposal.ndim < 1 or proposal.shape[1:] != self.sample_shape:
            return (
                f"its proxies have shape {proposal.shape}, not (samples, "
                f"{', '.join(map(str, self.sample_shape))})"
            )
        if proposal.dtype.kind != "f":
            return f"its proxies are {proposal.dtype}, not floats"
        with np.errstate(over="ignore"):
            finite = np.isfinite(proposal.astype(np.float32)).all()
        if not finite:
            return "its proxies are not finite"
        return "" if len(proposal) else "it gave no proxies"

    def _upload_fault(self, upload: Any, size: int) -> str:
        if not isinstance(upload, Upload):
            return _failure(upload)
        for array in upload:
            if not isinstance(array, np.ndarray):
                return _failure(array)
        predictions, rows = upload
        if predictions.shape != (*rows.shape, self.classes) or rows.ndim != 1:
            return (
                f"its predictions have shape {predictions.shape} for rows of shape "
                f"{rows.shape}, not (rows, {self.classes})"
            )
        if predictions.dtype.kind != "f":
            return f"its predictions are {predictions.dtype}, not floats"
        # NumPy counts time differences among the integers.
        if rows.dtype.kind not in "iu":
            return f"its rows are {rows.dtype}, not integers"
        outside = len(rows) > size or np.any((rows < 0) | (rows >= size))
        if outside or len(np.unique(rows)) < len(rows):
            return f"its rows are not different positions below {size}"
        bad = ~np.isfinite(predictions).all(1)
        if bad.any():
            return f"{bad.sum()} of its {len(bad)} predictions are not finite"
        with np.errstate(over="ignore"):
            sums = predictions.sum(1, dtype=np.float64)
        off = (predictions < 0).any(1) | (np.abs(sums - 1) > 1e-3)
        if off.any():
            return f"{off.sum()} of its {len(off)} predictions are no probabilities"
        return ""


def _failure(found: Any) -> str:
    if isinstance(found, ValueError):
        return f"it sent what cannot be used: {found}"
    if isinstance(found, BaseException):
        return f"it did not answer ({type(found).__name__}: {found})"
    return f"it sent a {type(found).__name__}, not an array"


def _check(
    what: str,
    array: np.ndarray,
    kinds: str,
    shape: tuple[int, ...],
    used: np.ndarray | slice = slice(None),
) -> None:
    """Refuse what a server sent, if a client cannot compute with it."""
    if array.shape != shape or array.dtype.kind not in kinds:
        raise ValueError(
            f"the server sent {what} that are {array.dtype} of shape {array.shape}, in "
            f"place of {shape}: it is broken, or another run's"
        )
    if array.dtype.kind == "f" and not np.isfinite(array[used]).all():
        raise ValueError(f"the server sent {what} that are not finite: it is broken")
