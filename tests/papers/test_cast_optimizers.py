"""AdamS and AST's optimizer: an independent float64 reference, laws, bad input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, methods
from jaxkd.compression.prune.sparsity import named
from jaxkd.compression.sparse_training import scaled
from jaxkd.models.language.llama import llama
from jaxkd.papers.cast.optimizers import adams, ast_adam, decay_budget, keep_zeros
from jaxkd.sharding.mesh import MeshShape, make_mesh, state_sharding

SCOPE, BLOCKS = r"layer\.kernel", r"blocks\..*\.kernel"
STEPS, EVERY = 25, 5
RNG = np.random.default_rng(0)


def start():
    return {
        "layer": {"kernel": RNG.normal(size=(8, 3)), "bias": RNG.normal(size=3)},
        "head": {"kernel": RNG.normal(size=(3, 4))},
    }


def gradients(step):
    rng = np.random.default_rng(100 + step)
    return {
        "layer": {"kernel": rng.normal(size=(8, 3)), "bias": rng.normal(size=3)},
        "head": {"kernel": rng.normal(size=(3, 4))},
    }


def largest_two(weights):
    mask = np.zeros(weights.shape, bool)
    for column in range(weights.shape[1]):
        for first in range(0, len(weights), 4):
            group = np.abs(weights[first : first + 4, column])
            mask[first + np.argsort(-group, kind="stable")[:2], column] = True
    return mask


def reference(theta, kind, rate, steps=STEPS, b1=0.9, b2=0.999, eps=1e-8):
    """Element by element as the papers have it, for one array in scope or not."""
    mu, nu, mask = np.zeros_like(theta), np.zeros_like(theta), None
    for t in range(steps):
        g = gradients(t)["layer"]["kernel"] if kind else gradients(t)["head"]["kernel"]
        if kind and t % EVERY == 0:
            mask = largest_two(theta)
        mu = b1 * mu + (1 - b1) * g
        bent, source = mu, g
        if kind == "adams":
            alpha = t / steps
            pulled = (1 - alpha) * mu + alpha * 0.3 * np.sign(theta)
            bent = source = np.where(mask, mu, pulled)
        if kind == "ast":
            bent = source = np.where(mask, mu, mu + 0.2 * min(t / 10, 1) * theta)
        nu = b2 * nu + (1 - b2) * source**2
        step = bent / (1 - b1 ** (t + 1)) / (np.sqrt(nu / (1 - b2 ** (t + 1))) + eps)
        theta = theta - rate(t) * step
    return theta, mask, nu


# optax's schedules are in float32, whatever the weights.
def rate(step):
    return 0.05 * (1 - jnp.asarray(step, float) / (2 * STEPS))


def ramp(steps, end=1.0):
    return lambda step: end * jnp.minimum(jnp.asarray(step, float) / steps, 1)


OPTIMIZERS = {
    "adams": adams(rate, 0.3, ramp(STEPS), SCOPE, mask_every=EVERY),
    "ast": ast_adam(rate, ramp(10, 0.2), SCOPE, mask_every=EVERY),
}


def trained(optimizer, params, steps=STEPS, gradients=gradients):
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        gradient = jax.tree.map(
            lambda g, p: jnp.asarray(g, p.dtype), gradients(step), params
        )
        params, state = update(params, state, gradient)
    return params, state


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_updates_are_the_papers(kind, x64):
    params = start()
    after, state = trained(OPTIMIZERS[kind], jax.tree.map(jnp.asarray, params))
    expected, mask, nu = reference(params["layer"]["kernel"], kind, rate)
    np.testing.assert_allclose(after["layer"]["kernel"], expected, rtol=1e-10)
    np.testing.assert_array_equal(state.mask["layer"]["kernel"], mask)
    np.testing.assert_allclose(state.nu["layer"]["kernel"], nu, rtol=1e-10)
    # The head is out of scope: plain Adam, with the gradient's own second moment.
    expected, _, nu = reference(params["head"]["kernel"], None, rate)
    np.testing.assert_allclose(after["head"]["kernel"], expected, rtol=1e-10)
    np.testing.assert_allclose(state.nu["head"]["kernel"], nu, rtol=1e-10)
    plain, _ = trained(optax.adam(rate), jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(
        after["layer"]["bias"], plain["layer"]["bias"], rtol=1e-10
    )


def test_float32_is_the_same_but_for_rounding():
    params = start()
    expected, _, _ = reference(
        params["layer"]["kernel"], "adams", lambda t: 0.05 * (1 - t / (2 * STEPS))
    )
    after, _ = trained(
        OPTIMIZERS["adams"], jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    )
    np.testing.assert_allclose(after["layer"]["kernel"], expected, rtol=2e-5, atol=2e-6)


def test_without_pull_it_is_adam_on_the_moments_own_square(x64):
    """A share of 0, or all weights kept, leaves the second moment of μ alone."""
    params = jax.tree.map(jnp.asarray, start())
    never = adams(0.05, 0.3, lambda step: 0.0, SCOPE)
    everything = adams(0.05, 0.3, optax.linear_schedule(0.0, 1.0, 9), SCOPE, n=4)
    first, second = (trained(o, params)[0] for o in (never, everything))
    chex.assert_trees_all_equal(first, second)
    theta = np.array(params["layer"]["kernel"])
    mu = nu = np.zeros_like(theta)
    for t in range(STEPS):
        mu = 0.9 * mu + 0.1 * gradients(t)["layer"]["kernel"]
        nu = 0.999 * nu + 0.001 * mu**2
        root = np.sqrt(nu / (1 - 0.999 ** (t + 1))) + 1e-8
        theta = theta - 0.05 * mu / (1 - 0.9 ** (t + 1)) / root
    np.testing.assert_allclose(first["layer"]["kernel"], theta, rtol=1e-10)


def nothing(step):
    return jax.tree.map(np.zeros_like, gradients(step))


@pytest.mark.parametrize("decay", [1e-4, 1.0])
def test_without_gradient_dropped_weights_fall_by_the_budget_whatever_the_decay(
    decay, x64
):
    params = {"layer": {"kernel": jnp.full((4, 1), 9.0)}}
    share, rate = optax.linear_schedule(0.0, 1.0, 200), 0.01
    after, state = trained(
        adams(rate, decay, share, SCOPE),
        params,
        200,
        lambda step: {"layer": {"kernel": np.zeros((4, 1))}},
    )
    fallen = 9.0 - np.ravel(after["layer"]["kernel"])
    np.testing.assert_array_equal(fallen[:2], 0)
    # α_t λ/√(mean of their squares) is above 1 while α rises, so it falls by more than
    # Σ lr α, and by less than if every step were its first.
    assert decay_budget(rate, share, 200) < fallen[2] < 0.01 * 200 * 2
    np.testing.assert_allclose(fallen[2], fallen[3])
    assert not state.mu["layer"]["kernel"].any()


def test_the_floor_is_the_last_rate():
    """At a constant rate dropped weights hover about 0; a decaying one lets them in."""
    params = {"layer": {"kernel": jnp.array([[1.0], [1.0], [0.02], [0.01]])}}

    def rest(rate):
        share = optax.linear_schedule(0.0, 1.0, 300)
        after, _ = trained(
            adams(rate, 1.0, share, SCOPE),
            params,
            300,
            lambda step: {"layer": {"kernel": np.zeros((4, 1))}},
        )
        return np.abs(np.ravel(after["layer"]["kernel"])[2:]).max()

    constant, decaying = rest(0.01), rest(optax.linear_schedule(0.01, 1e-5, 300))
    assert 1e-3 < constant < 0.03
    assert decaying < 1e-3


def test_masks_are_renewed_at_the_first_step_and_every_few():
    """The mask of step t is of the weights before the last multiple of the interval."""
    optimizer = OPTIMIZERS["adams"]
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start())
    state = optimizer.init(params)
    # What init holds is not used: the first step takes the weights that it is given.
    params = {**params, "layer": {**params["layer"]}}
    params["layer"]["kernel"] = params["layer"]["kernel"][::-1]
    seen, update = [], jax.jit(optimizer.update)
    for step in range(EVERY + 1):
        expected = largest_two(np.asarray(params["layer"]["kernel"]))
        seen.append(expected)
        gradient = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradients(step))
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: 20 * u, updates))
        used = seen[step - step % EVERY]
        np.testing.assert_array_equal(state.mask["layer"]["kernel"], used)
    assert not (seen[0] == seen[EVERY]).all()


def test_zeros_are_kept_zero():
    params = {
        "layer": {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]])},
        "free": jnp.zeros(2),
    }
    optimizer = optax.chain(optax.sgd(1.0), keep_zeros(SCOPE))
    updates, _ = optimizer.update(
        jax.tree.map(jnp.ones_like, params), optimizer.init(params), params
    )
    np.testing.assert_array_equal(updates["layer"]["kernel"], [[-1, 0], [0, -1]])
    np.testing.assert_array_equal(updates["free"], [-1, -1])


def test_the_budget_is_the_sum_of_rates_times_shares():
    rate = optax.cosine_decay_schedule(1e-3, 600, 0.1)
    share = optax.linear_schedule(0.0, 1.0, 600)
    t = np.arange(600)
    rates = 1e-3 * (0.9 * (1 + np.cos(np.pi * t / 600)) / 2 + 0.1)
    expected = np.sum(rates * t / 600)
    np.testing.assert_allclose(decay_budget(rate, share, 600), expected, rtol=1e-5)
    np.testing.assert_allclose(decay_budget(0.5, share, 600), 0.5 * 299.5, rtol=1e-5)


def test_masks_lie_on_a_mesh_as_their_weights_do():
    """Also where a layer's name decides: of Llama's weights by it, of a scale's not."""
    student = scaled(llama(64, 128, 2, 4, 256), BLOCKS)
    optimizer = adams(1e-3, 1e-3, lambda step: 0.5, BLOCKS)
    program = distill(student, None, methods.cross_entropy(), optimizer)
    tokens = jax.ShapeDtypeStruct((8, 4), jnp.int32)
    batch = {"input_ids": tokens, "label": tokens}
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    placed = state_sharding(state, make_mesh(MeshShape(fsdp=2, tensor=2)), program.axes)
    weights = named({"student": placed.student["params"]})
    masks = named(placed.opt_state.mask)
    assert len(masks) == 7
    for name, sharding in masks.items():
        assert sharding == weights[name]
        assert not sharding.is_fully_replicated


def test_bad_input_is_refused():
    share = optax.linear_schedule(0.0, 1.0, 5)
    with pytest.raises(ValueError, match=r"decay must be above 0, got 0"):
        adams(1e-3, 0.0, share, SCOPE)
    with pytest.raises(ValueError, match=r"mask_every must be at least 1, got 0"):
        adams(1e-3, 1.0, share, SCOPE, mask_every=0)
    optimizer = adams(1e-3, 1.0, share, SCOPE)
    params = {"layer": {"kernel": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match=r"params is None.*update\(updates"):
        optimizer.update(params, optimizer.init(params))
    with pytest.raises(ValueError, match=r"params is None"):
        keep_zeros(SCOPE).update(params, optax.EmptyState())
    with pytest.raises(ValueError, match=r"layer\.kernel is bfloat16.*computing_in"):
        optimizer.init({"layer": {"kernel": jnp.ones((4, 2), jnp.bfloat16)}})
    with pytest.raises(ValueError, match=r"scope .*matches the end of no weight"):
        optimizer.init({"other": jnp.ones((4, 2))})
    with pytest.raises(ValueError, match=r"6 entries"):
        optimizer.init({"layer": {"kernel": jnp.ones((6, 2))}})
