"""Logical axes: what layers declare of their weights, and where those then lie."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx
from jax.sharding import PartitionSpec as P

from jaxkd import Network, distill, methods, models
from jaxkd.compression.quantise.mixed_bits import quantized
from jaxkd.network import axes_of
from jaxkd.networks import ensemble
from jaxkd.sharding.axes import declare, declared_axes
from jaxkd.sharding.mesh import MeshShape, make_mesh, on_mesh, state_sharding
from jaxkd.types import Outputs

KEY = jax.random.key(0)
TEXT = {"vocabulary": 16, "width": 8, "layers": 1}
BLOCKS = {**TEXT, "heads": 2, "hidden": 16}
IMAGE = {"classes": 4, "image_size": 8, "patch_size": 4, "channels_in": 1}
ATTENTION = {
    **dict.fromkeys(["query.kernel", "key.kernel", "value.kernel"], "embed heads"),
    "out.kernel": "heads embed",
}
GLOBAL = dict.fromkeys(
    [f"{name}_global.kernel" for name in ("query", "key", "value")], "embed heads"
)
FUSED = {"qkv.kernel": "embed heads", "projection.kernel": "heads embed"}
UP_DOWN = {"up.kernel": "embed hidden", "down.kernel": "hidden embed"}
GATED = {"gate.kernel": "embed hidden", **UP_DOWN}
MLP = {"fc1.kernel": "embed hidden", "fc2.kernel": "hidden embed"}
EMBED = {"embed.embedding": "vocabulary embed"}
HEAD = {"head.kernel": "embed vocabulary"}
PATCHES = {"patches.projection.kernel": "heads embed"}


def under(prefix, *parts):
    return {f"{prefix}.{name}": axes for part in parts for name, axes in part.items()}


def t5(stack):
    return {
        f"{stack}.relative.embedding": "- heads",
        **under(f"{stack}.blocks.attention", ATTENTION),
        **under(f"{stack}.blocks.mlp", GATED),
    }


TOWERS = [
    part
    for tower in ("image", "text")
    for part in (
        under(f"{tower}.blocks.attention", ATTENTION),
        under(f"{tower}.blocks.mlp", MLP),
    )
]
EMBEDDER = {"embedder.kernel": "embed -"}
FAMILIES = {
    "llama": (
        BLOCKS,
        [EMBED, under("blocks.attention", ATTENTION), under("blocks.mlp", GATED), HEAD],
    ),
    "gpt2": (
        {**TEXT, "heads": 2, "positions": 8},
        [EMBED, under("blocks.attention", ATTENTION), under("blocks.mlp", UP_DOWN)],
    ),
    "bert": (
        {**BLOCKS, "positions": 8, "attention": "sliding_window"},
        [
            under("embeddings", EMBED),
            under("blocks.attention", ATTENTION, GLOBAL),
            under("blocks.mlp", UP_DOWN),
            HEAD,
        ],
    ),
    "modernbert": (
        {**BLOCKS, "layers": 2},
        [EMBED, under("blocks.attention", ATTENTION), under("blocks.mlp", GATED), HEAD],
    ),
    "t5": (
        {**BLOCKS, "feed_forward": "gated-gelu", "tied": False},
        [
            EMBED,
            t5("encoder"),
            t5("decoder"),
            under("decoder.blocks.cross", ATTENTION),
            HEAD,
        ],
    ),
    "mamba2": (
        {**TEXT, "head_dim": 8, "state_size": 4},
        [
            EMBED,
            {
                "blocks.mixer.in_projection.kernel": "embed heads",
                "blocks.mixer.conv.kernel": "- - heads",
                "blocks.mixer.out.kernel": "heads embed",
            },
            HEAD,
        ],
    ),
    "clip": (
        {
            **{"image": (8, 1, 2, 16), "text": (8, 1, 2, 16), "features": 4},
            **{"image_size": 8, "patch_size": 4, "vocabulary": 16, "context": 8},
        },
        [
            *TOWERS,
            under("text", EMBED, EMBEDDER),
            under("image", PATCHES, EMBEDDER),
        ],
    ),
    "siglip": (
        {
            **{"image": (8, 1, 2, 16), "text": (8, 1, 2, 16), "vocabulary": 16},
            **{"image_size": 8, "patch_size": 4, "context": 8},
        },
        [
            *TOWERS,
            under("text", EMBED, EMBEDDER),
            under("image", PATCHES),
            under("image.pool", ATTENTION),
            under("image.pool.mlp", MLP),
        ],
    ),
    "dinov2": (
        {**IMAGE, "size": (8, 1, 2), "swiglu": True},
        [PATCHES, under("blocks.0.attention", FUSED), under("blocks.0.mlp", MLP), HEAD],
    ),
    "vit": (
        {**IMAGE, "size": (8, 1, 2)},
        [PATCHES, under("blocks.0.attention", FUSED), under("blocks.0.mlp", MLP), HEAD],
    ),
    "swin": (
        {**IMAGE, "image_size": 32, "window": 8, "size": (4, *8 * [1])},
        [
            PATCHES,
            under("stages.0.0.attention", FUSED),
            under("stages.0.0.mlp", MLP),
            HEAD,
        ],
    ),
    "mlp_mixer": (
        {**IMAGE, "size": (8, 1, 4, 16)},
        [
            PATCHES,
            under("blocks.0.mix_tokens", MLP),
            under("blocks.0.mix_channels", MLP),
            HEAD,
        ],
    ),
    "convnext": (
        {"size": (4, 1, 1, 1, 1), "classes": 4},
        [under("stages.0.0.mlp", MLP), HEAD],
    ),
    "dit": (
        {"size": (8, 1, 2), "image_size": 8, "patch_size": 4, "classes": 2},
        [
            PATCHES,
            under("conditioning", MLP),
            under("blocks.0.attention", FUSED),
            under("blocks.0.mlp", MLP),
            HEAD,
        ],
    ),
    "unet": (
        {
            **{"image_size": 8, "channels": 8, "multipliers": (1,), "blocks": 1},
            **{"attention": (), "head_channels": 4, "groups": 2},
        },
        [under("conditioning", MLP), under("middle.0.attention", FUSED)],
    ),
}
"""Each family's tiny network, and all that its layers declare; 0 for any block."""


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_declare_the_axes_of_their_weights(name):
    arguments, parts = FAMILIES[name]
    declared = {
        re.sub(r"(?<=\.)\d+", "0", ".".join(path)): " ".join(
            axis or "-" for axis in axes
        )
        for path, axes in models.create(name, **arguments).axes.items()
        if axes
    }
    assert declared == {path: axes for part in parts for path, axes in part.items()}


MESH = MeshShape(fsdp=2, tensor=2)


def specs(state, axes, min_size=32):
    places = state_sharding(state, make_mesh(MESH), axes, min_size)
    return jax.tree.map(lambda place: place.spec, places)


@pytest.mark.slow
def test_what_goes_with_a_weight_lies_as_it_does():
    student = models.llama(**BLOCKS)
    teacher = ensemble([quantized(student, [(r"blocks\..*up\.kernel", "int8")])] * 2)
    method = methods.cross_entropy()
    program = distill(student, teacher, method, optax.adam(0.1))
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    batch = {"input_ids": tokens, "label": tokens}
    state = specs(jax.eval_shape(program.init, KEY, batch), program.axes)
    up = P(None, ("fsdp",), ("tensor",))
    moment = state.opt_state[0].mu["student"]
    for params in (state.student["params"], moment):
        assert params["blocks"]["mlp"]["up"]["kernel"] == up
        assert params["blocks"]["mlp"]["down"]["kernel"] == P(None, *reversed(up[1:]))
        assert params["embed"]["embedding"] == P(("tensor",), ("fsdp",))
    member = state.teacher["params"]["1"]
    assert member["blocks"]["mlp"]["up"]["kernel"].codes == up
    assert member["head"]["kernel"] == P(("fsdp",), ("tensor",))


@pytest.mark.parametrize("name", ["conv", "conv1", "query"])
def test_the_name_of_a_layer_decides_nothing(name):
    class Model(nnx.Module):
        def __init__(self, rngs):
            setattr(self, name, nnx.Conv(4, 8, (3, 3), rngs=rngs))
            metadata = declare(None, "embed")
            own = nnx.Linear(8, 4, kernel_metadata=metadata, rngs=rngs)
            setattr(self, f"{name}_out", own)

        def __call__(self, x):
            return getattr(self, f"{name}_out")(getattr(self, name)(x).mean((1, 2)))

    network = Network.from_nnx(Model)
    params = specs(jax.eval_shape(network.init, KEY), network.axes)["params"]
    assert params[name]["kernel"] == P(None, None, "fsdp", "tensor")
    assert params[f"{name}_out"]["kernel"] == P(None, ("fsdp",))


class Annotated(nnx.Module):
    """As Flax's guide has it, and a stack of layers."""

    def __init__(self, rngs):
        def layer(rngs):
            init = nnx.with_partitioning(
                nnx.initializers.lecun_normal(),
                ("mlp", "fsdp"),
                sharding_rules=(("mlp", "tensor"),),
            )
            return nnx.Linear(8, 8, kernel_init=init, rngs=rngs)

        self.first = layer(rngs)
        self.stack = nnx.split_rngs(splits=2)(nnx.vmap(layer))(rngs)

    def __call__(self, x):
        return self.first(x)


class AnnotatedLinen(linen.Module):
    @linen.compact
    def __call__(self, x):
        init = linen.initializers.lecun_normal()
        named = linen.with_partitioning(init, ("tensor",))
        rules = (("mlp", ("fsdp", "tensor")),)
        logical = linen.with_logical_partitioning(init, ("mlp", "heads"), rules=rules)
        x = linen.Dense(8, kernel_init=named, name="first")(x)
        return linen.Dense(8, kernel_init=logical, name="second")(x)


def check_runs_on_a_mesh(network, expected):
    """Check where weights lie when made on a mesh, and that they are plain arrays."""
    mesh = make_mesh(MESH)
    init = on_mesh(network.init, mesh)
    places = state_sharding(jax.eval_shape(init, KEY), mesh, network.axes, 32)
    variables = jax.jit(init, out_shardings=places)(KEY)
    found = {
        name: variables["params"][name]["kernel"].sharding.spec for name in expected
    }
    assert found == expected
    outputs, _ = jax.jit(on_mesh(network.apply, mesh))(variables, jnp.ones((4, 8)))
    expected, _ = network.apply(network.init(KEY), jnp.ones((4, 8)))
    assert jnp.allclose(outputs.logits, expected.logits, atol=1e-6)


def test_a_users_nnx_model_lies_as_it_declares():
    network = Network.from_nnx(Annotated)
    first = P("tensor", "fsdp")
    check_runs_on_a_mesh(network, {"first": first, "stack": P(None, *first)})
    with nnx.logical_axis_rules([("batch", "data")]):
        again = Network.from_nnx(Annotated)
    assert again.axes == network.axes


def test_a_users_linen_model_lies_as_it_declares():
    network = Network.from_linen(AnnotatedLinen(), jnp.ones((1, 8)))
    check_runs_on_a_mesh(
        network, {"first": P("tensor", None), "second": P(("fsdp", "tensor"), None)}
    )


def test_the_longest_end_of_a_path_counts():
    axes = {("kernel",): ("embed",), ("a", "kernel"): ("hidden", None), ("b", "w"): ()}
    assert declared_axes(axes, ("params", "a", "kernel"), 2) == ("hidden", None)
    assert declared_axes(axes, ("params", "c", "kernel"), 2) == (None, "embed")
    assert declared_axes(axes, ("a", "kernel", "scale"), 2) == ("hidden", None)
    assert declared_axes(axes, ("a", "kernel"), 1) is None
    assert declared_axes(axes, ("b", "w"), 2) is None
    assert declared_axes(axes, ("a", "bias"), 1) is None
    assert declared_axes(axes, (), 0) is None


def test_of_two_networks_the_first_says():
    def network(axes):
        return Network(lambda key: {}, lambda *_: (Outputs(None), {}), axes=axes)

    first, second = network({("w",): ("embed",)}), network({("w",): (), ("v",): ()})
    assert axes_of(first, None, second) == {("w",): ("embed",), ("v",): ()}
