"""Every verdict of every kind of claim, with numbers worked by hand."""

import math

import pytest

from jaxkd.reporting.claims import (
    Status,
    at_most,
    every_seed_above,
    exceeds,
    exceeds_in_pairs,
    falls_by,
    not_below,
)
from jaxkd.reporting.records import Record

HOLDS, FAILS, OPEN = Status.HOLDS, Status.FAILS, Status.NOT_ESTABLISHED


def records(method, values, metric="last_accuracy", setting=""):
    return [
        Record(method, seed, metric, value, 1.0, setting)
        for seed, value in enumerate(values)
    ]


# Of three values m − d, m, m + d the standard error is d/√3. Below both have d = 0.03:
# errors 0.01732 each, 0.02449 combined, 0.04899 for two.
def pair(first, second, setting=""):
    return [
        *records("a", [first - 0.03, first, first + 0.03], setting=setting),
        *records("b", [second - 0.03, second, second + 0.03], setting=setting),
    ]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0.850, 0.800, HOLDS),
        (0.848, 0.800, OPEN),
        (0.800, 0.800, OPEN),
        (0.800, 0.848, OPEN),
        (0.800, 0.850, FAILS),
    ],
)
def test_exceeds_by_two_combined_errors(first, second, expected):
    verdict = exceeds("a", "b", "last_accuracy").judge(pair(first, second))
    assert verdict.status is expected


@pytest.mark.parametrize(
    ("first", "second", "errors", "expected"),
    [
        (0.850, 0.800, 1.0, HOLDS),
        (0.800, 0.824, 1.0, HOLDS),
        (0.800, 0.825, 1.0, FAILS),
        (0.800, 0.825, 2.0, HOLDS),
        (0.800, 0.801, 0.0, FAILS),
    ],
)
def test_not_below_by_combined_errors(first, second, errors, expected):
    claim = not_below("a", "b", "last_accuracy", errors=errors)
    assert claim.judge(pair(first, second)).status is expected


@pytest.mark.parametrize(
    ("share", "expected"), [(0.6, HOLDS), (0.5, HOLDS), (0.49, FAILS)]
)
def test_at_most_a_share_of_the_reference(share, expected):
    found = [*records("a", [0.25, 0.75], "nll"), *records("b", [1.0], "nll")]
    verdict = at_most("a", "b", "nll", share).judge(found)
    assert verdict.status is expected
    assert verdict.numbers == (
        "a 0.500 ± 0.250 (2 seeds), b 1.000 (1 seed); 0.5 of it, in NLL"
    )


def test_at_most_without_records_is_open():
    found = records("b", [1.0], "nll")
    verdict = at_most("a", "b", "nll", 0.5).judge(found)
    assert verdict.status is OPEN
    assert verdict.numbers == "no records of a's nll"
    with pytest.raises(ValueError, match="share must be above 0"):
        at_most("a", "b", "nll", 0.0)


@pytest.mark.parametrize("constructor", [exceeds, not_below])
def test_the_sentence_holds_the_numbers(constructor):
    claim = constructor("a", "b", "last_accuracy", setting="mlp", errors=2.0)
    assert claim.judge(pair(0.86, 0.8, "mlp")).numbers == (
        "a 86.0 ± 1.7 (3 seeds), b 80.0 ± 1.7 (3 seeds); difference 6.00, 2 × combined "
        "standard error 4.90, in last %"
    )
    assert claim.name.endswith("in last % (mlp)")
    assert "2 combined standard errors" in claim.statement


@pytest.mark.parametrize("constructor", [exceeds, not_below])
@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([], "no records of a's last_accuracy; no records of b's last_accuracy"),
        (records("a", [0.9, 0.8]), "no records of b's last_accuracy"),
        (records("a", [0.9, 0.8]) + records("b", [0.1]), "b has one seed"),
        (pair(0.9, 0.1, setting="elsewhere"), "no records of a"),
        (records("a", [0.9, math.nan]) + records("b", [0.1, 0.2]), "is not finite"),
    ],
)
def test_what_is_missing_is_said(constructor, found, reason):
    verdict = constructor("a", "b", "last_accuracy").judge(found)
    assert verdict.status is OPEN
    assert reason in verdict.numbers


def losses(**first_and_last):
    return [
        record
        for method, (first, last) in first_and_last.items()
        for record in (
            *records(method, first, "first_loss"),
            *records(method, last, "last_loss"),
        )
    ]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, HOLDS), (0.75, HOLDS), (0.76, FAILS)]
)
def test_falls_by_a_share_of_the_mean(share, expected):
    # 4 -> 1 is a fall by exactly 0.75; the other's is larger.
    found = losses(rkd=([3.0, 5.0], [0.5, 1.5]), cc=([2.0, 2.0], [0.1, 0.1]))
    verdict = falls_by("first_loss", "last_loss", share, ("rkd", "cc")).judge(found)
    assert verdict.status is expected
    assert "2 seeds each at least" in verdict.numbers
    assert "most is left in rkd: 25 % of first_loss" in verdict.numbers


@pytest.mark.parametrize(
    ("found", "status", "reason"),
    [
        (losses(rkd=([1.0], [0.1])), OPEN, "no records of cc, crd"),
        (losses(rkd=([1.0], [0.9])), FAILS, "above 50 %: rkd. no records of cc, crd"),
        ([], OPEN, "no records of rkd, cc, crd"),
        (
            losses(rkd=([1.0], [0.1]), cc=([1.0], []), crd=([1.0], [0.1])),
            OPEN,
            "no records of cc's last_loss",
        ),
        (
            losses(rkd=([-1.0], [-2.0]), cc=([1.0], [0.1]), crd=([1.0], [-0.1])),
            OPEN,
            "rkd starts at -1",
        ),
    ],
)
def test_a_fall_that_cannot_be_judged_says_why(found, status, reason):
    claim = falls_by("first_loss", "last_loss", 0.5, ("rkd", "cc", "crd"))
    verdict = claim.judge(found)
    assert verdict.status is status
    assert reason in verdict.numbers


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
        falls_by("first_loss", "last_loss", share, ("rkd",))


def test_a_fall_of_no_method_is_refused():
    with pytest.raises(ValueError, match="methods is empty"):
        falls_by("first_loss", "last_loss", 0.5, ())


def test_status_reads_as_its_words():
    assert [str(status) for status in Status] == ["HOLDS", "FAILS", "NOT ESTABLISHED"]


def test_a_claim_applies_where_its_method_was_run():
    records = [Record("kd", 0, "last_accuracy", 0.9, 1.0, "mlp")]
    claim = not_below("kd", "cross_entropy", "last_accuracy", setting="mlp")
    assert claim.applies(records)
    assert not claim.applies([])
    other = exceeds("kd", "cross_entropy", "last_accuracy", setting="cnn")
    assert not other.applies(records)


def test_margins():
    found = [
        *records("a", [0.90, 0.92], "accuracy"),
        *records("b", [0.86, 0.88], "accuracy"),
    ]
    # The difference is 0.04, the combined standard error 0.0141.
    for margin, status in ((0.02, "HOLDS"), (0.03, "NOT ESTABLISHED"), (0.06, "FAILS")):
        claim = exceeds("a", "b", "accuracy", errors=1.0, margin=margin)
        assert claim.judge(found).status == status
    for margin, status in ((0.02, "FAILS"), (0.03, "HOLDS")):
        claim = not_below("b", "a", "accuracy", errors=1.0, margin=margin)
        assert claim.judge(found).status == status
    assert "by 0.03 in accuracy" in claim.name
    assert "0.03 and 1 combined standard errors" in claim.statement


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.4, 0.31, 0.5], HOLDS), ([0.9, 0.3, 0.9], FAILS), ([0.31], HOLDS), ([], OPEN)],
)
def test_every_seed_must_be_above(values, expected):
    claim = every_seed_above("a", "kendall", 0.3, setting="s")
    verdict = claim.judge(records("a", values, metric="kendall", setting="s"))
    assert verdict.status == expected
    assert "no records" in verdict.numbers or f"{min(values):.3f}" in verdict.numbers
    assert claim.name == "a above 0.300 in Kendall τ (s)"


# Differences 0.02, 0.02, 0.05 have the mean 0.03 and the standard error 0.01, whatever
# the seeds have in common.
@pytest.mark.parametrize(
    ("differences", "errors", "expected"),
    [
        ((0.02, 0.02, 0.05), 2.9, HOLDS),
        ((0.02, 0.02, 0.05), 3.1, OPEN),
        ((-0.02, -0.02, -0.05), 2.9, FAILS),
    ],
)
def test_exceeds_in_pairs(differences, errors, expected):
    low = (0.1, 0.5, 0.9)
    high = [x + gap for x, gap in zip(low, differences, strict=True)]
    found = [*records("a", high), *records("b", low)]
    claim = exceeds_in_pairs("a", "b", "last_accuracy", errors=errors)
    verdict = claim.judge(found)
    assert verdict.status == expected
    assert "mean of 3 differences" in verdict.numbers
    assert exceeds("a", "b", "last_accuracy").judge(found).status == OPEN


def test_exceeds_in_pairs_needs_seeds_in_common():
    apart = [Record("b", seed, "last_accuracy", 0.5, 1.0, "") for seed in (7, 8)]
    claim = exceeds_in_pairs("a", "b", "last_accuracy")
    assert claim.judge([*records("a", (0.6, 0.7)), *apart]).status == OPEN
    assert claim.judge(records("a", (0.6, 0.7))).status == OPEN
