"""What augmentations may do to images, and that they can learn to do it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from jaxkd import Outputs, distill, training
from jaxkd.methods import from_loss
from jaxkd.models.parts.sampling import affine_grid, grid_sample
from jaxkd.papers import hard
from jaxkd.papers.hard import Controller, control

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


BOUNDS = {
    "shifts": lambda c: jnp.abs(c).max() <= 0.3,
    "elastic": lambda c: jnp.abs(c).max() <= 0.2,
    "colour": lambda c: jnp.abs(c).max() <= 1,
    "latent": lambda c: jnp.linalg.norm(c, axis=-1).max() <= 0.5,
    "affine": lambda c: (
        jnp.abs(c.reshape(-1, 2, 3) - jnp.eye(2, 3)).max((0, 1))
        <= jnp.array([0.2, 0.2, 0.3])
    ).all(),
    "mix": lambda c: jnp.abs(c.reshape(64, 7, 5, 3).sum(-1) - 1).max() < 1e-5,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_controls_have_gradients_and_bounds_and_noise_dominates(name):
    augmenter = LEARNED[name]
    variables = jax.jit(augmenter.init)(KEY, IMAGES)
    target = np.random.default_rng(0).normal(size=IMAGES.shape).astype("f4")

    @jax.jit
    def run(params, images):
        def total(params):
            found = augmenter.apply({**variables, "params": params}, images, KEY)
            return (found.images * target).mean(), found

        (_, found), slopes = jax.value_and_grad(total, has_aux=True)(params)
        return found, slopes, found.controls.std(0).mean(), BOUNDS[name](found.controls)

    found, slopes, spread, bounded = run(variables["params"], IMAGES)
    assert found.images.shape == IMAGES.shape
    assert found.controls.shape[0] == len(IMAGES)
    assert bounded
    for slope in map(np.asarray, jax.tree.leaves(slopes)):
        assert np.isfinite(slope).all()
        assert (slope != 0).any()
    # One image, seen 64 times, is changed in as many ways as 64 images are.
    one = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    assert run(variables["params"], one)[2] > 0.8 * spread


def test_a_weak_noise_leaves_one_change_for_all():
    @functools.partial(jax.jit, static_argnums=0)
    def spread(controller):
        one = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
        params = controller.init(KEY, one, 2)
        return control(params, one, controller.draw(KEY, one)).std(0).mean()

    assert spread(Controller(noise_scale=0.01)) < 0.05
    assert spread(Controller(noise_scale=3.0)) > 0.4


def test_what_is_made_by_hand_differs_from_image_to_image():
    low, high = np.array([0.2, 0.4], "f4"), 0.6

    @jax.jit
    def run():
        made = [x.apply(x.init(KEY, IMAGES), IMAGES, KEY) for x in FIXED.values()]
        clipped = hard.within(FIXED["rand"], low, high)
        return made, clipped.apply(clipped.init(KEY, IMAGES), IMAGES, KEY).images

    made, clipped = jax.tree.map(np.asarray, run())
    for found in made:
        assert found.images.shape == IMAGES.shape
        assert np.isfinite(found.images).all()
        assert (found.controls.std(0) > 0).any()
    assert (clipped >= low).all()
    assert clipped.max() == pytest.approx(high)


def test_augmentations_are_their_formulas():
    controller, eps = Controller(), jax.random.normal(KEY, (64, 16))
    perms = jnp.stack([jnp.arange(64), jnp.roll(jnp.arange(64), 1)])
    levels = IMAGES[:, 0].reshape(64, -1), IMAGES[:, 1:].reshape(64, -1)

    @jax.jit
    def run():
        params = {n: controller.init(KEY, IMAGES, n) for n in (4, 6, 10, 32)}
        chosen = {n: control(params[n], IMAGES, eps) for n in (4, 6)}
        latent = hard.latent_augment(
            lambda x: levels,
            lambda z: jnp.concatenate(z, -1).reshape(IMAGES.shape),
            *(params[10], IMAGES, eps, 2.0),
            levels=(0,),
        )
        affine = hard.affine_augment(params[6], IMAGES, eps, 0.3, 0.2)
        colour = hard.colour_augment(params[4], IMAGES, eps, 0.4, 0.2)
        mix = hard.mix_augment(params[32], IMAGES, eps, perms)
        read = grid_sample(IMAGES, affine_grid(affine[1], 7, 5))
        return chosen, affine, read, colour[0], mix, latent

    x = np.asarray(IMAGES)
    chosen, (moved, theta), read, colour, (mixed, maps), (made, delta) = jax.tree.map(
        np.asarray, run()
    )
    linear, shift = 0.2 * chosen[6][:, 2:].reshape(-1, 2, 2), 0.3 * chosen[6][:, :2]
    expected = np.eye(2, 3) + np.concatenate([linear, shift[..., None]], axis=-1)
    np.testing.assert_allclose(theta, expected, rtol=1e-5)
    np.testing.assert_allclose(moved, read, atol=1e-5)
    gain, light = np.split(chosen[4], 2, -1)
    np.testing.assert_allclose(
        colour.mean((1, 2)), x.mean((1, 2)) + 0.2 * light, rtol=1e-4
    )
    ratio = colour.std((1, 2)) / x.std((1, 2))
    np.testing.assert_allclose(ratio, 1 + 0.4 * gain, rtol=1e-4)
    expected = maps[..., :1] * x + maps[..., 1:] * np.roll(x, 1, 0)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made[:, 1:], x[:, 1:])
    moved = made[:, 0].reshape(64, -1) - x[:, 0].reshape(64, -1)
    np.testing.assert_allclose(moved, delta, rtol=1e-4, atol=1e-5)


def test_the_elbo_is_its_formula():
    rng = np.random.default_rng(0)
    made, x = rng.random((2, 2, 70))
    mean, log_variance = rng.normal(size=(2, 2, 6))
    # KL of two normals by quadrature, one latent at a time.
    z = np.linspace(-12, 12, 4001)[:, None, None]
    log_q = norm.logpdf(z, mean, np.exp(log_variance / 2))
    kl = np.trapezoid(np.exp(log_q) * (log_q - norm.logpdf(z)), z[:, 0, 0], axis=0)
    expected = ((made - x) ** 2).sum(-1) / (2 * 0.3**2) + kl.sum(-1)
    taps = {"mean": jnp.asarray(mean), "log_variance": jnp.asarray(log_variance)}
    found = hard.elbo_loss(Outputs(jnp.asarray(made), taps), jnp.asarray(x), 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


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

    @jax.jit
    def run(v):
        latents = VAE.segment(stop="latent").apply(v, IMAGES)[0].logits
        back = VAE.segment("latent").apply(v, latents)[0].logits
        drawn = VAE.apply(v, IMAGES, train=True, key=KEY)[0].logits
        return latents, back, VAE.apply(v, IMAGES)[0].logits, drawn

    latents, back, whole, drawn = run(state.student)
    assert latents.shape == (64, 6)
    np.testing.assert_allclose(back, whole, rtol=1e-5, atol=1e-6)
    # In training the latents are drawn, in evaluation they are the mean.
    assert (np.asarray(drawn) != np.asarray(whole)).any()


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
