"""DMAE: the authors' decoder, one mask for two networks, a teacher that stops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxkd
from jaxkd import methods, models
from jaxkd.evaluation.cost import compiled_cost
from jaxkd.papers import dmae as paper
from jaxkd.papers.dmae import networks

SIDE, PATCH, WIDTH, LAST = 4, 2, 8, "block1"
KEY = jax.random.key(0)
METHOD = methods.dmae([LAST], ["block0"], patch_size=PATCH)


def encoder(width=WIDTH, depth=2):
    vit = models.vit(
        (width, depth, 2), 3, image_size=SIDE * PATCH, patch_size=PATCH, channels_in=1
    )
    return vit, paper.fixed_positions(vit, SIDE)


def student():
    seen = paper.visible(encoder()[1].segment(None, "final"))
    return paper.masked_autoencoder(seen, WIDTH, SIDE, PATCH**2, (8, 1, 2))


def teacher(stop="block0"):
    return paper.visible(encoder(12, 3)[1].segment(None, stop))


def batch(**others):
    image = jax.random.normal(KEY, (6, SIDE * PATCH, SIDE * PATCH, 1))
    return {"image": image, "label": jnp.arange(6), **others}


def test_the_authors_decoder(load_golden, monkeypatch):
    g = {
        k.removeprefix("dec1_"): jnp.asarray(x)
        for k, x in load_golden("47-dmae").items()
        if k.startswith("dec1_")
    }
    monkeypatch.setattr(networks, "grid_positions", lambda *_: g["dec_pos"])
    decoder = networks.Decoder(8, 4, 48, (8, 0, 2), 1e-5, rngs=nnx.Rngs(0))
    decoder.embed.kernel[...] = g["dec_embed_W"].T
    decoder.embed.bias[...] = g["dec_embed_b"]
    decoder.mask_token[...] = g["mask_token"][0, 0]
    decoder.head.kernel[...] = g["pred_W"].T
    decoder.head.bias[...] = g["pred_b"]
    found = decoder({"tokens": g["latent"], "ids_restore": g["ids_restore"]})
    np.testing.assert_allclose(found, g["out"], rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_both_networks_see_the_same_patches_and_labels_are_left_out():
    prepared = METHOD.prepare(KEY, batch())
    assert "label" not in prepared
    assert prepared["ids_keep"].shape == (6, 4)
    (vit, _), tapped = encoder(12, 3), teacher()

    @jax.jit
    def run(image):
        variables = tapped.init(KEY)
        found, _ = tapped.apply(variables, tapped.read(prepared), taps=("embed",))
        plain = networks.all_weights(variables)
        return found, vit.apply(plain, image, taps=("embed",))[0]

    found, whole = run(prepared["image"])
    for i, kept in enumerate(prepared["ids_keep"]):
        seen = whole.features["embed"][i, jnp.array([0, *(1 + kept)])]
        np.testing.assert_allclose(found.features["embed"][i], seen, rtol=1e-6)


@pytest.mark.slow
def test_what_a_hidden_patch_shows_reaches_no_feature():
    prepared = METHOD.prepare(KEY, batch())
    network, taps = student(), (LAST, "pixels")
    variables, hidden = jax.jit(network.init)(KEY), prepared["hidden"] > 0

    @jax.jit
    def run(image):
        return network.apply(
            variables, network.read({**prepared, "image": image}), taps=taps
        )[0]

    rows = hidden.reshape(6, SIDE, SIDE).repeat(PATCH, 1).repeat(PATCH, 2)[..., None]
    plain = run(prepared["image"])
    spoilt = run(jnp.where(rows, 99.0, prepared["image"]))
    for tap in taps:
        np.testing.assert_array_equal(plain.features[tap], spoilt.features[tap])
    moved = run(jnp.where(rows, prepared["image"], 99.0))
    assert np.abs(moved.features[LAST] - plain.features[LAST]).max() > 0.01


@pytest.mark.slow
def test_the_teacher_that_stops_early_is_the_whole_one():
    prepared = METHOD.prepare(KEY, batch())
    whole, part = paper.visible(encoder(12, 3)[1]), teacher("block1")
    variables, inputs = jax.jit(whole.init)(KEY), whole.read(prepared)
    full, _ = jax.jit(lambda v: whole.apply(v, inputs, taps=("block1",)))(variables)
    early, _ = jax.jit(lambda v: part.apply(v, inputs))(variables)
    np.testing.assert_array_equal(early.logits, full.features["block1"])


@pytest.mark.slow
def test_the_teachers_flops_are_its_blocks_and_tokens():
    """Of tokens T a block takes 24·T·D² and, of the attention, 4·T²·D."""
    vit = models.vit((64, 4, 1), 3, image_size=16, patch_size=2)
    variables = jax.eval_shape(vit.init, KEY)

    def flops(stop, tokens):
        part = vit.segment("embed", stop)
        x = jax.ShapeDtypeStruct((2, tokens, 64), jnp.float32)
        run = jax.jit(lambda v, x: part.apply(v, x)[0].logits)
        return compiled_cost(run, variables, x).flops

    full = flops("block3", 65)
    assert flops("block2", 65) == pytest.approx(3 / 4 * full, rel=0.01)
    share = (24 * 17 * 64 + 4 * 17**2) / (24 * 65 * 64 + 4 * 65**2)
    assert flops("block3", 17) == pytest.approx(share * full, rel=0.03)


@pytest.mark.slow
def test_dmae_trains_and_fixed_positions_stay():
    network = student()
    program = jaxkd.distill(network, teacher(), METHOD, optax.adamw(1e-2))
    state = jax.jit(program.init)(KEY, batch())
    step, before = jax.jit(program.step), state
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.95 * losses[0]
    assert {"mae", "feature_align"} < set(metrics)
    old, new = (paper.encoder_of(s.student)["params"] for s in (before, state))
    np.testing.assert_array_equal(new["positions"], old["positions"])
    assert np.abs(new["prefix"] - old["prefix"]).max() > 0
    # A masked example has no influence, and two halves make the whole batch's step.
    mask = jnp.array([1, 1, 1, 1, 0, 0])
    spoilt = batch()["image"].at[4:].set(99.0)
    kept, _ = step(before, batch(mask=mask))
    clean, _ = step(before, batch(mask=mask, image=spoilt))
    halves = jaxkd.distill(
        network, teacher(), METHOD, optax.adamw(1e-2), accumulate=2
    ).step
    parts, _ = jax.jit(halves)(before, batch(mask=mask))
    for other in (clean, parts):
        for a, b in zip(
            *map(jax.tree.leaves, (kept.student, other.student)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.mark.slow
def test_fine_tuning_reads_the_mean_of_all_patches():
    vit, fixed = encoder()
    variables = networks.all_weights(jax.jit(fixed.init)(KEY))
    network, image = paper.mean_pooled(vit, LAST), batch()["image"]
    found, _ = network.apply(variables, image, taps=("pooled",))
    tokens = vit.apply(variables, image, taps=(LAST,))[0].features[LAST]
    mean = np.asarray(tokens[:, 1:].mean(1))
    norm = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(
        mean.var(-1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(found.features["pooled"], norm, rtol=1e-3, atol=1e-5)
    # Of a batch without a mask, as in fine-tuning, all patches are seen.
    alone = paper.visible(vit)
    whole, _ = alone.apply(variables, alone.read({"image": image}))
    np.testing.assert_array_equal(whole.logits, vit.apply(variables, image)[0].logits)


@pytest.mark.slow
def test_edits_of_the_callers_come_first_and_bf16_computes():
    prepared, part, half = (
        METHOD.prepare(KEY, batch()),
        teacher(),
        student().computing_in(jnp.bfloat16),
    )

    @jax.jit
    def run():
        found, plain = (
            part.apply(part.init(KEY), part.read(prepared), taps=("embed",), edits=e)
            for e in ({"embed": lambda x: 2 * x}, {})
        )
        pixels, _ = half.apply(half.init(KEY), half.read(prepared))
        return found[0].features["embed"], plain[0].features["embed"], pixels.logits

    found, plain, pixels = run()
    np.testing.assert_array_equal(found, 2 * plain)
    assert pixels.dtype == jnp.bfloat16


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: methods.mae(0.0), r"mask_ratio must be in \(0, 1\), got 0"),
        (lambda: methods.dmae("block0"), "taps must be a sequence"),
        (lambda: methods.mae(0.99, patch_size=4).prepare(KEY, batch()), "hides all"),
        (lambda: methods.mae(patch_size=3).prepare(KEY, batch()), "does not tile"),
        (lambda: paper.visible(models.mlp()), "unknown tap 'embed'"),
        (lambda: paper.mean_pooled(models.mlp(), "block1"), "unknown tap 'block1'"),
        (lambda: paper.fixed_positions(encoder()[0], 3).init(KEY), "side 3 makes"),
        (
            lambda: paper.masked_autoencoder(teacher(), 12, 4, 4, (10, 1, 2)),
            "a multiple of the heads and of 4",
        ),
        (
            lambda: jaxkd.distill(
                student(), teacher(), methods.dmae([LAST]), optax.sgd(0.1)
            ),
            "unknown teacher tap 'block1'",
        ),
        (lambda: teacher().segment(None, "block0"), "unknown cut 'block0'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
