"""Decoders with experts against transformers' numbers, and latent attention's laws."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import methods, models
from jaxkd.compression.quantise.mixed_bits import quantized
from jaxkd.generation import Sampling, generate
from jaxkd.interop import load_pretrained
from jaxkd.models.language.llama_config import Latent
from jaxkd.models.parts.moe import Mixture
from jaxkd.sharding.mesh import MeshShape, make_mesh, on_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
NAMES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@functools.cache
def golden(name):
    network, variables = load_pretrained(GOLDEN / name)
    with np.load(GOLDEN / name / "io.npz") as file:
        return network, variables, dict(file)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_hidden_states_are_those_of_transformers(name):
    network, variables, expected = golden(name)
    # Transformers' last hidden state is after the norm.
    blocks = [tap for tap in network.taps if re.fullmatch(r"block\d+", tap)]
    taps = ("embed", *blocks[:-1], "final")
    inputs = {key: expected[key] for key in ("input_ids", "attention_mask")}
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=taps))(variables, inputs)
    real = expected["attention_mask"] > 0
    np.testing.assert_allclose(outputs.logits[real], expected["logits"][real], **CLOSE)
    for i, tap in enumerate(taps):
        hidden = expected[f"hidden_{i}"][real]
        np.testing.assert_allclose(outputs.features[tap][real], hidden, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_that_of_transformers(name):
    network, variables, expected = golden(name)
    # It goes on after the token that ends texts.
    prompt, generated = expected["prompt"], expected["generated"]
    found = generate(
        *(network, variables, {"input_ids": prompt}),
        max_new_tokens=generated.shape[1] - prompt.shape[1],
        sampling=Sampling(temperature=0.0),
    )
    np.testing.assert_array_equal(found.tokens, generated[:, prompt.shape[1] :])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, None) for name in NAMES), ("deepseek_v3", "int8")]
)
def test_reading_on_from_a_cache_is_reading_all(name, kind):
    network, variables, expected = golden(name)
    rounded = quantized(
        network.with_variables(variables), [(r"blocks\..*\.kernel", kind)], group=8
    )
    variables = rounded.init(jax.random.key(0))
    ids = jnp.asarray(expected["generated"][:, :12])
    apply = jax.jit(functools.partial(network.apply, taps=("cache",)))
    whole, _ = apply(variables, {"input_ids": ids})
    first, _ = apply(variables, {"input_ids": ids[:, :8]})
    cache = first.features["cache"].grown(4)
    then, _ = apply(variables, {"input_ids": ids[:, 8:], "cache": cache})
    found = jnp.concatenate([first.logits, then.logits], axis=1)
    np.testing.assert_allclose(found, whole.logits, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_near(name):
    network, variables, expected = golden(name)
    small = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    inputs = {key: expected[key] for key in ("input_ids", "attention_mask")}
    outputs, _ = jax.jit(network.apply)(small, inputs)
    assert outputs.logits.dtype == jnp.bfloat16
    real = expected["attention_mask"] > 0
    exact = jax.nn.log_softmax(expected["logits"][real])
    found = jax.nn.log_softmax(outputs.logits[real].astype(jnp.float32))
    divergence = jnp.sum(jnp.exp(exact) * (exact - found), axis=-1)
    assert jnp.median(divergence) < 1e-3  # A token near a tie may go to other experts.


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_mesh_changes_no_number(name):
    mesh = make_mesh(MeshShape(fsdp=2, tensor=2))
    network, _, expected = golden(name)
    _, placed = load_pretrained(GOLDEN / name, mesh=mesh)
    inputs = {key: expected[key] for key in ("input_ids", "attention_mask")}
    outputs, _ = jax.jit(on_mesh(network.apply, mesh))(placed, inputs)
    real = expected["attention_mask"] > 0
    np.testing.assert_allclose(
        np.asarray(outputs.logits)[real], expected["logits"][real], **CLOSE
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_axes_of_experts_are_declared(name):
    network, variables, _ = golden(name)
    axes = network.axes
    assert axes[("blocks", "mlp", "up")] == ("expert", "embed", "hidden")
    assert axes[("blocks", "mlp", "down")] == ("expert", "hidden", "embed")
    attention = variables["params"]["blocks"]["attention"]
    for part, weights in attention.items():
        if part != "sinks" and "kernel" in weights:
            assert axes[("blocks", "attention", part, "kernel")] is not None


SMALL: dict[str, Any] = {
    "vocabulary": 17,
    "width": 16,
    "layers": 3,
    "heads": 2,
    "hidden": 24,
}
MIXTURE = Mixture(8, 4, activation="swiglu", use_bias=False)
IDS = jax.random.randint(jax.random.key(1), (2, 7), 0, 17)


@pytest.mark.slow
@pytest.mark.parametrize(
    "latent",
    [Latent(6, 4, 6, 8), Latent(6, 4, 6, 10, query_rank=5, interleaved=False)],
    ids=["queries-whole", "queries-latent"],
)
def test_a_cache_of_latents_holds_what_attention_needs(latent):
    network = models.llama(**SMALL, latent=latent)
    variables = jax.jit(network.init)(jax.random.key(0))
    variables = jax.tree.map(lambda x: 8 * x, variables)  # Attention that is uneven.
    apply = jax.jit(functools.partial(network.apply, taps=("cache",)))
    whole, _ = apply(variables, {"input_ids": IDS})
    cache = apply(variables, {"input_ids": IDS[:, :6]})[0].features["cache"].grown(1)
    assert cache.key.shape == (3, 2, 1, 7, 12)
    assert cache.value.size == 0
    last, _ = apply(variables, {"input_ids": IDS[:, 6:], "cache": cache})
    np.testing.assert_allclose(last.logits[:, 0], whole.logits[:, 6], **CLOSE)
    rounded = {"input_ids": IDS[:, 6:], "cache": cache.quantized(jnp.int8)}
    found = apply(variables, rounded)[0].logits
    away = jnp.linalg.norm(found - last.logits) / jnp.linalg.norm(last.logits)
    assert 0 < away < 0.1


@pytest.mark.slow
def test_a_router_is_tapped_and_balanced():
    network = models.llama(**SMALL, mixture=MIXTURE, dense_layers=1)
    variables = jax.jit(network.init)(jax.random.key(0))
    taps = ("block1.router", "block2.router")
    assert [tap for tap in network.taps if "router" in tap] == [*taps]
    balance = methods.expert_balance(taps)

    @jax.jit
    def slope(variables):
        def loss(params):
            inputs = {"input_ids": IDS}
            outputs, _ = network.apply(
                {**variables, "params": params}, inputs, taps=taps
            )
            return balance.loss({}, outputs, None, inputs, None, 0)[0].value

        return jax.grad(loss)(variables["params"])

    found = slope(variables)["blocks"]["mlp"]
    assert np.abs(found["router"]["kernel"]).min(axis=(1, 2)).all()
    assert not np.abs(found["up"][1]).any()


def test_first_layers_without_experts_are_of_a_mixture_and_not_all():
    for mixture in (None, MIXTURE):
        with pytest.raises(ValueError, match="dense_layers is 3: the first layers"):
            models.llama(**SMALL, dense_layers=3, mixture=mixture)


@pytest.mark.slow
def test_a_teacher_of_30_billion_and_its_student_are_built_abstractly():
    """Qwen3-30B-A3B and Qwen3-1.7B: shapes of a train step, without an array."""
    import optax

    import jaxkd

    qwen: dict[str, Any] = {
        "kv_heads": 4,
        "head_dim": 128,
        "qk_norm": True,
        "rope_theta": 1e6,
    }
    mixture = Mixture(768, 128, 8, activation="swiglu", use_bias=False)
    teacher = models.llama(151_936, 2048, 48, 32, 6144, **qwen, mixture=mixture)
    qwen |= {"kv_heads": 8, "tied": True, "remat": True}
    student = models.llama(151_936, 2048, 28, 16, 6144, **qwen)
    weights = jax.eval_shape(teacher.init, jax.random.key(0))
    numbers = sum(x.size for x in jax.tree.leaves(weights))
    assert numbers == 30_532_122_624
    tokens = jax.ShapeDtypeStruct((4, 4096), jnp.int32)

    def step(weights, batch):
        program = jaxkd.distill(
            student,
            teacher.with_variables(weights),
            methods.linear_kd(),
            optax.adamw(1e-4),
        )
        return program.step(program.init(jax.random.key(0), batch), batch)

    _, metrics = jax.eval_shape(step, weights, {"input_ids": tokens})
    assert metrics["loss"].shape == ()
