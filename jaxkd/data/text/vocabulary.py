"""Whether teacher and student mean the same tokens by the same numbers.

Two networks with logits of one width can still number other tokens, and nothing would
fail: the student would learn nonsense. So texts are encoded with both tokenizers.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxkd.arguments import checked
from jaxkd.data.text.tokenizers import Tokenizer, load_tokenizer

PROBES = (
    "The quick brown fox jumps over the lazy dog, doesn't it? Unbelievably so.",
    "def f(x: int) -> int:\n    return x ** 2  # 3.14159 != 271_828\n\n\t\tpass",
    "  leading spaces,   runs of them, and a trailing one ",
    "0 7 42 365 1999 123456789 1,000,000.00 $5 50% 3/4 #tag user@example.com",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "我能吞下玻璃而不伤身体。私はガラスを食べられます。나는 유리를 먹을 수 있어요.",
    "أنا قادر على أكل الزجاج و هذا لا يؤلمني. मैं काँच खा सकता हूँ।",
    "∀x ∈ ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β; naïve café — “quoted” … 🙂👩‍🔬",
    "pneumonoultramicroscopicsilicovolcanoconiosis HTTPServer snake_case camelCase",
)
"""Texts in which tokenizers differ: scripts, numbers, code, spaces and rare words."""


@checked()
def check_vocabularies(
    teacher: Tokenizer | str | Path,
    student: Tokenizer | str | Path,
    *,
    teacher_width: int | None = None,
    student_width: int | None = None,
    probes: Sequence[str] = PROBES,
) -> int:
    """Return how many of their logits two language models share.

    Networks with one tokenizer may have logits of different widths, for the larger
    models' are often padded further: Qwen2.5's have 151,936 or 152,064. The first ones
    mean the same, and `jaxkd.methods.shared_vocabulary` distils those.

    Args:
        teacher: its tokenizer, or the folder of one.
        student: likewise.
        teacher_width: of the teacher's logits; None for the tokenizer's vocabulary.
        student_width: of the student's logits, likewise.
        probes: texts that both must encode to the same tokens.

    Raises:
        ValueError: the tokenizers differ, or logits do not reach all tokens of their
            network's tokenizer. It names a text that they encode differently.
    """
    if not probes:
        raise ValueError("probes is empty: give texts to compare the tokenizers by")
    readers = [
        load_tokenizer(each) if isinstance(each, str | Path) else each
        for each in (teacher, student)
    ]
    for probe in probes:
        first, second = (list(reader.encode(probe)) for reader in readers)
        if first != second:
            at = next(
                (i for i, (a, b) in enumerate(zip(first, second)) if a != b),  # noqa: B905
                min(len(first), len(second)),
            )
            raise ValueError(
                f"teacher and student have different tokenizers: {probe!r} is "
                f"{_some(first, at)} to the teacher and {_some(second, at)} to the "
                f"student (from token {at} on), so their logits mean different tokens. "
                "Use methods.aligned_kd(), which compares what both write, or "
                "sequence-level distillation, where the student learns the texts that "
                "the teacher writes"
            )
    widths = []
    for who, reader, width in zip(
        ("teacher", "student"), readers, (teacher_width, student_width), strict=True
    ):
        width = reader.vocabulary if width is None else width
        if width < reader.vocabulary:
            raise ValueError(
                f"{who}_width is {width}, but the {who}'s tokenizer has "
                f"{reader.vocabulary} tokens: it is another network's tokenizer, or "
                "tokens were added to it and not to the network"
            )
        widths.append(width)
    return min(widths)


def _some(tokens: list[int], at: int) -> str:
    shown = ", ".join(map(str, tokens[at : at + 5]))
    return f"[{shown}{', …' if len(tokens) > at + 5 else ''}]"
