"""Summaries over seeds and the tables made of them, against numbers worked by hand."""

import io
import math

import pytest
from rich.console import Console
from scipy import stats

from jaxkd.reporting import metrics
from jaxkd.reporting.metrics import METRICS, Metric
from jaxkd.reporting.paper import PaperValue, paper_table
from jaxkd.reporting.records import Record, methods, select, settings, summarize
from jaxkd.reporting.tables import (
    comparison,
    format_summary,
    format_value,
    markdown_table,
    measured,
    print_table,
)


def records(method, values, metric="last_accuracy", setting="", wall_time=4.0):
    return [
        Record(method, seed, metric, value, wall_time + seed, setting)
        for seed, value in enumerate(values)
    ]


def read(value):
    return PaperValue(value, "Table 1", checked=True)


def printed(width, *args, **kwargs):
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(console, *args, **kwargs)
    return console.export_text()


TWO = [
    *records("teacher", [0.99]),
    *records("cross_entropy", [0.90, 0.92, 0.94]),
    *records("kd", [0.91, 0.93, 0.98]),
    *records("cross_entropy", [0.5, 0.3, 0.4], "nll"),
    *records("kd", [0.25, 0.25, 0.25], "nll"),
]


def test_summary_by_hand():
    # Deviations −2, 0, 2: variance with n − 1 is 4, so the error is 2/√3.
    summary = summarize([1.0, 3.0, 5.0])
    assert (summary.mean, summary.seeds) == (3.0, 3)
    assert summary.error == pytest.approx(2 / math.sqrt(3), rel=1e-12)


def test_one_seed_has_a_mean_and_no_error():
    summary = summarize([0.5])
    assert (summary.mean, summary.seeds) == (0.5, 1)
    assert math.isnan(summary.error)


def test_nothing_to_summarise_is_refused():
    with pytest.raises(ValueError, match="values is empty"):
        summarize([])


def test_select_keeps_to_method_metric_and_setting_and_sorts_by_seed():
    mixed = [
        Record("kd", 2, "nll", 0.2, 1.0, "mlp"),
        Record("kd", 0, "nll", 0.0, 1.0, "mlp"),
        Record("kd", 1, "nll", 0.1, 1.0, "cnn"),
        Record("kd", 1, "ece", 0.1, 1.0, "mlp"),
        Record("at", 1, "nll", 0.1, 1.0, "mlp"),
    ]
    assert [r.value for r in select(mixed, "kd", "nll", "mlp")] == [0.0, 0.2]
    assert settings(mixed) == ["mlp", "cnn"]
    assert methods(mixed, "mlp") == ["kd", "at"]


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        # Standard errors: 0.02/√3 = 1.15 %, 0.1/√3 = 0.0577, 2/√3 = 1.15.
        ("last_accuracy", [0.90, 0.92, 0.94], "92.0 ± 1.2"),
        ("last_accuracy", [0.919], "91.9"),
        ("nll", [0.5, 0.3, 0.4], "0.400 ± 0.058"),
        ("decibels", [1.0, 3.0, 5.0], "3 ± 1.2"),
        ("decibels", [1234.5678], "1235"),
    ],
)
def test_summaries_as_text(metric, values, expected):
    assert format_summary(metric, summarize(values)) == expected


def test_values_that_are_not_finite_are_shown_as_such():
    assert format_value("last_accuracy", math.nan) == "nan"


def test_comparison_follows_first_appearance():
    paper = {"kd": {"last_accuracy": read(0.7)}}
    rows = comparison(TWO, ["last_accuracy", "nll"], paper)
    assert [row.method for row in rows] == ["teacher", "cross_entropy", "kd"]
    assert [row.seeds for row in rows] == [1, 3, 3]
    assert [row.seconds for row in rows] == [4.0, 5.0, 5.0]
    assert rows[2].summaries["last_accuracy"].mean == pytest.approx(0.94)
    assert rows[2].paper == {"last_accuracy": read(0.7)}
    assert set(rows[0].summaries) == {"last_accuracy"}
    assert comparison(TWO, ["ece"]) == []


def test_a_settings_own_paper_value_goes_first():
    both = [
        *records("kd", [0.9], setting="mlp"),
        *records("kd", [0.9], setting="cnn"),
    ]
    paper = {
        "kd": {"last_accuracy": read(0.6)},
        "cnn/kd": {"last_accuracy": read(0.8)},
    }
    rows = comparison(both, ["last_accuracy"], paper)
    assert [row.paper["last_accuracy"] for row in rows] == [read(0.6), read(0.8)]


def test_the_confidence_interval_is_students():
    values = [0.90, 0.92, 0.94]
    # 4.302653 is the 97.5 % quantile of t with 2 degrees of freedom.
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert summarize(values).interval() == pytest.approx((0.92 - half, 0.92 + half))
    expected = stats.t.interval(0.8, 2, loc=0.92, scale=0.02 / math.sqrt(3))
    assert summarize(values).interval(0.8) == pytest.approx(expected)
    assert all(map(math.isnan, summarize([0.5]).interval()))
    for level in (0.0, 1.0):
        with pytest.raises(
            ValueError, match=rf"level must be in \(0, 1\), got {level}"
        ):
            summarize(values).interval(level)


def test_markdown_marks_the_best_student_and_not_the_teacher():
    table = markdown_table(TWO, ["last_accuracy", "nll"], {"kd": {"nll": read(0.3)}})
    assert table.splitlines() == [
        "| method | last % | 95 % interval | NLL | paper, NLL | seeds | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| teacher | 99.0 | – | – | – | 1 | 4.0 |",
        "| cross_entropy | 92.0 ± 1.2 | 87.0 to 97.0 | 0.400 ± 0.058 | – | 3 | 5.0 |",
        "| kd | **94.0 ± 2.1** | 85.0 to 103.0 | **0.250 ± 0.000** | 0.300 | 3 | 5.0 |",
    ]


def test_a_paper_s_number_that_was_not_read_is_marked():
    paper = {
        "cross_entropy": {"nll": PaperValue(0.2, "Table 1", checked=False)},
        "kd": {"nll": PaperValue(0.3, "Table 1", checked=True)},
    }
    for text in (
        markdown_table(TWO, ["nll"], paper),
        printed(80, TWO, ["nll"], paper),
    ):
        assert text.count("0.200†") == 1
        assert "0.300†" not in text
        assert text.count("† recalled, not read in the paper or its code") == 1


def test_a_paper_s_table_is_read_row_by_row():
    rows = {"kd": "70.66 -", "dkd": "71.97 74.11"}
    assert paper_table("last_accuracy", ("a-b", "c-d"), rows, "Table 1", True) == {
        "a-b/kd": {"last_accuracy": read(0.7066)},
        "a-b/dkd": {"last_accuracy": read(0.7197)},
        "c-d/dkd": {"last_accuracy": read(0.7411)},
    }
    with pytest.raises(ValueError, match="'kd' has 1 entries, and there are 2"):
        paper_table("last_accuracy", ("a-b", "c-d"), {"kd": "70.66"}, "Table 1", True)
    for row, message in (
        ("70.66 7O.1", "the row 'kd' has '7O.1', which is no number"),
        ("70.66 nan", "the row 'kd' has 'nan', which is no number"),
    ):
        with pytest.raises(ValueError, match=message):
            paper_table("last_accuracy", ("a-b", "c-d"), {"kd": row}, "Table 1", True)
    with pytest.raises(ValueError, match="settings must be different"):
        paper_table("last_accuracy", ("a", "a"), {"kd": "1 2"}, "Table 1", True)


def test_markdown_escapes_its_own_characters():
    table = markdown_table(records("a|b*<i>", [0.5], setting="x_`y"), ["last_accuracy"])
    assert r"a\|b\*\<i\>" in table
    assert r"**x_\`y**" in table


def test_the_printed_table_holds_the_numbers():
    paper = {"kd": {"last_accuracy": read(0.7066)}}
    text = printed(80, TWO, ["last_accuracy", "nll"], paper)
    assert [" ".join(line.split()) for line in text.splitlines()[:4]] == [
        "method last % paper, last % NLL n s",
        "teacher 99.0 – – 1 4.0",
        "cross_entropy 92.0 ± 1.2 – 0.400 ± 0.058 3 5.0",
        "kd 94.0 ± 2.1 70.7 0.250 ± 0.000 3 5.0",
    ]


def test_markup_in_names_is_printed_as_it_is():
    text = printed(80, records("[red]kd[/red]", [0.5]), ["last_accuracy"])
    assert "[red]kd[/red]" in text


@pytest.mark.parametrize("width", [40, 50, 80])
def test_a_narrow_terminal_gets_more_tables_and_loses_nothing(width):
    text = printed(width, TWO, ["last_accuracy", "nll"])
    lines = text.splitlines()[:-1]
    assert max(map(len, lines)) <= width
    assert all(cell in text for cell in ("92.0 ± 1.2", "0.400 ± 0.058", "94.0 ± 2.1"))
    assert len([line for line in lines if "method" in line]) == (2 if width < 45 else 1)


def test_metrics_to_compare_by_are_the_known_ones_in_order():
    some = [
        Record("kd", 0, metric, 1.0, 1.0) for metric in ("first_loss", "nll", "ece")
    ]
    assert measured(some) == (["nll", "ece"], ["first_loss"])
    assert measured(some[:1]) == (["first_loss"], [])
    assert measured([]) == ([], [])


def test_an_experiments_own_column_has_one_meaning(monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", dict(METRICS))
    own = Metric("wobble %", higher_is_better=False)
    for _ in range(2):
        metrics.declare(wobble=own)
    assert list(metrics.METRICS)[-1] == "wobble"
    assert metrics.higher_is_better("wobble") is False
    with pytest.raises(ValueError, match=r"'nll' is a column already, .*another name"):
        metrics.declare(nll=own)
