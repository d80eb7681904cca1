"""A teacher behind an HTTP server, for one too large for the mesh.

It is any server with OpenAI's completions endpoint and the field ``prompt_logprobs``,
as vLLM has it: asked to complete an example's tokens, it tells what the teacher thinks
of each of them. Nothing but the standard library is needed to ask.
"""

import functools
import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxkd.arguments import checked
from jaxkd.data.sources import Examples
from jaxkd.teachers.targets import TeacherTargets
from jaxkd.types import Batch

LONGEST_WAIT = 30.0


@checked()
@dataclass(frozen=True)
class ServedTeacher:
    """Text with a served teacher's best next tokens, asked for as it is read.

    Batches have ``teacher_ids`` and ``teacher_log_probs`` (…, k), best first, which
    `jaxkd.methods.topk_kd` reads. Padding (0 in ``attention_mask`` or ``segment_ids``)
    is not sent, and packed documents are sent one by one. To ask once for several
    students, give ``targets`` to `jaxkd.teachers.write_teacher_cache`.

    The server must allow k log-probabilities (vLLM: ``--max-logprobs``), and prompts
    two tokens longer than the examples (``--max-model-len``). Its tokenizer must be the
    examples': see `jaxkd.data.check_vocabularies`.

    Attributes:
        source: the examples, with ``input_ids`` (examples, length).
        url: of the server, such as ``http://teacher:8000``.
        model: its name there.
        k: how many tokens to ask for.
        api_key: sent as the bearer token, if the server wants one.
        connections: requests at once; twice as many may wait.
        timeout: seconds without an answer, after which a request is tried again.
        retries: how often a request is tried again after statuses 429 and 5xx, and
            after connections that fail.
        backoff: seconds before the first of them; each further wait is twice as long.

    Raises:
        ValueError: a number out of range, or a URL that is not of HTTP.
    """

    source: Examples
    url: str
    model: str
    k: int
    api_key: str | None = field(default=None, repr=False)
    connections: int = 8
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {self.url}")
        if not 1 <= self.k <= self.source.classes:
            raise ValueError(
                f"k must be 1 to {self.source.classes} (the tokens of "
                f"{self.source.name!r}), got {self.k}"
            )
        if self.connections < 1 or self.timeout <= 0 or self.retries < 0:
            raise ValueError(
                "connections must be at least 1, timeout above 0 and retries at least "
                f"0, got {self.connections}, {self.timeout} and {self.retries}"
            )

    @property
    def name(self) -> str:
        """For messages and results."""
        return f"{self.source.name} with the served teacher {self.model}"

    @property
    def classes(self) -> int:
        """Labels are below it."""
        return self.source.classes

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        """A checksum of the source's, the model's name and k."""
        text = f"{self.source.fingerprint} {self.model} {self.k}"
        return f"{zlib.crc32(text.encode()):08x}"

    @property
    def targets(self) -> TeacherTargets:
        """This teacher, to be cached. Its fingerprint is the model's name."""
        settings = {"k": self.k, "dtype": "float32"}
        return TeacherTargets(f"served {self.model}", settings, self.answer)

    def take(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Return the examples at these positions, with the teacher's answers.

        Raises:
            ConnectionError: the server cannot be reached, or gives up on a request.
            ValueError: it refuses a request, or answers something else.
        """
        batch = self.source.take(positions, rng)
        return {**batch, **self.answer(batch)}

    def answer(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return the teacher's best next tokens after every token of a batch."""
        shape = (*batch["input_ids"].shape, self.k)
        # What stands at tokens that were not sent is finite, and masked.
        ids = np.broadcast_to(np.arange(self.k), shape).astype(
            np.min_scalar_type(self.classes - 1)
        )
        log_probs = np.full(shape, -math.log(self.k), np.float32)
        asked = [
            (row, tokens, self._submit(batch["input_ids"][row, tokens].tolist()))
            for row, tokens in _documents(batch)
        ]
        try:
            for row, tokens, future in asked:
                ids[row, tokens], log_probs[row, tokens] = future.result()
        finally:
            for _, _, future in asked:
                future.cancel()
        return {"teacher_ids": ids, "teacher_log_probs": log_probs}

    @functools.cached_property
    def _pool(self) -> tuple[ThreadPoolExecutor, threading.Semaphore]:
        pool = ThreadPoolExecutor(self.connections, "served-teacher")
        return pool, threading.Semaphore(3 * self.connections)

    def _submit(self, tokens: list[int]) -> Future:
        """Queue a request; wait while the queue is full."""
        pool, places = self._pool
        places.acquire()
        future = pool.submit(self._score, tokens)
        future.add_done_callback(lambda _: places.release())
        return future

    def _score(self, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the best next tokens after each token, and their log-probabilities.

        A server tells what it thought of each token before it saw it, so one more is
        sent, whatever it is, to hear what comes after the last.
        """
        prompt = [*tokens, tokens[-1]]
        reply = self._post(
            {
                "model": self.model,
                "prompt": prompt,
                "max_tokens": 1,
                "prompt_logprobs": self.k,
            }
        )
        try:
            found = reply["choices"][0]["prompt_logprobs"]
            entries = [
                {int(token): float(entry["logprob"]) for token, entry in place.items()}
                for place in found[1:]
            ]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{self._endpoint} answered without prompt_logprobs ({error!r}; it "
                f"begins {str(reply)!s:.200}): use a server that has them, such as vLLM"
            ) from None
        if len(found) != len(prompt):
            raise ValueError(
                f"{self._endpoint} answered for {len(found)} tokens, but got "
                f"{len(prompt)}: it cuts prompts off; raise its --max-model-len"
            )
        for token, place in zip(prompt[1:], entries, strict=True):
            self._check(token, place)
        # Of equal ones the lower token comes first, as `top_k_log_probs` has it.
        best = [
            sorted(place.items(), key=lambda item: (-item[1], item[0]))[: self.k]
            for place in entries
        ]
        both = np.array(best, np.float64)
        return both[..., 0].astype(np.int64), both[..., 1].astype(np.float32)

    def _check(self, token: int, place: dict[int, float]) -> None:
        """Refuse what a server says of one token, if it cannot be true."""
        if token not in place:
            raise ValueError(
                f"{self._endpoint} left token {token} out of its answer, so it read "
                "other tokens than were sent: use the teacher's own token ids"
            )
        if len(place) < self.k:
            raise ValueError(
                f"{self._endpoint} gave {len(place)} tokens in place of k = {self.k}: "
                "raise the server's --max-logprobs, or lower k"
            )
        highest = max(place)
        if min(place) < 0 or highest >= self.classes:
            raise ValueError(
                f"{self._endpoint} gave token {highest}, but {self.source.name!r} has "
                f"tokens 0 to {self.classes - 1}: the teacher has another vocabulary; "
                "see data.check_vocabularies"
            )
        wrong = [x for x in place.values() if not math.isfinite(x) or x > 1e-3]
        if wrong:
            raise ValueError(
                f"{self._endpoint} gave {wrong[0]} as a log-probability, which must be "
                "finite and at most 0: the server is broken"
            )

    @property
    def _endpoint(self) -> str:
        return f"{self.url.rstrip('/')}/v1/completions"

    def _post(self, content: dict[str, Any]) -> Any:
        """Return the server's answer, asked again where that may help."""
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = json.dumps(content).encode()
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(self.backoff * 2 ** (attempt - 1), LONGEST_WAIT))
            request = urllib.request.Request(self._endpoint, data, headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    text = reply.read()
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {_beginning(error)}"
                if error.code != 429 and error.code < 500:
                    raise ValueError(
                        f"{self._endpoint} refused a request with {problem}. Check "
                        f"the model's name {self.model!r}, k = {self.k} "
                        "(--max-logprobs), the examples' length (--max-model-len) and "
                        "api_key"
                    ) from None
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                return self._decoded(text)
        raise ConnectionError(
            f"{self._endpoint} did not answer in {self.retries + 1} attempts of up to "
            f"{self.timeout:g} s, the last with {problem}. Check that the server runs "
            "and is reached from here; raise timeout or retries, or lower connections, "
            "if it is only slow"
        )

    def _decoded(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError(
                f"{self._endpoint} answered something that is not JSON, beginning "
                f"{text[:100]!r}: is url that of a completions server?"
            ) from None


def _beginning(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(300).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason


def _documents(batch: Batch) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the row and the places of every run of tokens that see one another."""
    ids = batch["input_ids"]
    ones = np.ones_like(ids)
    segments = np.asarray(batch.get("segment_ids", ones))
    real = (segments > 0) & (np.asarray(batch.get("attention_mask", ones)) > 0)
    for row in range(len(ids)):
        places = np.flatnonzero(real[row])
        if len(places):
            borders = np.flatnonzero(np.diff(segments[row, places])) + 1
            for tokens in np.split(places, borders):
                yield row, tokens
