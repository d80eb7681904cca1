"""Networks as models of lm-evaluation-harness, to be run on its tasks.

``pip install 'jaxkd-distill[lm-eval]'``, then with ``model = harness_model(network,
variables, tokenizer)`` ``lm_eval.simple_evaluate(model=model, tasks=…)``.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.arguments import checked, count
from jaxkd.data.text.padding import left_pad
from jaxkd.data.text.tokenizers import Tokenizer, tokens_around
from jaxkd.evaluation.likelihood import Pair, encode_pair, likelihood_evaluator
from jaxkd.generation import GREEDY, generate
from jaxkd.network import Network
from jaxkd.types import Variables


@checked(batch_size=count)
def harness_model(
    network: Network,
    variables: Variables,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 16,
    max_length: int = 2048,
    max_new_tokens: int = 256,
) -> Any:
    """Return a network as ``lm_eval.api.model.LM``.

    All three kinds of requests are answered: log-likelihoods, those of whole texts, and
    texts written greedily until a stop word.

    Args:
        network: a decoder with the taps ``final``, ``head`` and ``cache``.
        variables: the network's.
        tokenizer: the network's.
        batch_size: requests in one forward pass.
        max_length: tokens the network reads at most; of longer texts the end.
        max_new_tokens: tokens it writes at most, where the task does not say.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: from the model, a request to sample.
    """
    try:
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(
            "harness_model() needs lm-evaluation-harness: "
            "pip install 'jaxkd-distill[lm-eval]'"
        ) from None
    score = likelihood_evaluator(network, batch_size)

    class Model(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            pairs = [encode_pair(tokenizer, *request.args) for request in requests]
            cut = [_last_tokens(pair, max_length) for pair in pairs]
            found = score(variables, cut)
            return [(each.log_probability, each.greedy) for each in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            parts = [
                _windows(encode_pair(tokenizer, "", request.args[0]), max_length)
                for request in requests
            ]
            found = iter(score(variables, [pair for part in parts for pair in part]))
            return [sum(next(found).log_probability for _ in part) for part in parts]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return _generate_until(
                [request.args for request in requests],
                network,
                variables,
                tokenizer,
                batch_size,
                max_length,
                max_new_tokens,
            )

    return Model()


def _last_tokens(pair: Pair, length: int) -> Pair:
    """Return a pair without the begin of its context, that fits a length.

    The last token is a label only, so there is one more than the network reads.
    """
    context, continuation = pair
    keep = length + 1 - len(continuation)
    if keep < 1:
        raise ValueError(
            f"a continuation has {len(continuation)} tokens, but max_length is "
            f"{length}: allow more"
        )
    return context[-keep:], continuation


def _windows(pair: Pair, length: int) -> list[Pair]:
    """Return a text as pairs whose continuations are all of its tokens, each once.

    As the harness has it: windows do not overlap, but for the last, whose context is
    as long as it can be.
    """
    begin, text = pair
    tokens = [*begin, *text]
    found = []
    for start in range(len(begin), len(tokens), length):
        end = min(start + length, len(tokens))
        found.append((tokens[max(end - length - 1, 0) : start], tokens[start:end]))
    return found


def _generate_until(
    requests: Sequence[tuple[str, dict[str, Any]]],
    network: Network,
    variables: Variables,
    tokenizer: Tokenizer,
    batch_size: int,
    max_length: int,
    max_new_tokens: int,
) -> list[str]:
    begin, _ = tokens_around(tokenizer)
    by_length = defaultdict(list)
    for i, (_, settings) in enumerate(requests):
        if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
            raise ValueError(
                f"request {i} wants samples ({settings}), but texts are written "
                "greedily: set do_sample to false in the task"
            )
        by_length[int(settings.get("max_gen_toks", max_new_tokens))].append(i)
    texts = [""] * len(requests)
    for new, members in by_length.items():
        room = max_length - new
        if room < 1:
            raise ValueError(
                f"max_gen_toks is {new}, but max_length {max_length}: no room is left "
                "for a prompt"
            )
        prompts = {
            i: (begin + tokenizer.encode(requests[i][0]))[-room:] for i in members
        }
        order = sorted(members, key=lambda i: -len(prompts[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = [prompts[i] for i in chosen]
            # Few lengths and one batch size, to compile few programs.
            length = min(1 << (len(rows[0]) - 1).bit_length(), room)
            rows += rows[:1] * (batch_size - len(rows))
            found = generate(
                network,
                variables,
                left_pad(rows, tokenizer.pad, length),
                max_new_tokens=new,
                sampling=GREEDY,
                eos=tokenizer.eos,
            )
            tokens, real = np.asarray(found.tokens), np.asarray(found.mask)
            for i, row, mask in zip(chosen, tokens, real, strict=False):
                text = tokenizer.decode(row[mask].tolist())
                texts[i] = _until(text, requests[i][1].get("until", ()))
    return texts


def _until(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
