"""The report page stands alone and holds the numbers; plots are images."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.paper import PaperValue
from jaxkd.reporting.plots import _range, curves, plot_comparison, plot_curves
from jaxkd.reporting.records import Record
from jaxkd.reporting.report import (
    markdown_report,
    print_report,
    report_folder,
    write_report,
)
from jaxkd.reporting.results import Results

EVIL = "<script>alert('蒸留 & $x_')</script>"
VOID = {"meta", "img", "br", "link", "hr", "input"}


def records(method, values, setting="", metric="last_accuracy", length=6):
    return [
        Record(
            method, seed, metric, v, 2.0, setting, tuple(np.linspace(0.1, v, length))
        )
        for seed, v in enumerate(values)
    ]


RECORDS = [
    *records("teacher", [0.99], "mlp", length=0),
    *records("cross_entropy", [0.80, 0.82, 0.84], "mlp"),
    *records("kd", [0.90, 0.92, 0.94], "mlp"),
    *records(EVIL, [0.70], "cnn <i>"),
    *records("kd", [5.0], "mlp", "first_loss", length=0),
]

CLAIMS = [
    contrast("kd", "cross_entropy", "last_accuracy", setting="mlp"),
    contrast("cross_entropy", "kd", "last_accuracy", setting="mlp"),
    contrast(EVIL, 0.6, "last_accuracy", setting="cnn <i>"),
    observed("kd", "<", 4.0, "first_loss", setting="mlp"),
]


PAPER = {
    "kd": {"last_accuracy": PaperValue(0.75, "Table 1", checked=False)},
    "cross_entropy": {"last_accuracy": PaperValue(0.65, "Table 1", checked=True)},
}


def results(found):
    return Results(
        experiment="baselines",
        preset="small",
        config={"epochs": 200, "methods": ["kd", EVIL], "rate": None},
        records=found,
        versions={"jax": "0.11.1", "flax": None},
        machine={"processor": "A <processor>", "cores": 2},
        commit="c" * 40,
        dirty=True,
        date="2026-01-01T00:00:00+00:00",
        seconds=61.0,
    )


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text and links."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.links, self.alts, self.text = [], [], [], [], ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        self.links += [named[a] for a in ("src", "href") if a in named]
        if tag == "img":
            self.alts.append(named["alt"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    return write_report(results(RECORDS), CLAIMS, folder, PAPER, ("split", "student"))


@pytest.fixture(scope="module")
def source(written):
    return written[0].read_text(encoding="utf-8")


def test_the_files(written):
    names = ["report.html", "comparison.png", "curves.png"]
    assert [path.name for path in written] == names
    assert all(path.is_file() for path in written)


@pytest.mark.parametrize("index", [1, 2])
def test_plots_are_images_with_something_on_them(written, index):
    image = matplotlib.image.imread(written[index])
    assert image.shape[0] > 200
    assert image.shape[1] > 800
    assert image[..., :3].std() > 0.02


def test_the_page_stands_alone(source, written):
    page = Page(source)
    assert len(page.links) == 2
    for link, path in zip(page.links, written[1:], strict=True):
        kind, _, data = link.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == path.read_bytes()
    assert not re.search(r"https?://|@import|url\(", source)
    assert "script" not in page.tags
    assert "prefers-color-scheme: dark" in source
    assert all(len(alt) > 20 for alt in page.alts)


def test_the_page_holds_numbers_claims_and_origin(source):
    text = Page(source).text
    for expected in (
        *("baselines, preset small", "92.0 ± 1.2", "82.0 ± 1.2", "99.0", "75.0†"),
        *("HOLDS", "FAILS", "NOT ESTABLISHED", "difference 10 in 3 pairs", "one pair"),
        *("c" * 40 + " and changes", "0.11.1", "A <processor>", "epochs", "200"),
        *("first_loss", "61 seconds", "1 HOLDS, 1 FAILS, 1 NOT ESTABLISHED"),
        *("1 OBSERVED (against)", "kd 5: in 0 of 1", "between seeds: split, student."),
        *("† recalled, not read in the paper", "Holm's correction"),
    ):
        assert expected in text, expected


def test_names_are_escaped(source):
    page = Page(source)
    assert EVIL in page.text
    assert "cnn <i>" in page.text
    assert "i" not in page.tags


def test_only_the_best_student_is_marked(source):
    assert re.findall(r'<td class="best">([^<]*)</td>', source) == ["92.0 ± 1.2"]


def test_records_without_curves_give_one_plot_less(tmp_path):
    found = records("kd", [0.5, 0.6], metric="decibels", length=0)
    paths = write_report(results(found), [], tmp_path)
    assert [path.name for path in paths] == ["report.html", "comparison.png"]
    page = Page(paths[0].read_text(encoding="utf-8"))
    assert "0.55 ± 0.05" in page.text
    assert "Claims" not in page.text


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no records: run it again with `jaxkd run"):
        write_report(results([]), [], tmp_path)


def test_the_terminal_gets_tables_and_claims():
    console = Console(width=100, record=True, file=io.StringIO())
    print_report(console, results(RECORDS), CLAIMS, PAPER, ("teacher",))
    text = console.export_text()
    for expected in (
        *("92.0 ± 1.2", "75.0†", EVIL, "also measured, on the page: first_loss"),
        "HOLDS                 kd above cross_entropy in last % (mlp)",
        "FAILS                 cross_entropy above kd in last % (mlp)",
        f"NOT ESTABLISHED       {EVIL} above 60",
        "OBSERVED (against)    kd < 4 in first_loss (mlp)",
        *("What varies between seeds: teacher.", "† recalled", "paired by seed"),
    ):
        assert expected in text, expected


def test_curves_are_one_a_seed_cut_to_the_shortest():
    found = [
        Record("kd", 0, "last_accuracy", 0.3, 1.0, "mlp", (0.1, 0.2, 0.3)),
        Record("kd", 0, "best_accuracy", 0.3, 1.0, "mlp", (0.1, 0.2, 0.3)),
        Record("kd", 1, "last_accuracy", 0.5, 1.0, "mlp", (0.4, 0.5)),
        Record("at", 0, "last_accuracy", 0.5, 1.0, "mlp"),
        Record("kd", 0, "nll", 0.5, 1.0, "cnn", (0.5,)),
    ]
    assert list(curves(found)) == ["mlp"]
    assert list(curves(found)["mlp"]) == ["kd"]
    np.testing.assert_array_equal(curves(found)["mlp"]["kd"], [[0.1, 0.2], [0.4, 0.5]])
    assert list(curves(found, "nll")) == ["cnn"]


def test_a_run_that_went_astray_is_drawn_as_far_as_it_was_finite():
    assert _range([np.array([3.0, 1.0, np.inf, np.nan])]) == pytest.approx((0.9, 3.1))
    assert _range([np.full(3, np.nan)]) == (-1, 1)


@pytest.mark.parametrize("metric", ["nll", "last_accuracy"])
def test_one_seed_one_method_and_constant_curves_are_drawn(tmp_path, metric):
    one = [Record("kd", 0, metric, 0.5, 1.0, "", (0.5,))]
    path = plot_comparison(one, tmp_path / "new" / "a.png", metric)
    assert matplotlib.image.imread(path).size > 0
    path = plot_curves(one, tmp_path / "b.png", metric.removeprefix("last_"))
    assert matplotlib.image.imread(path).size > 0


def test_many_methods_are_drawn(tmp_path):
    many = [
        r for i in range(30) for r in records(f"method{i}", [0.5 + i / 99, 0.5], "cnn")
    ]
    height = [
        matplotlib.image.imread(plot(many[:n], tmp_path / "x.png")).shape[0]
        for plot in (plot_comparison, plot_curves)
        for n in (20, 60)
    ]
    # A row a method in the one; one panel, the rest in grey, in the other.
    assert height[1] > 2 * height[0]
    assert height[3] == height[2]


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (plot_comparison, "no record of 'ece' to draw: .* are last_accuracy"),
        (plot_curves, "no record of 'ece' has a curve: .* are last_accuracy"),
    ],
)
def test_a_plot_of_nothing_is_refused(tmp_path, plot, message):
    with pytest.raises(ValueError, match=message):
        plot(RECORDS, tmp_path / "x.png", "ece")


def test_a_name_that_is_no_formula_is_drawn(tmp_path):
    found = [*records(r"$\frac{", [0.5, 0.6]), *records("cross_entropy", [0.5, 0.7])]
    for plot in (plot_comparison, plot_curves):
        assert math.prod(matplotlib.image.imread(plot(found, tmp_path / "x.png")).shape)


def test_the_markdown_report_holds_tables_and_claims():
    paper = {"kd": {"last_accuracy": PaperValue(0.7, "Table 1", checked=False)}}
    text = markdown_report(results(RECORDS), CLAIMS, paper)
    assert "| kd | **92.0 ± 1.2** | 87.0 to 97.0 | 70.0† | 3 | 2.0 |" in text
    assert "\n† recalled, not read in the paper or its code\n" in text
    assert "| kd above cross\\_entropy" not in text
    assert "| kd above cross_entropy in last % (mlp) | HOLDS | kd 92.0 ± 1.2" in text
    assert "| cross_entropy above kd in last % (mlp) | FAILS |" in text
    assert "<script>" not in text
    assert "varies" not in text
    # A claim on what was not run is left out, and no mark needs no legend.
    short = markdown_report(results(RECORDS[:7]), CLAIMS, varies=("order", "student"))
    assert "above 60" in text
    assert "above 60" not in short
    assert "†" not in short
    assert "\nWhat varies between seeds: order, student.\n" in short


def test_a_verdict_that_holm_changes_is_shown_with_both():
    # Differences of 0.01, 0.02 and 0.02: p = 0.019 alone, and 0.057 among three.
    found = [
        *records("kd", [0.81, 0.84, 0.86], "mlp"),
        *records("cross_entropy", [0.80, 0.82, 0.84], "mlp"),
    ]
    metric = ("kd", "cross_entropy", "last_accuracy")
    claims = [contrast(*metric, margin, setting="mlp") for margin in (0.0, 0.05, 0.06)]
    both = "HOLDS (after Holm: NOT ESTABLISHED)"
    assert f"| {both} | kd 83.7 ± 1.5" in markdown_report(results(found), claims)
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(console, results(found), claims)
    text = console.export_text()
    assert "HOLDS                 kd above cross_entropy" in text
    assert "after Holm NOT ESTABLISHED; kd 83.7" in text


def test_two_results_files_do_not_share_a_report():
    names = ("results/small.json", "results/other.json", "runs/a/small.json")
    folders = [report_folder(name) for name in names]
    assert [str(f) for f in folders] == [
        "results/small",
        "results/other",
        "runs/a/small",
    ]
