"""Hugging Face's checkpoints: read as they are, and written back bit for bit."""

import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from jaxkd import models, training
from jaxkd.interop import load_pretrained, save_pretrained
from jaxkd.interop.families import (
    FAMILIES,
    bert,
    family_reading,
    family_writing,
    gemma,
    llama,
    mamba2,
    modernbert,
    resnet,
    smollm3,
    t5,
)
from jaxkd.models.language.llama_config import AttentionKind
from jaxkd.models.language.rope import LinearScaling, Rope, RopeScaling, YarnScaling

GOLDEN = Path(__file__).parents[2] / "golden" / "hf"
CHECKPOINTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))

UNUSED = {
    "max_window_layers",  # Where no layer has a window.
    "vision_config.projection_dim",  # Of towers alone.
    "text_config.projection_dim",
    "tie_word_embeddings",  # Of T5, where the tensors say it.
}


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0}


def config_of(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_written_as_it_was_read(name, tmp_path):
    mesh = training.make_mesh(training.MeshShape(fsdp=2, tensor=2))
    for placed in (None, mesh):
        network, variables = load_pretrained(GOLDEN / name, mesh=placed)
        save_pretrained(tmp_path, network, variables)
        files = [f / "model.safetensors" for f in (tmp_path, GOLDEN / name)]
        if name not in ("resnet", "mobilenet_v2"):
            written, original = (file.read_bytes() for file in files)
            assert written == original
        else:  # They count their batches, which nobody reads.
            written, original = map(load_file, files)
            more = {key for key in original if "num_batches_tracked" in key}
            assert set(written) == set(original) - more
            assert all((written[key] == original[key]).all() for key in written)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == config_of(name)
    sides = [{*folder.iterdir()} for folder in (tmp_path, GOLDEN / name)]
    names = [{file.name for file in side} for side in sides]
    assert names[0] - {"SHA256SUMS"} == names[1] - {"io.npz"}
    for side in GOLDEN.glob(f"{name}/generation_config.json"):
        assert (tmp_path / side.name).read_bytes() == side.read_bytes()
    again, variables = load_pretrained(tmp_path)
    save_pretrained(tmp_path, again, variables)
    assert json.loads((tmp_path / "config.json").read_text()) == written


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_family_writes_the_config_that_it_has_read(name):
    """Without the folder's own, as a student that is built by hand is written."""
    config = config_of(name)
    family = family_reading(config)
    network = models.create(family.model, **family.arguments(config))
    written = family.config(network.spec[1])
    flat, original = (flatten_dict(c, sep=".") for c in (written, config))
    different = {k for k in flat if k in original and flat[k] != original[k]}
    assert different <= UNUSED


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_family_has_a_source_for_every_array(name):
    config = config_of(name)
    family = family_reading(config)
    network = models.create(family.model, **family.arguments(config))
    shapes = jax.tree_util.tree_leaves_with_path(
        jax.eval_shape(network.init, jax.random.key(0))
    )
    paths = {"/".join(key.key for key in path) for path, _ in shapes}
    assert network.spec is not None
    assert set(family.tensors(network.spec[1])) == paths


def test_no_two_families_read_the_same():
    names = [name for family in FAMILIES for name in family.architectures]
    assert len(names) == len(set(names))
    assert {family.model for family in FAMILIES} <= set(models.MODELS)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_one_family_writes_what_another_hand_has_built(name):
    """But that Phi-3 is a Llama whose files are other ones."""
    config = config_of(name)
    family = family_reading(config)
    network = models.create(family.model, **family.arguments(config))
    writing = [
        f for f in FAMILIES if f.model == family.model and f.writes(network.spec[1])
    ]
    assert family in writing
    assert len(writing) == 1 or name in (
        "phi3",
        "llama",
        "llama_rope31",
        "mistral_window",
    )
    found = family_writing(*network.spec, config["architectures"][0])
    assert found is family


def test_an_unknown_architecture_is_refused_with_those_that_are_known():
    with pytest.raises(
        ValueError, match=r"unknown architecture 'GemmaForCausalLM': did"
    ) as e:
        family_reading({"architectures": ["GemmaForCausalLM"]})
    for family in FAMILIES:
        assert all(name in str(e.value) for name in family.architectures)


LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({}, (10_000.0, None)),
        ({"rope_theta": 5e5, "rope_scaling": None}, (5e5, None)),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA31}, (5e5, RopeScaling())),
        (
            {"rope_parameters": {**LLAMA31, "rope_theta": 5e5, "factor": 32.0}},
            (5e5, RopeScaling(factor=32.0)),
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 8.0}},
            (10_000.0, LinearScaling(8.0)),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}},
            (10_000.0, YarnScaling(4.0, 128, truncate=False)),
        ),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, (1e6, None)),
    ],
)
def test_old_and_new_keys_of_rotations_are_read(rope, expected):
    config = {**config_of("llama"), "rope_parameters": None, **rope}
    found = llama.FAMILY.arguments(config)
    assert (found["rope_theta"], found["rope_scaling"]) == expected


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"model_type": "llama", "sliding_window": 8}, None),
        ({"model_type": "mistral", "sliding_window": 8}, 8),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "qwen2", "sliding_window": 8}, None),
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True},
            None,
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 8,
                "use_sliding_window": True,
                "max_window_layers": 0,
            },
            8,
        ),
    ],
)
def test_windows_are_those_of_every_layer(changes, window):
    assert llama.FAMILY.arguments({**config_of("llama"), **changes})["window"] == window


def test_only_the_last_layers_of_a_qwen_may_have_a_window():
    sizes = {"num_hidden_layers": 3, "max_window_layers": 2, "layer_types": None}
    window = {"use_sliding_window": True, "sliding_window": 8}
    found = llama.FAMILY.arguments({**config_of("qwen2"), **sizes, **window})
    assert [kind.window for kind in found["attention"]] == [None, None, 8]
    network = models.llama(**found)
    again = llama.FAMILY.arguments(llama.FAMILY.config(network.spec[1]))
    assert again["attention"] == found["attention"]


def test_kinds_of_layers_follow_the_familys_rule_where_a_config_lists_none():
    """As configs of transformers 4 have them."""
    old = {"num_hidden_layers": 7, "layer_types": None, "rope_parameters": None}
    second = gemma.FAMILY.arguments({**config_of("gemma2"), **old})["attention"]
    assert [kind.window for kind in second] == [8, None, 8, None, 8, None, 8]
    rope = {"rope_theta": 1e6, "rope_local_base_freq": 2e4}
    rope["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    third = gemma.FAMILY.arguments({**config_of("gemma3"), **old, **rope})["attention"]
    near = AttentionKind(6, Rope(2e4))
    far = AttentionKind(None, Rope(1e6, LinearScaling(8.0)))
    assert third == (near, near, far, near, near, far, near)
    smol = {**config_of("smollm3"), **old, "no_rope_layers": None}
    turned = smollm3.FAMILY.arguments(smol)["attention"]
    assert [kind.rope is None for kind in turned] == [i == 3 for i in range(7)]
    window = {"use_sliding_window": True, "sliding_window": 5}
    turned = smollm3.FAMILY.arguments({**smol, **window})["attention"]
    assert [kind.window for kind in turned] == [None, None, None, 5, None, None, None]


def test_a_head_has_128_features_in_qwen3_unless_it_says_otherwise():
    config = {**config_of("qwen3"), "hidden_size": 1024}
    del config["head_dim"]
    assert llama.FAMILY.arguments(config)["head_dim"] == 128
    assert llama.FAMILY.arguments({**config, "model_type": "llama"})["head_dim"] is None


@pytest.mark.parametrize(
    ("switches", "model_type"),
    [
        ({}, "llama"),
        ({"window": 5}, "mistral"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qkv_bias": True, "window": 5, "tied": True}, "qwen2"),
        ({"qk_norm": True, "head_dim": 6}, "qwen3"),
        ({"rope_scaling": RopeScaling(2.0, 1.5, 3.0, 64), "rope_theta": 5e5}, "llama"),
    ],
)
def test_every_decoder_comes_back_from_its_config(switches, model_type):
    network = models.llama(8, 8, 1, 2, 8, epsilon=1e-5, **switches)
    assert network.spec is not None
    config = json.loads(json.dumps(llama.FAMILY.config(network.spec[1])))
    assert config["model_type"] == model_type
    again = models.llama(**llama.FAMILY.arguments(config))
    shape = jax.eval_shape(network.init, jax.random.key(0))
    assert shape == jax.eval_shape(again.init, jax.random.key(0))
    assert again.spec is not None
    for name in ("rope_scaling", "rope_theta", "window", "epsilon", "tied"):
        assert again.spec[1][name] == network.spec[1][name]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias = True, which jaxkd does"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu', .* it knows 'silu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}},
            "rope_type = 'longrope', .* it knows 'default', 'linear', 'llama3', 'yarn'",
        ),
        (
            "llama",
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}},
            "rope_type = 'dynamic'",
        ),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.75}}, "factor = 0.75"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        (
            "gemma3",
            {"use_bidirectional_attention": True},
            "bidirectional_attention = T",
        ),
        ("gemma2", {"layer_types": ["chunked_attention"]}, "= 'chunked_attention'"),
        ("granite", {"mlp_bias": True}, "mlp_bias = True"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx = True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("bert", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("bert", {"is_decoder": True}, "is_decoder = True"),
        ("bert", {"position_embedding_type": "relative_key"}, "'relative_key'"),
        ("bert", {"architectures": ["RobertaModel"]}, "architectures = 'RobertaModel'"),
        ("bert_mlm", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ("bert", {"architectures": ["BertForPreTraining"]}, "'BertForPreTraining'"),
        ("distilbert", {"activation": "relu"}, "activation = 'relu'"),
        (
            "longformer",
            {"attention_window": [8, 4]},
            r"window = \[8, 4\], but",
        ),
        ("mistral_window", {"model_type": "other"}, "model_type = 'other'"),
        ("smollm3", {"no_rope_layers": "nonsense"}, "must have 4, got 'nonsense'"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, "x"]}, "no_rope_layers = 'x'"),
        ("gpt_oss", {"rope_parameters": YARN | {"factor": 0}}, "factor must be above"),
        ("gpt_oss", {"rope_parameters": YARN | {"beta_fast": 0}}, "fast must be above"),
        ("gpt_oss", {"rope_parameters": YARN | {"rope_theta": 0}}, "theta must be"),
        ("big_bird", {"rescale_embeddings": True}, "rescale_embeddings = True"),
        ("big_bird", {"attention_type": "lsh"}, "attention_type = 'lsh'"),
        ("modernbert", {"norm_bias": True}, "norm_bias = True"),
        ("modernbert", {"global_attn_every_n_layers": 3}, "layer_types = "),
        ("modernbert", {"num_hidden_layers": 10**9}, "layers = 1000000000, .* knows 4"),
        ("resnet", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("resnet", {"downsample_in_first_stage": True}, "in_first_stage = True"),
        ("resnet", {"layer_type": "other"}, "it knows 'basic', 'bottleneck'"),
        ("mamba2", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("mamba2", {"rms_norm": False}, "rms_norm = False"),
        ("t5", {"feed_forward_proj": "gated-silu"}, "proj = 'gated-silu'"),
        ("vit", {"qkv_bias": False}, "qkv_bias = False"),
        ("vit", {"image_size": [32, 16]}, r"image_size = \[32, 16\], but jaxkd builds"),
        ("deit", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("dinov2", {"qkv_bias": False}, "qkv_bias = False"),
        (
            "dinov2",
            {"architectures": ["Dinov2WithRegistersModel"]},
            "unknown architecture 'Dinov2WithRegistersModel'.* 'Dinov2Model'",
        ),
        ("convnext", {"layer_scale_init_value": 0}, "a model without layer scales"),
        ("convnext", {"num_stages": 3}, "num_stages = 3"),
        ("swin", {"use_absolute_embeddings": True}, "absolute_embeddings = True"),
        ("swin", {"mlp_ratio": 2.0}, "mlp_ratio = 2.0"),
        ("mobilenet_v2", {"output_stride": 16}, "output_stride = 16"),
        ("mobilenet_v2", {"min_depth": 4}, "min_depth = 4, .* it knows 8"),
        ("mobilenet_v2", {"finegrained_output": False}, "finegrained_output = False"),
        (
            "siglip",
            {"text_config": {"projection_size": 32}},
            "projection_size = 32, .* it knows 64",
        ),
        (
            "siglip",
            {"vision_config": {"vision_use_head": False}},
            "vision_use_head = False",
        ),
        (
            "clip",
            {"vision_config": {"hidden_act": "gelu"}},
            "hidden_act = 'quick_gelu', .* it knows 'gelu'",
        ),
        (
            "clip",
            {"vision_config": {"patch_size": [8, 8]}},
            r"patch_size = \[8, 8\], but jaxkd builds",
        ),
    ],
)
def test_what_is_not_built_is_refused(name, changes, message):
    config = {**config_of(name), **changes}
    with pytest.raises(ValueError, match=message):
        family_reading(config).arguments(config)


def test_a_first_position_beyond_the_others_is_refused():
    with pytest.raises(ValueError, match="first_position 16 must be below the 16"):
        models.bert(8, 16, 8, 1, 2, 8, first_position=16)


@pytest.mark.parametrize(
    "switches",
    [
        {"head": None, "variant": "distilbert", "types": 0},
        {"head": "replaced_tokens", "variant": "electra", "embedding_width": 4},
        {"variant": "longformer", "attention": "sliding_window", "first_position": 2},
        {"variant": "big_bird", "attention": "block_sparse", "block": 4},
        {"variant": "roberta", "first_position": 2, "head": "token_classification"},
    ],
    ids=lambda switches: switches["variant"],
)
def test_every_encoder_comes_back_from_its_config(switches):
    network = models.bert(8, 16, 8, 1, 2, 8, **switches)
    assert network.spec is not None
    assert bert.FAMILY.writes(network.spec[1])
    config = json.loads(json.dumps(bert.FAMILY.config(network.spec[1])))
    assert config["model_type"] == switches["variant"]
    again = models.bert(**bert.FAMILY.arguments(config))
    shape = jax.eval_shape(network.init, jax.random.key(0))
    assert shape == jax.eval_shape(again.init, jax.random.key(0))
    paths = {"/".join(path) for path in flatten_dict(shape)}
    assert set(bert.FAMILY.tensors(network.spec[1])) == paths


def test_an_encoder_that_transformers_lacks_has_the_librarys_format(tmp_path):
    form = {"attention": "sliding_window", "window": 4}
    network = models.bert(8, 16, 8, 1, 2, 8, **form)
    variables = network.init(jax.random.key(0))
    save_pretrained(tmp_path, network, variables)
    assert json.loads((tmp_path / "config.json").read_text())["library"] == "jaxkd"
    again, found = load_pretrained(tmp_path)
    assert again.spec == network.spec
    chex.assert_trees_all_equal(found, variables)


def test_modernbert_of_before_transformers_5_is_read():
    config = config_of("modernbert")
    expected = modernbert.FAMILY.arguments(config)
    del config["layer_types"], config["rope_parameters"]
    old = {"global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    assert modernbert.FAMILY.arguments({**config, **old}) == expected


def test_a_decoder_that_transformers_lacks_is_refused():
    network = models.llama(8, 8, 1, 2, 8, qkv_bias=True, qk_norm=True)
    assert network.spec is not None
    with pytest.raises(ValueError, match="no Llama-like model with both qkv_bias and"):
        llama.FAMILY.config(network.spec[1])


def renamed(name, to, change):
    """Copy a golden checkpoint with its tensors under other names."""
    to.mkdir()
    (to / "config.json").write_text((GOLDEN / name / "config.json").read_text())
    save_file(
        change(load_file(GOLDEN / name / "model.safetensors")), to / "model.safetensors"
    )
    return to


def older_bert(tensors):
    new = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    more = {
        "bert.pooler.dense.weight": np.zeros((64, 64)),
        "cls.seq_relationship.bias": np.zeros(2),
        "cls.predictions.decoder.weight": new["bert.embeddings.word_embeddings.weight"],
        "bert.embeddings.position_ids": np.zeros((1, 64)),
    }
    return {**new, **more}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (
            "gpt2",
            lambda t: {
                **{name.removeprefix("transformer."): x for name, x in t.items()},
                "h.0.attn.bias": np.zeros((1, 1, 4, 4)),
            },
        ),
        (
            "qwen2",
            lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]},
        ),
        ("bert_mlm", older_bert),
        (
            "mamba2",
            lambda t: {
                name.replace("embeddings.", "embedding."): x for name, x in t.items()
            },
        ),
        (
            "t5",
            lambda t: {**t, "encoder.embed_tokens.weight": t["shared.weight"]},
        ),
        (
            "vit",
            lambda t: {**t, "vit.pooler.dense.bias": np.zeros(64)},
        ),
        (
            "clip",
            lambda t: {
                **t,
                "text_model.embeddings.position_ids": np.zeros((1, 32), np.int64),
            },
        ),
    ],
    ids=["gpt2", "qwen2", "bert_mlm", "mamba2", "t5", "vit", "clip"],
)
def test_names_of_older_files_are_known(name, change, tmp_path):
    _, expected = load_pretrained(GOLDEN / name)
    _, found = load_pretrained(renamed(name, tmp_path / "old", change))
    chex.assert_trees_all_equal(found, expected)


def test_an_encoder_is_taken_out_from_under_its_head(tmp_path):
    network, whole = load_pretrained(GOLDEN / "bert")
    base, bare = load_pretrained(GOLDEN / "bert", head=None)
    assert base.taps == network.taps
    for name in ("embeddings", "blocks", "pooler"):
        chex.assert_trees_all_equal(bare["params"][name], whole["params"][name])
    assert set(whole["params"]) - set(bare["params"]) == {"head"}
    save_pretrained(tmp_path, base, bare)
    names = load_file(tmp_path / "model.safetensors")
    assert "embeddings.word_embeddings.weight" in names
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "BertModel"
    ]
    with pytest.raises(
        ValueError, match=r"lacks cls\.predictions\.bias, .* and 2 more"
    ):
        load_pretrained(GOLDEN / "bert", head="masked_lm")


def test_dinov2_is_taken_out_from_under_its_classifier(tmp_path):
    _, whole = load_pretrained(GOLDEN / "dinov2")
    base, bare = load_pretrained(GOLDEN / "dinov2", classes=None)
    assert set(whole["params"]) - set(bare["params"]) == {"head"}
    save_pretrained(tmp_path, base, bare)
    names = load_file(tmp_path / "model.safetensors")
    assert "embeddings.mask_token" in names
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Dinov2Model"]
    _, again = load_pretrained(tmp_path)
    chex.assert_trees_all_equal(again, bare)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dinov2", {"size": (12, 2, 3), "classes": None, "swiglu": True}),
        ("swin", {"size": "pico", "classes": 3}),
        ("convnext", {"size": (4, 1, 1, 2, 1), "classes": 3}),
        ("mobilenet_v2", {"width": 1.4, "form": "imagenet", "divisor": 8}),
        ("siglip", {"image": (8, 1, 2, 12), "text": (12, 2, 3, 16)}),
    ],
)
def test_every_image_model_comes_back_from_its_config(name, arguments):
    network = models.create(name, **arguments)
    assert network.spec is not None
    family = family_writing(*network.spec)
    assert family is not None
    again = models.create(name, **family.arguments(family.config(network.spec[1])))
    shape = jax.eval_shape(network.init, jax.random.key(0))
    assert shape == jax.eval_shape(again.init, jax.random.key(0))
    paths = {"/".join(path) for path in flatten_dict(shape)}
    assert set(family.tensors(network.spec[1])) == paths


@pytest.mark.parametrize(
    "network",
    [
        models.mobilenet_v2(),
        models.mobilenet_v2(form="imagenet"),
        models.swin((4, 1, 1, 1, 1), image_size=16),
    ],
    ids=["cifar", "channels cut off", "windows smaller at last"],
)
def test_an_image_model_that_transformers_lacks_has_the_librarys_format(network):
    assert family_writing(*network.spec) is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_tensors_say_whether_a_t5_is_tied(tied, scaled, tmp_path):
    sizes = {"decoder_layers": 1, "head_dim": 4}
    network = models.t5(8, 8, 1, 2, 8, **sizes, tied=tied, scaled=scaled)
    variables = network.init(jax.random.key(0))
    save_pretrained(tmp_path, network, variables)
    again, found = load_pretrained(tmp_path)
    assert again.spec == network.spec
    chex.assert_trees_all_equal(found, variables)
    # Before transformers 5 the ties alone told of the scale, if they agree.
    config = json.loads((tmp_path / "config.json").read_text())
    del config["scale_decoder_outputs"]
    if tied == scaled:
        assert t5.FAMILY.arguments(config)["scaled"] == scaled


def test_time_steps_without_an_upper_limit_are_written_as_transformers_does(tmp_path):
    limits = (0.5, float("inf"))
    network = models.mamba2(8, 8, 1, head_dim=4, time_step_limit=limits)
    assert network.spec is not None
    config = mamba2.FAMILY.config(network.spec[1])
    assert config["time_step_limit"] == [0.5, {"__float__": "Infinity"}]
    again = json.loads(json.dumps(config, allow_nan=False))
    assert mamba2.FAMILY.arguments(again)["time_step_limit"] == limits


def test_a_mamba2_that_transformers_lacks_is_refused():
    network = models.mamba2(8, 8, 1, heads=3, head_dim=4)
    assert network.spec is not None
    with pytest.raises(ValueError, match="3 x 4, is no multiple of the width 8"):
        mamba2.FAMILY.config(network.spec[1])


@pytest.mark.parametrize("depth", [18, 50, (1, 2)])
def test_every_resnet_comes_back_from_its_config(depth):
    widths = {"widths": (8, 8, 12)} if isinstance(depth, tuple) else {}
    network = models.imagenet_resnet(depth, 3, **widths)
    assert network.spec is not None
    again = models.imagenet_resnet(
        **resnet.FAMILY.arguments(resnet.FAMILY.config(network.spec[1]))
    )
    shape = jax.eval_shape(network.init, jax.random.key(0))
    assert shape == jax.eval_shape(again.init, jax.random.key(0))
    paths = {"/".join(path) for path in flatten_dict(shape)}
    assert set(resnet.FAMILY.tensors(network.spec[1])) == paths


def test_a_resnet_that_transformers_lacks_has_the_librarys_format(tmp_path):
    network = models.imagenet_resnet((1,), 2, stem="cifar", widths=(4, 4))
    variables = network.init(jax.random.key(0))
    save_pretrained(tmp_path, network, variables)
    assert json.loads((tmp_path / "config.json").read_text())["library"] == "jaxkd"
    _, found = load_pretrained(tmp_path)
    chex.assert_trees_all_equal(found, variables)
