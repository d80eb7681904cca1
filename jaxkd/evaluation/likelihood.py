"""How likely a language model finds given texts: the options of a question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxkd.arguments import checked, count
from jaxkd.checks import check_tokens
from jaxkd.data.text.tokenizers import Tokenizer, tokens_around
from jaxkd.losses.basics import as_float
from jaxkd.network import Network
from jaxkd.types import Variables, deployed

Pair = tuple[Sequence[int], Sequence[int]]
SHORTEST = 32
"""Rows are filled up to it or to the next power of 2, to compile few lengths."""


class Likelihood(NamedTuple):
    """What a model says of a continuation.

    Attributes:
        log_probability: of it all, in nats.
        greedy: whether each of its tokens is the most likely one.
    """

    log_probability: float
    greedy: bool


@checked(batch_size=count)
def likelihood_evaluator(
    network: Network, batch_size: int = 16
) -> Callable[[Variables, Sequence[Pair]], list[Likelihood]]:
    """Return ``(variables, pairs) ->`` the likelihood of each continuation.

    A pair is a context and its continuation, in tokens. Pairs of like lengths are read
    together, whatever their order.

    Args:
        network: a decoder with the tap ``final``, and ``head`` or logits that can be
            made from it alone (`Network.segment`).
        batch_size: pairs in one forward pass.

    Raises:
        ValueError: from the function returned, a pair without a context or a
            continuation, or of tokens that are none of the network's.
    """
    taps = tuple(tap for tap in ("final", "head") if tap in network.taps)
    # Capped logits are more than a product with the head.
    rest = None if "head" in taps else network.segment("final", None)

    @jax.jit
    def score(variables: Variables, ids: Array, label: Array, mask: Array):
        batch = {"input_ids": ids, "attention_mask": (label >= 0).astype(jnp.int32)}
        inputs = network.read(batch)
        outputs, _ = network.apply(variables, inputs, taps=taps)
        features = outputs.features

        def logits(hidden: Array) -> Array:
            if rest is None:
                return hidden @ features["head"]
            return rest.apply(variables, hidden[None])[0].logits[0]

        # One row at a time: the logits of all of them may not fit.
        def row(each: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            hidden, label, mask = each
            log_p = jax.nn.log_softmax(as_float(logits(hidden)))
            picked = jnp.take_along_axis(log_p, label[:, None], axis=-1)[:, 0]
            best = log_p.argmax(-1) == label
            return jnp.where(mask, picked, 0).sum(), jnp.all(best | ~mask)

        label = jnp.maximum(label, 0)
        return lax.map(row, (features["final"], label, mask))

    def evaluate(variables: Variables, pairs: Sequence[Pair]) -> list[Likelihood]:
        for i, (context, continuation) in enumerate(pairs):
            if not len(context) or not len(continuation):
                raise ValueError(
                    f"pair {i} has {len(context)} tokens of context and "
                    f"{len(continuation)} of continuation: begin the context with the "
                    "tokenizer's bos, and leave out what continues it by nothing"
                )
        found: list[Likelihood] = [Likelihood(0.0, greedy=True)] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = _rows([pairs[i] for i in chosen], batch_size)
            for tokens in rows[:2]:
                # Padding is −1 among the labels.
                tokens = np.maximum(tokens, 0)
                check_tokens("a text to score", tokens, network.vocabulary)
            sums, greedy = score(variables, *rows)
            for row, i in enumerate(chosen):
                found[i] = Likelihood(float(sums[row]), bool(greedy[row]))
        return found

    return evaluate


def _rows(pairs: Sequence[Pair], rows: int) -> tuple[np.ndarray, ...]:
    """Return inputs, labels (−1 for padding), and which are the continuation's."""
    length = max(sum(map(len, pair)) for pair in pairs) - 1
    length = max(SHORTEST, 1 << (length - 1).bit_length())
    ids = np.zeros((rows, length), np.int32)
    label = np.full((rows, length), -1, np.int32)
    mask = np.zeros((rows, length), bool)
    for row, (context, continuation) in enumerate(pairs):
        tokens = [*context, *continuation]
        size = len(tokens) - 1
        ids[row, :size], label[row, :size] = tokens[:-1], tokens[1:]
        mask[row, len(context) - 1 : size] = True
    return ids, label, mask


@checked()
@dataclass(frozen=True)
class Question:
    """A question and the answers to choose from.

    Attributes:
        prompt: the text before an option.
        options: texts, each with the space before it that it is to have.
        answer: the place of the right one.
    """

    prompt: str
    options: tuple[str, ...]
    answer: int


@checked(batch_size=count)
def choice_evaluator(
    network: Network,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    batch_size: int = 16,
) -> Callable[[Any], dict[str, float]]:
    """Return ``variables -> metrics`` of multiple choice by the options' likelihood.

    Given a program's state, it measures the variables that are `jaxkd.types.deployed`.
    ``choice_accuracy`` chooses by the log-probability of the whole option,
    ``normalized_choice_accuracy`` by that over its characters, without the space before
    it (``acc`` and ``acc_norm`` of lm-evaluation-harness, Gao et al. 2021).

    Args:
        network: as of `likelihood_evaluator`.
        tokenizer: the network's.
        questions: to answer.
        batch_size: options in one forward pass.

    Raises:
        ValueError: no questions, one with an empty option or an answer that is none.
    """
    if not questions:
        raise ValueError("questions is empty: give at least one")
    for i, question in enumerate(questions):
        if not all(option.strip() for option in question.options) or not (
            0 <= question.answer < len(question.options)
        ):
            raise ValueError(
                f"question {i} has options {question.options} and answer "
                f"{question.answer}: give texts, and the place of one of them"
            )
    score = likelihood_evaluator(network, batch_size)
    pairs = [
        encode_pair(tokenizer, question.prompt, option)
        for question in questions
        for option in question.options
    ]

    def evaluate(state: Any) -> dict[str, float]:
        found = iter(score(deployed(state), pairs))
        right = np.zeros(2)
        for question in questions:
            total = np.array([next(found).log_probability for _ in question.options])
            sizes = np.array([len(option.lstrip()) for option in question.options])
            right += [
                total.argmax() == question.answer,
                (total / sizes).argmax() == question.answer,
            ]
        share = right / len(questions)
        return {
            "choice_accuracy": float(share[0]),
            "normalized_choice_accuracy": float(share[1]),
        }

    return evaluate


@checked()
def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Return the tokens of a context and of its continuation.

    Both are tokenised as one text and then parted, since a word's token has the space
    before it: spaces at the context's end belong to the continuation. The context
    begins with what the tokenizer puts before a text (`tokens_around`); an empty one to
    which nothing is added, with ``bos`` or, where there is none, ``eos``.

    Args:
        tokenizer: the network's.
        context: may be empty.
        continuation: a text.

    Raises:
        ValueError: the context is empty, and the tokenizer has neither token.
    """
    begin, _ = tokens_around(tokenizer)
    bare = context.rstrip()
    first = tokenizer.encode(bare)
    whole = tokenizer.encode(context + continuation)
    if not begin and not first:
        token = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
        if token is None:
            raise ValueError(
                f"{continuation!r} has no context, and the tokenizer has no token to "
                "begin with: give a context"
            )
        begin = [token]
    return begin + whole[: len(first)], whole[len(first) :]
