"""The decoder against transformers' logits and hidden states, and its own laws."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxkd.compression.mixed_bits import quantized
from jaxkd.models import llama
from jaxkd.models.axes import parameter_axes
from jaxkd.models.rope import RopeScaling, frequencies

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
LAYERS = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
}


def checkpoint(name):
    """Return (constructor's arguments, variables, what transformers computed)."""
    config = json.loads((GOLDEN / name / "config.json").read_text())
    rope = config["rope_parameters"]
    scaling = None
    if rope["rope_type"] == "llama3":
        scaling = RopeScaling(
            rope["factor"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
    arguments = {
        "vocabulary": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "hidden": config["intermediate_size"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling,
        "epsilon": config["rms_norm_eps"],
        "qkv_bias": name == "qwen2",
        "qk_norm": name == "qwen3",
        "tied": config["tie_word_embeddings"],
    }
    tensors = load_file(GOLDEN / name / "model.safetensors")
    params = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(llama(**arguments).init, jax.random.key(0))["params"],
    )
    params["embed"]["embedding"] = tensors["model.embed_tokens.weight"]
    params["norm"]["scale"] = tensors["model.norm.weight"]
    if not arguments["tied"]:
        params["head"]["kernel"] = tensors["lm_head.weight"].T
    for theirs, ours in LAYERS.items():
        for kind in ("weight", "bias"):
            names = [
                f"model.layers.{i}.{theirs}.{kind}" for i in range(arguments["layers"])
            ]
            if names[0] not in tensors:
                continue
            stacked = np.stack([tensors[name].T for name in names])
            part = params["blocks"]
            for key in ours.split("."):
                part = part[key]
            leaf = "bias" if kind == "bias" else next(k for k in part if k != "bias")
            assert part[leaf].shape == stacked.shape
            part[leaf] = stacked
    return arguments, {"params": params, "stats": {}}, np.load(GOLDEN / name / "io.npz")


@pytest.mark.parametrize("name", ["llama", "llama_rope31", "qwen2", "qwen3"])
def test_logits_and_hidden_states_are_those_of_transformers(name):
    arguments, variables, expected = checkpoint(name)
    network = llama(**arguments)
    last = arguments["layers"] - 1
    taps = ("embed", *(f"block{i}" for i in range(last)), "final")
    inputs = {key: expected[key] for key in ("input_ids", "attention_mask")}
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(variables, inputs)
    real = expected["attention_mask"] > 0
    np.testing.assert_allclose(
        outputs.logits[real], expected["logits"][real], rtol=1e-4, atol=1e-5
    )
    for i, tap in enumerate(taps):
        np.testing.assert_allclose(
            outputs.features[tap][real],
            expected[f"hidden_{i}"][real],
            rtol=1e-4,
            atol=1e-5,
        )


SMALL = {
    "vocabulary": 17,
    "width": 16,
    "layers": 2,
    "heads": 4,
    "hidden": 24,
    "kv_heads": 2,
}
IDS = jax.random.randint(jax.random.key(1), (2, 7), 0, 17)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(llama(**SMALL).init)(jax.random.key(0))


@functools.cache
def forward(**changes):
    network = llama(**{**SMALL, **changes})
    return jax.jit(lambda v, x: network.apply(v, x)[0].logits)


def logits(variables, inputs, **changes):
    return np.asarray(forward(**changes)(variables, inputs))


def test_a_token_sees_none_after_it(variables):
    changed = IDS.at[:, 4].add(1) % 17
    before, after = (logits(variables, {"input_ids": ids}) for ids in (IDS, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).min(axis=(0, 2)).max() > 0


@pytest.mark.parametrize("changes", [{"scan": False}, {"remat": True}])
def test_the_blocks_are_the_same_however_they_are_compiled(variables, changes):
    def gradient(**changes):
        apply = llama(**{**SMALL, **changes}).apply
        loss = lambda v: apply(v, {"input_ids": IDS})[0].logits.var()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)

    plain, other = gradient(), gradient(**changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, other)


def test_a_window_of_one_block_reaches_that_far(variables):
    one = jax.tree.map(lambda x: x, variables)
    one["params"]["blocks"] = jax.tree.map(lambda x: x[:1], one["params"]["blocks"])
    changed = IDS.at[:, 1].add(1) % 17
    before, after = (
        logits(one, {"input_ids": ids}, layers=1, window=3) for ids in (IDS, changed)
    )
    reached = np.abs(before - after).max(axis=(0, 2)) > 1e-7
    assert reached.tolist() == [False, True, True, True, False, False, False]


def test_packed_sequences_do_not_see_one_another(variables):
    packed = {
        "input_ids": jnp.concatenate([IDS[:1], IDS[1:]], axis=1),
        "segment_ids": jnp.repeat(jnp.arange(2), 7)[None],
        "position_ids": jnp.tile(jnp.arange(7), 2)[None],
    }
    both = logits(variables, packed)[0]
    alone = logits(variables, {"input_ids": IDS})
    np.testing.assert_allclose(both, alone.reshape(14, -1), atol=1e-5)


def test_the_head_and_the_last_features_make_the_logits(variables):
    network, taps = llama(**SMALL), ("final", "head", "block1.attn")
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(
        variables, {"input_ids": IDS}
    )
    np.testing.assert_allclose(
        outputs.features["final"] @ outputs.features["head"], outputs.logits, atol=1e-6
    )
    assert outputs.features["block1.attn"].shape == (2, 7, 16)


def test_bfloat16_stays_bfloat16(variables):
    network = llama(**SMALL).computing_in(jnp.bfloat16)
    run = jax.jit(lambda v: network.apply(v, {"input_ids": IDS})[0].logits)
    found = run(variables)
    assert found.dtype == jnp.bfloat16
    exact = logits(variables, {"input_ids": IDS})
    np.testing.assert_allclose(found.astype(float), exact, atol=0.02)


def test_low_frequencies_are_slowed_and_high_ones_kept():
    plain = frequencies(64, 500_000.0)
    scaled = frequencies(64, 500_000.0, RopeScaling())
    assert scaled[0] == plain[0]
    assert scaled[-1] == pytest.approx(plain[-1] / 8)
    assert (np.diff(scaled) < 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 18}, "width 18 is no multiple of 4 heads"),
        ({"kv_heads": 3}, "heads 4 must be a multiple of kv_heads 3"),
        ({"head_dim": 3}, "head_dim 3 must be even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        llama(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": IDS}, "reads a dict with input_ids"),
        ({"input_ids": IDS[0]}, "input_ids must be integers of shape"),
        ({"input_ids": IDS * 1.0}, "input_ids must be integers of shape"),
    ],
)
def test_inputs_that_are_no_tokens_are_refused(variables, inputs, message):
    with pytest.raises(ValueError, match=message):
        llama(**SMALL).apply(variables, inputs)


def test_quantised_blocks_are_close(variables):
    trained = llama(**SMALL).with_variables(variables)
    network = quantized(trained, [(r"blocks\..*\.kernel", "int8")], group=8)
    rounded = jax.jit(network.init)(jax.random.key(0))
    found = logits(rounded, {"input_ids": IDS})
    exact = logits(variables, {"input_ids": IDS})
    assert 0 < np.abs(found - exact).max() < 0.01 * np.abs(exact).max()


def test_weights_are_known_by_their_layers():
    block = ("student", "params", "blocks", "mlp", "down")
    assert parameter_axes((*block, "kernel"), 3) == (None, "hidden", "embed")
    assert parameter_axes((*block, "kernel", "codes"), 3) == (None, "hidden", "embed")
    assert parameter_axes((*block[:-1], "other", "kernel"), 2) is None
    assert parameter_axes((), 0) is None
