"""What augmentations may do to images, and that they can learn to do it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import Outputs, distill, training
from jaxkd.methods import from_loss
from jaxkd.models.parts.sampling import affine_grid, grid_sample
from jaxkd.papers import hard
from jaxkd.papers.hard import Controller

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (64, 7, 5, 2))
VAE = hard.vae(70, 6, 16)
TRAINED = VAE.with_variables(VAE.init(jax.random.key(2)))
LATENT = hard.latent(TRAINED.segment(stop="latent"), TRAINED.segment("latent"), 6, 0.5)
LEARNED = {
    "affine": hard.affine(0.3, 0.2, "reflect"),
    "shifts": hard.affine(0.3),
    "elastic": hard.elastic(0.2),
    "colour": hard.colour(0.4, 0.2),
    "mix": hard.mix(3),
    "latent": LATENT,
}
FIXED = {"random": hard.random_affine(0.3, 0.2), "rand": hard.rand_augment(3)}


@pytest.mark.parametrize("name", LEARNED)
def test_every_control_has_a_gradient_and_noise_dominates(name):
    augmenter = LEARNED[name]
    variables = augmenter.init(KEY, IMAGES)
    target = jax.random.normal(jax.random.key(5), IMAGES.shape)

    @jax.jit
    def both(params):
        def total(params):
            found = augmenter.apply({**variables, "params": params}, IMAGES, KEY)
            return (found.images * target).mean(), found

        return jax.value_and_grad(total, has_aux=True)(params)

    (_, found), slopes = both(variables["params"])
    assert found.images.shape == IMAGES.shape
    assert found.controls.shape[0] == len(IMAGES)
    assert all(
        jnp.isfinite(g).all() and (g != 0).any() for g in jax.tree.leaves(slopes)
    )
    again = jax.jit(augmenter.apply)(variables, IMAGES, KEY)
    np.testing.assert_allclose(found.images, again.images, atol=1e-5)
    # One image, seen 64 times, is changed in as many ways as 64 images are.
    one = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    alone = jax.jit(augmenter.apply)(variables, one, KEY).controls.std(0).mean()
    assert alone > 0.8 * found.controls.std(0).mean()


def test_a_weak_noise_leaves_one_change_for_all():
    one = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    spreads = []
    for scale in (0.01, 3.0):
        augmenter = hard.affine(0.5, controller=Controller(noise_scale=scale))
        found = augmenter.apply(augmenter.init(KEY, one), one, KEY)
        spreads.append(float(found.controls.std(0).mean()))
    assert spreads[0] < 0.02 < 0.2 < spreads[1]


def test_changes_stay_within_their_bounds():
    def controls(name):
        variables = LEARNED[name].init(KEY, IMAGES)
        return LEARNED[name].apply(variables, IMAGES, KEY)

    theta = controls("affine").controls.reshape(-1, 2, 3) - jnp.eye(2, 3)
    assert jnp.abs(theta[..., 2]).max() <= 0.3
    assert jnp.abs(theta[..., :2]).max() <= 0.2
    assert jnp.abs(theta[..., 2]).max() > 0.2
    assert jnp.abs(controls("elastic").controls).max() <= 0.2
    assert jnp.linalg.norm(controls("latent").controls, axis=-1).max() <= 0.5
    mixed = controls("mix")
    maps = mixed.controls.reshape(64, 7, 5, 3)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    assert maps.max() > 0.9  # a place is nearly one image's
    assert IMAGES.min() <= mixed.images.min()
    assert mixed.images.max() <= IMAGES.max()
    for augmenter in FIXED.values():
        found = augmenter.apply(augmenter.init(KEY, IMAGES), IMAGES, KEY)
        assert found.images.shape == IMAGES.shape
        assert jnp.isfinite(found.images).all()
        assert (found.controls.std(0) > 0).any()
    low, high = jnp.array([0.2, 0.4]), 0.6
    clipped = hard.within(LEARNED["colour"], low, high)
    found = clipped.apply(clipped.init(KEY, IMAGES), IMAGES, KEY).images
    assert (found >= low).all()
    assert found.max() == pytest.approx(high)


def test_augmentations_are_their_formulas():
    controller, eps = Controller(), jax.random.normal(KEY, (64, 16))
    params = controller.init(KEY, IMAGES, 6)
    chosen = hard.control(params, IMAGES, eps)
    found, theta = hard.affine_augment(params, IMAGES, eps, 0.3, 0.2)
    expected = jnp.eye(2, 3) + jnp.concatenate(
        [0.2 * chosen[:, 2:].reshape(-1, 2, 2), 0.3 * chosen[:, :2, None]], axis=-1
    )
    np.testing.assert_allclose(theta, expected, rtol=1e-5)
    read = grid_sample(IMAGES, affine_grid(theta, 7, 5))
    np.testing.assert_allclose(found, read, atol=1e-5)

    params = controller.init(KEY, IMAGES, 4)
    gain, shift = jnp.split(hard.control(params, IMAGES, eps), 2, -1)
    found, _ = hard.colour_augment(params, IMAGES, eps, 0.4, 0.2)
    mean = IMAGES.mean((1, 2))
    np.testing.assert_allclose(found.mean((1, 2)), mean + 0.2 * shift, rtol=1e-4)
    ratio = found.std((1, 2)) / IMAGES.std((1, 2))
    np.testing.assert_allclose(ratio, 1 + 0.4 * gain, rtol=1e-4)

    params = controller.init(KEY, IMAGES, 2 * 16)
    perms = jnp.stack([jnp.arange(64), jnp.roll(jnp.arange(64), 1)])
    found, maps = hard.mix_augment(params, IMAGES, eps, perms)
    expected = maps[..., :1] * IMAGES + maps[..., 1:] * jnp.roll(IMAGES, 1, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    levels = (IMAGES[:, 0].reshape(64, -1), IMAGES[:, 1:].reshape(64, -1))
    params = controller.init(KEY, IMAGES, 10)
    made, delta = hard.latent_augment(
        lambda x: levels,
        lambda z: jnp.concatenate(z, -1).reshape(IMAGES.shape),
        *(params, IMAGES, eps, 2.0),
        levels=(0,),
    )
    np.testing.assert_allclose(made[:, 1:], IMAGES[:, 1:])
    np.testing.assert_allclose(
        made[:, 0].reshape(64, -1) - levels[0], delta, rtol=1e-4, atol=1e-5
    )


def test_the_elbo_is_its_formula():
    x, made = IMAGES[:2], jax.random.uniform(KEY, (2, 70))
    mean, log_variance = jax.random.normal(jax.random.key(3), (2, 2, 6))
    given = Outputs(made, {"mean": mean, "log_variance": log_variance})
    prior = jax.scipy.stats.norm.logpdf
    deviation = jnp.exp(log_variance / 2)
    # KL of two normals by quadrature, one latent at a time.
    z = jnp.linspace(-12, 12, 4001)[:, None, None]
    log_q = prior(z, mean, deviation)
    kl = jnp.trapezoid(jnp.exp(log_q) * (log_q - prior(z)), z[:, 0, 0], axis=0).sum(-1)
    error = ((made - x.reshape(2, -1)) ** 2).sum(-1) / (2 * 0.3**2)
    found = hard.elbo_loss(given, x, 0.3)
    np.testing.assert_allclose(found, error + kl, rtol=1e-3)


@pytest.mark.slow
def test_a_vae_learns_and_its_halves_are_the_whole():
    grey = jax.random.uniform(KEY, (64, 1, 1, 1))
    batch = {"image": np.broadcast_to(grey, IMAGES.shape)}
    elbo = from_loss(
        lambda student, teacher, batch: hard.elbo_loss(student, batch["image"]),
        name="elbo",
        student_taps=("mean", "log_variance"),
    )
    program = distill(VAE, None, elbo, optax.adam(1e-2))
    state, history = training.fit(
        program,
        [batch],
        key=KEY,
        steps=80,
        evaluate=lambda state: {},
        evaluate_every=20,
    )
    course = [entry["train_elbo"] for entry in history]
    assert course[-1] < 0.3 * course[0]
    latents = VAE.segment(stop="latent").apply(state.student, IMAGES)[0].logits
    assert latents.shape == (64, 6)
    whole = VAE.apply(state.student, IMAGES)[0].logits
    back = VAE.segment("latent").apply(state.student, latents)[0].logits
    np.testing.assert_allclose(back, whole, rtol=1e-5, atol=1e-6)
    # In training the latents are drawn, in evaluation they are the mean.
    drawn = [
        VAE.apply(state.student, IMAGES, train=True, key=jax.random.key(i))[0].logits
        for i in (0, 1)
    ]
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hard.affine(0.0), "max_translate and max_linear are both 0"),
        (lambda: hard.colour(0.0, 0.0), "max_gain and max_shift are both 0"),
        (lambda: hard.mix(1), "sources must be at least 2"),
        (
            lambda: hard.mix_augment(
                {}, IMAGES, IMAGES[:, 0, 0], jnp.zeros((1, 64), int)
            ),
            "with at least 2 sources",
        ),
        (
            lambda: hard.latent(
                TRAINED.segment(stop="latent"), TRAINED.segment("latent"), 5, 1.0
            ).init(KEY, IMAGES),
            "latents is 5, but the encoder answers",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
