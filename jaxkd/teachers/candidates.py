"""What a served teacher thinks of the student's candidates, for on-policy training.

The student writes an answer, and of every token of it names the k that it found most
probable. The teacher reads prompt and answer once, and says how probable each is.
"""

import base64
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxkd.arguments import checked
from jaxkd.losses.topk import top_k_log_probs
from jaxkd.network import Network
from jaxkd.teachers.endpoint import Endpoint
from jaxkd.teachers.host import on_host
from jaxkd.teachers.served import OTHER_BYTES, ServedTeacher, improbable
from jaxkd.types import Ask, Batch, Variables
from jaxkd.untrusted import array_from

Answer = tuple[Int[np.ndarray, "places k"], Float[np.ndarray, "places k"]]


@checked()
def scored_candidates(
    served: ServedTeacher,
    student: Network,
    protocol: Literal["completions", "generate"] = "completions",
) -> Ask:
    """Return what `jaxkd.programs.on_policy` asks a served teacher in every step.

    It adds to a batch of prompts and answers ``teacher_ids``, k candidates at each of
    the answer's places, and ``teacher_log_probs``, the teacher's of them, which
    `jaxkd.methods.topk_kd` compares, with all other tokens as one class.

    ``"completions"`` is for every server with ``prompt_logprobs``. It tells of its own
    k best tokens, and of the one that was drawn. A candidate that is not among them
    is left out, and the place is filled up with the teacher's best: all numbers are the
    teacher's own, and what is left out counts with the rest, in both networks.

    ``"generate"`` is vLLM's ``/inference/v1/generate`` with
    ``prompt_logprob_token_ids``, which tells of the candidates alone, all of them, and
    sends some bytes for each.

    Args:
        served: the teacher. Its source is the prompts; k is the number of candidates.
        student: whose logits name them, by a forward pass more.
        protocol: the server's.

    Raises:
        ValueError: from the step, as `ServedTeacher.take`, and a connection that fails.
    """
    if protocol == "generate":
        endpoint = Endpoint(
            served.url,
            "/inference/v1/generate",
            f"k = {served.k} (--max-logprobs), the rows' length (--max-model-len), "
            "whether vLLM has prompt_logprob_token_ids",
            served.api_key,
            served.connections,
            served.timeout,
            served.retries,
            served.backoff,
        )
        score = _generate(served, endpoint)
    else:
        endpoint, score = served.endpoint, _completions(served)

    def host(
        ids: Int[np.ndarray, "batch length"],
        real: Shaped[np.ndarray, "batch length"],
        mask: Shaped[np.ndarray, "batch length"],
        candidates: Int[np.ndarray, "batch length k"],
    ) -> tuple[np.ndarray, np.ndarray]:
        # What stands at tokens that do not count is finite, and masked.
        found = np.broadcast_to(np.arange(served.k, dtype=np.int32), candidates.shape)
        found = found.copy()
        log_probs = np.full(candidates.shape, -np.log(served.k), np.float32)
        asked = []
        for row in np.flatnonzero((mask > 0).any(1)):
            counted = mask[row] > 0
            # Of the tokens that are sent, those after which the answer's come.
            places = np.flatnonzero(counted[real[row] > 0])
            tokens = ids[row][real[row] > 0].tolist()
            future = endpoint.submit(score, tokens, places, candidates[row, counted])
            asked.append((row, counted, future))
        try:
            for row, counted, future in asked:
                found[row, counted], log_probs[row, counted] = future.result()
        finally:
            for *_, future in asked:
                future.cancel()
        return found, log_probs

    def ask(variables: Variables, rows: Batch) -> Batch:
        logits = student.apply(variables, student.read(rows, "student"))[0].logits
        logits = logits[..., : served.classes]
        candidates = top_k_log_probs(logits, served.k)[0].astype(jnp.int32)
        shape = jax.ShapeDtypeStruct(candidates.shape, jnp.float32)
        ids, log_probs = on_host(
            host,
            (candidates, shape),
            *(rows[name] for name in ("input_ids", "attention_mask", "mask")),
            candidates,
        )
        return {**rows, "teacher_ids": ids, "teacher_log_probs": log_probs}

    return ask


def _completions(served: ServedTeacher) -> Any:
    def score(tokens: list[int], places: np.ndarray, candidates: np.ndarray) -> Answer:
        told = served.places(tokens)
        pairs = []
        for place, named in zip(places, candidates.tolist(), strict=True):
            known = told[place]
            best = sorted(known, key=lambda token: (-known[token], token))
            # The candidates of which it tells, and then its best others.
            chosen = dict.fromkeys([*(x for x in named if x in known), *best])
            pairs.append([(token, known[token]) for token in [*chosen][: served.k]])
        both = np.array(pairs, np.float64)
        return both[..., 0].astype(np.int32), both[..., 1].astype(np.float32)

    return score


def _generate(served: ServedTeacher, endpoint: Endpoint) -> Any:
    def score(tokens: list[int], places: np.ndarray, candidates: np.ndarray) -> Answer:
        # As for completions, a token more is sent to hear what comes after the last.
        prompt, first = [*tokens, tokens[-1]], int(places[0])
        asked = np.zeros((len(tokens) - first, served.k), np.int64)
        asked[:] = np.arange(served.k)
        asked[places - first] = candidates
        size = asked.size * 4
        reply = endpoint.reply(
            {
                "model": served.model,
                "token_ids": prompt,
                "sampling_params": {
                    "max_tokens": 1,
                    "prompt_logprob_token_ids": asked.tolist(),
                    "prompt_logprob_start": first,
                },
                "stream": False,
            },
            prompt,
            OTHER_BYTES + 2 * size,
        )
        try:
            content = base64.b64decode(reply["prompt_token_id_logprobs"], validate=True)
            scores = array_from(content, "prompt_token_id_logprobs", size)
            if scores.dtype != np.float32 or scores.shape != asked.shape:
                raise ValueError(
                    f"it is {scores.dtype} of shape {scores.shape}, not float32 of "
                    f"{asked.shape}"
                )
        except (LookupError, TypeError, ValueError) as error:
            raise endpoint.wrong(
                prompt,
                "answered without prompt_token_id_logprobs that can be used "
                f"({endpoint.quoted(str(error))}): use vLLM with "
                'prompt_logprob_token_ids, or protocol="completions"',
            ) from None
        scores = scores[places - first]
        for place, row in zip(places, scores.astype(np.float64), strict=True):
            if problem := improbable(row, f"place {place + 1}"):
                raise endpoint.wrong(prompt, problem)
        return candidates, scores

    return score
