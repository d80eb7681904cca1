"""m2mKD: the authors' loss; modules split, stitched, loaded, and put together."""

from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import call

from jaxkd import Outputs, distill, models
from jaxkd.losses import m2m_kd_loss
from jaxkd.methods import m2mkd
from jaxkd.networks.trimmed import trimmed
from jaxkd.papers.m2mkd import (
    Stitch,
    assemble_modules,
    chained,
    hybrids,
    load_modules,
    split_depths,
    split_modules,
    stitched,
    variables_of,
)

SIZE: dict[str, Any] = {"image_size": 8, "patch_size": 4}
IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
BATCH = {"image": IMAGES, "label": jnp.array([0, 1, 2, 1])}
CASES = ["loss1", "loss2", "loss3", "pipe_mid", "pipe_first"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_authors_loss(load_golden, case, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    golden = load_golden("46-m2mkd")

    def of(name, default=None):
        found = golden.get(f"{case}_{name}", default)
        return found.item() if np.ndim(found) == 0 else found

    student = "student_logits" if case.startswith("pipe") else "logits_s"
    teacher = "teacher_logits" if case.startswith("pipe") else "logits_t"

    @jax.jit
    @jax.value_and_grad
    def loss(z):
        target = jnp.asarray(of(teacher), dtype)
        kind = of("type", np.array("soft"))
        labels = jnp.asarray(of("labels"))
        return m2m_kd_loss(z, target, labels, of("alpha"), of("tau"), kind).mean()

    value, gradient = loss(jnp.asarray(of(student), dtype))
    tight = dtype == "float64"
    np.testing.assert_allclose(value, of("loss"), rtol=1e-10 if tight else 2e-6)
    if not case.startswith("pipe"):
        expected = of("grad_logits_s")
        atol = 1e-12 if tight else 1e-6
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=atol)


def test_the_default_divides_by_the_classes_too():
    z, t = jax.random.normal(jax.random.key(0), (2, 5, 10))
    y = jnp.arange(5)
    a, b = (m2m_kd_loss(z, t, y, 1.0, reduction=r) for r in ("numel", "batchmean"))
    np.testing.assert_allclose(10 * a, b, rtol=1e-6)


@cache
def nets():
    """Return a meta model of 3 blocks, a teacher of 6, a student of experts."""
    meta = models.vit((8, 3, 2), 5, **SIZE)
    teacher = models.vit((8, 6, 2), 5, **SIZE)
    student = models.vmoe((4, 3, 2), 5, experts=3, **SIZE)
    return meta, teacher, student


@cache
def parts():
    meta, teacher, student = nets()
    stages = split_modules(meta, [1, 1, 1], IMAGES)
    taught = split_modules(teacher, split_depths(6, 3), IMAGES)
    mine = [
        stitched(module, 4, 8, first=i == 0, last=i == 2)
        for i, module in enumerate(split_modules(student, [1, 1, 1], IMAGES))
    ]
    return stages, taught, mine


def test_depths_are_even_with_the_rest_outside():
    assert split_depths(32, 10) == [4, 3, 3, 3, 3, 3, 3, 3, 3, 4]
    assert split_depths(24, 4) == [6] * 4
    assert split_depths(5, 5) == [1] * 5


@pytest.mark.slow
def test_modules_in_a_row_are_the_network_and_share_no_weight():
    _, teacher, _ = nets()
    modules = parts()[1]
    variables = teacher.init(jax.random.key(1))
    own = [variables_of(module, variables) for module in modules]

    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    assert sum(map(count, own)) == count(variables)
    assert set(own[1]["params"]) == {"blocks"}
    assert set(own[1]["params"]["blocks"]) == {"2", "3"}
    assert set(own[2]["params"]) == {"blocks", "norm", "head"}
    again = assemble_modules(teacher, modules, own)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, variables))
    network = chained(modules)
    expected = teacher.apply(variables, IMAGES)[0].logits
    row = {
        part: {str(i): v[part] for i, v in enumerate(own)}
        for part in ("params", "stats")
    }
    found = network.apply(row, IMAGES)[0].logits
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_each_hybrid_is_the_meta_model_with_one_module():
    """Against the stages called one after another, hybrid by hybrid."""
    stages, taught, _ = parts()
    meta = [stage.init(jax.random.key(i)) for i, stage in enumerate(stages)]
    network = hybrids(stages, dict(enumerate(taught)), meta)
    variables = network.init(jax.random.key(5))
    outputs, _ = network.apply(variables, IMAGES, taps=network.taps)
    for i in range(3):
        x = IMAGES
        for j, stage in enumerate(stages):
            own = {part: variables[part].get(str(j)) for part in ("params", "stats")}
            module, weights = (taught[j], own) if i == j else (stage, meta[j])
            x = module.apply(weights, x)[0].logits
        found = outputs.features[f"{i}.logits"]
        np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)
    mean = np.mean(list(outputs.features.values()), axis=0)
    np.testing.assert_allclose(outputs.logits, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_pairs_train_as_if_alone_and_the_meta_model_stays():
    """A step of all three pairs in one program moves each as a program of its own."""
    stages, taught, mine = parts()
    meta = [stage.init(jax.random.key(i)) for i, stage in enumerate(stages)]

    def after(which):
        student = hybrids(stages, {i: mine[i] for i in which}, meta)
        teacher = hybrids(stages, {i: taught[i] for i in which}, meta)
        program = distill(student, teacher, m2mkd(which, 0.5), optax.sgd(0.1))
        state = program.init(jax.random.key(3), BATCH)
        return state, jax.jit(program.step)(state, BATCH)[0]

    before, together = after([0, 1, 2])
    moved = {
        name
        for name, a in together.student["params"].items()
        if not jax.tree.all(
            jax.tree.map(np.array_equal, a, before.student["params"][name])
        )
    }
    assert moved == {"0", "1", "2"}
    for part in ("0", "1", "2"):
        np.testing.assert_array_equal(
            jax.tree.leaves(together.student["stats"]["meta"][part])[0],
            jax.tree.leaves(meta[int(part)])[0],
        )
    _, alone = after([1])
    for a, b in zip(
        jax.tree.leaves(alone.student["params"]["1"]),
        jax.tree.leaves(together.student["params"]["1"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_loading_reports_what_it_leaves():
    _, _, student = nets()
    modules = parts()[2]
    trained = [m.init(jax.random.key(i + 5)) for i, m in enumerate(modules)]
    fresh = student.init(jax.random.key(9))
    loaded, report = load_modules(fresh, trained)
    assert not report.missing
    assert {name.split(".")[2] for name in report.unused} == {
        "pre_stitch",
        "post_stitch",
    }
    assert len(report.loaded) == len(jax.tree.leaves(fresh))
    own = trained[1]["params"]["module"]["blocks"]["1"]["mlp"]["up"]
    np.testing.assert_array_equal(loaded["params"]["blocks"]["1"]["mlp"]["up"], own)
    _, report = load_modules(fresh, trained[:1])
    assert any(name.startswith("params.blocks.1.") for name in report.missing)
    kept = chained(modules)
    assert kept.init(jax.random.key(0))["params"]["1"]["pre_stitch"]
    assert kept.apply(kept.init(jax.random.key(0)), IMAGES)[0].logits.shape == (4, 5)


def test_trimmed_networks_keep_what_they_read():
    whole = models.cnn(3, (4, 6), 5)
    part = trimmed(whole.segment(None, "stage0"), IMAGES)
    variables = part.init(jax.random.key(0))
    assert set(variables["params"]["stages"]) == {"0"}
    assert set(variables["stats"]["stages"]) == {"0"}
    found, after = part.apply(variables, IMAGES, train=True)
    all_of = whole.init(jax.random.key(0))
    expected = whole.segment(None, "stage0").apply(all_of, IMAGES, train=True)[0].logits
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(after) == jax.tree.structure(variables)


def test_stitches_are_linear_if_asked():
    from flax import nnx

    assert Stitch(3, 4, layernorm=False, rngs=nnx.Rngs(0)).norm is None
    assert Stitch(3, 4, rngs=nnx.Rngs(0))(jnp.ones((2, 3))).shape == (2, 4)


def test_without_distillation_no_teacher_is_read():
    method = m2mkd([0], alpha=0.0)
    assert method.teacher_taps == ()
    logits = jax.random.normal(jax.random.key(0), (4, 5))
    outputs = Outputs(logits, {"0.logits": logits})
    value = call(method, {"state": {}}, outputs, Outputs(None), BATCH)[0]
    expected = -jax.nn.log_softmax(logits)[jnp.arange(4), BATCH["label"]].mean()
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: split_depths(2, 3), "modules is 3, but there are 2 blocks"),
        (
            lambda: split_modules(nets()[0], [1, 1], IMAGES),
            r"depths \[1, 1\] must be positive and add up to the network's 3 blocks",
        ),
        (
            lambda: assemble_modules(nets()[0], parts()[0], []),
            "parts has 0 entries, but there are 3 modules",
        ),
        (lambda: hybrids(parts()[0], {}), "name at least one of 0 to 2"),
        (lambda: hybrids(parts()[0], {3: parts()[1][0]}), r"stages \[3\]"),
        (lambda: hybrids(parts()[0], {0: parts()[1][0]}, []), "meta_variables 0"),
        (lambda: chained([]), "modules is empty"),
        (lambda: load_modules({"params": {"a": jnp.ones(1)}}, []), "no weight of the"),
        (lambda: m2mkd([]), "stages is empty"),
        (
            lambda: m2mkd([0], kind=cast(Any, "sof")),
            "unknown kind 'sof': did you mean 'soft'",
        ),
        (lambda: m2mkd([0], alpha=1.5), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: m2mkd([0], temperature=0.0), "temperature must be above 0, got 0.0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
