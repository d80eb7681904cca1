"""How good written texts are: overlap with references, and variety."""

import re
from collections.abc import Hashable, Sequence

from jaxkd.arguments import checked, count

WORD = re.compile(r"[^\W_]+")


@checked()
def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation.

    They are those of Google's ``rouge_score`` but for letters outside ASCII, which it
    takes for punctuation.
    """
    return WORD.findall(text.lower())


@checked()
def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-Parallel LCS-length Computation Revisited"): a whole
    row of the table is one integer, whose zeros count the steps up.

    Args:
        a: tokens or words.
        b: likewise.
    """
    places: dict[Hashable, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


@checked()
def rouge_l(
    prediction: str, references: str | Sequence[str], beta: float = 1.0
) -> float:
    """Return ROUGE-L, the F-measure of the longest common subsequence of words.

    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", Eqs. 2 to 4:
    (1 + β²)·R·P / (R + β²·P), R and P its length over the reference's and the
    prediction's.

    Args:
        prediction: the text to judge.
        references: one or several, of which the best counts.
        beta: β > 0, how much more recall counts than precision.

    Returns:
        0 to 1; 0 where a text has no words.

    Raises:
        ValueError: no references, or β not above 0.
    """
    references = [references] if isinstance(references, str) else references
    if not references or beta <= 0:
        raise ValueError(
            f"rouge_l() needs a reference and beta above 0, got {len(references)} "
            f"references and {beta}"
        )
    found = words(prediction)
    return max(_f_measure(found, words(reference), beta) for reference in references)


def _f_measure(found: list[str], wanted: list[str], beta: float) -> float:
    common = common_subsequence(found, wanted)
    if not common:
        return 0.0
    recall, precision = common / len(wanted), common / len(found)
    return (1 + beta**2) * recall * precision / (recall + beta**2 * precision)


@checked(n=count)
def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Return the share of n-grams that are distinct, over all texts together.

    Li et al. 2016, arXiv:1510.03055, Section 5.2, with n-grams in place of words in the
    denominator, as is usual, so that the most is 1 for any n.

    Args:
        texts: of words or tokens.
        n: at least 1.

    Returns:
        0 where no text has n words.

    Raises:
        ValueError: n below 1.
    """
    found = [tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1)]
    return len(set(found)) / len(found) if found else 0.0
