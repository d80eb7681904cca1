"""The student's answers in the tokens of a teacher that has another tokenizer."""

import jax
import numpy as np
from jaxtyping import Int, Shaped

from jaxkd.arguments import checked, count
from jaxkd.data.text.tokenizers import Tokenizer, tokens_around
from jaxkd.data.text.two_tokenizers import (
    END,
    align_pieces,
    padded_row,
    predicted,
    token_bytes,
)
from jaxkd.teachers.host import on_host
from jaxkd.types import Ask, Batch, Variables


@checked(length=count)
def retokenized(student: Tokenizer, teacher: Tokenizer, *, length: int) -> Ask:
    """Return what `jaxkd.programs.on_policy` asks for a teacher with another tokenizer.

    Every step, prompts and answers are written for the teacher in its own tokens, and
    aligned with the student's as `jaxkd.data.two_tokenizers` does, for `aligned_kd`. A
    prompt is the batch's ``teacher_input_ids`` and ``teacher_attention_mask``, such as
    the teacher's own chat template makes it, or else the student's as plain text.

    Args:
        student: its tokenizer.
        teacher: likewise.
        length: places of the teacher's rows; what is longer is cut off, and the spans
            with it.
    """
    pieces, teacher_pieces = token_bytes(student), token_bytes(teacher)
    begin = tokens_around(teacher)[0]
    beyond = 2**31

    def text(tokens: np.ndarray) -> list[int]:
        written = b"".join(pieces[token] for token in tokens if pieces[token] != END)
        return teacher.encode(written.decode(errors="replace"))

    def row(
        tokens: np.ndarray, answer: np.ndarray, prompt: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return a row of the teacher's, and the span of each token of the answer."""
        before = [*begin, *text(tokens)] if prompt is None else prompt.tolist()
        after = text(answer)
        if teacher.eos is not None and student.eos in answer.tolist():
            after.append(teacher.eos)
        spans, own = align_pieces(
            [pieces[token] for token in answer],
            [teacher_pieces[token] for token in after],
        )
        own = np.concatenate([np.zeros(len(before), np.int64), own])
        spans, own = predicted([np.append(0, spans), own], (beyond, length))
        learnt = np.arange(len(own)) >= len(before)
        every = np.array([*before, *after], np.int64)
        return padded_row(every, learnt, own, length), spans[1:]

    def host(
        ids: Int[np.ndarray, "batch length"],
        real: Shaped[np.ndarray, "batch length"],
        label: Int[np.ndarray, "batch length"],
        mask: Shaped[np.ndarray, "batch length"],
        *prompts: np.ndarray,
    ) -> dict[str, np.ndarray]:
        aligned = np.zeros(ids.shape, np.int32)
        rows = []
        for i, counted in enumerate(mask > 0):
            end = int(counted.argmax()) + 1 if counted.any() else ids.shape[1]
            prompt = prompts[0][i][prompts[1][i] > 0] if prompts else None
            found, spans = row(
                ids[i, :end][real[i, :end] > 0], label[i, counted], prompt
            )
            aligned[i, counted] = spans
            rows.append(found)
        batch = {f"teacher_{n}": np.stack([x[n] for x in rows]) for n in rows[0]}
        return {**batch, "teacher_student_span_ids": aligned}

    def ask(variables: Variables, rows: Batch) -> Batch:
        size, width = rows["input_ids"].shape
        places = jax.ShapeDtypeStruct((size, length), np.int32)
        names = "input_ids", "attention_mask", "label", "mask", "span_ids"
        shapes = {f"teacher_{name}": places for name in names}
        shapes["teacher_student_span_ids"] = jax.ShapeDtypeStruct(
            (size, width), np.int32
        )
        read = ["input_ids", "attention_mask", "label", "mask"]
        if "teacher_input_ids" in rows:
            read += ["teacher_input_ids", "teacher_attention_mask"]
        return {**rows, **on_host(host, shapes, *(rows[name] for name in read))}

    return ask
