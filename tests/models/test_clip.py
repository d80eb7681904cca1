"""CLIP against transformers' numbers, and its own laws."""

import functools
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.interop import load_pretrained
from jaxkd.models import clip

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
SMALL = {
    "image": (12, 2, 3, 20),
    "text": (8, 1, 2, 12),
    "features": 6,
    "image_size": 8,
    "patch_size": 4,
    "vocabulary": 17,
    "context": 7,
    "eos": 16,
}
IMAGES = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
TEXTS = jax.random.randint(jax.random.key(2), (2, 5), 0, 16).at[:, 4].set(16)
BOTH = {"pixel_values": IMAGES, "input_ids": TEXTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "clip_legacy"])
def test_logits_and_embeddings_are_those_of_transformers(name):
    network, variables = load_pretrained(GOLDEN / name)
    expected = dict(np.load(GOLDEN / name / "io.npz"))
    inputs = {"pixel_values": expected["pixel_values"].transpose(0, 2, 3, 1)}
    names = ("input_ids", "attention_mask")
    inputs |= {key: expected[key] for key in names if key in expected}
    run = jax.jit(lambda v, x: network.apply(v, x, taps=network.taps)[0])
    outputs = run(variables, inputs)
    np.testing.assert_allclose(
        outputs.logits, expected["logits_per_image"], rtol=1e-4, atol=1e-5
    )
    for tap in ("image_embeds", "text_embeds"):
        np.testing.assert_allclose(
            outputs.features[tap], expected[tap], rtol=1e-4, atol=1e-6
        )
    for key in sorted(expected):
        if match := re.fullmatch(r"(image|text)_hidden_(\d)", key):
            tower, number = match[1], int(match[2])
            tap = f"{tower}.block{number - 1}" if number else f"{tower}.embed"
            rows = expected["attention_mask"] > 0 if tower == "text" else ...
            np.testing.assert_allclose(
                outputs.features[tap][rows], expected[key][rows], rtol=1e-4, atol=1e-5
            )


@pytest.fixture(scope="module")
def variables():
    return jax.jit(clip(**SMALL).init)(jax.random.key(0))


@functools.cache
def forward(taps=("image_embeds", "text_embeds"), **changes):
    network = clip(**{**SMALL, **changes})
    return jax.jit(lambda v, x: network.apply(v, x, taps=taps)[0])


def test_logits_are_scaled_cosines(variables):
    outputs = forward()(variables, BOTH)
    image, text = (outputs.features[f"{tower}_embeds"] for tower in ("image", "text"))
    for embeds in (image, text):
        np.testing.assert_allclose(np.linalg.norm(embeds, axis=-1), 1, atol=1e-6)
    assert outputs.logits.shape == (3, 2)
    np.testing.assert_allclose(outputs.logits, image @ text.T / 0.07, atol=1e-5)


def test_a_tower_runs_alone(variables):
    both = forward()(variables, BOTH).features
    for tower, key in (("image", "pixel_values"), ("text", "input_ids")):
        tap = f"{tower}_embeds"
        alone = forward((tap, f"{tower}.final"))(variables, {key: BOTH[key]})
        assert alone.logits is None
        np.testing.assert_allclose(alone.features[tap], both[tap], atol=1e-6)


def test_a_text_stands_for_its_tokens_up_to_its_first_end(variables):
    after = TEXTS.at[:, 2].set(16)
    # The end's token may follow as padding, which nothing before it sees.
    changed = after.at[:, 3].set(5)
    found = [
        forward(("text_embeds",))(variables, {"input_ids": ids}).features["text_embeds"]
        for ids in (after, changed, TEXTS)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_padding_is_not_seen_and_the_legacy_end_is_the_largest_token(variables):
    mask = jnp.ones_like(TEXTS).at[:, :2].set(0)
    inputs = {"input_ids": TEXTS, "attention_mask": mask}
    other = {**inputs, "input_ids": TEXTS.at[:, 0].set((TEXTS[:, 0] + 1) % 16)}
    found = [
        forward(("text_embeds",), eos=2)(variables, x).features["text_embeds"]
        for x in (inputs, other)
    ]
    np.testing.assert_array_equal(*found)
    plain = forward(("text_embeds",))(variables, inputs).features["text_embeds"]
    np.testing.assert_allclose(found[0], plain, atol=1e-6)


@pytest.mark.slow
def test_both_towers_learn_however_they_are_compiled(variables):
    def gradient(**changes):
        apply = clip(**{**SMALL, **changes}).apply
        loss = lambda v: apply(v, BOTH)[0].logits.var()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)

    plain, other = gradient(), gradient(scan=False, remat=True)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(plain))
    chex.assert_trees_all_close(plain, other, rtol=1e-3, atol=1e-4)


def test_bfloat16_is_close(variables):
    network = clip(**SMALL).computing_in(jnp.bfloat16)
    found = jax.jit(lambda v: network.apply(v, BOTH)[0].logits)(variables)
    assert found.dtype == jnp.bfloat16
    exact = forward()(variables, BOTH).logits
    np.testing.assert_allclose(found.astype(float), exact, atol=0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "activation must be 'quick_gelu' or 'gelu'"),
        ({"image": (12, 2, 5, 20)}, "width 12 is no multiple of 5 heads"),
        ({"text": "bse"}, "unknown CLIP size 'bse': did you mean 'base'"),
        ({"patch_size": 3}, "patch_size 3 does not tile images of 8 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked_shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        clip(**{**SMALL, **changes})


def test_wrong_inputs_are_refused(variables):
    apply = functools.partial(clip(**SMALL).apply, variables)
    with pytest.raises(ValueError, match=r"reads pixel_values, input_ids or both"):
        apply({"image": IMAGES})
    with pytest.raises(ValueError, match=r"tap 'text.final' needs input_ids"):
        apply({"pixel_values": IMAGES}, taps=("image_embeds", "text.final"))
    with pytest.raises(ValueError, match="8 tokens a row, but the model knows 7"):
        apply({"input_ids": jnp.zeros((1, 8), int)})
    with pytest.raises(ValueError, match="image has shape"):
        apply({"pixel_values": IMAGES[:, :4]})
