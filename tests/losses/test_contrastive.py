"""CRD: two of the authors' steps, the memory banks, the sampling of negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses.contrastive import crd_init, crd_loss, sample_negatives


def normal(seed, shape=(6, 5), scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def assert_golden(result, expected, precision):
    """Compare to 1e-6 in float64 and 1e-5, of the largest entry, in float32."""
    rtol = 1e-6 if precision == "float64" else 1e-5
    atol = 1e-9 if precision == "float64" else 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)


def assert_close(result, expected, tolerance=1e-5):
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


def test_authors_crd_over_two_steps(golden, precision):
    def array(name):
        return jnp.asarray(golden[f"crd_{name}"], precision)

    names = ("student_bank", "teacher_bank")
    state = {name: array(f"mem{i}_0") for i, name in enumerate(names, 1)}
    state |= dict.fromkeys(
        ("student_log_z", "teacher_log_z"), jnp.asarray(-jnp.inf, precision)
    )

    @jax.jit
    def loss(f_s, w_s, w_t, f_t, state, index):
        v_s, v_t = f_s @ w_s.T + array("bs"), f_t @ w_t.T + array("bt")
        losses, state = crd_loss(state, v_s, v_t, index, 0.07, 0.5)
        return losses.mean(), state

    for step in range(2):
        index = jnp.asarray(golden[f"crd_contrast_idx{step}"])
        inputs = (array(f"f_s{step}"), array("ws"), array("wt"), array(f"f_t{step}"))
        gradient = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
        (value, state), gradients = gradient(*inputs, state, index)
        assert_golden(value, golden[f"crd_loss{step}"], precision)
        for name, result in zip(("grad", "ws_grad", "wt_grad"), gradients, strict=True):
            assert_golden(result, golden[f"crd_{name}{step}"], precision)
        for i, name in enumerate(names, 1):
            assert_golden(state[name], golden[f"crd_mem{i}_{step + 1}"], precision)
        z = jnp.exp(jnp.stack([state["student_log_z"], state["teacher_log_z"]]))
        assert_golden(z, golden[f"crd_Z{step}"], precision)


class TestCRD:
    index = jnp.array([[3, 0, 1], [5, 2, 0], [3, 4, 2], [7, 0, 1]])

    def step(self, state=None, seed=0, **kwargs):
        state = crd_init(jax.random.key(0), 8, 5) if state is None else state
        arrays = normal(seed, (4, 5)), normal(seed + 1, (4, 5))
        step = jax.jit(crd_loss, static_argnames=("temperature", "momentum"))
        return step(state, *arrays, self.index, **kwargs)

    def test_the_normalisers_are_set_once_and_by_a_counted_example(self):
        start = crd_init(jax.random.key(0), 8, 5)
        _, state = self.step(weights=jnp.zeros(4))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, state, start))
        _, first = self.step(state)
        assert jnp.isfinite(first["student_log_z"])
        _, second = self.step(first, seed=5)
        assert second["student_log_z"] == first["student_log_z"]
        assert second["teacher_log_z"] == first["teacher_log_z"]

    def test_the_later_of_two_equal_examples_is_remembered(self):
        start = crd_init(jax.random.key(0), 8, 5)
        _, state = self.step(momentum=0.0)
        units = normal(0, (4, 5)) / jnp.linalg.norm(normal(0, (4, 5)), axis=1)[:, None]
        assert_close(state["student_bank"][3], units[2], 1e-6)
        assert_close(state["student_bank"][7], units[3], 1e-6)
        untouched = jnp.array([0, 1, 2, 4, 6])
        assert jnp.array_equal(
            state["student_bank"][untouched], start["student_bank"][untouched]
        )
        weights = jnp.array([1.0, 1.0, 0.0, 0.0])
        loss, state = self.step(momentum=0.0, weights=weights)
        assert_close(state["student_bank"][3], units[0], 1e-6)
        assert jnp.array_equal(state["student_bank"][7], start["student_bank"][7])
        assert jnp.all(loss[2:] == 0)

    @pytest.mark.slow
    def test_the_state_has_no_gradient(self):
        def bank_sum(v):
            state = crd_init(jax.random.key(0), 8, 5)
            return crd_loss(state, v, v, self.index)[1]["student_bank"].sum()

        assert jnp.all(jax.grad(bank_sum)(normal(0, (4, 5))) == 0)

    def test_a_low_temperature_does_not_overflow(self):
        loss, state = self.step(temperature=1e-3)
        assert jnp.all(jnp.isfinite(loss))
        assert jnp.isfinite(state["student_log_z"])


class TestSampleNegatives:
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 0, 1, 2])
    index = jnp.array([0, 4, 9, 4])

    @pytest.mark.parametrize("seed", range(3))
    def test_they_are_distinct_and_of_other_classes(self, seed):
        drawn = np.asarray(
            jax.jit(lambda k, i: sample_negatives(k, self.labels, i, 5))(
                jax.random.key(seed), self.index
            )
        )
        assert drawn.shape == (4, 6)
        np.testing.assert_array_equal(drawn[:, 0], self.index)
        for own, *others in drawn:
            assert len(set(others)) == 5
            assert self.labels[own] not in self.labels[others]

    def test_each_is_equally_likely(self):
        index = jnp.zeros(3000, jnp.int32)
        classes = jnp.zeros(3000, jnp.int32)
        key = jax.random.key(0)
        drawn = sample_negatives(key, self.labels, index, 3, batch_labels=classes)
        share = np.bincount(drawn[:, 1:].ravel(), minlength=10) / 3000
        # 3 of 7 others; 3 standard errors of a share are 0.027.
        expected = np.where(self.labels == 0, 0, 3 / 7)
        np.testing.assert_allclose(share, expected, atol=0.04)

    @pytest.mark.parametrize("negatives", [0, 7])
    def test_too_many_are_refused(self, negatives):
        with pytest.raises(ValueError, match=r"1\.\.6"):
            sample_negatives(jax.random.key(0), self.labels, self.index, negatives)


def embed(rows=4, dim=5, index=((0, 1),) * 4, **kwargs):
    state = crd_init(jax.random.key(0), 8, 5)
    arrays = normal(0, (rows, dim)), normal(1, (rows, dim))
    return crd_loss(state, *arrays, jnp.array(index), **kwargs)


@pytest.mark.parametrize("outside", [8, -1, 1000])
def test_a_position_outside_the_data_is_nan_in_its_example_alone(outside):
    index = ((0, 1), (outside, 1), (2, 3), (3, outside))
    loss, _ = embed(index=index)
    assert np.isnan(loss).tolist() == [False, True, False, True]
    masked, _ = embed(index=index, weights=jnp.array([1.0, 0, 1, 0]))
    assert np.isfinite(masked).all()


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: embed(dim=4), "crd_init"),
        (lambda: embed(rows=3), "contrast_index has shape"),
        (lambda: embed(index=((0,),) * 4), "at least 1 negative"),
        (lambda: embed(temperature=0.0), "temperature"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
