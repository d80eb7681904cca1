"""A served teacher that is hostile: refused by name, in time, and in little memory."""

import contextlib
import itertools
import json
import math
import socket
import threading
import time
import tracemalloc

import numpy as np
import pytest

from jaxkd import data, teachers

KEY = "sk-0123456789-abcdefghijklmnopqrstuvwxyz"
PROMPT, K, TIMEOUT = [1, 2, 3], 3, 0.3
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def serve():
    """Return ``behave -> teacher``; ``behave(sock, request)`` is the whole server."""
    listening = []

    def start(behave, key=KEY, scheme="http", **options):
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def accept():
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(sock,), daemon=True).start()

        def answer(sock):
            with sock:
                request = b""
                while not request.startswith(b"\x16") and b"]" not in request:
                    request += sock.recv(65_536)
                with contextlib.suppress(OSError):  # the teacher leaves, as it should
                    behave(sock, request)

        threading.Thread(target=accept, daemon=True).start()
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        source = data.Windows("text", np.arange(11, dtype="u1"), 4, 11)
        settings = {"timeout": TIMEOUT, "retries": 0, "api_key": key, **options}
        return teachers.ServedTeacher(source, url, "large", K, **settings)

    yield start
    for listener in listening:
        listener.close()


def sends(*pieces, wait=0.0):
    """Send what there is, again and again if it is a generator that does not end."""

    def behave(sock, request):
        for piece in itertools.chain.from_iterable(
            [piece] if isinstance(piece, bytes) else piece for piece in pieces
        ):
            sock.sendall(piece)
            time.sleep(wait)

    return behave


def body(content, status=b"200 OK", headers=b""):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    size = str(len(content)).encode()
    head = b"HTTP/1.1 " + status + b"\r\nContent-Length: " + size + b"\r\n"
    return sends(head + headers + b"\r\n" + content)


def place(token, **changed):
    found = {str(i): {"logprob": math.log(0.1)} for i in (1, 2, 3)}
    found |= {name: {"logprob": value} for name, value in changed.items()}
    return found


def scores(*places):
    return {"choices": [{"prompt_logprobs": [None, *places]}]}


def one(**changed):
    return body(scores(place(2, **changed), place(3), place(3)))


def redirection(status, location):
    return body(b"", status, b"Location: " + location + b"\r\n")


def hangs(sock, request):
    time.sleep(3)


def echo(sock, request):
    key = request.split(b"Bearer ")[1].split(b"\r\n")[0]
    body(b"." * 280 + key, b"400 Bad")(sock, request)


ENDLESS = itertools.repeat
ANSWERS = {
    # In time.
    "nothing": (hangs, "timed out"),
    "a dripping status": (sends(ENDLESS(b"H"), wait=0.02), "timed out"),
    "dripping headers": (sends(OK, ENDLESS(b"a"), wait=0.02), "timed out"),
    "a dripping body": (
        sends(OK + b"Content-Length: 99\r\n\r\n", ENDLESS(b" "), wait=0.02),
        "timed out",
    ),
    "dripping chunks": (sends(CHUNKED, ENDLESS(b"1\r\n \r\n"), wait=0.02), "timed out"),
    "a dripping error": (
        sends(b"HTTP/1.1 400 Bad\r\n\r\n", ENDLESS(b" "), wait=0.02),
        "timed out",
    ),
    "100 without end": (sends(ENDLESS(b"HTTP/1.1 100 Go on\r\n\r\n" * 9)), "timed out"),
    "trailers without end": (
        sends(CHUNKED + b"0\r\n", ENDLESS(b"a: b\r\n" * 99)),
        "timed out",
    ),
    # In bytes.
    "a long status": (sends(ENDLESS(b"H" * 65_536)), "did not answer"),
    "a long header": (sends(OK, ENDLESS(b"a" * 65_536)), "LineTooLong"),
    "many headers": (sends(OK, ENDLESS(b"a: b\r\n" * 99)), "more than 100 headers"),
    "a body without end": (
        sends(OK + b"\r\n", ENDLESS(b" " * 65_536)),
        "more than the",
    ),
    "3 GB": (
        sends(OK + b"Content-Length: 3000000000\r\n\r\n", ENDLESS(b" " * 65_536)),
        "more than the 70656 bytes that 4 tokens can need",
    ),
    "chunks without end": (
        sends(CHUNKED, ENDLESS(b"1\r\n \r\n" * 999)),
        "more than|timed",
    ),
    "a chunk without end": (
        sends(CHUNKED + b"fffffffffff\r\n", ENDLESS(b" " * 65_536)),
        "more than the",
    ),
    "a chunk of -1 bytes": (
        sends(CHUNKED + b"-1\r\n", ENDLESS(b" " * 65_536)),
        "a chunk of -1 bytes",
    ),
    "an error without end": (
        sends(b"HTTP/1.1 400 Bad\r\n\r\n", ENDLESS(b"x" * 65_536)),
        "status 400: x{300}[^x]",
    ),
    # HTTP.
    "no HTTP": (sends(b"\x00\xff\x1b[31m\r\n\r\n"), "BadStatusLine"),
    "a hang-up": (sends(b""), "did not answer"),
    "half a body": (sends(OK + b"Content-Length: 99\r\n\r\n{"), "IncompleteRead"),
    "half a chunk": (sends(CHUNKED + b"9\r\n{"), "IncompleteRead"),
    "no chunk": (sends(CHUNKED + b"x\r\n{"), "IncompleteRead"),
    "a length that is none": (
        sends(OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{"),
        "did not answer|no JSON",
    ),
    "another protocol": (body(b"", b"101 Switch"), "refused .*status 101"),
    "an unknown status": (body(b"", b"999 Odd"), "did not answer .*status 999"),
    # Redirections: where they lead must hear nothing, which another test shows.
    "to a file": (redirection(b"302 Found", b"file:///etc/passwd"), "leads elsewhere"),
    "to no URL": (redirection(b"302 Found", b"http://["), "leads elsewhere"),
    "to nowhere": (body(b"", b"302 Found"), "leads elsewhere"),
    # The key.
    "the key in an error": (echo, r"status 400: \.{280}\*\. Check"),
    "the key in the status": (sends(f"{KEY}\r\n\r\n".encode()), r"BadStatusLine: \*"),
    "the key as the reason": (body(b"", f"400 {KEY}".encode()), "status 400"),
    "the key as a place": (redirection(b"303 See", f"http://{KEY}".encode()), "'http"),
    "the key as text": (body(KEY.encode()), r"no JSON .*begins '\*'"),
    "the key at the border": (body(b"." * 80 + KEY.encode()), r"no JSON .*\.{80}\*'"),
    "the key as a token": (one(**{KEY: -1.0}), r"without prompt_logprobs.*'\*'"),
    "the key as a number": (
        one(**{"1": KEY}),
        r"without prompt_logprobs.*'\*' is no log",
    ),
    # JSON.
    "no bytes": (body(b""), "no JSON"),
    "brackets": (body(b"[" * 60_000), "no JSON .*(recursion|nested)"),
    "other text": (body(b"\xff\xfe\x00"), "no JSON .*utf-8"),
    "compressed": (
        body(b"\x1f\x8b\x08", headers=b"Content-Encoding: gzip\r\n"),
        "JSON",
    ),
    "a key twice": (body(b'{"choices": 1, "choices": 2}'), "a key twice"),
    "a number": (body(7), "without prompt_logprobs"),
    "a word for places": (
        body(scores()["choices"] and {"choices": ["abc"]}),
        "without",
    ),
    "words for places": (body(scores("a", "b", "c")), "without prompt_logprobs"),
    "lists for places": (body(scores([1], [2], [3])), "without prompt_logprobs"),
    # Probabilities.
    "a sum of 3": (
        body(scores(*[{str(i): {"logprob": 0.0} for i in (1, 2, 3)}] * 3)),
        r"probabilities before token 2 that sum to 3, .* 4 tokens and begins \[1, 2, 3",
    ),
    "a sum of 1.05": (one(**{"4": math.log(0.75)}), "that sum to 1.05"),
    "-1e308": (one(**{"1": -1e308}), "gave -1e[+]308 as a log-probability"),
    "-infinity": (
        body(
            b'{"choices": [{"prompt_logprobs": [0' + b', {"1": {"logprob": '
            b'-Infinity}, "2": {"logprob": -1}, "3": {"logprob": -1}}' * 3 + b"]}]}"
        ),
        "-inf",
    ),
    "NaN": (one(**{"1": math.nan}), "gave nan as a log-probability"),
    "10^400": (one(**{"1": -(10**400)}), "without prompt_logprobs .*OverflowError"),
    "a figure in a word": (one(**{"1": "-2.5"}), "'-2.5' is no log-probability"),
    "no": (one(**{"1": False}), "False is no log-probability"),
    "one token under two names": (one(**{" 1": -1.0}), "' 1' is no token"),
    "a long token": (one(**{"1" * 3000: -1.0}), "without prompt_logprobs .*1{200}"),
    "another vocabulary": (one(**{"11": -3.0}), "gave token 11, .* 0 to 10"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_hostile_answer_is_refused_in_time_and_by_name(serve, what):
    behave, message = ANSWERS[what]
    teacher = serve(behave)
    tracemalloc.start()
    begun = time.monotonic()
    with pytest.raises((ValueError, ConnectionError), match=message) as error:
        teacher._score(PROMPT)
    assert time.monotonic() - begun < 2
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    text = str(error.value)
    assert text.startswith(teacher.url)
    assert KEY[:12] not in text
    assert text.isprintable()
    assert len(text) < 1000


def test_a_good_answer_is_taken(serve):
    ids, log_probs = serve(one())._score(PROMPT)
    assert ids.tolist() == [[1, 2, 3]] * 3
    np.testing.assert_allclose(log_probs, math.log(0.1), rtol=1e-6)
    # A server that rounds to bfloat16.
    serve(one(**{"4": math.log(0.7) + 0.01}))._score(PROMPT)


def test_a_handshake_that_drips_is_not_waited_for(serve):
    """TLS: a record of 16 KB that comes byte by byte."""
    teacher = serve(
        sends(b"\x16\x03\x03\x40\x00", ENDLESS(b"\0"), wait=0.02), scheme="https"
    )
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match=r"https://.* timed out"):
        teacher._score(PROMPT)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_takes_the_key_nowhere(serve, status):
    heard = []
    other = serve(lambda sock, request: heard.append(request))
    here = f"{status} There".encode()
    teacher = serve(redirection(here, f"{other.url}/v1/completions".encode()))
    with pytest.raises(ValueError, match=f"leads elsewhere .*{status}.*{other.url}"):
        teacher._score(PROMPT)
    assert heard == []


@pytest.mark.parametrize("key", [f"{KEY}\n", f"\r\n{KEY}", f"{KEY} ", f"ü{KEY}", ""])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(serve, key):
    with pytest.raises(ValueError, match=r"api_key must be .* strip the line") as error:
        serve(hangs, key=key)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    "url", [f"http://me:{KEY}@host", f"http://host/?key={KEY}", f"http://host#{KEY}"]
)
def test_a_url_that_may_hold_a_key_is_refused_and_not_shown(url):
    source = data.Windows("text", np.arange(11, dtype="u1"), 4, 11)
    with pytest.raises(ValueError, match="url must have a host and a path") as error:
        teachers.ServedTeacher(source, url, "large", K)
    assert KEY not in str(error.value)
