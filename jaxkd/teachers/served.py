"""A teacher behind an HTTP server, for one too large for the mesh.

It is any server with OpenAI's completions endpoint and the field ``prompt_logprobs``,
as vLLM has it: asked to complete an example's tokens, it tells what the teacher thinks
of each of them. Nothing but the standard library is needed to ask.
"""

import functools
import math
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxkd.arguments import checked, positive
from jaxkd.data.sources import Examples
from jaxkd.teachers.endpoint import Endpoint
from jaxkd.teachers.targets import TeacherTargets
from jaxkd.types import Batch

ENTRY_BYTES = 256
"""For what a server says of one token: its id, text, rank and log-probability."""

OTHER_BYTES = 65_536
"""For the rest of an answer."""

ROUNDING = 0.01
"""By how much probabilities may sum to more than 1, as a server in bfloat16 rounds."""

LARGEST = float(np.finfo(np.float32).max)


@checked(timeout=positive)
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

    The server is not trusted: its answers are bounded in time and bytes, what cannot be
    probabilities is refused, it cannot lead elsewhere, and no message shows the key.

    Attributes:
        source: the examples, with ``input_ids`` (examples, length).
        url: of the server, such as ``http://teacher:8000``; redirections are refused.
        model: its name there.
        k: how many tokens to ask for.
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
        self.endpoint  # noqa: B018, checks what is said of the server
        if not 1 <= self.k <= self.source.classes:
            raise ValueError(
                f"k must be 1 to {self.source.classes} (the tokens of "
                f"{self.source.name!r}), got {self.k}"
            )

    @functools.cached_property
    def endpoint(self) -> Endpoint:
        """Where completions are asked for."""
        return Endpoint(
            self.url,
            "/v1/completions",
            f"the model's name {self.model!r}, k = {self.k} (--max-logprobs), the "
            "examples' length (--max-model-len)",
            self.api_key,
            self.connections,
            self.timeout,
            self.retries,
            self.backoff,
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
            (row, tokens, self._asked(batch["input_ids"][row, tokens]))
            for row, tokens in _documents(batch)
        ]
        try:
            for row, tokens, future in asked:
                ids[row, tokens], log_probs[row, tokens] = future.result()
        finally:
            for _, _, future in asked:
                future.cancel()
        return {"teacher_ids": ids, "teacher_log_probs": log_probs}

    def _asked(self, tokens: np.ndarray) -> Future:
        return self.endpoint.submit(self._score, tokens.tolist())

    def _score(self, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the best next tokens after each token, and their log-probabilities."""
        # Of equal ones the lower token comes first, as `top_k_log_probs` has it.
        best = [
            sorted(place.items(), key=lambda item: (-item[1], item[0]))[: self.k]
            for place in self.places(tokens)
        ]
        both = np.array(best, np.float64)
        return both[..., 0].astype(np.int64), both[..., 1].astype(np.float32)

    def places(self, tokens: list[int]) -> list[dict[int, float]]:
        """Return the log-probability of some tokens, by token, after each token.

        They are the k best and what comes next. A server tells what it thought of each
        token before it saw it, so one more is sent, whatever it is, to hear what comes
        after the last.

        Raises:
            ConnectionError: the server cannot be reached, or gives up on the request.
            ValueError: it refuses the request, or answers what cannot be true.
        """
        prompt = [*tokens, tokens[-1]]
        reply = self.endpoint.reply(
            {
                "model": self.model,
                "prompt": prompt,
                "max_tokens": 1,
                "prompt_logprobs": self.k,
            },
            prompt,
            OTHER_BYTES + len(prompt) * (self.k + 2) * ENTRY_BYTES,
        )
        try:
            found = reply["choices"][0]["prompt_logprobs"]
            entries = [
                {_token(name): _number(entry["logprob"]) for name, entry in x.items()}
                for x in found[1:]
            ]
        except (
            LookupError,
            TypeError,
            AttributeError,
            ValueError,
            OverflowError,
        ) as error:
            raise self.endpoint.wrong(
                prompt,
                "answered without prompt_logprobs "
                f"({self.endpoint.quoted(repr(error))}): use a server that has them, "
                "such as vLLM",
            ) from None
        if len(found) != len(prompt):
            raise self.endpoint.wrong(
                prompt,
                f"answered for {len(found)} tokens, but got {len(prompt)}: it cuts "
                "prompts off; raise its --max-model-len",
            )
        for token, place in zip(prompt[1:], entries, strict=True):
            problem = self._problem(token, place)
            if problem:
                raise self.endpoint.wrong(prompt, problem)
        return entries

    def _problem(self, token: int, place: dict[int, float]) -> str:
        """Return why what a server says of one token cannot be true, or nothing."""
        if token not in place:
            return (
                f"left token {token} out of its answer, so it read other tokens than "
                "were sent: use the teacher's own token ids"
            )
        if len(place) < self.k:
            return (
                f"gave {len(place)} tokens in place of k = {self.k}: raise the "
                "server's --max-logprobs, or lower k"
            )
        outside = [x for x in place if not 0 <= x < self.classes]
        if outside:
            return (
                f"gave token {outside[0]}, but {self.source.name!r} has tokens 0 to "
                f"{self.classes - 1}: the teacher has another vocabulary; see "
                "data.check_vocabularies"
            )
        return improbable(np.array([*place.values()]), f"token {token}")


@checked()
def improbable(log_probs: np.ndarray, before: str) -> str:
    """Return why log-probabilities of one place cannot be true, or nothing.

    Args:
        log_probs: of different tokens.
        before: what comes there, for the message.
    """
    wrong = log_probs[~((log_probs >= -LARGEST) & (log_probs <= 1e-3))]
    if len(wrong):
        return (
            f"gave {wrong[0]} as a log-probability, which must be finite in float32 "
            "and at most 0: the server is broken"
        )
    total = np.exp(log_probs).sum()
    if total > 1 + ROUNDING:
        return (
            f"gave probabilities before {before} that sum to {total:.4g}, not to at "
            "most 1: the server is broken, or scales its logits"
        )
    return ""


def _token(name: str) -> int:
    if len(name) > 20 or str(int(name)) != name:  # as with " 1" and "01"
        raise ValueError(f"{name!r} is no token")
    return int(name)


def _number(given: Any) -> float:
    if type(given) not in (int, float):
        raise TypeError(f"{given!r} is no log-probability")
    return float(given)


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
