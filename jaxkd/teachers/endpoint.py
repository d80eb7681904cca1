"""An HTTP server that is asked in JSON: again where that may help, many at once.

The server is not trusted: its answers are bounded in time and bytes, it cannot lead
elsewhere, and no message shows the key.
"""

import functools
import http.client
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jaxkd.arguments import checked, positive
from jaxkd.teachers.post import post
from jaxkd.untrusted import json_from, shown

LONGEST_WAIT = 30.0


@checked(timeout=positive)
@dataclass(frozen=True)
class Endpoint:
    """One address of a server.

    Attributes:
        url: of the server, such as ``http://teacher:8000``; redirections are refused.
        path: of the address, such as ``/v1/completions``.
        hint: what to check where the server refuses a request.
        api_key: sent as the bearer token, if the server wants one.
        connections: requests at once; twice as many may wait.
        timeout: seconds for all of an answer, after which a request is tried again.
        retries: how often a request is tried again after statuses 429 and 5xx, and
            after connections that fail.
        backoff: seconds before the first of them; each further wait is twice as long.

    Raises:
        ValueError: a number out of range, a URL that is not of HTTP or holds more than
            host and path, or a key that no header can hold.
    """

    url: str
    path: str
    hint: str
    api_key: str | None = field(repr=False)
    connections: int
    timeout: float
    retries: int
    backoff: float

    def __post_init__(self):
        _check_url(self.url)
        visible = r"[!#-&(-\[\]-~]+"
        if self.api_key is not None and not re.fullmatch(visible, self.api_key):
            raise ValueError(
                "api_key must be of ASCII characters without spaces, quotes and "
                "backslashes (it is not shown here): strip the line end of a key that "
                "was read from a file"
            )
        finite = 0 < self.timeout < threading.TIMEOUT_MAX and 0 <= self.backoff < 1e9
        if self.connections < 1 or self.retries < 0 or not finite:
            raise ValueError(
                "connections must be at least 1, timeout above 0, and retries and "
                f"backoff at least 0, all finite, got {self.connections}, "
                f"{self.timeout}, {self.retries} and {self.backoff}"
            )

    @property
    def address(self) -> str:
        """The whole of it."""
        return f"{self.url.rstrip('/')}{self.path}"

    @functools.cached_property
    def pool(self) -> tuple[ThreadPoolExecutor, threading.Semaphore]:
        """What asks, and the places of what may wait to be asked."""
        pool = ThreadPoolExecutor(self.connections, "served-teacher")
        return pool, threading.Semaphore(3 * self.connections)

    def submit(self, ask: Callable[..., Any], *arguments: Any) -> Future:
        """Queue a function that asks; wait while the queue is full."""
        pool, places = self.pool
        places.acquire()
        future = pool.submit(ask, *arguments)
        future.add_done_callback(lambda _: places.release())
        return future

    def reply(self, content: dict[str, Any], tokens: list[int], limit: int) -> Any:
        """Return the server's answer, decoded.

        Args:
            content: of the request.
            tokens: that it is about, for messages.
            limit: bytes that the answer may have.

        Raises:
            ConnectionError: the server cannot be reached, or gives up on the request.
            ValueError: it refuses the request, or answers something else.
        """
        text = self._post(content, tokens, limit)
        try:
            return json_from(text, "the answer", len(text))
        except ValueError as error:
            raise self.wrong(
                tokens,
                f"sent what cannot be used: {error} (it begins "
                f"{self.quoted(text.decode(errors='replace'))[:100]!r}): is url that "
                "of a completions server?",
            ) from None

    def _post(self, content: dict[str, Any], tokens: list[int], limit: int) -> bytes:
        """Return the server's answer, asked again where that may help."""
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = json.dumps(content).encode()
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(self.backoff * 2 ** (attempt - 1), LONGEST_WAIT))
            try:
                status, body, location = post(
                    self.address, data, headers, self.timeout, limit
                )
            except (OSError, http.client.HTTPException) as error:
                problem = self.quoted(f"{type(error).__name__}: {error}")
                continue
            if 200 <= status < 300 and len(body) <= limit:
                return body
            if 200 <= status < 300:
                raise self.wrong(
                    tokens,
                    f"answered more than the {limit} bytes that {len(tokens)} tokens "
                    "can need: is url that of a completions server?",
                )
            if 300 <= status < 400:
                raise self.wrong(
                    tokens,
                    f"leads elsewhere (status {status}), to {self.quoted(location)!r}:"
                    " nothing was sent there; if you trust it, give it as url",
                )
            problem = f"status {status}: {self.quoted(body.decode(errors='replace'))}"
            if status != 429 and status < 500:
                raise self.wrong(
                    tokens,
                    f"refused a request with {problem}. Check {self.hint} and api_key",
                )
        raise ConnectionError(
            f"{self.address} did not answer in {self.retries + 1} attempts of up to "
            f"{self.timeout:g} s, the last with {problem}. Check that the server runs "
            "and is reached from here; raise timeout or retries, or lower connections, "
            "if it is only slow"
        )

    def wrong(self, tokens: list[int], problem: str) -> ValueError:
        """Return the error for an answer, which names the server and the request."""
        return ValueError(
            f"{self.address} {problem} (the request has {len(tokens)} tokens and "
            f"begins {tokens[:8]})"
        )

    def quoted(self, text: str) -> str:
        """Return what a server said, without the key, which it may have sent back."""
        return shown(text if self.api_key is None else text.replace(self.api_key, "*"))


def _check_url(url: str) -> None:
    if any(c in "@?#" or c.isspace() or not c.isprintable() for c in url):
        raise ValueError(
            "url must have a host and a path alone, and no user, password, query or "
            "space (it is not shown here, as it may hold a key): see api_key"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise ValueError(
            "url must begin with http:// or https:// and a host, such as "
            f"http://teacher:8000, got {url}"
        )
