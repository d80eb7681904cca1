"""Federated distillation over Flower: clients are processes, here or anywhere.

A round is two of Flower's exchanges: ``fit`` (train on labels, answer with predictions)
and ``evaluate`` (distil the ensemble, answer with the accuracy). The transport is
Flower's gRPC stream, in which a client is one process for the whole run: a SuperNode
starts a new one for every message, which would compile its steps anew each time.

What a client says is checked, but not who it is: it may take another's number, and fill
the server's memory with messages that nobody asked for, which Flower keeps. Let only
those reach the port whom you invited.

It needs ``pip install 'jaxkd-distill[federated]'``. Flower's usage reports are switched
off, unless ``FLWR_TELEMETRY_ENABLED`` is set.
"""

import logging
import math
import os
import threading
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
        "jaxkd.federated.flower needs flwr: pip install 'jaxkd-distill[federated]'"
    ) from None

from jaxkd.arguments import checked, own_check
from jaxkd.federated.engine import (
    JOINING,
    UNNAMED,
    Coordinator,
    Participant,
    Upload,
)
from jaxkd.untrusted import array_from

logger = logging.getLogger(__name__)

CONNECTIONS = 1000
"""How many clients Flower lets in at once."""

SILENT = "its process ended, its message was malformed, or the round's time was up"

DONE = common.Status(common.Code.OK, "")


@checked(participant=own_check)
class FlowerClient(flwr.client.Client):
    """A `Participant` that Flower can call.

    Args:
        participant: the client.
    """

    def __init__(self, participant: Participant):
        self.participant = participant

    def get_properties(self, ins: common.GetPropertiesIns) -> common.GetPropertiesRes:
        """Return the client's number, by which the server knows it."""
        return common.GetPropertiesRes(DONE, {"client": self.participant.number})

    def get_parameters(self, ins: common.GetParametersIns) -> common.GetParametersRes:
        """Return the proxies it gives."""
        own = common.ndarrays_to_parameters([self.participant.own])
        return common.GetParametersRes(DONE, own)

    def fit(self, ins: common.FitIns) -> common.FitRes:
        """Answer ``[drawn]``, or ``[drawn, proxies, owner]`` the first time."""
        drawn, *met = _arrays(ins.parameters, 1, 3)
        if met:
            self.participant.meet(*met)
        upload = self.participant.contribute(int(ins.config["round"]), drawn)
        content = common.ndarrays_to_parameters(list(upload))
        return common.FitRes(DONE, content, len(upload.rows), {})

    def evaluate(self, ins: common.EvaluateIns) -> common.EvaluateRes:
        """Distil ``[targets, valid]``; return loss, proxies used and accuracy."""
        targets, valid = _arrays(ins.parameters, 2)
        loss, accuracy = self.participant.absorb(targets, valid)
        metrics: dict[str, Any] = {"accuracy": accuracy}
        return common.EvaluateRes(DONE, loss, int(valid.sum()), metrics)


@checked()
class FederatedDistillation(flwr.server.strategy.Strategy):
    """The server's side of every round, as a strategy of Flower's.

    Args:
        coordinator: what decides.
        clients: to wait for before the first round.
        timeout: seconds to wait for them, and for each of their answers on joining.

    Attributes:
        history: one dict a round: ``round``, ``contributors``, ``valid`` (of proxies
            with a target), ``upload_bytes``, and ``accuracy`` by client, 0 to 1, or NaN
            of one that does not evaluate.
    """

    def __init__(self, coordinator: Coordinator, clients: int, timeout: float = 600.0):
        self.coordinator, self.clients, self.timeout = coordinator, clients, timeout
        self.history: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}
        self._met: set[int] = set()
        self._asked: list[int] = []

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
            lambda c: _number(
                c.get_properties(
                    common.GetPropertiesIns({}), timeout=self.timeout, group_id=None
                ).properties
            ),
        )
        for proxy, number in zip(joining, properties, strict=True):
            if isinstance(number, BaseException):
                reason = f"it did not name itself ({type(number).__name__}: {number})"
                self.coordinator.exclude(JOINING, UNNAMED, reason)
            elif number in self._numbers.values():
                reason = "a second client said that it is this one, and was ignored"
                self.coordinator.exclude(JOINING, number, reason)
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
        if not instructions:  # Flower would pass over the round.
            self.aggregate_fit(server_round, [], [])
        return instructions

    def aggregate_fit(self, server_round: int, results: list, failures: list):
        """Check the uploads and average them."""
        number = server_round - 1
        uploads: dict[int, Upload | BaseException] = {
            client: ConnectionError(SILENT) for client in self.coordinator.members
        }
        for proxy, result in _answers(results, failures):
            try:
                upload = _upload(result)
            except ValueError as error:
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
                "accuracy": {},
            }
        )
        return common.ndarrays_to_parameters([targets, valid]), {}

    def configure_evaluate(
        self, server_round: int, parameters: Any, client_manager: Any
    ):
        """Send the ensemble to every member, also to those that did not contribute."""
        content = common.EvaluateIns(parameters, {"round": server_round - 1})
        members = self._members(client_manager)
        self._asked = [client for _, client in members]
        return [(proxy, content) for proxy, _ in members]

    def aggregate_evaluate(self, server_round: int, results: list, failures: list):
        """Note the clients' accuracies."""
        answers = {self._numbers[c.cid]: x for c, x in _answers(results, failures)}
        losses = []
        for client in self._asked:
            if client not in answers:
                self.coordinator.exclude(server_round - 1, client, SILENT)
                continue
            given = answers[client].metrics.get("accuracy")
            if type(given) in (int, float) and (math.isnan(given) or 0 <= given <= 1):
                self.history[-1]["accuracy"][client] = float(given)
                losses.append(answers[client].loss)
            else:
                reason = f"it told its accuracy as {given!r:.50}, not as 0 to 1"
                self.coordinator.exclude(server_round - 1, client, reason)
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


def _answers(results: list, failures: list) -> list[tuple[Any, Any]]:
    """Return what clients sent, those included that say that they failed."""
    return [*results, *(x for x in failures if isinstance(x, tuple))]


def _number(properties: dict[str, Any]) -> int:
    """Return the number of a client that it gives as its property."""
    given = properties.get("client")
    if type(given) is not int or not 0 <= given < 2**31:
        raise ValueError(f"it says it is client {given!r:.50}, not a number from 0")
    return given


def _upload(result: common.FitRes) -> Upload:
    upload = Upload(*_arrays(result.parameters, 2))
    if result.status.code != common.Code.OK:
        message = f"{result.status.code.name}, {result.status.message!r:.100}"
        raise ValueError(f"it says that it failed ({message})")
    if upload.rows.shape[:1] != (result.num_examples,):
        raise ValueError(
            f"it says it predicts {result.num_examples} samples, but its rows have the "
            f"shape {upload.rows.shape}"
        )
    return upload


def _arrays(parameters: common.Parameters, *numbers: int) -> list[np.ndarray]:
    """Return the arrays of a message, if there are as many as there may be."""
    found = parameters.tensors
    if len(found) not in numbers:
        raise ValueError(f"a message has {len(found)} arrays, not {numbers}")
    return [array_from(x, f"array {i}", len(x)) for i, x in enumerate(found)]


class _Clients(flwr.server.SimpleClientManager):
    """Flower's clients, of which none is waited for without end.

    Flower's own deadline begins when a client has taken the question, and there are
    clients that never do.
    """

    def register(self, client: Any) -> bool:
        bridge, request = client.bridge, client.bridge.request

        def ended(ins_wrapper: Any) -> Any:
            timer = threading.Timer(2 * ins_wrapper.timeout, bridge.close)
            timer.start()
            try:
                return request(ins_wrapper)
            finally:
                timer.cancel()

        bridge.request = ended
        return super().register(client)

    def all(self) -> dict[str, Any]:
        """Return a copy: clients leave while the server looks through them."""
        return dict(self.clients)


class _Server(flwr.server.Server):
    """Flower's server, which dismisses its clients also when it fails."""

    error: Exception | None = None

    def fit(self, num_rounds: int, timeout: float | None) -> Any:
        try:
            return super().fit(num_rounds, timeout)
        except Exception as error:
            self.error = error
            return flwr.server.History(), 0.0


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
        round_timeout: seconds for each of a round's two answers, and as long for the
            client to take the question; one that is late is disconnected, and the round
            goes on without it.
        join_timeout: seconds to wait for the clients, and for their proxies; the run
            starts with those that came.
        certificates: (CA, server certificate, server key) in PEM for TLS; None for a
            network that is trusted.

    Raises:
        ValueError: a number out of range; or, when the clients are dismissed, none that
            came gave proxies.
    """
    for name, seconds in (("round", round_timeout), ("join", join_timeout)):
        if not 0 < seconds < threading.TIMEOUT_MAX / 2:
            raise ValueError(
                f"{name}_timeout must be seconds above 0 that end, got {seconds}"
            )
    if clients < 1 or rounds < 1:
        raise ValueError(
            f"clients and rounds must be at least 1, got {clients} and {rounds}"
        )
    strategy = FederatedDistillation(coordinator, clients, join_timeout)
    server = _Server(client_manager=_Clients(), strategy=strategy)
    # All are asked at once: none waits for another's answer.
    server.set_max_workers(CONNECTIONS)
    flwr.server.start_server(
        server_address=address,
        server=server,
        config=flwr.server.ServerConfig(rounds, round_timeout),
        certificates=certificates,
    )
    if server.error is not None:
        raise server.error
    return strategy.history


@checked(participant=own_check)
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
