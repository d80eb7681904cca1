"""Federated distillation over Flower: clients are processes, here or anywhere.

A round is two of Flower's exchanges: ``fit`` (train on labels, answer with predictions)
and ``evaluate`` (distil the ensemble, answer with the accuracy). The transport is
Flower's gRPC stream, in which a client is one process for the whole run: a SuperNode
starts a new one for every message, which would compile its steps anew each time.

It needs ``pip install 'jaxkd[federated]'``. Flower's usage reports are switched off,
unless ``FLWR_TELEMETRY_ENABLED`` is set.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

# Flower reads it when it is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

try:
    import flwr.client
    import flwr.server
    from flwr import common
except ImportError:
    raise ImportError(
        "jaxkd.federated.flower needs flwr: pip install 'jaxkd[federated]'"
    ) from None

from jaxkd.arguments import checked
from jaxkd.federated.engine import Coordinator, Participant, Upload

logger = logging.getLogger(__name__)


@checked()
class FlowerClient(flwr.client.NumPyClient):
    """A `Participant` that Flower can call.

    Args:
        participant: the client.
    """

    def __init__(self, participant: Participant):
        self.participant = participant

    def get_properties(self, config: dict) -> dict:
        """Return the client's number, by which the server knows it."""
        return {"client": self.participant.number}

    def get_parameters(self, config: dict) -> list[np.ndarray]:
        """Return the proxies it gives."""
        return [self.participant.own]

    def fit(self, parameters: list[np.ndarray], config: dict) -> Any:
        """Answer ``[drawn]``, or ``[drawn, proxies, owner]`` the first time."""
        drawn, *met = parameters
        if met:
            self.participant.meet(*met)
        upload = self.participant.contribute(int(config["round"]), drawn)
        return list(upload), len(upload.rows), {}

    def evaluate(self, parameters: list[np.ndarray], config: dict) -> Any:
        """Distil ``[targets, valid]``; return loss, proxies used and accuracy."""
        loss, accuracy = self.participant.absorb(*parameters)
        return loss, int(parameters[1].sum()), {"accuracy": accuracy}


@checked()
class FederatedDistillation(flwr.server.strategy.Strategy):
    """The server's side of every round, as a strategy of Flower's.

    Args:
        coordinator: what decides.
        clients: to wait for before the first round.
        timeout: seconds to wait for them, and for each of their answers on joining.

    Attributes:
        history: one dict a round: ``round``, ``contributors``, ``valid`` (of proxies
            with a target), ``upload_bytes``, and ``accuracy`` by client.
    """

    def __init__(self, coordinator: Coordinator, clients: int, timeout: float = 600.0):
        self.coordinator, self.clients, self.timeout = coordinator, clients, timeout
        self.history: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}
        self._met: set[int] = set()

    def initialize_parameters(self, client_manager: Any) -> common.Parameters:
        """Wait for the clients and merge their proxies."""
        if not client_manager.wait_for(self.clients, self.timeout):
            logger.warning(
                "%s of %s clients came within %s s: starting with them",
                client_manager.num_available(),
                self.clients,
                self.timeout,
            )
        joining = list(client_manager.all().values())
        properties = self._ask(
            joining,
            lambda c: int(
                c.get_properties(
                    common.GetPropertiesIns({}), timeout=self.timeout, group_id=None
                ).properties["client"]
            ),
        )
        for proxy, number in zip(joining, properties, strict=True):
            if isinstance(number, BaseException):
                logger.warning("a client left before it named itself: %s", number)
            elif number in self._numbers.values():
                logger.warning("a second client says it is %s: ignored", number)
            else:
                self._numbers[proxy.cid] = number
        named = [proxy for proxy in joining if proxy.cid in self._numbers]
        proposals = self._ask(
            named,
            lambda c: _arrays(
                c.get_parameters(
                    common.GetParametersIns({}), timeout=self.timeout, group_id=None
                ).parameters,
                1,
            )[0],
        )
        self.coordinator.gather(
            {self._numbers[c.cid]: p for c, p in zip(named, proposals, strict=True)}
        )
        return common.ndarrays_to_parameters([])

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any):
        """Ask every member that is connected about the round's proxies."""
        number = server_round - 1
        drawn = self.coordinator.draw(number)
        instructions = []
        for proxy, client in self._members(client_manager):
            arrays = [drawn]
            if client not in self._met:
                arrays += [self.coordinator.proxies, self.coordinator.owner]
                self._met.add(client)
            content = common.ndarrays_to_parameters(arrays)
            instructions.append((proxy, common.FitIns(content, {"round": number})))
        return instructions

    def aggregate_fit(self, server_round: int, results: list, failures: list):
        """Check the uploads and average them."""
        number = server_round - 1
        uploads: dict[int, Upload | BaseException] = {
            client: ConnectionError("its process ended, or the round's time was up")
            for client in self.coordinator.members
        }
        for proxy, result in results:
            try:
                upload = Upload(*_arrays(result.parameters, 2))
            except (ValueError, EOFError, OSError) as error:
                upload = error
            uploads[self._numbers[proxy.cid]] = upload
        excluded = len(self.coordinator.excluded)
        targets, valid, used = self.coordinator.combine(number, uploads)
        excluded = len(self.coordinator.excluded) - excluded
        self.history.append(
            {
                "round": number,
                "contributors": len(self.coordinator.members) - excluded,
                "valid": float(valid.mean()),
                "upload_bytes": used,
            }
        )
        return common.ndarrays_to_parameters([targets, valid]), {}

    def configure_evaluate(
        self, server_round: int, parameters: Any, client_manager: Any
    ):
        """Send the ensemble to every member, also to those that did not contribute."""
        content = common.EvaluateIns(parameters, {"round": server_round - 1})
        return [(proxy, content) for proxy, _ in self._members(client_manager)]

    def aggregate_evaluate(self, server_round: int, results: list, failures: list):
        """Note the clients' accuracies."""
        accuracy = {
            self._numbers[proxy.cid]: float(result.metrics.get("accuracy", np.nan))
            for proxy, result in results
        }
        self.history[-1]["accuracy"] = accuracy
        losses = [result.loss for _, result in results]
        return (float(np.mean(losses)) if losses else None), {}

    def evaluate(self, server_round: int, parameters: Any) -> None:
        """Return nothing: the server has no model."""

    def _members(self, client_manager: Any) -> list[tuple[Any, int]]:
        connected = client_manager.all().values()
        named = [(c, self._numbers[c.cid]) for c in connected if c.cid in self._numbers]
        members = [x for x in named if x[1] in self.coordinator.members]
        return sorted(members, key=lambda x: x[1])

    def _ask(self, clients: list, question: Callable[[Any], Any]) -> list[Any]:
        """Return every client's answer, or the exception in its place."""

        def answer(client: Any) -> Any:
            try:
                return question(client)
            except Exception as error:  # what a broken client can cause is not known
                return error

        with ThreadPoolExecutor(max(len(clients), 1)) as pool:
            return list(pool.map(answer, clients))


def _arrays(parameters: common.Parameters, number: int) -> list[np.ndarray]:
    arrays = common.parameters_to_ndarrays(parameters)
    if len(arrays) != number:
        raise ValueError(f"it sent {len(arrays)} arrays, not {number}")
    return arrays


@checked()
def serve(
    coordinator: Coordinator,
    address: str,
    *,
    clients: int,
    rounds: int,
    round_timeout: float,
    join_timeout: float = 600.0,
    certificates: tuple[bytes, bytes, bytes] | None = None,
) -> list[dict[str, Any]]:
    """Run the server until the last round, and return what `FederatedDistillation` saw.

    Args:
        coordinator: checks and averages; it keeps what was left out in ``excluded``.
        address: ``host:port`` to listen on.
        clients: to wait for.
        rounds: how many.
        round_timeout: seconds for each of a round's two answers; a client that is late
            is disconnected, and the round goes on without it.
        join_timeout: seconds to wait for the clients, and for their proxies; the run
            starts with those that came.
        certificates: (CA, server certificate, server key) in PEM for TLS; None for a
            network that is trusted.
    """
    strategy = FederatedDistillation(coordinator, clients, join_timeout)
    flwr.server.start_server(
        server_address=address,
        config=flwr.server.ServerConfig(rounds, round_timeout),
        strategy=strategy,
        certificates=certificates,
    )
    return strategy.history


@checked()
def join(
    participant: Participant, address: str, *, certificate: bytes | None = None
) -> None:
    """Take part until the server ends the run.

    Args:
        participant: the client.
        address: the server's ``host:port``.
        certificate: of the CA, in PEM, where the server uses TLS.
    """
    flwr.client.start_client(
        server_address=address,
        client=FlowerClient(participant).to_client(),
        root_certificates=certificate,
    )
