"""Conversations as documents of which only the assistant's answers are learnt."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from jaxkd.arguments import checked
from jaxkd.data.text.documents import Documents
from jaxkd.data.text.templates import JinjaTemplate
from jaxkd.data.text.tokenizers import FileTokenizer, Tokenizer, tokens_around

Message = Mapping[str, Any]


@checked()
@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written as one text.

    Attributes:
        turns: what stands before and after a message, by its role. What stands after
            the assistant's is learnt with it, for it ends the answer.
        eos: whether the tokenizer's ``eos`` ends each answer besides.
        bos: whether the tokenizer's ``bos`` begins a conversation, as where a template
            of transformers has ``{{ bos_token }}``; None for what the tokenizer itself
            puts before a text, which a template keeps it from.
    """

    turns: Mapping[str, tuple[str, str]]
    eos: bool = False
    bos: bool | None = False


PLAIN = ChatTemplate({"user": ("", ""), "assistant": ("", "")}, eos=True, bos=None)
"""A prompt as any text, and right after it the response and ``eos``."""

CHATML = ChatTemplate(
    {
        role: (f"<|im_start|>{role}\n", "<|im_end|>\n")
        for role in ("system", "user", "assistant")
    }
)
"""As Qwen's models are trained on it."""

LLAMA3 = ChatTemplate(
    {
        role: (f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>")
        for role in ("system", "user", "assistant")
    },
    bos=True,
)
"""As the instruction-tuned models of Llama 3 are trained on it."""


@checked()
def tokenize_chats(
    name: str,
    records: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate | JinjaTemplate = PLAIN,
) -> Documents:
    """Return conversations as documents whose answers alone are learnt.

    Args:
        name: for messages and results.
        records: each with ``messages``, dicts of ``role`` and ``content`` in which the
            assistant has the last word, or with ``prompt`` and ``response``.
        tokenizer: of the models.
        template: how a conversation is written, and whether ``bos`` begins it; of a
            folder, `load_chat_template`.

    Raises:
        ValueError: a record that is no conversation, a role that the template lacks, an
            answer that is empty or missing, or no records. It names the record.
    """
    tokens, trained, lengths = [], [], [0]
    for i, record in enumerate(records):
        try:
            messages = _messages(record)
            if isinstance(template, JinjaTemplate):
                spans = _rendered(messages, tokenizer, template)
            else:
                spans = _spans(messages, tokenizer, template)
            if not messages or messages[-1]["role"] != "assistant":
                raise ValueError("the assistant must have the last word")
        except ValueError as error:
            raise ValueError(f"record {i} of {name!r}: {error}") from None
        length = 0
        for span, learnt in spans:
            tokens += span
            trained += [learnt] * len(span)
            length += len(span)
        lengths.append(length)
    return Documents(
        name,
        np.array(tokens, np.min_scalar_type(tokenizer.vocabulary - 1)),
        np.cumsum(lengths),
        tokenizer.vocabulary,
        np.array(trained, bool),
    )


@checked()
def chat_prompt(
    messages: Sequence[Message] | str,
    tokenizer: Tokenizer,
    template: ChatTemplate | JinjaTemplate = PLAIN,
) -> list[int]:
    """Return the tokens after which a model is to answer.

    They are those that `tokenize_chats` puts before the same answer, unless a folder's
    template ends in a space that the answer's first token would take in.

    Args:
        messages: dicts of ``role`` and ``content``, or one user's message.
        tokenizer: of the model.
        template: as `tokenize_chats` takes it.

    Raises:
        ValueError: a role that the template lacks, or a message that is none.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(template, JinjaTemplate):
        _check_messages(messages)
        return tokenizer.encode(template.render(messages, answer=True))
    spans = _spans(messages, tokenizer, template, answer=True)
    return [token for span, _ in spans for token in span]


def _messages(record: Mapping[str, Any]) -> Sequence[Message]:
    if "messages" in record:
        if not isinstance(record["messages"], list | tuple):
            raise ValueError(f"messages must be a list, got {record['messages']!r:.80}")
        return record["messages"]
    if isinstance(record.get("prompt"), str) and isinstance(
        record.get("response"), str
    ):
        return [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["response"]},
        ]
    raise ValueError(
        f"it has {sorted(record)}, but a conversation has messages, or a text prompt "
        "and a text response"
    )


def _spans(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    answer: bool = False,
) -> list[tuple[list[int], bool]]:
    """Return stretches of tokens, and whether each is learnt.

    Each stretch is tokenised alone, since a prompt is when a model answers it: tokens
    that join prompt and answer would never be seen then.
    """
    begin = tokens_around(tokenizer)[0] if template.bos is None else []
    if template.bos and tokenizer.bos is not None:
        begin = [tokenizer.bos]
    end = [tokenizer.eos] if template.eos and tokenizer.eos is not None else []
    spans, asked = [], ""
    for message in messages:
        role, content = _checked(message, template)
        before, after = template.turns[role]
        if role != "assistant":
            asked += before + content + after
            continue
        if not content:
            raise ValueError("the assistant's answer is empty: leave the record out")
        spans.append((begin + tokenizer.encode(asked + before), False))
        spans.append((tokenizer.encode(content + after) + end, True))
        begin, asked = [], ""
    if answer:
        asked += template.turns["assistant"][0]
    if asked:
        spans.append((begin + tokenizer.encode(asked), False))
    return spans


def _rendered(
    messages: Sequence[Message], tokenizer: Tokenizer, template: JinjaTemplate
) -> list[tuple[list[int], bool]]:
    """Return the same of a folder's template, tokenised as transformers does.

    That is as a whole; an answer's first token may begin before it, with a space.
    """
    _check_messages(messages)
    stretches = template.stretches(messages)
    if not isinstance(tokenizer, FileTokenizer):
        return [(tokenizer.encode(text), learnt) for text, learnt in stretches]
    by_mark = groupby(tokenizer.encode_marked(stretches), key=lambda pair: pair[1])
    return [([token for token, _ in some], learnt) for learnt, some in by_mark]


def _check_messages(messages: Sequence[Message]) -> None:
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"a message must be a dict with a role, got {message!r:.80}"
            )
        if message["role"] == "assistant" and not message.get("content"):
            raise ValueError("the assistant's answer is empty: leave the record out")


def _checked(message: Message, template: ChatTemplate) -> tuple[str, str]:
    role, content = (message.get(key) for key in ("role", "content"))
    if role not in template.turns:
        raise ValueError(
            f"role {role!r} is none of the template's ({', '.join(template.turns)})"
        )
    if not isinstance(content, str):
        raise ValueError(f"the content of a message must be text, got {content!r:.80}")
    return str(role), content
