"""A served teacher, against a small server that can also misbehave."""

import functools
import itertools
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Network, data, teachers
from jaxkd.losses import top_k_log_probs

VOCABULARY, LENGTH, K = 11, 6, 3
TABLE = np.random.default_rng(0).normal(0, 2, (VOCABULARY, VOCABULARY)).astype("f4")
LOG_PROBS = np.asarray(jax.nn.log_softmax(TABLE))
TEACHER = Network.from_apply(
    lambda key: {"table": jnp.asarray(TABLE)},
    lambda params, ids: params["table"][ids],
    reads=("input_ids",),
)


def windows():
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 61).astype(np.uint8)
    return data.Windows("text", tokens, LENGTH, VOCABULARY)


def scored(prompt, k):
    """Return ``prompt_logprobs`` as vLLM does: the k best, and the token itself."""
    found = [None]
    for before, token in itertools.pairwise(prompt):
        best = np.argsort(-LOG_PROBS[before], kind="stable").tolist()
        chosen = dict.fromkeys([token, *best[:k]])
        found.append(
            {
                str(i): {
                    "logprob": float(LOG_PROBS[before, i]),
                    "rank": best.index(i) + 1,
                    "decoded_token": chr(97 + i),
                }
                for i in chosen
            }
        )
    return found


class Server(ThreadingHTTPServer):
    """Answers as `answer` says: ``(request number, request) -> status and body``."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.requests, self.lock = answer, [], threading.Lock()
        self.running = self.most = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Clients that gave up are expected."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        size = int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(size))
        with server.lock:
            server.requests.append((self.path, dict(self.headers), request))
            number = len(server.requests)
            server.running += 1
            server.most = max(server.most, server.running)
        status, body = server.answer(number, request)
        with server.lock:
            server.running -= 1
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """Keep the tests' output clean."""


def good(number, request):
    found = scored(request["prompt"], request["prompt_logprobs"])
    return 200, {"choices": [{"index": 0, "text": "a", "prompt_logprobs": found}]}


@pytest.fixture
def serve():
    servers = []

    def start(answer=good, **options):
        server = Server(answer)
        servers.append(server)
        options = {"retries": 2, "backoff": 0.01, "timeout": 5.0, **options}
        return server, teachers.ServedTeacher(
            windows(), server.url, "large", K, **options
        )

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def expected(batch):
    ids, log_probs = top_k_log_probs(jnp.asarray(TABLE)[batch["input_ids"]], K)
    return np.asarray(ids), np.asarray(log_probs)


def test_says_what_the_teacher_in_the_step_would(serve):
    server, teacher = serve(api_key="secret")
    batch = teacher.take(np.array([3, 0, 7]))
    ids, log_probs = expected(batch)
    assert (batch["teacher_ids"] == ids).all()
    np.testing.assert_allclose(batch["teacher_log_probs"], log_probs, rtol=1e-6)
    for name, array in windows().take(np.array([3, 0, 7])).items():
        assert (batch[name] == array).all()
    path, headers, request = server.requests[0]
    assert path == "/v1/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert request["prompt"][:-1] in batch["input_ids"].tolist()
    assert (request["model"], request["prompt_logprobs"]) == ("large", K)
    assert "secret" not in repr(teacher)


def test_fills_a_cache_that_equals_the_network_s(serve, tmp_path):
    _, teacher = serve()
    live = teachers.network_targets(
        TEACHER, TEACHER.init(jax.random.key(0)), k=K, dtype="float32"
    )
    for name, targets in (("served", teacher.targets), ("live", live)):
        teachers.write_teacher_cache(
            tmp_path / name, windows(), targets, batch_size=4, shard_examples=8
        )
    served, live = (
        teachers.CachedTeacher(windows(), tmp_path / name).take(np.arange(10))
        for name in ("served", "live")
    )
    assert (served["teacher_ids"] == live["teacher_ids"]).all()
    np.testing.assert_allclose(
        served["teacher_log_probs"], live["teacher_log_probs"], atol=1e-6
    )


def test_feeds_a_pipeline(serve):
    _, teacher = serve()
    batch = next(iter(data.batches(teacher, 4, epochs=1, seed=0)))
    assert (batch["teacher_ids"] == expected(batch)[0]).all()


def test_padding_is_not_sent_and_documents_are_apart(serve):
    server, teacher = serve()
    ids = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    segments = np.array([[1, 1, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0], [0] * 6])
    answer = teacher.answer({"input_ids": ids, "segment_ids": segments})
    sent = sorted(request["prompt"][:-1] for _, _, request in server.requests)
    assert sent == [[1, 2], [3, 4, 5, 6], [7, 8, 9]]
    right, real = expected({"input_ids": ids}), segments > 0
    assert (answer["teacher_ids"][real] == right[0][real]).all()
    assert np.isfinite(answer["teacher_log_probs"]).all()
    server.requests.clear()
    left = np.array([[0, 0, 1, 1, 1, 1]])
    teacher.answer({"input_ids": ids[:1], "attention_mask": left})
    assert [r["prompt"][:-1] for _, _, r in server.requests] == [[3, 4, 5, 6]]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_tries_again_after_two_failures(serve, status):
    def answer(number, request):
        return (status, b"busy") if number <= 2 else good(number, request)

    server, teacher = serve(answer, connections=1)
    batch = teacher.take(np.array([5]))
    assert (batch["teacher_ids"] == expected(batch)[0]).all()
    assert len(server.requests) == 3


def test_waits_longer_each_time(serve, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    _, teacher = serve(lambda *_: (503, b"loading"), retries=8, backoff=1.0)
    with pytest.raises(ConnectionError, match=r"9 attempts.*status 503: loading"):
        teacher._score([1, 2])
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_bounds_what_runs_and_what_waits(serve):
    release = threading.Event()

    def answer(number, request):
        release.wait(5)
        return good(number, request)

    server, teacher = serve(answer, connections=2)
    many = {"input_ids": np.tile(windows().take(np.arange(10))["input_ids"], (2, 1))}
    asking = threading.Thread(target=teacher.answer, args=(many,))
    asking.start()
    time.sleep(0.2)
    pool, _ = teacher.endpoint.pool
    assert server.running == 2
    assert pool._work_queue.qsize() == 4
    release.set()
    asking.join(5)
    assert server.most == 2
    assert len(server.requests) == 20


def changed(change):
    def answer(number, request):
        status, body = good(number, request)
        return status, change(body)

    return answer


def place(change):
    """Return an answer with the second token's place changed."""

    def edit(body):
        change(body["choices"][0]["prompt_logprobs"][1])
        return body

    return changed(edit)


def without_itself(body):
    found = body["choices"][0]["prompt_logprobs"]
    found[1] = {str(i): {"logprob": -1.0} for i in range(VOCABULARY)}
    found[1].pop(str(PROMPT[1]))
    return body


PROMPT = [1, 2, 3]
BROKEN = {
    "garbage": (changed(lambda body: b"<html>hello"), "no JSON .*begins .<html>"),
    "no choices": (changed(lambda body: {"choices": []}), "without prompt_logprobs"),
    "no field": (
        changed(lambda body: {"choices": [{"text": "a"}]}),
        "without prompt_logprobs.*such as vLLM",
    ),
    "null field": (
        changed(lambda body: {"choices": [{"prompt_logprobs": None}]}),
        "without prompt_logprobs",
    ),
    "fewer tokens": (
        changed(lambda body: body["choices"][0]["prompt_logprobs"].pop() and body),
        "answered for 3 tokens, but got 4.*--max-model-len",
    ),
    "other tokens": (changed(without_itself), "left token 2 out.*other tokens"),
    "fewer best": (
        place(lambda p: [p.pop(token) for token in sorted(set(p) - {"2"})[:-1]]),
        "--max-logprobs",
    ),
    "outside": (
        place(lambda p: p.update({"11": {"logprob": -1.0}})),
        "gave token 11.*0 to 10",
    ),
    "negative id": (place(lambda p: p.update({"-1": {"logprob": -1.0}})), "vocabulary"),
    "NaN": (place(lambda p: p["2"].update(logprob=float("nan"))), "gave nan as a log"),
    "above 0": (place(lambda p: p["2"].update(logprob=0.5)), "gave 0.5 as a log-prob"),
    "no id": (
        place(lambda p: p.update({"the": {"logprob": -1.0}})),
        "without prompt_l",
    ),
    "refusal": (lambda *_: (400, b"k too large"), "refused.*status 400: k too large"),
    "no model": (lambda *_: (404, b"no such model"), "404: no such model.*'large'"),
}


@pytest.mark.parametrize(("answer", "message"), BROKEN.values(), ids=BROKEN)
def test_bad_answers_are_named_with_the_url(serve, answer, message):
    server, teacher = serve(answer)
    with pytest.raises(ValueError, match=f"{server.url}/v1/completions.*{message}"):
        teacher._score(PROMPT)
    assert len(server.requests) == 1


def test_one_bad_answer_fails_the_batch(serve):
    def answer(number, request):
        return (400, b"bad") if number == 3 else good(number, request)

    _, teacher = serve(answer, connections=1)
    with pytest.raises(ValueError, match="status 400"):
        teacher.take(np.arange(8))


def test_a_server_that_hangs_is_given_up(serve):
    release = threading.Event()
    server, teacher = serve(
        lambda *_: release.wait(5) and (200, b""), timeout=0.1, retries=1
    )
    with pytest.raises(ConnectionError, match=r"2 attempts of up to 0.1 s.*timed out"):
        teacher._score(PROMPT)
    release.set()
    assert len(server.requests) == 2


def test_a_server_that_is_not_there_is_named(serve):
    server, _ = serve()
    url = server.url
    server.shutdown()
    server.server_close()
    teacher = teachers.ServedTeacher(
        windows(), url, "large", K, retries=1, backoff=0.01
    )
    with pytest.raises(ConnectionError, match=f"{url}.*refused.*Check that the server"):
        teacher.take(np.array([0]))


def test_one_that_hangs_up_is_tried_again(serve):
    def answer(number, request):
        if number == 1:
            raise ConnectionResetError
        return good(number, request)

    server, teacher = serve(answer)
    teacher._score(PROMPT)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "teacher:8000"}, "must begin with http"),
        ({"k": 0}, "k must be 1 to 11"),
        ({"k": 12}, "k must be 1 to 11"),
        ({"connections": 0}, "connections must be at least 1"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"timeout": float("nan")}, "timeout must be above 0, got nan"),
        ({"timeout": float("inf")}, "timeout must be finite"),
        ({"backoff": -1.0}, "backoff must be at least 0"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"url": "http://"}, "and a host"),
        ({"url": "http://teacher:x"}, "and a host"),
    ],
)
def test_bad_arguments_are_named(options, message):
    usual = {"source": windows(), "url": "http://teacher", "model": "large", "k": K}
    with pytest.raises(ValueError, match=message):
        teachers.ServedTeacher(**{**usual, **options})


def test_fingerprint_is_of_data_model_and_k():
    make = functools.partial(teachers.ServedTeacher, windows(), "http://a")
    base = make("large", K).fingerprint
    assert teachers.ServedTeacher(windows(), "http://b", "large", K).fingerprint == base
    assert make("larger", K).fingerprint != base
    assert make("large", K + 1).fingerprint != base
