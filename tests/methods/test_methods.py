"""Every method: scalar, differentiable, jittable, and blind to masked examples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from tiny import call

from jaxkd import Outputs, combine, methods, papers
from jaxkd.adapters import segment_name
from jaxkd.graphs import Graph
from jaxkd.kernels.linear_distill import jensen_shannon
from jaxkd.losses import SubclassDirections
from jaxkd.methods import METHODS
from jaxkd.methods.base import as_loss, resolved
from jaxkd.papers.data_pruning import pruned_kd
from jaxkd.papers.diswot import diswot
from jaxkd.papers.self_distillation_theory import self_distillation
from jaxkd.papers.swiftkv import swiftkv
from jaxkd.papers.talking_models import talking
from jaxkd.types import Method

METHODS = {**METHODS, **papers.constructors(Method)}

BATCH, CLASSES = 6, 5
LABELS = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
SHAPES = {
    "a": (4, 4, 3),
    "b": (2, 2, 4),
    "a.pre": (4, 4, 3),
    "pooled": (6,),
    "projected": (2, 2, 4),
    "factor": (2, 2, 2),
    "0.logits": (CLASSES,),
    "1.logits": (CLASSES,),
    "2.logits": (CLASSES,),
    "gate": (3,),
    "ce.logits": (CLASSES,),
    "kd.logits": (CLASSES,),
    "subclass.logits": (2 * CLASSES,),
    "cam": (2, 2, CLASSES),
    "final": (7,),
    "block0": (3, 6),
    "pixels": (4, 3),
}
HEAD = (7, CLASSES)
# Of sequences alone: tests/methods/test_language_methods.py.
LANGUAGE = {"aligned_kd", "minillm", "uld"}
# Their losses compare the examples of a batch with one another.
RELATE = {
    "cc",
    "dist",
    "diswot",
    "expert_balance",
    "kdcl",
    "pkt",
    "rkd",
    "sinkd",
    "sp",
    "trg",
}
GRAPHS = {"ffg2m", "high_frequency", "low_frequency"}
GRAPH = Graph(jnp.zeros((BATCH, 1)), jnp.array([0, 1, 2, 5]), jnp.array([1, 2, 5, 3]))
UPPER = jnp.linspace(0.1, 0.7, 7)[None]
KINDS = SubclassDirections(jnp.zeros((CLASSES, 6)), jnp.ones((CLASSES, 6, 2)))
NORM = (jnp.linspace(0.5, 1.5, 3), jnp.linspace(-0.5, 0.5, 3))

BUILD = {
    "ab": lambda: methods.ab(["a.pre"]),
    "akl": lambda: methods.akl(),
    "topkld": lambda: methods.topkld(2),
    "at": lambda: methods.at(["a", "b"]),
    "bdkd": lambda: methods.bdkd(2.0, delta=2.0),
    "cc": lambda: methods.cc("pooled", dim=8),
    "crd": lambda: methods.crd("pooled", LABELS, dim=8, negatives=4),
    "cross_entropy": lambda: methods.cross_entropy(0.1),
    "ctkd": lambda: methods.ctkd(methods.ctkd_curriculum(2)),
    "cwd": lambda: methods.cwd("b"),
    "ddk": lambda: methods.ddk(0.3, 2.0, from_heads=True),
    "denoising": lambda: methods.denoising(),
    "dhkd": lambda: methods.dhkd(hidden=8, dropout=0.5),
    "dho": lambda: methods.dho(),
    "dist": lambda: methods.dist(),
    "diswot": lambda: diswot("a", "b"),
    "divergence_kd": lambda: methods.divergence_kd(jensen_shannon(0.3), 2.0),
    "dkd": lambda: methods.dkd(),
    "dmae": lambda: methods.dmae(["block0"], alpha=0.5),
    "dml": lambda: methods.dml(3),
    "feature_align": lambda: methods.feature_align(["block0"], project=False),
    "expert_balance": lambda: methods.expert_balance(["block0"], k=2),
    "ffg2m": lambda: methods.ffg2m(),
    "first": lambda: methods.first(2.0, k=3, reduction="sequence"),
    "fitnets": lambda: methods.fitnets("a"),
    "fsp": lambda: methods.fsp(["a", "b"]),
    "ft": lambda: methods.ft("b"),
    "fused_kd": lambda: methods.fused_kd("wls"),
    "glnn": lambda: methods.glnn(0.4),
    "high_frequency": lambda: methods.high_frequency(),
    "hidden_kd": lambda: methods.hidden_kd(["block0"]),
    "kd": lambda: methods.kd(),
    "kdcl": lambda: methods.kdcl(3, "linear"),
    "lelp": lambda: methods.lelp(KINDS, 0.5, 2.0),
    "linear_kd": lambda: methods.linear_kd(label_weight=0.5),
    "labelled_cross_entropy": lambda: methods.labelled_cross_entropy(),
    "low_frequency": lambda: methods.low_frequency(),
    "lskd": lambda: methods.lskd(methods.kd(2.0)),
    "mae": lambda: methods.mae(),
    "m2mkd": lambda: methods.m2mkd([0, 1]),
    "mgd": lambda: methods.mgd("b"),
    "mixstd": lambda: methods.mixstd(),
    "nd": lambda: methods.nd(),
    "nst": lambda: methods.nst(["b"]),
    "ofakd": lambda: methods.ofakd(["a", "b"], gamma=1.3),
    "ofd": lambda: methods.ofd(["a.pre"], [NORM]),
    "one": lambda: methods.one(3),
    "pkt": lambda: methods.pkt("pooled"),
    "pld": lambda: methods.pld(4.0),
    "pruned_kd": lambda: pruned_kd(0.7, 2.0),
    "relation_kd": lambda: methods.relation_kd(["block0"], heads=2),
    "reviewkd": lambda: methods.reviewkd(["a", "b"], mid=8),
    "rkd": lambda: methods.rkd("pooled"),
    "self_distillation": lambda: self_distillation(),
    "simkd": lambda: methods.simkd("b"),
    "sinkd": lambda: methods.sinkd(),
    "sp": lambda: methods.sp("b"),
    "subclass_kd": lambda: methods.subclass_kd(np.arange(6) + 3, 2, 0.1),
    "swiftkv": lambda: swiftkv(),
    "taid": lambda: methods.taid(10),
    "talking": lambda: talking(*2 * (("pooled", "final"),), rounds=2),
    "tgeokd": lambda: methods.tgeokd(jnp.full((CLASSES, CLASSES), 1 / CLASSES)),
    "topk_kd": lambda: methods.topk_kd(3),
    "trg": lambda: methods.trg("a", "b", steps=10, samples=2, k=3, dim=4),
    "vid": lambda: methods.vid(["a", "b"]),
}


def outputs(seed: int, taps, segments=()) -> Outputs:
    rng = np.random.default_rng(seed)
    shapes = {t: HEAD if t == "head" else (BATCH, *SHAPES[t]) for t in taps}
    features = {t: rng.normal(size=shape).astype("f4") for t, shape in shapes.items()}
    if "gate" in features:
        features["gate"] = np.asarray(jax.nn.softmax(features["gate"]))
    logits = rng.normal(size=(BATCH, CLASSES)).astype("f4") * 3
    # What a teacher's upper layers stand for: a weight for each of seven features.
    part = Partial(lambda w, x: jnp.tanh(x.sum(-1, keepdims=True) * w), UPPER)
    return Outputs(
        jnp.asarray(logits),
        jax.tree.map(jnp.asarray, features),
        dict.fromkeys(map(segment_name, segments), part),
    )


def make_batch(**extra):
    return {
        "image": jnp.zeros((BATCH, CLASSES)),
        "label": jnp.asarray(LABELS[:BATCH]),
        "index": jnp.arange(BATCH),
        "time": jnp.linspace(0.1, 0.9, BATCH),
        "clean": jnp.zeros((BATCH, CLASSES)),
        "patches": jnp.zeros((BATCH, 4, 3)),
        "hidden": jnp.tile(jnp.array([1.0, 0, 1, 1]), (BATCH, 1)),
        "graph": GRAPH,
        "labelled": jnp.arange(BATCH) % 2 == 1,
        **extra,
    }


@pytest.fixture(scope="module", params=sorted(set(METHODS) - LANGUAGE))
def case(request):
    method = BUILD[request.param]()
    student = outputs(0, method.student_taps)
    teacher = outputs(1, method.teacher_taps, method.teacher_segments)
    variables = method.init(jax.random.key(0), student, teacher, make_batch())

    @jax.jit
    def value_and_gradients(params, student, teacher, weight):
        # What does not count may have any label.
        label = jnp.where(weight > 0, make_batch()["label"], 10**6)
        batch = make_batch(mask=weight, label=label)

        def loss(params, student, teacher):
            full = {**variables, "params": params}
            found = method.loss(full, student, teacher, batch, jax.random.key(1), 3)
            value, (state, metrics) = resolved(found)
            return value, (state, metrics, as_loss(found[0]))

        gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        return gradients(params, student, teacher)

    return request.param, method, variables, student, teacher, value_and_gradients


@pytest.mark.slow
def test_scalar_with_finite_nonzero_gradient(case):
    _, _, variables, student, teacher, grad = case
    (loss, (state, metrics, _)), (g_params, g_student, g_teacher) = grad(
        variables["params"], student, teacher, jnp.ones(BATCH)
    )
    assert loss.shape == ()
    assert np.isfinite(loss)
    assert jax.tree.structure(state) == jax.tree.structure(variables["state"])
    assert all(v.shape == () for v in metrics.values())
    for tree in (g_params, g_student):
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(tree))
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(g_student))
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(g_teacher))


def test_masked_example_has_no_influence(case):
    _, _, variables, student, teacher, grad = case
    mask = jnp.ones(BATCH).at[-1].set(0)

    def spoiled(tree, value):
        return jax.tree.map(
            lambda x: x.at[-1].set(value) if len(x) == BATCH else x, tree
        )

    found = [
        grad(variables["params"], spoiled(student, v), spoiled(teacher, v), mask)
        for v in (0.5, 7.0, np.nan, -np.inf)
    ]
    (loss_0, (state_0, *_)), gradients_0 = found[0]
    for (loss_1, (state_1, *_)), gradients_1 in found[1:]:
        np.testing.assert_allclose(loss_0, loss_1, rtol=1e-6)
        for a, b in zip(*map(jax.tree.leaves, (state_0, state_1)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for a, b in zip(
            *map(jax.tree.leaves, (gradients_0[:2], gradients_1[:2])), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        for g in jax.tree.leaves(gradients_1[1]):
            if len(g) == BATCH:
                assert np.abs(g[-1]).max() == 0


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_it(case):
    """What gradient accumulation stands on: sums and weights of parts are the whole's.

    A loss that relates the examples of a batch adds up to a mean over its parts.
    """
    name, _, variables, student, teacher, grad = case
    if name in GRAPHS:
        pytest.skip("a graph is one example: no part of it is a batch")
    some = jnp.arange(BATCH) % 3 == 0
    masks = [m.astype(float) for m in (jnp.ones(BATCH, bool), some, ~some)]
    whole, *parts = (
        grad(variables["params"], student, teacher, mask)[0][1][2] for mask in masks
    )
    np.testing.assert_allclose(
        sum(part.weight for part in parts), whole.weight, rtol=1e-6
    )
    # A batch's statistics, and memory banks, are its own too.
    if name not in RELATE and not jax.tree.leaves(variables["state"]):
        np.testing.assert_allclose(
            sum(part.total for part in parts), whole.total, rtol=1e-4, atol=1e-5
        )


def test_all_masked_is_zero(case):
    _, _, variables, student, teacher, grad = case
    (loss, _), gradients = grad(variables["params"], student, teacher, jnp.zeros(BATCH))
    assert loss == 0
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(gradients))


def test_every_method_is_covered():
    assert sorted({*BUILD, *LANGUAGE}) == sorted(METHODS)


def run(method, student, teacher, batch, step=0):
    variables = method.init(jax.random.key(0), student, teacher, batch)
    return call(method, variables, student, teacher, batch, jax.random.key(1), step)


@pytest.mark.slow
def test_combine_is_the_weighted_sum_and_follows_schedules():
    student, teacher, batch = (
        outputs(0, ["pooled"]),
        outputs(1, ["pooled"]),
        make_batch(),
    )
    parts = [methods.cross_entropy(), methods.kd(), methods.rkd("pooled")]
    values = [run(part, student, teacher, batch)[0] for part in parts]
    method = combine(
        (0.5, parts[0]), (lambda step: 2.0 * step, parts[1]), (3.0, parts[2])
    )
    total, (_, metrics) = run(method, student, teacher, batch, step=jnp.array(4))
    np.testing.assert_allclose(
        total, 0.5 * values[0] + 8 * values[1] + 3 * values[2], rtol=1e-6
    )
    assert set(metrics) == {"cross_entropy", "kd", "rkd"}
    assert method.student_taps == ("pooled",)


def test_combine_keeps_two_terms_of_one_name_apart():
    student, teacher, batch = outputs(0, ()), outputs(1, ()), make_batch()
    method = combine((1.0, methods.kd(1.0)), (1.0, methods.kd(4.0)))
    _, (_, metrics) = run(method, student, teacher, batch)
    assert set(metrics) == {"kd", "kd_1"}


def test_sample_weights_act_as_repetitions():
    student, teacher = outputs(0, ()), outputs(1, ())
    weighted, _ = run(
        methods.kd(),
        student,
        teacher,
        make_batch(weight=jnp.array([2.0, 1, 1, 0, 0, 0])),
    )
    rows = jnp.array([0, 0, 1, 2])
    repeated, _ = run(
        methods.kd(),
        Outputs(student.logits[rows], {}),
        Outputs(teacher.logits[rows], {}),
        {"label": jnp.zeros(4, int)},
    )
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)


def test_token_mask_weighs_tokens():
    rng = np.random.default_rng(0)
    logits = [jnp.asarray(rng.normal(size=(2, 3, CLASSES))) for _ in range(2)]
    mask = jnp.array([[1, 1, 0], [1, 0, 0]])
    loss, _ = run(methods.kd(), *(Outputs(z, {}) for z in logits), {"mask": mask})
    kept = np.array([[0, 0], [0, 1], [1, 0]])
    rows = [Outputs(z[kept[:, 0], kept[:, 1]], {}) for z in logits]
    expected, _ = run(methods.kd(), *rows, {})
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_padding_of_the_inputs_is_no_token():
    rng = np.random.default_rng(0)
    logits = [jnp.asarray(rng.normal(size=(2, 3, CLASSES))) for _ in range(2)]
    outputs = [Outputs(z, {}) for z in logits]
    padding = jnp.array([[1, 1, 0], [1, 0, 0]])
    expected, _ = run(methods.kd(), *outputs, {"mask": padding})
    loss, _ = run(methods.kd(), *outputs, {"attention_mask": padding})
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    encoder = {"attention_mask": padding, "decoder_input_ids": jnp.zeros((2, 3), int)}
    loss, _ = run(methods.kd(), *outputs, encoder)
    np.testing.assert_allclose(loss, run(methods.kd(), *outputs, {})[0], rtol=1e-6)
    decoder = {**encoder, "attention_mask": 1 - padding}
    decoder["decoder_attention_mask"] = padding
    loss, _ = run(methods.kd(), *outputs, decoder)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 4])
def test_each_stack_of_an_encoder_decoder_has_its_own_padding(length):
    """Whether or not the input has as many tokens as the output."""
    rng = np.random.default_rng(0)
    student, teacher = (
        Outputs(
            jnp.zeros((2, 3, CLASSES)),
            {
                "block0": jnp.asarray(rng.normal(size=(2, 3, 6))),
                "encoder.block0": jnp.asarray(rng.normal(size=(2, length, 6))),
            },
        )
        for _ in range(2)
    )
    source, target = (
        (jnp.arange(n) < jnp.array([[2], [n]])).astype(int) for n in (length, 3)
    )
    batch = {
        "decoder_input_ids": jnp.zeros((2, 3), int),
        "attention_mask": source,
        "decoder_attention_mask": target,
        "mask": jnp.array([[0, 1, 1], [0, 0, 0]]),
    }
    alone = {
        "block0": {"attention_mask": target, "mask": batch["mask"]},
        "encoder.block0": {"attention_mask": source, "mask": jnp.array([1, 0])},
    }

    def spoil(tap, x):
        real = source if tap.startswith("encoder") else target
        return jnp.where(real[..., None] > 0, x, jnp.nan)

    spoilt = Outputs(
        student.logits, {tap: spoil(tap, x) for tap, x in student.features.items()}
    )

    def relation(taps):
        return methods.relation_kd(taps, heads=2)

    for make in (methods.hidden_kd, relation):
        parts = []
        for tap, masks in alone.items():
            parts.append(run(make([tap]), student, teacher, masks)[0])
            found = run(make([tap]), spoilt, teacher, batch)[0]
            np.testing.assert_allclose(found, parts[-1], rtol=1e-5)
    found = run(relation(list(alone)), student, teacher, batch)[0]
    np.testing.assert_allclose(found, sum(parts), rtol=1e-5)


def test_warmup_and_curriculum_count_epochs_as_the_papers():
    warmup = methods.epoch_warmup(2.0, steps_per_epoch=3, epochs=4)
    assert [float(warmup(s)) for s in (0, 2, 3, 11, 99)] == [0.5, 0.5, 1.0, 2.0, 2.0]
    strength = methods.ctkd_curriculum(steps_per_epoch=1, epochs=10)
    np.testing.assert_allclose([strength(0), strength(5), strength(30)], [0, -0.5, -1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: combine(), "at least one"),
        (lambda: combine(methods.kd()), "pairs"),
        (lambda: combine((1.0, methods.kd)), "constructor"),
        (lambda: combine((math.nan, methods.kd())), "weight must be finite, got nan"),
        (lambda: combine(("1", methods.kd())), "weight must be a number or a function"),
        (lambda: combine((np.ones(2), methods.kd())), "weight must be a number or"),
        (lambda: methods.at("stage1"), "sequence"),
        (lambda: methods.at(["a"], ["a", "b"]), "1 layers"),
        (lambda: methods.fsp(["a"]), "at least two"),
        (lambda: methods.ofd(["a", "b"], [NORM]), "1 entries for 2"),
    ],
)
def test_bad_arguments_are_named(make, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_batches_are_named(unchecked_shapes):
    student, teacher = outputs(0, ["pooled"]), outputs(1, ["pooled"])
    with pytest.raises(ValueError, match=r"batch\['mask'\] has shape \(3,\)"):
        run(methods.kd(), student, teacher, {"mask": jnp.ones(3)})
    crd = methods.crd("pooled", LABELS, dim=4, negatives=4)
    with pytest.raises(ValueError, match="needs index"):
        run(crd, student, teacher, {"label": jnp.zeros(BATCH, int)})
    fewer = Outputs(teacher.logits[:, :3], {})
    with pytest.raises(ValueError, match="same classes"):
        run(methods.kd(), student, fewer, make_batch())
    with pytest.raises(ValueError, match="teacher_logits is None"):
        run(methods.kd(), student, Outputs(None, {}), make_batch())


@pytest.mark.parametrize("wrong", [None, jnp.ones(2)])
def test_a_schedule_that_returns_no_number_is_named(wrong):
    method = combine((1.0, methods.kd()), (lambda step: wrong, methods.kd()))
    outputs = Outputs(jnp.ones((2, 3)))
    held = method.init(jax.random.key(0), outputs, outputs, {"label": jnp.ones(2)})
    with pytest.raises(
        ValueError, match="weight of term 1 is a schedule that returned"
    ):
        method.loss(held, outputs, outputs, {}, jax.random.key(0), 0)
