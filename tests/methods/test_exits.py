"""Exit branches: which one a feature gets, what it computes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd.methods.modules.exits import (
    CnnExitBranch,
    TokenExitBranch,
    VectorExitBranch,
    exit_branch,
    split_stages,
)
from jaxkd.models.vision.swin import PatchMerging
from jaxkd.models.vision.vit import Block

RNG = np.random.default_rng(0)


def shaped(build):
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def filled(build):
    """Return a module with NumPy's weights: to draw its own, JAX compiles for long."""
    graph, state = nnx.split(shaped(build))

    def fill(path, x):
        names = [str(getattr(key, "key", key)) for key in path]
        if "kernel" in names:
            kernel = RNG.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1]))
            return jnp.asarray(kernel, x.dtype)
        return jnp.full(x.shape, float("scale" in names or "var" in names))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


def logits_shape(branch, shape):
    graph, state = nnx.split(branch)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, x).shape


def array(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("shape", "stages_after", "expected"),
    [
        # The stages of ResNet-18: doubled channels, the last of the width.
        ((2, 56, 56, 64), 3, [(64, 128), (128, 256), (256, 768)]),
        ((2, 28, 28, 128), 2, [(128, 256), (256, 768)]),
        ((2, 14, 14, 256), 1, [(256, 768)]),
        ((2, 7, 7, 512), 0, []),
    ],
)
def test_maps_get_a_separable_convolution_a_stage(shape, stages_after, expected):
    branch = shaped(lambda rngs: exit_branch(shape, 10, 768, stages_after, rngs=rngs))
    assert isinstance(branch, CnnExitBranch)
    found = [
        (layer.pointwise1.in_features, layer.pointwise2.out_features)
        for layer in branch.down
    ]
    assert found == expected
    assert (branch.widen is None) == bool(stages_after)
    assert logits_shape(branch, shape) == (2, 10)


@pytest.mark.parametrize(
    ("shape", "stages_after", "mergers", "blocks", "class_tokens"),
    [
        # DeiT's 14x14 grid and class token, distilled DeiT's two, ResMLP's none.
        ((2, 197, 384), 3, 1, 3, 1),
        ((2, 198, 384), 1, 1, 1, 2),
        ((2, 196, 384), 0, 1, 1, 0),
        # Swin's stages.
        ((2, 3136, 48), 3, 3, 3, 0),
        ((2, 784, 96), 2, 2, 2, 0),
        ((2, 49, 384), 0, 0, 1, 0),
        # A grid of 4x4, below 14x14, is left alone.
        ((2, 17, 384), 2, 0, 2, 1),
    ],
)
def test_tokens_are_merged_and_read(shape, stages_after, mergers, blocks, class_tokens):
    branch = shaped(lambda rngs: exit_branch(shape, 10, 384, stages_after, rngs=rngs))
    assert isinstance(branch, TokenExitBranch)
    assert len(branch.mergers) == mergers
    assert len(branch.blocks) == blocks
    assert branch.class_tokens == class_tokens
    assert logits_shape(branch, shape) == (2, 10)


def test_vectors_get_a_perceptron():
    branch = filled(lambda rngs: exit_branch((2, 6), 3, 8, 1, rngs=rngs))
    assert isinstance(branch, VectorExitBranch)
    x = np.asarray(array(2, 6))
    hidden = np.maximum(x @ np.asarray(branch.hidden.kernel[...]), 0)
    expected = hidden @ np.asarray(branch.head.kernel[...])
    np.testing.assert_allclose(branch(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


def test_merging_joins_rows_first():
    merging = filled(lambda rngs: PatchMerging(2, 5, rngs=rngs))
    x = np.asarray(array(3, 16, 2), np.float64)
    grid = x.reshape(3, 4, 4, 2)
    offsets = (0, 0), (1, 0), (0, 1), (1, 1)
    joined = np.concatenate([grid[:, i::2, j::2] for i, j in offsets], -1)
    joined = joined.reshape(3, 4, 8)
    normal = joined - joined.mean(-1, keepdims=True)
    normal /= np.sqrt((normal**2).mean(-1, keepdims=True) + 1e-5)
    expected = normal @ np.asarray(merging.reduction.kernel[...], np.float64)
    found = merging(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert merging.reduction.bias is None


@pytest.mark.parametrize("side", [14, 28])
def test_a_token_branch_is_merging_blocks_and_a_class_token(side):
    branch = filled(lambda rngs: exit_branch((1, side**2 + 1, 8), 3, 8, 2, rngs=rngs))
    x = array(1, side**2 + 1, 8)
    patches = x[:, 1:]
    mergers = list(branch.mergers)
    for i, merge in enumerate(mergers):
        patches = merge(patches)
        # GELU follows a merging that stands alone, but not the last of several.
        if len(mergers) == 1 or i < len(mergers) - 1:
            patches = jax.nn.gelu(patches, approximate=False)
    assert patches.shape == (1, 49, 8)
    expected = jnp.concatenate([x[:, :1], patches], axis=1)
    for block in branch.blocks:
        assert isinstance(block, Block)
        expected = block(expected)
    expected = branch.head(expected[:, 0])
    np.testing.assert_allclose(branch(x), expected, rtol=1e-5, atol=1e-6)


def test_without_class_tokens_the_mean_is_read():
    branch = filled(lambda rngs: exit_branch((2, 4, 8), 3, 8, 0, rngs=rngs))
    x = array(2, 4, 8)
    (block,) = branch.blocks
    expected = branch.head(block(x).mean(1))
    np.testing.assert_allclose(branch(x), expected, rtol=1e-5, atol=1e-6)
    # Without places, the order of the tokens is nothing to the branch.
    np.testing.assert_allclose(branch(x[:, ::-1]), expected, rtol=1e-4, atol=1e-5)


def test_padded_maps_change_no_other_logits_and_no_average():
    x = array(4, 4, 4, 2)
    mask = jnp.array([1, 1, 1, 0])

    def run(last):
        branch = filled(lambda rngs: exit_branch(x.shape, 3, 4, 1, rngs=rngs))
        logits = branch(x.at[-1].set(last), mask)
        return logits[:-1], branch.down[0].norm2.mean[...]

    state = RNG.bit_generator.state
    found = []
    for last in (jnp.nan, 7.0):
        RNG.bit_generator.state = state
        found.append(run(last))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()


@pytest.mark.parametrize(
    ("blocks", "shares", "last"),
    [
        (12, (1, 1, 3, 1), [1, 3, 9, 11]),  # as the authors read ViT and Mixer
        (12, (1, 1, 1, 1), [2, 5, 8, 11]),
        (24, (1, 1, 3, 1), [3, 7, 19, 23]),
        (4, (1, 1, 3, 1), [0, 1, 2, 3]),
        (5, (1, 1, 3, 1), [0, 1, 3, 4]),
        (4, (9, 1, 1, 1), [0, 1, 2, 3]),
    ],
)
def test_stages_cover_the_blocks(blocks, shares, last):
    stages = split_stages(blocks, shares)
    assert [stage[-1] for stage in stages] == last
    assert [i for stage in stages for i in stage] == list(range(blocks))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: split_stages(3), "blocks must be at least 4, one a stage, got 3"),
        (lambda rngs: exit_branch((2,), 3, 4, 0, rngs=rngs), "tap another layer"),
        (
            lambda rngs: exit_branch((2, 17, 6), 3, 6, 0, rngs=rngs),
            "multiple of the 4 attention heads, got 6",
        ),
        (
            lambda rngs: exit_branch((2, 16, 6), 3, 8, 0, rngs=rngs),
            "have 6 features but width is 8",
        ),
        (
            lambda rngs: exit_branch((2, 197, 6), 3, 8, 0, rngs=rngs),
            r"width is 8: class tokens,",
        ),
        (
            lambda rngs: PatchMerging(4, 4, rngs=rngs)(jnp.zeros((1, 225, 4))),
            "15 x 15 tokens: to join 2 x 2 of them its side must be even",
        ),
        (
            lambda rngs: PatchMerging(4, 4, rngs=rngs)(jnp.zeros((1, 12, 4))),
            "12 tokens, which form no square grid",
        ),
    ],
)
def test_what_no_branch_takes_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        shaped(make) if "rngs" in make.__code__.co_varnames else make()
