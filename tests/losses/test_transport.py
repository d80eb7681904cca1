"""Transport plans against SinKD's authors, OTT, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.losses.transport import pairwise_distances, sinkhorn_plan
from jaxkd.training.ahead import compile_for, lower_for_gpu


def costs(*shape, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), dtype)


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_the_authors_numbers(case, x64, load_golden):
    golden = load_golden("41-sinkd")
    expected = {
        name.removeprefix(f"{case}/"): jnp.asarray(value)
        for name, value in golden.items()
        if name.startswith(f"{case}/")
    }
    teacher = expected["p_teacher"]

    def loss(student):
        cost = pairwise_distances(student, teacher)
        # The authors' plan has a mass of 1 for each example of the batch.
        plan = len(student) * sinkhorn_plan(
            cost,
            epsilon=float(expected["epsilon"]),
            iterations=int(expected["n_iters"]),
        )
        return jnp.sum(plan * cost), (cost, plan)

    (value, (cost, plan)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        expected["p_student"]
    )
    np.testing.assert_allclose(cost, expected["cost"], rtol=1e-12)
    np.testing.assert_allclose(plan, expected["plan"], rtol=1e-12)
    np.testing.assert_allclose(value, expected["sinkhorn_loss"], rtol=1e-12)
    np.testing.assert_allclose(gradient, expected["sinkhorn_grad_p"], atol=1e-12)


@pytest.mark.slow
def test_the_limit_is_otts(x64):
    pytest.importorskip("ott", reason="the oracle is ott-jax")
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    cost = costs(7, 5)
    row_mass, column_mass = (jax.nn.softmax(costs(n, seed=n)) for n in cost.shape)

    def ours(cost):
        plan = sinkhorn_plan(
            cost,
            epsilon=0.05,
            iterations=400,
            row_mass=row_mass,
            column_mass=column_mass,
        )
        return jnp.sum(plan * cost), plan

    def theirs(cost):
        problem = LinearProblem(
            Geometry(cost_matrix=cost, epsilon=0.05), row_mass, column_mass
        )
        plan = Sinkhorn(threshold=1e-12, max_iterations=4000)(problem).matrix
        return jnp.sum(plan * cost), plan

    expected = jax.value_and_grad(theirs, has_aux=True)(cost)
    found = jax.value_and_grad(ours, has_aux=True)(cost)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-9)


@pytest.mark.slow
def test_the_gradient_of_each_iteration(x64):
    """Against the same iterations written out, without logarithms."""
    cost, weights = costs(2, 4, 3), costs(2, 4, 3, seed=1)

    def plain(cost):
        plan = jnp.exp(-cost / 0.3)
        for _ in range(3):
            plan = plan / plan.sum(-1, keepdims=True) / 4
            plan = plan / plan.sum(-2, keepdims=True) / 3
        return plan

    def ours(cost):
        return sinkhorn_plan(cost, epsilon=0.3, iterations=3)

    np.testing.assert_allclose(ours(cost), plain(cost), rtol=1e-12)
    found, expected = (
        jax.grad(lambda c, f=f: jnp.sum(weights * f(c)))(cost) for f in (ours, plain)
    )
    np.testing.assert_allclose(found, expected, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([0.0, 1.0, 1e4]))
def test_masses_are_kept(seed, scale):
    cost = scale * costs(5, 5, seed=seed, dtype=np.float32)
    plan = PLAN(cost)
    assert (plan >= 0).all()
    # Float32 knows exponents of 1e5 to 0.008.
    np.testing.assert_allclose(plan.sum(0), 0.2, rtol=1e-5 if scale < 1e4 else 2e-2)
    order = np.random.default_rng(seed).permutation(5)
    again = PLAN(cost[order])
    np.testing.assert_allclose(again, plan[order], atol=1e-5 if scale < 1e4 else 1e-2)


PLAN = jax.jit(lambda cost: sinkhorn_plan(cost, epsilon=0.1, iterations=20))


@pytest.mark.slow
def test_what_has_no_mass_takes_no_part():
    cost = costs(3, 5, 4, dtype=np.float32)
    whole = sinkhorn_plan(cost[:, :3, :2], epsilon=0.1, iterations=5)
    row_mass = jnp.asarray([1, 1, 1, 0, 0]) / 3 * jnp.ones((3, 1))
    column_mass = jnp.asarray([1, 1, 0, 0]) / 2 * jnp.asarray([[1], [1], [0]])
    row_mass = row_mass.at[2].set(0)

    def total(cost):
        plan = sinkhorn_plan(
            cost,
            epsilon=0.1,
            iterations=5,
            row_mass=row_mass,
            column_mass=column_mass,
        )
        return jnp.sum(plan * cost), plan

    (_, plan), gradient = jax.value_and_grad(total, has_aux=True)(cost)
    np.testing.assert_allclose(plan[:2, :3, :2], whole[:2], rtol=1e-5)
    for x in (plan, gradient):
        assert np.isfinite(x).all()
        assert not x[2].any()
        assert not x[:, 3:].any()
        assert not x[:, :, 2:].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_sample_and_extreme_costs(dtype):
    one = sinkhorn_plan(jnp.full((1, 1), 3, dtype), epsilon=0.1, iterations=2)
    np.testing.assert_allclose(one, 1, rtol=1e-6)
    cost = jnp.asarray([[0, 1e4], [1e4, -1e4]], dtype)
    value, gradient = jax.value_and_grad(
        lambda c: sinkhorn_plan(c, epsilon=0.1, iterations=9)[0, 0]
    )(cost)
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)
    assert np.isfinite(gradient.astype(jnp.float32)).all()
    assert value.dtype == jnp.float32


def test_distances():
    x = costs(2, 3, 4, seed=1, dtype=np.float32)
    y = costs(2, 5, 4, seed=2, dtype=np.float32)
    for order in (1, 2):
        expected = np.abs(np.asarray(x)[:, :, None] - np.asarray(y)[:, None]) ** order
        found = pairwise_distances(x, y, order)
        np.testing.assert_allclose(found, expected.sum(-1), rtol=1e-5)
    half = x.at[..., :2].set(y[:, :1, :2])[:, :1]
    slopes = jax.grad(lambda x: pairwise_distances(x, y[:, :1]).sum())(half)
    np.testing.assert_array_equal(slopes, np.sign(half - y[:, :1]))


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiled_for_a_tpu(topology):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")
    cost = jax.ShapeDtypeStruct((1, 1024, 1024), jnp.float32)

    def loss(cost):
        return jnp.sum(sinkhorn_plan(cost, epsilon=0.1, iterations=20) * cost)

    compiled = compile_for(topology, jax.grad(loss), cost)
    # No matrix of each iteration.
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * 4 * 1024**2
    assert "stablehlo.while" in lower_for_gpu(loss, cost)


def test_bad_inputs(unchecked_shapes):
    cost = costs(3, 2, dtype=np.float32)
    for message, options in {
        "epsilon must be above 0, got 0": {"epsilon": 0},
        "iterations must be at least 1, got 0": {"iterations": 0},
        "row_mass has shape": {"row_mass": jnp.ones(2)},
        "column_mass has shape": {"column_mass": jnp.ones(3)},
    }.items():
        with pytest.raises(ValueError, match=message):
            sinkhorn_plan(cost, **{"epsilon": 0.1, "iterations": 2} | options)
    with pytest.raises(ValueError, match="the last axes must be the same"):
        pairwise_distances(cost, cost.T)
    with pytest.raises(ValueError, match="order must be at least 1"):
        pairwise_distances(cost, cost, 0.5)
