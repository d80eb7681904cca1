"""Overlap and variety of texts: Lin's examples, rouge_score's numbers, and laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.evaluation.texts import common_subsequence, distinct_n, rouge_l, words


def by_table(a, b):
    """The length of the longest common subsequence, by the textbook's table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row[:]
        for j, y in enumerate(b, 1):
            row[j] = before[j - 1] + 1 if x == y else max(before[j], row[j - 1])
    return row[-1]


@given(st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("abcd")))
def test_common_subsequences_are_the_tables(a, b):
    assert common_subsequence(a, b) == by_table(a, b) == common_subsequence(b, a)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # Lin 2004, Section 3.1: S2 and S3 against S1.
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        # Computed by rouge_score 0.1.2.
        ("the cat was found under the bed", "the cat was under the bed", 12 / 13),
        (
            "Don't  PANIC: 42 is the answer, isn't it?",
            "The answer isn't 42 -- don't panic!",
            0.4444444444444445,
        ),
        ("a b c a b b a", "c b a b a c", 0.6153846153846153),
        ("", "x", 0.0),
        ("x y z", "x y z", 1.0),
    ],
)
def test_rouge_l_is_lins(prediction, reference, expected):
    assert rouge_l(prediction, reference) == pytest.approx(expected, rel=1e-12)


def test_beta_weighs_recall():
    prediction, reference = "a b c d", "a b"
    recall, precision = 1.0, 0.5
    for beta in (0.5, 1.0, 8.0):
        expected = 1.0 * (1 + beta**2) * recall * precision
        expected /= recall + beta**2 * precision
        assert rouge_l(prediction, reference, beta) == pytest.approx(expected)
    assert rouge_l(prediction, ["x", "a b", "a b c d e"]) == pytest.approx(8 / 9)
    with pytest.raises(ValueError, match="needs a reference and beta above 0, got 0"):
        rouge_l("a", [])
    with pytest.raises(ValueError, match=r"got 1 references and 0\.0"):
        rouge_l("a", "a", 0.0)


def test_words_have_no_punctuation():
    assert words("Naïve_snake,  “Zwölf”: 3.14!") == [
        "naïve",
        "snake",
        "zwölf",
        "3",
        "14",
    ]


def test_distinct_ngrams_are_counted_over_all_texts():
    texts = [list("aab"), list("ab"), list("a")]
    assert distinct_n(texts, 1) == pytest.approx(2 / 6)
    assert distinct_n(texts, 2) == pytest.approx(2 / 3)
    assert distinct_n(texts, 4) == 0
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        distinct_n(texts, 0)
