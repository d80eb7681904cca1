"""Mamba-2's scan: one token at a time, by chunks, and as the authors compute it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.kernels.ssd import ssd, ssd_step, xla
from jaxkd.training.ahead import compile_for, lower_for_gpu


def arrays(length, heads=4, groups=2, dtype=np.float64, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(2, length, heads, 3))
    log_decay = -np.abs(draw.normal(size=(2, length, heads)))
    b, c = draw.normal(size=(2, 2, length, groups, 5))
    state = draw.normal(size=(2, heads, 3, 5))
    return [jnp.asarray(y, dtype) for y in (x, log_decay, b, c, state)]


def loops(x, log_decay, b, c, state):
    """The recurrence in NumPy."""
    x, log_decay, b, c, state = (
        np.asarray(y, np.float64) for y in (x, log_decay, b, c, state)
    )
    out, state, each = np.zeros_like(x), state.copy(), x.shape[2] // b.shape[2]
    for n, t, h in np.ndindex(x.shape[:3]):
        state[n, h] *= np.exp(log_decay[n, t, h])
        state[n, h] += np.outer(x[n, t, h], b[n, t, h // each])
        out[n, t, h] = state[n, h] @ c[n, t, h // each]
    return out, state


def with_gradients(implementation, inputs, seed=1):
    """Return outputs and gradients of a random linear function of both."""

    def both(*arguments):
        found, pull = jax.vjp(
            lambda *a: ssd(*a[:4], state=a[4], implementation=implementation),
            *arguments,
        )
        draw = np.random.default_rng(seed)
        cotangent = jax.tree.map(
            lambda y: jnp.asarray(draw.normal(size=y.shape), y.dtype), found
        )
        return [*found, *pull(cotangent)]

    return jax.jit(both)(*inputs)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(xla, "CHUNK", 8)


@pytest.mark.parametrize(("length", "groups"), [(1, 1), (21, 2), (16, 4)])
def test_versions_agree_with_numpy(length, groups, x64, small_chunks):
    inputs = arrays(length, groups=groups)
    out, state = loops(*inputs)
    reference = with_gradients("reference", inputs)
    np.testing.assert_allclose(reference[0], out, atol=1e-12)
    np.testing.assert_allclose(reference[1], state, atol=1e-12)
    for x, y in zip(with_gradients("auto", inputs), reference, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-11)


def test_a_sequence_in_two_parts(small_chunks):
    x, log_decay, b, c, state = arrays(19, dtype=np.float32)
    whole = ssd(x, log_decay, b, c, state=state)
    first = ssd(x[:, :11], log_decay[:, :11], b[:, :11], c[:, :11], state=state)
    second = ssd(x[:, 11:], log_decay[:, 11:], b[:, 11:], c[:, 11:], state=first.state)
    joined = jnp.concatenate([first.out, second.out], 1)
    np.testing.assert_allclose(joined, whole.out, atol=1e-5)
    np.testing.assert_allclose(second.state, whole.state, atol=1e-5)


def test_steps_are_the_scan():
    x, log_decay, b, c, _ = arrays(5, dtype=np.float32)
    whole = ssd(x, log_decay, b, c)
    state = jnp.zeros_like(whole.state)
    for t in range(5):
        out, state = ssd_step(state, x[:, t], log_decay[:, t], b[:, t], c[:, t])
        np.testing.assert_allclose(out, whole.out[:, t], atol=1e-5)
    np.testing.assert_allclose(state, whole.state, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_the_authors_numbers(implementation, load_golden):
    golden = load_golden("14-mmmamba")
    x, decay, b, c = (
        jnp.asarray(golden[f"scan1/{name}"]) for name in ("X", "A_log", "B", "C")
    )
    found = ssd(x, -jax.nn.softplus(decay), b, c, implementation=implementation)
    np.testing.assert_allclose(found.out, golden["scan1/y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found.state, golden["scan1/final_state"], rtol=1e-5, atol=1e-5
    )


def test_decay_to_nothing_and_none(small_chunks):
    x, log_decay, b, c, state = arrays(20, dtype=np.float32)
    for extreme in (jnp.full_like(log_decay, -1e4), jnp.zeros_like(log_decay)):
        inputs = [x, extreme, b, c, state]
        expected = with_gradients("reference", inputs)
        for y, z in zip(with_gradients("xla", inputs), expected, strict=True):
            assert np.isfinite(y).all()
            np.testing.assert_allclose(y, z, atol=2e-4)


@pytest.mark.slow
def test_bfloat16(small_chunks):
    inputs = arrays(20, dtype=np.float32)
    half = [y.astype(jnp.bfloat16) for y in inputs]
    half[1] = inputs[1]
    expected = with_gradients("reference", inputs)
    for y, z in zip(with_gradients("xla", half), expected, strict=True):
        scale = np.abs(z).max()
        np.testing.assert_allclose(y.astype(jnp.float32), z, atol=0.03 * scale)
    found = ssd(*half[:4])
    assert (found.out.dtype, found.state.dtype) == (jnp.bfloat16, jnp.float32)


def test_mapped_over_an_axis():
    inputs = arrays(6, dtype=np.float32)[:4]
    mapped = jax.vmap(lambda *y: ssd(*(z[None] for z in y)).out[0])
    np.testing.assert_allclose(mapped(*inputs), ssd(*inputs).out, atol=1e-5)


def shapes(length):
    def shape(*sizes):
        return jax.ShapeDtypeStruct((1, length, *sizes), jnp.bfloat16)

    return shape(8, 64), shape(8), shape(1, 64), shape(1, 64)


def loss(*inputs):
    return ssd(*inputs).out.astype(jnp.float32).sum()


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiled_for_a_tpu(topology):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")
    compiled = compile_for(topology, jax.grad(loss, (0, 1, 2, 3)), *shapes(1000))
    a_state = 4 * 8 * 64 * 64
    # The reference keeps a state a token.
    assert compiled.memory_analysis().temp_size_in_bytes < 1000 * a_state / 10


def test_lowered_for_a_gpu():
    assert "stablehlo.while" in lower_for_gpu(loss, *shapes(1000))


def test_bad_inputs(unchecked_shapes):
    x, log_decay, b, c, state = arrays(4, dtype=np.float32)
    for message, call in {
        "b and c must be the": lambda: ssd(x, log_decay, b, c[:, :3]),
        "a multiple of their groups": lambda: ssd(x[:, :, :3], log_decay, b, c),
        "log_decay has shape": lambda: ssd(x, log_decay[:, :, :1], b, c),
        "no token": lambda: ssd(x[:, :0], log_decay[:, :0], b[:, :0], c[:, :0]),
        "state has shape": lambda: ssd(x, log_decay, b, c, state=state[:1]),
        "ssd has no Pallas kernel": lambda: ssd(
            x, log_decay, b, c, implementation="pallas"
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
