"""The language models' experiment: shapes of full scale, and a run of seconds."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.language import experiment
from experiments.language.experiment import METHODS, PRESETS, full_scale, run
from jaxkd import data
from jaxkd.experiment import Run
from jaxkd.kernels.quant_matmul import QuantizedWeights
from jaxkd.training import MESHES


def parameters(tree) -> int:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, QuantizedWeights))
    return sum(getattr(leaf, "codes", leaf).size for leaf in leaves)


@pytest.mark.parametrize(
    ("preset", "billions"), [("paper", 8.03), ("paper_int8", 8.03), ("paper_70b", 70.6)]
)
def test_full_scale_has_llamas_sizes(preset, billions):
    ((program, batch),) = full_scale(PRESETS[preset]).values()
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    assert parameters(state.teacher["params"]) == pytest.approx(
        billions * 1e9, rel=2e-3
    )
    assert parameters(state.student["params"]) == pytest.approx(1.236e9, rel=2e-3)
    dtypes = {x.dtype.name for x in jax.tree.leaves(state.teacher)}
    rounded = {"int8"} if preset == "paper_int8" else set()
    assert dtypes == {"bfloat16"} | rounded
    assert {x.dtype.name for x in jax.tree.leaves(state.student)} == {"float32"}
    assert batch["input_ids"].shape == (256, 4096)


def test_the_slice_has_its_mesh():
    shape, chips = MESHES[experiment.MESH], 16 * 16
    assert experiment.SLICE.endswith("16x16")
    assert shape.data * shape.fsdp * shape.tensor == chips


def test_a_short_run_has_records_of_every_method(tmp_path, monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 11, 2000).astype("u1")
    windows = (data.Windows("toy", part, 8, 11) for part in (tokens, tokens[:200]))
    monkeypatch.setattr(experiment, "load_text", lambda *_, found=tuple(windows): found)
    tiny = {"width": 8, "layers": 1, "heads": 2, "hidden": 8}
    monkeypatch.setitem(experiment.SIZES, "tiny", tiny)
    config = replace(
        PRESETS["small"],
        teacher="tiny",
        student="tiny",
        teacher_steps=3,
        steps=3,
        warmup=1,
        teacher_bits="int8",
        methods=("cross_entropy", "forward_kl", "logits_kl"),
    )
    records = run(config, [0], Run(tmp_path))
    found = {(r.method, r.metric): r.value for r in records}
    assert {method for method, _ in found} == {"teacher", *config.methods}
    assert found["logits_kl", "nll"] == pytest.approx(found["forward_kl", "nll"])
    for method in ("teacher", *config.methods):
        assert 0 < found[method, "nll"] < 2 * np.log(11)
        assert found[method, "perplexity"] == pytest.approx(
            np.exp(found[method, "nll"])
        )


def test_unknown_methods_and_absent_text_are_said(tmp_path):
    assert {*PRESETS["small"].methods, "logits_kl"} == set(METHODS)
    with pytest.raises(ValueError, match="unknown method 'forward'"):
        experiment.objective(PRESETS["small"], "forward")
    with pytest.raises(FileNotFoundError, match="llama3_tokens"):
        run(PRESETS["paper"], [0], Run(tmp_path))
