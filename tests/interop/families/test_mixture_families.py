"""Configs of models with experts: as they are released, written again, and refused."""

import json
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxkd import models
from jaxkd.interop import load_pretrained, save_pretrained
from jaxkd.interop.families import deepseek_v3, family_reading, gpt_oss, qwen3_moe
from jaxkd.models.language.llama_config import Config
from jaxkd.models.language.rope import YarnScaling
from jaxkd.sharding.mesh import MeshShape, make_mesh

GOLDEN = Path(__file__).parents[2] / "golden" / "hf"


def config_of(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


def test_deepseeks_long_context_comes_back_from_its_config():
    yarn = {
        "type": "yarn",
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 4096,
    }
    released = {"rope_scaling": yarn, "rope_theta": 1e4, "q_lora_rank": None}
    config = {**config_of("deepseek_v3"), **released}
    del config["rope_parameters"]
    arguments = deepseek_v3.FAMILY.arguments(config)
    network = models.llama(**arguments)
    assert network.spec is not None
    made = Config.of(**network.spec[1])
    rope = made.attention[0].rope
    assert rope is not None
    assert isinstance(rope.scaling, YarnScaling)
    # The two magnitudes cancel where features turn, and scale all scores.
    assert rope.magnitude == 1
    assert made.scores.scale == pytest.approx((0.1 * math.log(40) + 1) ** 2 / 20**0.5)
    assert deepseek_v3.FAMILY.writes(network.spec[1])
    written = json.loads(json.dumps(deepseek_v3.FAMILY.config(network.spec[1])))
    again = Config.of(**deepseek_v3.FAMILY.arguments(written), **HOW)
    assert again.scores.scale == pytest.approx(made.scores.scale)
    assert again.attention == made.attention
    assert (again.latent, again.mixture) == (made.latent, made.mixture)


HOW = {
    "qkv_bias": False,
    "qk_norm": False,
    "window": None,
    "scan": True,
    "remat": False,
    "implementation": "auto",
}


def test_qwens_released_names_and_first_dense_layers_are_read():
    config = {**config_of("qwen3_moe"), "num_experts": 8, "mlp_only_layers": [0, 1]}
    del config["num_local_experts"], config["norm_topk_prob"]
    arguments = qwen3_moe.FAMILY.arguments(config)
    assert arguments["dense_layers"] == 2
    assert arguments["mixture"].experts == 8
    assert arguments["mixture"].router == "top_of_softmax"
    network = models.llama(**arguments)
    assert network.spec is not None
    written = qwen3_moe.FAMILY.config(network.spec[1])
    assert written["mlp_only_layers"] == [0, 1]
    assert not written["norm_topk_prob"]
    sources = qwen3_moe.FAMILY.tensors(network.spec[1])
    (name,) = sources["params/dense/mlp/up/kernel"].names
    assert name == "model.layers.{}.mlp.up_proj.weight"
    shape = (2, 8, 64, 32)
    expert = [*sources["params/blocks/mlp/up"].places(shape)][-1]
    assert expert == "model.layers.3.mlp.experts.7.up_proj.weight"


def test_every_other_layer_of_gpt_oss_has_a_window():
    config = config_of("gpt_oss")
    del config["layer_types"]
    kinds = gpt_oss.FAMILY.arguments(config)["attention"]
    assert [kind.window for kind in kinds] == [6, None, 6, None]


def test_what_predicts_later_tokens_is_left_out(tmp_path):
    tensors = load_file(GOLDEN / "deepseek_v3" / "model.safetensors")
    tensors["model.layers.61.eh_proj.weight"] = np.zeros((64, 128), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_of("deepseek_v3")))
    _, variables = load_pretrained(tmp_path)
    bias = variables["stats"]["blocks"]["mlp"]["choice_bias"]
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    np.testing.assert_array_equal(bias[0], tensors[name])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("qwen3_moe", {"mlp_only_layers": [2]}, r"only_layers = \[2\], .* knows \[0\]"),
        ("gpt_oss", {"swiglu_limit": 6.0}, "swiglu_limit = 6.0, .* it knows 7.0"),
        ("gpt_oss", {"attention_bias": False}, "attention_bias = False"),
        ("deepseek_v3", {"norm_topk_prob": False}, "norm_topk_prob = False"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method = 'greedy'"),
        ("deepseek_v3", {"v_head_dim": 64}, "value 64 must be at most plain"),
    ],
)
def test_what_is_not_built_is_refused(name, changes, message):
    config = {**config_of(name), **changes}
    with pytest.raises(ValueError, match=message):
        family_reading(config).arguments(config)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_other_mixtures_have_the_librarys_own_format(name):
    config = config_of(name)
    family = family_reading(config)
    network = models.llama(**family.arguments(config))
    assert network.spec is not None
    own = network.spec[1]
    assert family.writes(own)
    assert not family.writes({**own, "mixture": None})
    other = {**vars(own["mixture"]), "activation": "gelu"}
    assert not family.writes({**own, "mixture": other})
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert shapes["params"]["blocks"]["mlp"]["router"]["kernel"].shape[1] == 64


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """gpt-oss as it is released, and its numbers one by one."""
    folder, draw = tmp_path_factory.mktemp("packed"), np.random.default_rng(0)
    tensors = load_file(GOLDEN / "gpt_oss" / "model.safetensors")
    numbers = dict(tensors)
    signs = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        groups = experts, outputs, inputs // 32
        blocks = draw.integers(0, 256, (*groups, 16), np.uint8)
        scales = draw.integers(118, 124, groups, np.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        halves = np.stack([blocks % 16, blocks // 16], axis=-1).astype(int)
        plain = np.take([*signs, *(-x for x in signs)], halves)
        plain = plain.reshape(*groups, 32) * 2.0 ** (scales[..., None] - 127.0)
        plain = plain.reshape(experts, outputs, inputs).swapaxes(1, 2)
        numbers[name] = np.ascontiguousarray(plain, np.float32)
    config = config_of("gpt_oss")
    for to, held, more in (
        ("packed", tensors, {"quantization_config": {"quant_method": "mxfp4"}}),
        ("plain", numbers, {}),
    ):
        (folder / to).mkdir()
        save_file(held, folder / to / "model.safetensors")
        (folder / to / "config.json").write_text(json.dumps({**config, **more}))
    return folder


@pytest.mark.slow
def test_packed_weights_are_the_numbers_that_they_stand_for(packed, tmp_path):
    _, expected = load_pretrained(packed / "plain", dtype=jnp.float32)
    for mesh in (None, make_mesh(MeshShape(fsdp=2, tensor=2))):
        folder = packed / "packed"
        network, found = load_pretrained(folder, dtype=jnp.float32, mesh=mesh)
        chex.assert_trees_all_equal(found, expected)
    save_pretrained(tmp_path, network, found)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in written


def test_packed_weights_that_do_not_fit_are_refused(packed, tmp_path):
    for path in (packed / "packed").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    tensors[f"{name}_scales"] = tensors[f"{name}_scales"][:, 1:]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="down_proj_scales are no weights in MXFP4"):
        load_pretrained(tmp_path)
