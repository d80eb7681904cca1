"""One HTTP request to a server that is not trusted: bounded in time and in bytes.

It goes to the host that was named and to no other, so that a key in its headers does
not travel on.
"""

import contextlib
import functools
import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

PIECE = 2_048
"""Bytes that are read at once: in chunks of one byte they take a moment, too."""
ERROR_BYTES = 4_096
"""How much is read of what a server says about an error."""


class Answer(NamedTuple):
    """What came back.

    Attributes:
        status: as HTTP counts them.
        body: all of it, or of more than was allowed one byte more; of an error the
            beginning.
        location: where a redirection, which is not followed, leads.
    """

    status: int
    body: bytes
    location: str


def post(
    url: str, data: bytes, headers: dict[str, str], timeout: float, limit: int
) -> Answer:
    """Ask a server, and return its answer, whatever its status.

    Args:
        url: of HTTP or HTTPS.
        data: the request's body.
        headers: its headers.
        timeout: seconds until the last byte of the answer.
        limit: bytes that the answer may have.

    Raises:
        OSError: the connection failed; a `TimeoutError` when the time was up.
        http.client.HTTPException: the answer is cut off, or not of HTTP.
    """
    request = _Request(url, data, headers)
    with _Deadline(timeout) as request.deadline:
        try:
            with _opener().open(request, timeout=timeout) as reply:
                return Answer(
                    reply.status, _body(reply, limit + 1, request.deadline), ""
                )
        except urllib.error.HTTPError as error:
            with error:
                location = error.headers.get("Location", "")
                return Answer(error.code, error.read(ERROR_BYTES), location)


def _body(reply: http.client.HTTPResponse, limit: int, deadline: "_Deadline") -> bytes:
    # Piece by piece: an answer in chunks of one byte would take far more memory.
    content = bytearray()
    while piece := reply.read(min(PIECE, limit - len(content))):
        content += piece
        deadline.check()  # much may have come before it
    if reply.length and len(content) < limit:
        raise http.client.IncompleteRead(bytes(content[:100]), reply.length)
    return bytes(content)


class _Deadline:
    """Shuts sockets down when the time is up.

    A socket's own timeout is of one read: a server that sends a byte now and then is
    waited for without end.
    """

    def __init__(self, seconds: float):
        self._lock, self._watched = threading.Lock(), []
        self._over = threading.Event()
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True

    def _shut(self) -> None:
        self._over.set()
        with self._lock:
            for sock in self._watched:
                with contextlib.suppress(OSError):  # the other side was faster
                    sock.shutdown(socket.SHUT_RDWR)

    def watch(self, sock: socket.socket) -> None:
        """Take a socket that must not be used for longer."""
        with self._lock:
            self._watched.append(sock.dup())  # TLS takes the socket itself over
        if self._over.is_set():
            self._shut()

    def check(self) -> None:
        """Raise a TimeoutError if the time is up."""
        if self._over.is_set():
            raise TimeoutError("timed out")

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        with self._lock:
            for sock in self._watched:
                sock.close()
        self.check()  # what was read may look whole, but was cut off


class _Request(urllib.request.Request):
    deadline: _Deadline


class _Response(http.client.HTTPResponse):
    def _read_next_chunk_size(self) -> int:
        size = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:  # of -1 bytes http.client reads all that ever comes
            raise http.client.HTTPException(f"a chunk of {size} bytes")
        return size


def _watched(http_class: Callable[..., Any], request: _Request) -> Callable[..., Any]:
    """Return a kind of connection whose socket the request's deadline shuts."""

    def make(host: str, **settings: Any) -> http.client.HTTPConnection:
        connection = http_class(host, **settings)
        create = connection._create_connection

        def created(*address: Any) -> socket.socket:
            sock = create(*address)
            request.deadline.watch(sock)
            return sock

        connection._create_connection = created
        connection.response_class = _Response
        return connection

    return make


class _Http(urllib.request.HTTPHandler):
    def do_open(self, http_class: Any, req: Any, **settings: Any) -> Any:
        return super().do_open(_watched(http_class, req), req, **settings)


class _Https(urllib.request.HTTPSHandler):
    def do_open(self, http_class: Any, req: Any, **settings: Any) -> Any:
        return super().do_open(_watched(http_class, req), req, **settings)


class _Stay(urllib.request.HTTPRedirectHandler):
    def http_error_302(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any
    ) -> None:
        """Go nowhere: the redirection is an error like others."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Http, _Https, _Stay)
