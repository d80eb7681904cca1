"""A server that outlives what a client can send it."""

import functools
import json
import queue
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("flwr", reason="pip install 'jaxkd-distill[federated]'")

import flwr.server
import grpc
from flwr import common
from flwr.common import serde
from flwr.proto import transport_pb2 as pb
from flwr.proto.transport_pb2_grpc import FlowerServiceStub
from flwr.server.client_proxy import ClientProxy

from jaxkd.federated.engine import UNNAMED, Coordinator, Participant, Upload
from jaxkd.federated.flower import FederatedDistillation, FlowerClient, _Server, serve
from tests.federated.test_flower import free_port, start
from tests.test_untrusted import BAD_ARRAYS, npy

CLASSES, ROUNDS, HOSTILE = 3, 2, 2


class Honest(Participant):
    """A participant without a model: it remembers what it was told."""

    def __init__(self, number):
        self.number, self.told = number, []
        self.own = np.full((2, 4), number, np.float32)

    def meet(self, proxies, owner):
        self.told += [proxies, owner]

    def contribute(self, round_number, drawn):
        rng = np.random.default_rng([self.number, round_number])
        predictions = rng.dirichlet(np.ones(CLASSES), 3).astype(np.float32)
        rows = np.sort(rng.permutation(len(drawn))[:3])
        return Upload(predictions, rows.astype(np.int32))

    def absorb(self, targets, valid):
        self.told += [targets, valid]
        return 1.0, 0.5


class Proxy(ClientProxy):
    """A client as Flower's server sees it; ``spoilt`` are its answers, by question."""

    def __init__(self, number, spoilt):
        super().__init__(str(number))
        self.client, self.spoilt = FlowerClient(Honest(number)), spoilt
        self.dismissed = False

    def _answer(self, question, ins):
        """Return an answer as it comes over the wire."""
        ins = getattr(serde, f"{question}_ins_to_proto")(ins)
        ins = getattr(serde, f"{question}_ins_from_proto")(ins)
        found = getattr(self.client, question)(ins)
        found = getattr(serde, f"{question}_res_to_proto")(found)
        message = self.spoilt[question](found) if question in self.spoilt else found
        message = type(found).FromString(message.SerializeToString())
        return getattr(serde, f"{question}_res_from_proto")(message)

    def get_properties(self, ins, timeout, group_id):
        return self._answer("get_properties", ins)

    def get_parameters(self, ins, timeout, group_id):
        return self._answer("get_parameters", ins)

    def fit(self, ins, timeout, group_id):
        return self._answer("fit", ins)

    def evaluate(self, ins, timeout, group_id):
        return self._answer("evaluate", ins)

    def reconnect(self, ins, timeout, group_id):
        self.dismissed = True
        return common.DisconnectRes("")


def federate(*spoilt):
    """Run two honest clients and those that are not; return all there is to see."""
    coordinator = Coordinator(CLASSES, (4,), 5)
    strategy = FederatedDistillation(coordinator, 2, timeout=1.0)
    manager = flwr.server.SimpleClientManager()
    proxies = [Proxy(number, {}) for number in range(2)]
    proxies += [Proxy(HOSTILE + i, answers) for i, answers in enumerate(spoilt)]
    for proxy in proxies:
        manager.register(proxy)
    server = _Server(client_manager=manager, strategy=strategy)
    server.fit(ROUNDS, 1.0)
    server.disconnect_all_clients(1.0)
    assert server.error is None
    assert all(proxy.dismissed for proxy in proxies)
    told = [proxy.client.participant.told for proxy in proxies[:2]]
    return told, strategy.history, coordinator.excluded


def spoil(change):
    """Return a change of a message, which `change` may do in place."""

    def spoilt(found):
        return change(found) or found

    return spoilt


def sent(position, content):
    """Put bytes in an array's place."""

    def change(found):
        found.parameters.tensors[position] = content

    return spoil(change)


def turned(position, change):
    """Put ``change(array)`` in an array's place."""

    def spoilt(found):
        array = common.bytes_to_ndarray(found.parameters.tensors[position])
        return sent(position, npy(change(array)))(found)

    return spoilt


def told(**scalars):
    """Answer with other properties or metrics; None is a scalar that holds nothing."""

    def change(found):
        values = {k: pb.Scalar(**v) if v else pb.Scalar() for k, v in scalars.items()}
        field = "properties" if hasattr(found, "properties") else "metrics"
        found.ClearField(field)
        for name, value in values.items():
            getattr(found, field)[name].CopyFrom(value)

    return spoil(change)


def replaced(kind):
    return lambda found: kind()


def examples(number):
    return spoil(lambda found: setattr(found, "num_examples", number))


def failed(message):
    def change(found):
        found.status.code = pb.Code.FIT_NOT_IMPLEMENTED
        found.status.message = message

    return spoil(change)


def more(found):
    found.parameters.tensors.append(found.parameters.tensors[0])
    return found


def dies(found):
    raise ConnectionError("gone")


def full(value, dtype="f4"):
    return lambda array: np.full(array.shape, value, dtype)


MESSAGES = {
    "get_properties": {
        "nothing": (replaced(pb.ClientMessage.GetPropertiesRes), "client None"),
        "dies": (dies, "gone"),
        "a word": (told(client={"string": "abc"}), "'abc'"),
        "a figure in a word": (told(client={"string": "2"}), "'2'"),
        "bytes": (told(client={"bytes": b"2"}), "b'2'"),
        "a long word": (told(client={"string": "2\n" * 10**6}), "client '2"),
        "a fraction": (told(client={"double": 2.5}), "2.5"),
        "NaN": (told(client={"double": float("nan")}), "nan"),
        "yes": (told(client={"bool": True}), "True"),
        "-1": (told(client={"sint64": -1}), "-1"),
        "2^40": (told(client={"sint64": 2**40}), "1099511627776"),
        "2^64": (told(client={"uint64": 2**64 - 1}), "18446744073709551615"),
        "another name": (told(number={"sint64": 2}), "client None"),
        "an empty scalar": (told(client=None), "TypeError"),
        "another's": (told(client={"sint64": 0}), "a second client"),
    },
    "get_parameters": {
        **{f"array: {k}": (sent(0, v[0]), v[1]) for k, v in BAD_ARRAYS.items()},
        "nothing": (replaced(pb.ClientMessage.GetParametersRes), "0 arrays"),
        "dies": (dies, "gone"),
        "two arrays": (more, "2 arrays"),
        "wider": (turned(0, lambda x: np.ones((2, 5), "f4")), r"\(2, 5\), not"),
        "one sample": (turned(0, lambda x: x[0]), r"shape \(4,\)"),
        "one number": (turned(0, lambda x: x[0, 0]), r"shape \(\)"),
        "integers": (turned(0, full(1, "i4")), "int32, not floats"),
        "words": (turned(0, full("x", "U1")), "not floats"),
        "complex": (turned(0, full(1, "c8")), "not floats"),
        "NaN": (turned(0, full(np.nan)), "not finite"),
        "too large for float32": (turned(0, full(1e300, "f8")), "not finite"),
        "no samples": (turned(0, lambda x: x[:0]), "no proxies"),
    },
    "fit": {
        **{f"array: {k}": (sent(0, v[0]), v[1]) for k, v in BAD_ARRAYS.items()},
        **{f"rows: {k}": (sent(1, v[0]), v[1]) for k, v in BAD_ARRAYS.items()},
        "nothing": (replaced(pb.ClientMessage.FitRes), "0 arrays"),
        "dies": (dies, "process ended"),
        "three arrays": (more, "3 arrays"),
        "an empty metric": (told(x=None), "malformed"),
        "it failed": (
            failed("x\nround 0: client 0 is left out"),
            "says that it failed",
        ),
        "it failed at length": (failed("x" * 10**6), "says that it failed"),
        "-1 examples": (examples(-1), "predicts -1 samples"),
        "2^62 examples": (examples(2**62), "predicts 4611686018427387904 samples"),
        "two classes": (turned(0, lambda x: x[:, :2]), r"shape \(3, 2\)"),
        "a class more": (turned(0, lambda x: np.ones((3, 4), "f4") / 4), r"\(3, 4\)"),
        "one prediction": (turned(0, lambda x: x[0]), r"shape \(3,\)"),
        "one number": (turned(0, lambda x: x[0, 0]), r"shape \(\)"),
        "a dimension more": (turned(0, lambda x: x[None]), r"shape \(1, 3, 3\)"),
        "no predictions": (turned(0, lambda x: x[:0]), r"shape \(0, 3\)"),
        "integers": (turned(0, full(1, "i8")), "int64, not floats"),
        "booleans": (turned(0, full(1, "?")), "bool, not floats"),
        "complex": (turned(0, full(1 / 3, "c16")), "complex128, not floats"),
        "words": (turned(0, full("0.3", "U3")), "not floats"),
        "NaN": (turned(0, full(np.nan)), "not finite"),
        "infinite": (turned(0, full(np.inf)), "not finite"),
        "one NaN": (
            turned(0, lambda x: np.where(np.arange(9).reshape(3, 3) == 5, np.nan, x)),
            "1 of its 3 predictions are not finite",
        ),
        "sums of 3": (turned(0, full(1)), "no probabilities"),
        "all 0": (turned(0, full(0)), "no probabilities"),
        "below 0": (turned(0, lambda x: x * 0 + np.float32([3, -1, -1])), "no prob"),
        "1e308": (turned(0, full(1e308, "f8")), "no probabilities"),
        "-1e308": (turned(0, full(-1e308, "f8")), "no probabilities"),
        "rows of floats": (turned(1, full(1.0, "f4")), "float32, not integers"),
        "rows of booleans": (turned(1, full(1, "?")), "bool, not integers"),
        "rows of words": (turned(1, full("1", "U1")), "not integers"),
        "one row": (turned(1, lambda x: x[0]), "rows but|rows have the shape"),
        "fewer rows": (turned(1, lambda x: x[:2]), r"rows have the shape \(2,\)"),
        "rows in a column": (turned(1, lambda x: x[:, None]), "rows of shape"),
        "a row twice": (turned(1, full(1, "i4")), "not different positions"),
        "rows below 0": (turned(1, lambda x: x - 9), "not different positions"),
        "rows too high": (turned(1, lambda x: x + 5), "not different positions"),
        "2^40": (
            turned(1, lambda x: x.astype("i8") + 2**40),
            "not different positions",
        ),
        "2^63": (turned(1, lambda x: np.uint64(2**63) + x.astype("u8")), "positions"),
    },
    "evaluate": {
        "nothing": (replaced(pb.ClientMessage.EvaluateRes), "accuracy as None"),
        "dies": (dies, "process ended"),
        "a word": (told(accuracy={"string": "abc"}), "'abc'"),
        "a figure in a word": (told(accuracy={"string": "0.5"}), "'0.5'"),
        "bytes": (told(accuracy={"bytes": b"\xff"}), "xff"),
        "yes": (told(accuracy={"bool": True}), "True"),
        "2^40": (told(accuracy={"sint64": 2**40}), "1099511627776"),
        "infinite": (told(accuracy={"double": float("-inf")}), "-inf"),
        "above 1": (told(accuracy={"double": 1.5}), "1.5"),
        "below 0": (told(accuracy={"double": -0.1}), "-0.1"),
        "an empty scalar": (told(accuracy=None), "malformed"),
    },
}
CASES = [(question, what) for question, found in MESSAGES.items() for what in found]


@functools.cache
def without(question):
    """Return a run without the message: no client, a silent one, or a good one."""
    spoilt = {"get_properties": (), "get_parameters": (), "fit": ({"fit": dies},)}
    told, history, _ = federate(*spoilt.get(question, ({},)))
    for entry in history if question == "evaluate" else ():
        del entry["accuracy"][HOSTILE]
    return told, history


def equal(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x, y) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(("question", "what"), CASES)
def test_a_hostile_message_costs_its_own_contribution_only(question, what):
    message, reason = MESSAGES[question][what]
    seen, history, excluded = federate({question: message})
    honest, expected = without(question)
    assert all(equal(a, b) for a, b in zip(seen, honest, strict=True))
    assert history == expected
    joining = question.startswith("get")
    name = 0 if what == "another's" else HOSTILE
    name = UNNAMED if question == "get_properties" and name else name
    rounds = [-1] if joining else list(range(ROUNDS))
    assert [x[:2] for x in excluded] == [(number, name) for number in rounds]
    for _, _, text in excluded:
        assert len(text) <= 300
        assert text.isprintable()
    assert re.search(reason, excluded[0].reason) or len(excluded[0].reason) == 300


def test_a_server_whose_clients_all_leave_ends():
    manager = flwr.server.SimpleClientManager()

    def leaves(found):
        manager.unregister(manager.clients["0"])
        raise ConnectionError

    manager.register(Proxy(0, {"fit": leaves}))
    coordinator = Coordinator(CLASSES, (4,), 5)
    strategy = FederatedDistillation(coordinator, 1, timeout=1.0)
    _Server(client_manager=manager, strategy=strategy).fit(ROUNDS, 1.0)
    assert [(x["contributors"], x["accuracy"]) for x in strategy.history] == [
        (0, {})
    ] * 2
    assert [x[:2] for x in coordinator.excluded] == [(0, 0), (1, 0)]


def test_a_server_without_a_good_client_says_so_when_all_are_dismissed():
    manager = flwr.server.SimpleClientManager()
    manager.register(Proxy(0, {"get_parameters": more}))
    strategy = FederatedDistillation(Coordinator(CLASSES, (4,), 5), 1, timeout=1.0)
    server = _Server(client_manager=manager, strategy=strategy)
    server.fit(ROUNDS, 1.0)
    assert "none of 1 clients gave proxies" in str(server.error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"round_timeout": 0.0},
            "round_timeout must be .*above 0 that end, got 0",
        ),
        ({"join_timeout": float("inf")}, "join_timeout must .* got inf"),
        ({"clients": 0}, "clients and rounds must be at least 1, got 0 and 2"),
        ({"rounds": 0}, "clients and rounds must be at least 1, got 1 and 0"),
    ],
)
def test_a_server_that_would_not_end_is_not_started(change, message):
    usual = {"clients": 1, "rounds": 2, "round_timeout": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        serve(Coordinator(CLASSES, (4,), 5), "127.0.0.1:0", **usual)


class Leave(Exception):
    """A client goes without a word."""


def take_part(port, number, fault=None, proxies=2):
    """Be a client of the transport's, with ``fault(question, answer) -> answer``."""
    participant = Honest(number)
    participant.own = np.full((proxies, 4), number, np.float32)
    client, answers = FlowerClient(participant), queue.SimpleQueue()
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        grpc.channel_ready_future(channel).result(timeout=60)
        for message in FlowerServiceStub(channel).Join(iter(answers.get, None)):
            question = message.WhichOneof("msg").removesuffix("_ins")
            if question == "reconnect":
                return "dismissed"
            ins = getattr(message, f"{question}_ins")
            ins = getattr(serde, f"{question}_ins_from_proto")(ins)
            found = getattr(client, question)(ins)
            found = getattr(serde, f"{question}_res_to_proto")(found)
            if fault:
                found = fault(question, found)
            answers.put(pb.ClientMessage(**{f"{question}_res": found}))
            if fault:
                fault("answered", question)
    return "ended"


@pytest.mark.slow
def test_a_server_ends_in_time_whoever_comes(tmp_path):
    """Over sockets; every kind of failure happens in the first round."""
    over, port, timeout = threading.Event(), free_port(), 3

    def malformed(question, found):
        what = {"fit": "array: 80 TB", "evaluate": "a word"}.get(question)
        return MESSAGES[question][what][0](found) if what else found

    def dies(question, found):
        if question == "fit":
            raise Leave
        return found

    def silent(question, found):
        if question == "fit":
            over.wait(300)
            raise Leave
        return found

    def deaf(question, found):
        """Do not take the proxies, which are more than the stream holds."""
        if (question, found) == ("answered", "get_parameters"):
            over.wait(300)
            raise Leave
        return found

    faults = [None, None, malformed, dies, silent, deaf]
    server = start(tmp_path, port, "server", len(faults), timeout)
    with ThreadPoolExecutor(len(faults)) as pool:
        sizes = [500_000, *[2] * 5]
        clients = [
            pool.submit(take_part, port, number, fault, proxies)
            for number, (fault, proxies) in enumerate(zip(faults, sizes, strict=True))
        ]
        try:
            for client in clients[:4]:
                client.exception(timeout=100)  # waits, not as long as the others
            _, errors = server.communicate(timeout=20)
        finally:
            server.kill()
            over.set()
    assert server.returncode == 0, errors
    ends = [repr(c.exception() or c.result()) for c in clients]
    assert ends[:4] == ["'dismissed'", "'dismissed'", "'dismissed'", "Leave()"], ends
    result = json.loads((tmp_path / "server.json").read_text())
    for number in range(3):
        reasons = [
            (client, why) for r, client, why in result["excluded"] if r == number
        ]
        assert {client for client, _ in reasons} == {2, 3, 4, 5}
        text = str(reasons)
        assert "asks for (10000000000000,) float64" in text
        assert "process ended" in text
        assert "'abc'" in text
    for entry in result["history"]:
        assert entry["contributors"] == 2
        assert entry["accuracy"] == {"0": 0.5, "1": 0.5}
