"""Adapters of PEFT: its logits, gradients and files; what is hostile is refused."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from jaxkd.compression.quantise.mixed_bits import quantized
from jaxkd.interop import load_adapter, load_pretrained, save_adapter, save_pretrained
from jaxkd.interop.peft import CONFIG, PREFIX, WEIGHTS
from jaxkd.interop.shards import WEIGHTS as MODEL
from jaxkd.models import llama
from jaxkd.networks import LoraConfig, merged, with_lora

GOLDEN = Path(__file__).parents[1] / "golden"
FAST = ("llama_dora",)
NAMES = [
    pytest.param(path.parent.name, marks=[pytest.mark.slow] * (name not in FAST))
    for path in sorted(GOLDEN.glob("peft/*/io.npz"))
    for name in [path.parent.name]
]


def base(name):
    return load_pretrained(GOLDEN / "hf" / name.partition("_")[0])


def close(found, expected, atol=1e-5):
    """To 1e-5 of the largest number."""
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found / largest, expected / largest, atol=atol)


def by_peft_names(network, adapters, folder):
    """A tree like the adapters' (their gradient) by the names of PEFT's tensors."""
    save_adapter(folder, network, {"params": adapters, "stats": {}})
    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize("name", NAMES)
def test_peft_agrees(name, tmp_path):
    folder, (network, variables) = GOLDEN / "peft" / name, base(name)
    student, adapted = load_adapter(folder, network, variables)
    expected = np.load(folder / "io.npz")
    tokens = {"input_ids": jnp.asarray(expected["input_ids"], jnp.int32)}

    @jax.jit
    def gradient(variables):
        def loss(params):
            own = {**variables, "params": params}
            logits = student.apply(own, tokens)[0].logits
            slopes = jnp.linspace(-1, 1, logits.size).reshape(logits.shape)
            return (slopes * logits).sum(), logits

        return jax.grad(loss, has_aux=True)(variables["params"])

    slopes, logits = gradient(adapted)
    close(logits, expected["logits"])
    inner, weights = merged(student, adapted)
    assert inner is network
    summed = jax.jit(lambda v: network.apply(v, tokens)[0].logits)(weights)
    close(summed, expected["merged_logits"])
    # GPT-2's queries, keys and values have one A in PEFT: its gradient is their sum.
    flat = flatten_dict(slopes["lora"])
    shared = [flat[path] for path in flat if name == "gpt2_lora" and path[-1] == "a"]
    for path in flat:
        if path[-1] == "a" and shared:
            flat[path] = sum(shared)
    found = by_peft_names(student, {"lora": unflatten_dict(flat)}, tmp_path / "slopes")
    given = {k.removeprefix("grad/"): expected[k] for k in expected if "grad/" in k}
    assert len(found) == len(given)
    pairs = [
        (found[f"base_model.model.{module.replace('vector.weight', 'vector')}"], slope)
        for module, slope in given.items()
    ]
    ours, theirs = (
        np.concatenate([x.ravel() for x in y]) for y in zip(*pairs, strict=True)
    )
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    # Of a float64 gradient's largest numbers PEFT's, in float32, are up to 1.2e-5 off
    # (llama_all), and ours 0.7e-5.
    for pair in pairs:
        close(*pair, atol=2e-5)
    # Back to the same files.
    save_adapter(tmp_path / "out", student, adapted, base=name)
    saved, before = (load_file(x / WEIGHTS) for x in (tmp_path / "out", folder))
    assert saved.keys() == before.keys()
    assert all((saved[key] == before[key]).all() for key in saved)
    configs = [json.loads((x / CONFIG).read_text()) for x in (tmp_path / "out", folder)]
    for config in configs:
        config["target_modules"] = sorted(config["target_modules"])
    same = set(configs[0]) - {"base_model_name_or_path"}
    assert {k: configs[0][k] for k in same} == {k: configs[1][k] for k in same}
    assert configs[0]["base_model_name_or_path"] == name


def drawn(network, key):
    leaves, structure = jax.tree.flatten(jax.eval_shape(network.init, key)["params"])
    keys = jax.random.split(key, len(leaves))
    arrays = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        # Each of GPT-2's three has an A of its own, which PEFT's one layer must hold.
        ("gpt2", LoraConfig(rank=2, targets=r".*(query|key)\.kernel", alpha=3)),
        (
            "llama",
            LoraConfig(
                rank=3,
                ranks={r".*query\.kernel": (1, 0, 4)},
                alphas={r".*value\.kernel": (1, 2, 3)},
                rank_stabilised=True,
                targets=r".*(query|value)\.kernel",
            ),
        ),
    ],
    ids=["gpt2", "llama"],
)
@pytest.mark.slow
def test_what_is_written_is_read(name, config, tmp_path):
    network, variables = base(name)
    student = with_lora(network.with_variables(variables), config)
    own = {
        **student.init(jax.random.key(0)),
        "params": drawn(student, jax.random.key(1)),
    }
    save_adapter(tmp_path, student, own)
    again, read = load_adapter(tmp_path, network, variables)
    tokens = {"input_ids": jnp.arange(12).reshape(2, 6)}
    expected = jax.jit(lambda v: student.apply(v, tokens)[0].logits)(own)
    found = jax.jit(lambda v: again.apply(v, tokens)[0].logits)(read)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bert", "deepseek_v3", "gpt2", "mixtral", "phi3", "t5"]
)
def test_modules_are_called_as_the_model_calls_them(name, tmp_path):
    folder = GOLDEN / "hf" / name
    network, variables = load_pretrained(folder)
    student = with_lora(network, LoraConfig(rank=2, dora=True))
    params = drawn(student, jax.random.key(0))
    save_adapter(tmp_path, student, {"params": params})
    tensors = load_file(tmp_path / WEIGHTS)
    modules = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors}
    assert len(modules) > 8
    assert {f"{module}.weight" for module in modules} <= {*load_file(folder / MODEL)}
    again = save_adapter(
        tmp_path / "again", *load_adapter(tmp_path, network, variables)
    )
    jax.tree.map(np.testing.assert_array_equal, load_file(again / WEIGHTS), tensors)


def test_adapters_beside_quantised_weights_are_written(tmp_path):
    network = llama(17, width=16, layers=2, heads=4, hidden=24)
    small = quantized(network, [(r"blocks\..*kernel", "int4"), (".*", None)], 8)
    config = LoraConfig(rank=2)
    params = drawn(with_lora(network, config), jax.random.key(0))
    with pytest.raises(ValueError, match="network was not made by a constructor of"):
        save_adapter(tmp_path, with_lora(small, config), {"params": params})
    save_adapter(tmp_path, with_lora(network, config), {"params": params})
    assert len(load_file(tmp_path / WEIGHTS)) == 2 * 7 * 2


@pytest.fixture
def copy(tmp_path):
    """A golden folder that may be spoilt."""
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "peft" / "llama_lora", folder)
    return folder


NETWORK = llama(160, width=64, layers=3, heads=4, kv_heads=2, hidden=96)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3', but adapters here are LORA"),
        ({"r": 10**9}, "has r = 1000000000, which is no rank"),
        ({"r": 5}, r"q_proj has lora_A.weight \(4, 64\).* it is lora_A.weight \(5, 64"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan, which is no positive number"),
        ({"rank_pattern": {"(a+)+$": 4}}, r"\(a\+\)\+\$': 4 in rank_pattern, which is"),
        ({"rank_pattern": {"q_proj": -1}}, "'q_proj': -1 in rank_pattern"),
        ({"alpha_pattern": [1]}, r"alpha_pattern = \[1\], which is no object"),
        ({"bias": "all"}, "bias = 'all', which is no kind that is read"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = .*jaxkd does not build"),
        ({"use_qalora": True}, "use_qalora = True, which jaxkd does not build"),
        ({"a_switch_of_tomorrow": 1}, "a_switch_of_tomorrow = 1, which jaxkd does not"),
        ({"init_lora_weights": "pissa"}, "'pissa', which is no initial value of which"),
        (
            {"use_dora": True},
            "but by adapter_config.json and the network it is .*mag",
        ),
        ({"use_dora": "yes"}, "use_dora = 'yes', which is no boolean"),
        ({"lora_dropout": 1.0}, r"lora_dropout = 1.0, which is no share below 1"),
        ({"task_type": "\x1b[2J"}, "has control characters"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_config_of_something_else_is_refused(changes, message, copy):
    config = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        load_adapter(copy, NETWORK, {"params": {}, "stats": {}})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"../../x.lora_A.weight": (4, 64)}, "'../../x.lora_A.weight', which is no ad"),
        (
            {"base_model.model.model.embed_tokens.lora_embedding_A": (4, 160)},
            "lora_embedding_A', which is no adapter of the network's linear",
        ),
        (
            {"base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight": (4, 64)},
            "layers.3.self_attn.q_proj.lora_A.weight', which is no adapter",
        ),
        (
            {"base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight": (4, 8)},
            r"q_proj has lora_A.weight \(4, 8\), but by .* is lora_A.weight \(4, 64\)",
        ),
        ({}, "holds no adapters"),
    ],
)
def test_tensors_of_something_else_are_refused(tensors, message, copy):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    save_file(arrays, copy / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        load_adapter(copy, NETWORK, {"params": {}, "stats": {}})


def test_missing_and_changed_files_are_named(copy, tmp_path):
    nothing = {"params": {}, "stats": {}}
    student, adapted = load_adapter(copy, NETWORK, nothing)
    out = save_adapter(tmp_path / "out", student, adapted)
    with (out / CONFIG).open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"adapter_config.json"):
        load_adapter(out, NETWORK, nothing)
    (copy / WEIGHTS).rename(copy / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model.bin is a pickle"):
        load_adapter(copy, NETWORK, nothing)
    (copy / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json is missing"):
        load_adapter(copy, NETWORK, nothing)


def test_what_peft_has_not_is_refused(tmp_path):
    for config, message in (
        (
            LoraConfig(rank=2, adapters=2),
            "has 2 adapters of each weight, mixed by",
        ),
        (
            LoraConfig(rank=2, targets=r"embed\.embedding"),
            "embed.embedding has an ad",
        ),
    ):
        student = with_lora(NETWORK, config)
        params = drawn(student, jax.random.key(0))
        with pytest.raises(ValueError, match=message):
            save_adapter(tmp_path, student, {"params": params})
    student = with_lora(NETWORK, LoraConfig(rank=2))
    with pytest.raises(ValueError, match="variables are not the network's: its adapt"):
        save_adapter(tmp_path, student, {"params": {"lora": {}}})
    save_pretrained(tmp_path, NETWORK, NETWORK.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="holds a model: name another folder for its"):
        save_adapter(tmp_path, student, {"params": drawn(student, jax.random.key(0))})
