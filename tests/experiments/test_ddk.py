"""DDK's presets, its measures of weights, and all methods in seconds."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.common import language_models
from experiments.ddk import domains
from experiments.ddk import experiment as ddk
from experiments.ddk.measures import gains, ratios, synthetic_records, weight_metrics
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Run


@pytest.mark.slow
def test_full_scale_has_the_papers_sizes():
    ((program, batch),) = ddk.full_scale(ddk.PRESETS["paper"]).values()
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    for variables, size in ((state.teacher, 14.17e9), (state.student, 1.837e9)):
        found = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert found == pytest.approx(size, rel=5e-3)


@pytest.mark.slow
def test_all_methods_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ddk, "synthetic_records", lambda alpha, seeds: [])
    # Unequal domains, of which the third is nothing but noise.
    rng = np.random.default_rng(0)
    texts = {
        "a": "to be or not to be " * 60,
        "b": "that is the question " * 30,
        "c": "".join(map(chr, rng.integers(32, 126, 800))),
    }
    monkeypatch.setattr(
        domains, "TEXTS", {name: lambda t=t: (t, t) for name, t in texts.items()}
    )
    tiny = {"width": 8, "layers": 1, "heads": 2, "hidden": 8}
    monkeypatch.setitem(language_models.SIZES, "tiny", tiny)
    small = ddk.PRESETS["small"]
    config = replace(
        small,
        domains=domains.DomainsConfig(
            tuple(texts),
            sizes=(1000, 500, 250),
            length=8,
            validation_windows=3,
            test_windows=4,
        ),
        teacher="tiny",
        student="tiny",
        teacher_steps=2,
        student_steps=2,
        gammas=(1.0,),
        interval=2,
        intervals=3,
        methods=("kd", "ddk"),
        batch_size=4,
        optimizer=replace(small.optimizer, warmup=1),
    )
    records = ddk.run(config, [0], Run(tmp_path))
    found = {(r.setting, r.method, r.metric): r.value for r in records}
    for method in config.methods:
        values = [found["γ = 1", method, f"ratio {name}"] for name in "abc"]
        assert found["γ = 1", method, "worst_ratio"] == max(values)
        assert found["γ = 1", method, "mean_ratio"] == pytest.approx(np.mean(values))
        if method != "kd":
            assert found["γ = 1", method, "worst_gain"] == (
                found["γ = 1", "kd", "worst_ratio"] - max(values)
            )
    assert found["γ = 1", "ddk", "weight_slack"] >= -1e-6
    assert ("γ = 1", "kd", "weight_slack") not in found
    # Found again, not computed.
    assert ddk.run(config, [0], Run(tmp_path)) == records


def test_every_method_has_its_weights():
    config = ddk.PRESETS["small"]
    start, teacher, after = (
        {"perplexity/a": a, "perplexity/b": b} for a, b in ((9, 4), (3, 2), (6, 3))
    )
    found = {
        name: ddk.sampling(config, name, start, teacher)([after])
        for name in ddk.METHODS
    }
    assert found["cpt"] is found["kd"] is None
    assert found["kd_equal"].tolist() == [1, 1]
    first, fresh = (np.exp(ratio) for ratio in (np.array([3, 2]), np.array([2, 1.5])))
    np.testing.assert_allclose(found["ddk_unsmoothed"], fresh / fresh.sum(), rtol=1e-6)
    both = first * fresh / (first * fresh).sum()
    np.testing.assert_allclose(found["ddk"], both / 2 + 0.25, rtol=1e-6)


def test_weights_are_measured():
    weights = np.array([[0.6, 0.2, 0.2], [0.2, 0.5, 0.3]])
    found = weight_metrics(weights, 1, alpha=0.5)
    assert found["weight_change"] == pytest.approx((0.4 + 0.3 + 0.1) / 3 / 1)
    # Bounds are 1/6 and 4/6; sums are 1, which leaves no slack.
    assert found["weight_slack"] == pytest.approx(0, abs=1e-12)
    assert found["hardest_share"] == 0.2
    assert weight_metrics(weights, 0, alpha=0.2)["weight_slack"] == pytest.approx(
        min(0.2 - 0.8 / 3, 0.2 + 0.8 / 3 - 0.6)
    )
    np.testing.assert_array_equal(ratios({"a": 6.0, "b": 4.0}, {"a": 3.0}), [2])


def test_gains_are_over_kd_of_the_same_seed():
    def record(method, seed, value):
        return Record(method, seed, "worst_ratio", value, 1.0, "s")

    records = [record("kd", 0, 3.0), record("kd", 1, 2.0), record("ddk", 0, 2.5)]
    (gain,) = gains([*records, record("ddk", 2, 1.0)])
    assert (gain.method, gain.seed, gain.metric, gain.value) == (
        "ddk",
        0,
        "worst_gain",
        0.5,
    )


def test_smooth_weights_change_less():
    found = {(r.setting, r.method): r.value for r in synthetic_records(0.5, [0])}
    for setting in ("synthetic ratios, sd 1", "synthetic ratios, sd 2"):
        assert found[setting, "ddk"] < found[setting, "ddk_unsmoothed"]


def test_domains_are_held_out(monkeypatch):
    texts = "abcdefgh" * 10, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    monkeypatch.setattr(domains, "TEXTS", {"x": lambda: texts})
    found = domains.DomainsConfig(
        ("x",), sizes=(20,), length=4, validation_windows=2, test_windows=3
    ).load()
    text = lambda part: bytes(part["x"].tokens).decode()  # noqa: E731
    assert text(found.train) == "abcdefgh" * 2 + "abcd"
    assert text(found.validation) == "ABCDEFGHI"
    assert text(found.test) == "IJKLMNOPQRSTU"
    assert [len(p["x"]) for p in (found.train, found.validation, found.test)] == [
        4,
        2,
        3,
    ]
