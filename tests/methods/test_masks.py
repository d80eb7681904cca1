"""What masks leave out reaches no loss, and a packed row is its documents alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import call

from jaxkd import Network, Outputs, methods, papers, programs
from jaxkd.methods import METHODS
from jaxkd.methods.base import resolved
from jaxkd.papers.data_pruning import pruned_kd
from jaxkd.papers.swiftkv import swiftkv
from jaxkd.types import Method

VOCABULARY, WIDTH = 5, 4
TOKEN = {
    "akl": methods.akl,
    "cached": lambda: methods.cached(methods.kd()),
    "cross_entropy": lambda: methods.cross_entropy(0.1),
    "ctkd": lambda: methods.ctkd(methods.ctkd_curriculum(2)),
    "ddk": methods.ddk,
    "dist": methods.dist,
    "divergence_kd": methods.divergence_kd,
    "dkd": methods.dkd,
    "expert_balance": lambda: methods.expert_balance(["block0"]),
    "first": lambda: methods.first(2.0, k=3),
    "first of sequences": lambda: methods.first(2.0, reduction="sequence"),
    "hidden_kd": lambda: methods.hidden_kd(["block0", "block1"]),
    "hidden_kd by cosine": lambda: methods.hidden_kd(["block0"], cosine=True),
    "kd": methods.kd,
    "linear_kd": lambda: methods.linear_kd(label_weight=0.5),
    "lskd": lambda: methods.lskd(methods.kd(2.0)),
    "minillm": methods.minillm,
    "mixstd": methods.mixstd,
    "pld": methods.pld,
    "pruned_kd": lambda: pruned_kd(0.7),
    "relation_kd": lambda: methods.relation_kd(["block0"], heads=2),
    "shared_vocabulary": lambda: methods.shared_vocabulary(methods.kd(), 3),
    "sinkd": methods.sinkd,
    "swiftkv": lambda: swiftkv("block0"),
    "taid": lambda: methods.taid(10),
    "taid from heads": lambda: methods.taid(10, from_heads=True),
    "topk_kd": lambda: methods.topk_kd(reverse=True),
    "topkld": lambda: methods.topkld(2),
}
# Of images, graphs and peers, or with tokens of its own (below).
OTHERS = {
    *(
        "ab",
        "aligned_kd",
        "at",
        "bdkd",
        "cc",
        "crd",
        "cwd",
        "denoising",
        "dhkd",
        "dho",
        "diswot",
    ),
    *("dmae", "feature_align", "mae"),
    *("dml", "ffg2m", "fitnets", "fsp", "ft", "fused_kd", "glnn", "high_frequency"),
    *("kdcl", "labelled_cross_entropy", "lelp", "low_frequency", "m2mkd", "mgd", "nd"),
    *("nst", "ofakd", "ofd", "one", "pkt", "reviewkd", "rkd", "self_distillation"),
    *("simkd", "sp", "subclass_kd", "talking", "tgeokd", "trg", "uld", "vid"),
}
# Methods that read tokens which they do not count.
READERS = {"relation_kd", "swiftkv"}
# Those that read the teacher from the batch alone.
TEACHERLESS = {"cached", "first of sequences", "topk_kd"}

# Documents of 3, 2, 4 and 1 tokens, in rows of their own and in two packed rows.
SIZES = np.array([3, 2, 4, 1])
REAL = np.arange(4) < SIZES[:, None]
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 2, 0]])
DOCUMENT = np.array([[0, 0, 0, 1, 1, 0], [2, 2, 2, 2, 3, 0]])
PLACE = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]])
# A prompt of one token, and a document of which nothing is to be learnt.
LEARNT = REAL & (np.arange(4) > 0)
MASK = np.where(SEGMENTS > 0, LEARNT[DOCUMENT, PLACE], False)


def packed(array):
    """Return the documents' tokens in packed rows, something else as padding."""
    return jnp.where(
        (SEGMENTS > 0).reshape(2, 6, *(1,) * (array.ndim - 2)),
        array[DOCUMENT, PLACE],
        jnp.asarray(3, array.dtype),
    )


def everything():
    """Return student, teacher and batch of the documents in rows of their own."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(0, 2, (4, 4, *shape)), jnp.float32)

    def outputs(width):
        features = {"final": draw(WIDTH), "block0": draw(width), "block1": draw(width)}
        return Outputs(draw(VOCABULARY), features)

    student, teacher = outputs(WIDTH), outputs(WIDTH)
    best = jax.lax.top_k(jax.nn.log_softmax(draw(VOCABULARY)), 3)
    batch = {
        "label": jnp.asarray(rng.integers(0, VOCABULARY, (4, 4))),
        "sampled_log_prob": -jnp.abs(draw()),
        "teacher_logits": draw(VOCABULARY),
        "teacher_log_probs": best[0],
        "teacher_ids": best[1],
    }
    return student, teacher, batch


HEADS = np.random.default_rng(1).normal(size=(2, WIDTH, VOCABULARY)).astype("f4")


@jax.jit
def run(student, teacher, batch):
    """Return value and gradients of every method, by name."""

    def of(method, teacher):
        def loss(params, student):
            full = {**variables, "params": params}
            key = jax.random.key(1)
            return resolved(method.loss(full, student, teacher, batch, key, 3))[0]

        variables = method.init(jax.random.key(0), student, teacher, batch)
        return jax.value_and_grad(loss, (0, 1))(variables["params"], student)

    found = {}
    for name, build in TOKEN.items():
        given = Outputs(None) if name in TEACHERLESS else teacher
        found[name] = of(build(), given)
    return found


def with_heads(student, teacher):
    return (
        Outputs(o.logits, {**o.features, "head": jnp.asarray(head)})
        for o, head in zip((student, teacher), HEADS, strict=True)
    )


def of_rows(mask=MASK, spoil=lambda x: x):
    student, teacher, batch = jax.tree.map(packed, everything())
    student, teacher, batch = jax.tree.map(spoil, (student, teacher, batch))
    batch = {**batch, "segment_ids": jnp.asarray(SEGMENTS), "mask": jnp.asarray(mask)}
    return run(*with_heads(student, teacher), batch)


def test_every_method_is_covered():
    wrappers = {"cached", "lskd", "shared_vocabulary"}
    covered = {name.split()[0] for name in TOKEN} - (wrappers - set(METHODS))
    assert not covered & OTHERS
    assert covered | OTHERS == {*METHODS, *papers.constructors(Method)}


@functools.cache
def of_documents():
    student, teacher, batch = everything()
    masks = {"attention_mask": jnp.asarray(REAL), "mask": jnp.asarray(LEARNT)}
    return run(*with_heads(student, teacher), {**batch, **masks})


def close(found, expected, name):
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-5, err_msg=name)
    for a, b in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_packed_row_is_its_documents_alone():
    # Padding counts no more where nothing but the documents' numbers says that it is.
    together, alone = of_rows(MASK | (SEGMENTS == 0)), of_documents()
    for name, (value, (params, student)) in alone.items():
        rows = jax.tree.map(
            lambda x: packed(x) * (SEGMENTS > 0)[..., None] if x.ndim == 3 else x,
            student,
        )
        assert value != 0, name
        close(together[name], (value, (params, rows)), name)


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_what_stands_at_masked_tokens_reaches_nothing(value):
    plain = of_rows()
    masked, padding = jnp.asarray(~MASK), jnp.asarray(SEGMENTS == 0)

    def spoilt(where):
        def spoil(x):
            bad = value if jnp.issubdtype(x.dtype, jnp.floating) else -100
            return jnp.where(where.reshape(2, 6, *(1,) * (x.ndim - 2)), bad, x)

        return of_rows(spoil=spoil)

    everywhere, at_padding = spoilt(masked), spoilt(padding)
    for name, expected in plain.items():
        close(at_padding[name], expected, name)
        if name in READERS:
            leaves = jax.tree.leaves(everywhere[name])
            assert all(np.isfinite(x).all() for x in leaves), name
        else:
            close(everywhere[name], expected, name)
        for tap, gradient in everywhere[name][1][1].features.items():
            if tap != "head":
                assert not np.asarray(gradient)[masked].any(), (name, tap)


def test_a_labels_loss_does_not_ask_about_nodes_without():
    z = jax.random.normal(jax.random.key(0), (4, 3))
    labelled = jnp.array([1, 0, 1, 0])
    batch = {"label": jnp.array([0, 1, 2, 0]), "labelled": labelled}

    def loss(z):
        method = methods.labelled_cross_entropy()
        return call(method, {"state": {}}, Outputs(z), Outputs(None), batch)[0]

    spoilt = jnp.where(labelled[:, None] > 0, z, jnp.nan)
    np.testing.assert_array_equal(jax.grad(loss)(spoilt), jax.grad(loss)(z))


@pytest.mark.slow
def test_programs_survive_a_teacher_that_has_no_answer_where_nothing_counts():
    start = jax.random.normal(jax.random.key(0), (4, 3))
    student = Network.from_apply(lambda key: start, lambda w, x: x @ w)
    teacher = Network.from_apply(
        lambda key: -start, lambda w, x: jnp.where(x[:, :1] > 9, jnp.nan, x @ w)
    )
    image = jax.random.normal(jax.random.key(1), (4, 4))
    held_out = {"image": image, "label": jnp.arange(4) % 3}
    batch = {**held_out, "mask": jnp.array([1, 0, 1, 1])}
    spoilt = {**batch, "image": image.at[1].set(10.0)}
    sgd, kd = optax.sgd(0.1), methods.kd(2.0)
    both = (1.0, methods.cross_entropy()), (1.0, kd)
    inner = methods.tgeokd(jnp.full((3, 3), 1 / 3), hidden=(2,))
    for program in (
        programs.distill(student, teacher, kd, sgd, accumulate=2),
        programs.distill_aligned(student, teacher, *both, sgd),
        programs.bilevel(student, teacher, inner, both[0][1], sgd, sgd),
    ):
        step = jax.jit(program.step)
        first, second = ({**x, "validation": held_out} for x in (batch, spoilt))
        state = program.init(jax.random.key(2), first)
        expected, found = (step(state, x)[0] for x in (first, second))
        for a, b in zip(
            *(jax.tree.leaves((s.student, s.method)) for s in (found, expected)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_what_counts_and_is_not_finite_stays_so():
    student, teacher = (Outputs(jnp.zeros((2, 3))) for _ in range(2))
    broken = Outputs(teacher.logits.at[0, 1].set(jnp.nan))
    batch = {"mask": jnp.array([1, 0])}
    assert np.isnan(call(methods.kd(), {"state": {}}, student, broken, batch)[0])


@pytest.mark.slow
def test_universal_logits_have_masks_of_their_own():
    """The teacher's tokens are others than those that the student's mask is of."""
    rng = np.random.default_rng(0)
    z_s, z_t = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((3, 4, 5), (3, 4, 6))
    )
    batch = {
        "mask": jnp.array([[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]),
        "teacher_mask": jnp.array([[1, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]]),
    }
    of_student, of_teacher = (
        (batch[name] * batch["mask"].max(1, keepdims=True))[..., None] > 0
        for name in ("mask", "teacher_mask")
    )

    @jax.jit
    @jax.value_and_grad
    def value(z_s, z_t):
        teacher = Outputs(z_t)
        return call(methods.uld(), {"state": {}}, Outputs(z_s), teacher, batch)[0]

    expected, gradient = value(z_s, z_t)
    assert expected > 0
    for bad in (np.nan, -np.inf):
        found, other = value(
            jnp.where(of_student, z_s, bad), jnp.where(of_teacher, z_t, bad)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(other, gradient, rtol=1e-5, atol=1e-7)
    packed_rows = {**batch, "segment_ids": jnp.ones((3, 4), int)}
    with pytest.raises(ValueError, match="a row of its own"):
        call(methods.uld(), {"state": {}}, Outputs(z_s), Outputs(z_t), packed_rows)
