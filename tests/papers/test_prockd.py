"""ProC-KD: the authors' numbers, invariances, evaluation without the teacher."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxkd import Network, models
from jaxkd.papers.prockd import (
    PrototypeModule,
    enhanced,
    enhanced_variables,
    netvlad,
    prockd,
    prockd_loss,
    soft_assign,
)

KEY = jax.random.key(0)


def module_of(g):
    """Return the module with the authors' weights, of PyTorch's layout."""
    centroids = g["centroids3"]
    prototypes, width = centroids.shape
    module = PrototypeModule([width] * 3, width, prototypes, rngs=nnx.Rngs(0))
    kernels = {
        "assign": "netvlad3.0",
        "fusion": "cat_transform3.0",
        "aggregate": "vladfc3",
        "transform.first": "transform3.0",
        "transform.second": "transform3.2",
        "augmentation.encode": "encode3",
        "augmentation.transform.first": "aug_transform3.0",
        "augmentation.transform.second": "aug_transform3.2",
    }
    for ours, theirs in kernels.items():
        layer: Any = module
        for name in ours.split("."):
            layer = getattr(layer, name)
        weight = g[f"{theirs}.weight"]
        layer.kernel.set_value(jnp.asarray(weight.reshape(len(weight), -1).T))
        if f"{theirs}.bias" in g:
            layer.bias.set_value(jnp.asarray(g[f"{theirs}.bias"]))
    module.augmentation.centroids.set_value(jnp.asarray(centroids))
    return module


def case_of(numbers, case, dtype):
    return {
        k[len(case) + 1 :]: np.asarray(v, dtype)
        for k, v in numbers.items()
        if k.startswith(case)
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", ["c1", "c2"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_authors_modules(load_golden, case, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    g = case_of(load_golden("43-prockd"), case, dtype)
    module = module_of(g)
    rtol = {"float32": 1e-4, "float64": 1e-6}[dtype]
    layers = [jnp.asarray(g[f"teacher_feat{i}"]) for i in range(3)]
    z = module.fuse(layers)
    u = module(layers)
    found = {
        "cat_out": z,
        "vlad_out": u,
        "aug_of_vlad": module.augmentation(u),
        "aug_of_student": module.augmentation(jnp.asarray(g["student_feat"])),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, g[name], rtol=rtol, atol=1e-6, err_msg=name)
        assert value.dtype == dtype

    graph, state = nnx.split(module.augmentation)

    def weighed(state, x):
        return jnp.sum(g["cotangent"] * nnx.merge(graph, state)(x))

    of_state, of_x = jax.grad(weighed, (0, 1))(state, jnp.asarray(g["student_feat"]))
    for found, wanted in (
        (of_x, g["grad_student_feat"]),
        (of_state["centroids"][...], g["grad_centroids"]),
    ):
        np.testing.assert_allclose(found, wanted, rtol=10 * rtol, atol=1e-7)


def test_prototypes_may_be_numbered_anew():
    """With the rows of the assignment and the blocks of the linear map after it."""
    module = PrototypeModule([5, 4], 4, 3, rngs=nnx.Rngs(1))
    other = PrototypeModule([5, 4], 4, 3, rngs=nnx.Rngs(1))
    order = np.array([2, 0, 1])
    other.assign.kernel.set_value(module.assign.kernel[...][:, order])
    blocks = module.aggregate.kernel[...].reshape(3, 4, 4)[order]
    other.aggregate.kernel.set_value(blocks.reshape(12, 4))
    centroids = module.augmentation.centroids[...][order]
    other.augmentation.centroids.set_value(centroids)
    rng = np.random.default_rng(0)
    layers = [jnp.asarray(rng.normal(size=(2, 6, w)), jnp.float32) for w in (5, 4)]
    a, b = module(layers), other(layers)
    assert np.abs(a).max() > 0
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(module.augmentation(a), other.augmentation(a), atol=1e-6)


@pytest.mark.slow
def test_netvlad_is_its_definition_and_has_length_1():
    rng = np.random.default_rng(0)
    z, w, c = (rng.normal(size=s) for s in ((2, 6, 4), (3, 4), (3, 4)))
    x = z / np.linalg.norm(z, axis=-1, keepdims=True)
    a = np.exp(x @ w.T)
    a /= a.sum(-1, keepdims=True)
    v = np.einsum("bnk,bnkd->bkd", a, x[:, :, None] - c)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    expected = v.reshape(2, -1) / np.sqrt(3)
    arrays = [jnp.asarray(y, jnp.float32) for y in (z, w, c)]
    found = netvlad(*arrays)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    shares = soft_assign(arrays[0], arrays[1])
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)
    # Every token is its prototype: nothing is left, and no gradient is NaN.
    one = jnp.ones((1, 4)) / 2
    value, slope = jax.value_and_grad(lambda z: netvlad(z, one, one).sum())(
        jnp.ones((1, 3, 4))
    )
    assert value == 0
    assert np.isfinite(slope).all()


CLASSES = 3
IMAGE = jax.random.normal(KEY, (4, 4, 4, 1))
BATCH = {"image": IMAGE, "label": jnp.array([0, 1, 2, 0])}
STUDENT = models.cnn(1, (4, 6), CLASSES)
TAPS = ("stage0", "stage1")


def trained(teacher, batch=BATCH, **options):
    program = prockd(
        STUDENT,
        teacher,
        optax.adam(0.01),
        **{"tap": "stage1", "teacher_taps": TAPS, "prototypes": 5, **options},
    )
    state = program.init(KEY, batch)
    return jax.jit(program.step)(state, batch)


@pytest.mark.slow
def test_a_step_learns_everything_but_the_teacher():
    """Its classes are others, its maps wider; the teacher's weights stand still."""
    teacher = models.cnn(1, (5, 8), 7)
    program = prockd(
        *(STUDENT, teacher, optax.sgd(0.1)),
        tap="stage1",
        teacher_taps=TAPS,
        prototypes=5,
        feature_weight=0.1,
    )
    before = program.init(KEY, BATCH)
    after, metrics = jax.jit(program.step)(before, BATCH)
    assert set(metrics) >= {"ce", "augmented_ce", "consistency", "features", "loss"}
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    assert all(jax.tree.leaves(same.teacher))
    learnt = [same.method["params"], same.student["params"]["head"]]
    assert not any(jax.tree.leaves(learnt))


@pytest.mark.slow
def test_evaluation_never_calls_the_teacher():
    calls = []
    inner = models.cnn(1, (4, 6), CLASSES)

    def apply(variables, inputs, **kwargs):
        calls.append(kwargs)
        return inner.apply(variables, inputs, **kwargs)

    teacher = Network(inner.init, apply, inner.taps)
    state, _ = trained(teacher)
    assert calls
    calls.clear()
    network = enhanced(STUDENT, "stage1", 6, 5)
    variables = enhanced_variables(state)
    both = network.apply(variables, IMAGE, taps=("stage1",))[0]
    plain = STUDENT.apply(state.student, IMAGE, taps=("stage1",))[0]
    assert not calls
    assert np.abs(both.logits - plain.logits).max() > 0
    assert (both.features["stage1"] >= 0).all()
    # The same head: a linear layer on the mean of what is enhanced.
    head = state.student["params"]["head"]
    mean = both.features["stage1"].mean((1, 2))
    np.testing.assert_allclose(
        both.logits, mean @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_masks_and_accumulation():
    teacher = models.cnn(1, (4, 6), CLASSES)
    mask = jnp.array([1, 1, 0, 1])
    spoilt = {**BATCH, "teacher_image": IMAGE.at[2].set(1e30), "mask": mask}
    clean = {**BATCH, "teacher_image": IMAGE, "mask": mask}
    a, b = (trained(teacher, batch) for batch in (spoilt, clean))
    np.testing.assert_allclose(a[1]["loss"], b[1]["loss"], rtol=1e-6)
    vit = models.vit((8, 1, 2), image_size=4, patch_size=2, channels_in=1, classes=3)
    for parts in (1, 2):
        program = prockd(
            *(vit, vit, optax.sgd(0.1)),
            tap="block0",
            teacher_taps=("block0",),
            prototypes=5,
            accumulate=parts,
        )
        state = program.init(KEY, BATCH)
        found = jax.jit(program.step)(state, BATCH)[1]["loss"]
        expected = found if parts == 1 else expected
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_loss_is_its_parts_and_the_augmented_head_leads():
    rng = np.random.default_rng(0)
    plain, augmented = (jnp.asarray(rng.normal(size=(4, 3))) for _ in range(2))
    features, represented = (jnp.asarray(rng.normal(size=(4, 2, 5))) for _ in range(2))
    rest = (BATCH["label"], features, represented)

    def total(plain, augmented, represented, **factors):
        return prockd_loss(plain, augmented, *rest[:2], represented, **factors)[0]

    value, parts = prockd_loss(plain, augmented, *rest, feature_weight=0.1)
    names = ("ce", "augmented_ce", "consistency", "features")
    ce, augmented_ce, consistency, apart = (parts[name] for name in names)
    expected = ce + augmented_ce + consistency + 0.1 * apart
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    only = {"augmented_weight": 0.0, "feature_weight": 1.0}
    slopes = jax.grad(total, (0, 1, 2))(plain, augmented, represented, **only)
    assert np.abs(slopes[0]).max() > 0
    assert not slopes[1].any()
    assert not slopes[2].any()
    same, _ = prockd_loss(plain, plain, *rest, augmented_weight=0.0)
    np.testing.assert_allclose(same, ce, rtol=1e-6)


def test_bad_input_is_named(unchecked_shapes):
    teacher = models.cnn(1, (4, 6), CLASSES)
    with pytest.raises(ValueError, match="unknown student cut 'stage9'"):
        trained(teacher, tap="stage9")
    with pytest.raises(ValueError, match="unknown teacher tap 'stage7'"):
        trained(teacher, teacher_taps=("stage7",))
    with pytest.raises(ValueError, match=r"teacher_taps has features of shape"):
        trained(teacher, teacher_taps=("pooled",))
    with pytest.raises(ValueError, match="unknown tap 'stage9'"):
        enhanced(STUDENT, "stage9", 6)
    with pytest.raises(ValueError, match="prototypes must be at least 1, got 0"):
        PrototypeModule([4], 4, 0, rngs=nnx.Rngs(0))
    module = PrototypeModule([4, 4], 4, 3, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 3, 4))
    for call, message in (
        (lambda: module.fuse([x]), "features has 1 layers, but 2 are fused"),
        (lambda: module.fuse([x, x[:, :2]]), r"features have \[3, 2\] tokens"),
        (lambda: module.augmentation(x[..., :3]), r"x has shape \(2, 3, 3\)"),
        (lambda: soft_assign(x, jnp.ones((3, 5))), r"x has shape \(2, 3, 4\)"),
        (lambda: netvlad(x, jnp.ones((3, 4)), jnp.ones((2, 4))), "kernel has shape"),
        (
            lambda: prockd_loss(x[:, 0], x[:, 0, :2], BATCH["label"][:2], x, x),
            "same classes",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
