"""OFA-KD's exit branches and total loss: the authors' numbers, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import call

from jaxkd import Outputs, combine, distill, methods, models
from jaxkd.methods.ofakd import exit_logits, ofakd
from jaxkd.sharding.mesh import make_mesh, on_mesh

KEY = jax.random.key(0)


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


def same(found, expected, precision):
    """Compare to 1e-9 in float64 and 1e-5 of the largest entry in float32."""
    tolerance = 1e-9 if precision == "float64" else 1e-5
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=atol)


def kernel(weight):
    """Return a PyTorch kernel in Flax's order of axes."""
    axes = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
    return {"kernel": jnp.asarray(weight.transpose(axes))}


def filled(method, student, teacher, batch):
    """Return variables with NumPy's numbers: to draw its own, JAX compiles for long."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(method.init, KEY, student, teacher, batch)

    def fill(path, x):
        if path[0].key == "state":
            return jnp.full(x.shape, float(path[-1].key == "var"), x.dtype)
        return jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def branches(numbers):
    """Return the authors' branches of stages 3 and 4 as the method's parameters."""

    def part(name, *suffixes):
        found = [numbers[f"full1_proj_{name}.{suffix}"] for suffix in suffixes]
        first = {"scale": jnp.asarray(found[0])}
        first = kernel(found[0]) if found[0].ndim > 1 else first
        return first | ({"bias": jnp.asarray(found[1])} if found[1:] else {})

    separable = {
        "depthwise1": part("3.0.op.0", "weight"),
        "pointwise1": part("3.0.op.1", "weight"),
        "norm1": part("3.0.op.2", "weight", "bias"),
        "depthwise2": part("3.0.op.4", "weight"),
        "pointwise2": part("3.0.op.5", "weight"),
        "norm2": part("3.0.op.6", "weight", "bias"),
    }
    return {
        "0": {"down": {"0": separable}, "head": part("3.3", "weight", "bias")},
        "1": {
            "widen": part("4.0", "weight", "bias"),
            "head": part("4.3", "weight", "bias"),
        },
    }


@pytest.mark.slow
def test_values_and_gradients_are_the_authors(load_golden, precision):
    numbers = load_golden("26-ofakd")

    def array(name):
        x = numbers[f"full1_{name}"]
        x = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
        return jnp.asarray(x, precision)

    student = Outputs(
        array("logits_s"),
        {"c": array("feat3"), "d": array("feat4"), "pooled": jnp.zeros((6, 16))},
    )
    teacher = Outputs(array("logits_t"), {"pooled": jnp.zeros((6, 20))})
    batch = {"label": jnp.asarray(numbers["full1_label"], jnp.int32)}
    method = ofakd(["c", "d"], gamma=[float(g) for g in numbers["full1_eps"]])
    variables = filled(method, student, teacher, batch)
    given = jax.tree.map(lambda x: x.astype(precision), branches(numbers))
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert jax.tree.map(jnp.shape, given) == shapes

    @jax.jit
    @lambda f: jax.value_and_grad(f, has_aux=True)
    def loss(student):
        labels = methods.cross_entropy()
        value, (state, found) = call(
            method, {**variables, "params": given}, student, teacher, batch, KEY, 0
        )
        supervised, _ = call(
            labels, {"params": {}, "state": {}}, student, teacher, batch, KEY, 0
        )
        return value + supervised, (supervised, state, found)

    (total, (supervised, state, found)), gradient = loss(student)
    same(supervised, numbers["full1_loss_gt"], precision)
    same(found["ofa_logits"], numbers["full1_loss_kd"], precision)
    same(found["ofa_exits"], numbers["full1_loss_ofa"], precision)
    expected = sum(float(numbers[f"full1_loss_{part}"]) for part in ("gt", "kd", "ofa"))
    same(total, expected, precision)
    same(gradient.logits, numbers["full1_grad_logits_s"], precision)
    for tap, stage in (("c", 3), ("d", 4)):
        golden = numbers[f"full1_grad_feat{stage}"].transpose(0, 2, 3, 1)
        same(gradient.features[tap], golden, precision)
    assert np.any(state["0"]["down"]["0"]["norm1"]["mean"] != 0)


@pytest.mark.slow
def test_evaluated_exits_read_running_averages():
    rng = np.random.default_rng(0)
    features = {
        "a": jnp.asarray(rng.normal(size=(6, 4, 4, 3)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32),
    }
    student = Outputs(jnp.zeros((6, 5)), features)
    teacher = Outputs(jnp.zeros((6, 5)))
    settings = {"stages_after": (1, 0), "width": 8}
    method = ofakd(["a", "b"], **settings)
    assert method.student_taps == ("a", "b")
    assert method.teacher_taps == ()
    batch = {"label": jnp.zeros(6, int)}
    variables = filled(method, student, teacher, batch)
    logits = exit_logits(variables, student, teacher, ["a", "b"], **settings)
    assert [x.shape for x in logits] == [(6, 5), (6, 5)]
    halves = [
        exit_logits(
            variables,
            jax.tree.map(lambda x, rows=rows: x[rows], student),
            teacher,
            ["a", "b"],
            **settings,
        )
        for rows in (slice(0, 2), slice(2, 6))
    ]
    # Batch statistics would make an example's logits depend on the others.
    for whole, parts in zip(logits, zip(*halves, strict=True), strict=True):
        np.testing.assert_allclose(whole, jnp.concatenate(parts), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_branches_are_trained_along_and_left_out_of_the_student():
    teacher, student = models.cnn(1, (2, 3), 3), models.mlp(16, (4, 4), 3)
    method = combine(
        (1.0, methods.cross_entropy()), (1.0, ofakd(["hidden0", "hidden1"]))
    )
    program = distill(student, teacher, method, optax.sgd(0.1))
    batch = {
        "image": jax.random.normal(KEY, (6, 4, 4, 1)),
        "label": jnp.arange(6) % 3,
    }

    @jax.jit
    def run(key):
        state = program.init(key, batch)
        return state, *program.step(state, batch)

    state, after, metrics = run(KEY)
    assert set(after.student["params"]) == {"hidden", "head"}
    old, new = state.method["params"]["1"], after.method["params"]["1"]
    assert set(new) == {"0", "1"}
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), old, new)
    assert all(jax.tree.leaves(moved))
    parts = metrics["cross_entropy"] + metrics["ofa_logits"] + metrics["ofa_exits"]
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-6)


def test_exits_are_summed_and_weighed():
    student = Outputs(
        jnp.zeros((2, 3)),
        {"a": jnp.ones((2, 4)), "b": jnp.ones((2, 4))},
    )
    teacher = Outputs(jnp.asarray([[1.0, 2, 3], [0, 0, 1]]))
    batch = {"label": jnp.array([2, 2])}

    def run(taps, **arguments):
        method = ofakd(taps, width=4, **arguments)
        shapes = jax.eval_shape(method.init, KEY, student, teacher, batch)
        variables = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
        return call(method, variables, student, teacher, batch, KEY, 0)

    value, (_, one) = run(["a"])
    twice, (_, two) = run(["a", "b"], branch_weight=0.5)
    np.testing.assert_allclose(two["ofa_exits"], 2 * one["ofa_exits"], rtol=1e-6)
    np.testing.assert_allclose(twice, value, rtol=1e-6)
    # The last gamma is the logits'.
    _, (_, three) = run(["a", "b"], gamma=(1.0, 1.0, 2.0))
    np.testing.assert_allclose(three["ofa_exits"], two["ofa_exits"], rtol=1e-6)
    assert three["ofa_logits"] != two["ofa_logits"]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ofakd("a"), "taps must be a sequence"),
        (lambda: ofakd(["a", "b"], gamma=(1.0, 1.0)), "2 entries for 2 taps"),
        (lambda: ofakd(["a", "b"], stages_after=(1,)), "1 entries for 2 taps"),
    ],
)
def test_numbers_that_are_not_the_taps_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_branches_of_attention_are_traced_where_a_mesh_is_known():
    """Their layers declare logical axes, which the mesh does not have."""
    tokens, pooled = jnp.zeros((2, 5, 8)), jnp.zeros((2, 8))
    student = Outputs(jnp.zeros((2, 3)), {"block0": tokens, "pooled": pooled})
    teacher = Outputs(jnp.zeros((2, 3)), {"pooled": pooled})
    method, batch = ofakd(("block0",)), {"label": jnp.array([0, 1])}
    mesh = make_mesh("data", jax.devices()[:1])

    def value():
        variables = method.init(KEY, student, teacher, batch)
        return call(method, variables, student, teacher, batch)[0]

    assert jax.eval_shape(on_mesh(value, mesh)).shape in ((), (2,))
