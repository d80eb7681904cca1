"""The dual-head loss and mixture: the authors' numbers, laws and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from tiny import call

from jaxkd import Outputs
from jaxkd.losses import cross_entropy_loss, dho_loss, dual_head_log_probs, kd_loss
from jaxkd.methods import cached, dho, fitnets


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


def tolerance(precision, expected):
    return {
        "rtol": 1e-9 if precision == "float64" else 1e-5,
        "atol": (1e-12 if precision == "float64" else 1e-5) * np.abs(expected).max(),
    }


def joined(numbers, case, precision):
    """Return the authors' two batches as one with both kinds of examples, mixed up."""
    g = {k[len(case) + 1 :]: v for k, v in numbers.items() if k.startswith(case)}
    many, rest = len(g["ce_labeled"]), len(g["kd_unlabeled"])
    # The cross-entropy head's answers and labels of unlabelled examples are not read.
    ce = np.concatenate([g["ce_labeled"], np.full_like(g["kd_unlabeled"], 9.0)])
    labels = np.concatenate([g["labels"], np.full(rest, -1)])
    order = np.random.default_rng(0).permutation(many + rest)
    pairs = [("kd_labeled", "kd_unlabeled"), ("teacher_labeled", "teacher_unlabeled")]
    kd, teacher = (np.concatenate([g[a], g[b]]) for a, b in pairs)
    arrays = [jnp.asarray(x[order], precision) for x in (ce, kd, teacher)]
    labelled = jnp.asarray((np.arange(many + rest) < many)[order])
    return g, arrays, jnp.asarray(labels[order]), labelled, np.argsort(order)


@pytest.mark.parametrize("case", ["dho0", "dho1"])
def test_the_authors_value_parts_and_gradients(load_golden, case, precision):
    g, (ce, kd, teacher), labels, labelled, back = joined(
        load_golden("44-pcoreset"), case, precision
    )

    def loss(ce, kd):
        return dho_loss(ce, kd, teacher, labels, labelled)

    (value, parts), (ce_grad, kd_grad) = jax.jit(
        jax.value_and_grad(loss, (0, 1), has_aux=True)
    )(ce, kd)
    many = len(g["ce_labeled"])
    expected = {
        "loss": (value, g["loss"]),
        "ce": (parts["ce"], g["ce_loss"]),
        "kd labelled": (parts["kd_labelled"], g["kd_labeled_loss"]),
        "kd unlabelled": (parts["kd_unlabelled"], g["kd_unlabeled_loss"]),
        "ce gradient": (ce_grad[back][:many], g["grad_ce_labeled"]),
        "kd gradient": (kd_grad[back][:many], g["grad_kd_labeled"]),
        "kd gradient u": (kd_grad[back][many:], g["grad_kd_unlabeled"]),
    }
    for name, (found, wanted) in expected.items():
        np.testing.assert_allclose(
            found, wanted, **tolerance(precision, wanted), err_msg=name
        )
    assert not ce_grad[back][many:].any()


def arrays(seed=0, batch=6, classes=4, scale=3.0):
    rng = np.random.default_rng(seed)
    ce, kd, teacher = (
        jnp.asarray(rng.normal(0, scale, (batch, classes)), jnp.float32)
        for _ in range(3)
    )
    return ce, kd, teacher, jnp.asarray(rng.integers(0, classes, batch))


LABELLED = jnp.array([True, False, True, False, False, True])
one_loss = jax.jit(dho_loss, static_argnames=("lam", "temperature"))


def test_the_means_of_both_groups_are_added():
    ce, kd, teacher, labels = arrays()
    value, _ = one_loss(ce, kd, teacher, labels, LABELLED, lam=0.3, temperature=4.0)
    per_example = kd_loss(kd, teacher, 4.0)
    expected = 0.3 * cross_entropy_loss(ce, labels)[LABELLED].mean() + 0.7 * (
        per_example[LABELLED].mean() + per_example[~LABELLED].mean()
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_group_without_examples_adds_nothing(seed, labelled):
    ce, kd, teacher, labels = arrays(seed)
    value, parts = one_loss(ce, kd, teacher, labels, jnp.array(labelled))
    assert (parts["ce"] == 0) == (parts["kd_labelled"] == 0) == (not any(labelled))
    assert (parts["kd_unlabelled"] == 0) == all(labelled)
    half = 0.5 * sum(parts.values())
    np.testing.assert_allclose(value, half, rtol=1e-6)


@pytest.mark.parametrize("labelled", [LABELLED, ~LABELLED], ids=["some", "others"])
def test_weights_act_as_repetitions_and_masks(labelled):
    ce, kd, teacher, labels = arrays()
    weights = jnp.array([2.0, 1, 0, 0, 3, 1])
    rows = jnp.repeat(jnp.arange(6), weights.astype(int), total_repeat_length=7)
    spoiled = [x.at[2].set(jnp.nan) for x in (ce, kd, teacher)]
    weighted, _ = one_loss(*spoiled, labels, labelled, weights=weights)
    repeated, _ = one_loss(
        ce[rows], kd[rows], teacher[rows], labels[rows], labelled[rows]
    )
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)


def test_hard_inputs_stay_finite():
    gradient = jax.jit(
        jax.value_and_grad(lambda *a: dho_loss(*a)[0], argnums=(0, 1)),
    )
    for scale in (1e4, 0.0):
        ce, kd, teacher, labels = arrays(scale=scale)
        value, gradients = gradient(ce, kd, teacher, labels, LABELLED)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)
    ce, kd, teacher, labels = arrays()
    # The head that learns from labels is not asked about other examples.
    broken = jnp.where(LABELLED[:, None], ce, jnp.nan)
    for found, wanted in zip(
        jax.tree.leaves(gradient(broken, kd, teacher, labels, LABELLED)),
        jax.tree.leaves(gradient(ce, kd, teacher, labels, LABELLED)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)
    _, (_, kd_gradient) = gradient(ce, teacher, teacher, labels, LABELLED)
    np.testing.assert_allclose(kd_gradient, 0, atol=1e-6)
    one = [x[:1] for x in (ce, kd, teacher, labels, LABELLED)]
    assert np.isfinite(gradient(*one)[0])
    nothing, parts = one_loss(
        ce, kd, teacher, labels, LABELLED, weights=jnp.zeros(6, jnp.float32)
    )
    assert nothing == 0
    assert not any(parts.values())


def test_bf16_and_vmap():
    ce, kd, teacher, labels = arrays()
    low = [x.astype(jnp.bfloat16) for x in (ce, kd, teacher)]
    value, _ = one_loss(*low, labels, LABELLED)
    assert value.dtype == jnp.float32
    exact, _ = one_loss(*(x.astype(jnp.float32) for x in low), labels, LABELLED)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    stacked = [jnp.stack([x, x[::-1]]) for x in (ce, kd, teacher, labels, LABELLED)]
    both, _ = jax.vmap(dho_loss)(*stacked)
    single, _ = one_loss(ce, kd, teacher, labels, LABELLED)
    np.testing.assert_allclose(both, [single, single], rtol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.5, 1.0), (0.2, 0.5), (0.0, 2.0), (1.0, 1.0)]
)
def test_the_mixture_is_of_probabilities(alpha, beta):
    ce, kd, _, _ = arrays()
    expected = alpha * softmax(ce, -1) + (1 - alpha) * softmax(
        np.asarray(kd) / beta, -1
    )
    found = dual_head_log_probs(ce, kd, alpha, beta)
    np.testing.assert_allclose(jnp.exp(found), expected, rtol=1e-5)


def test_the_mixture_of_extreme_heads_and_over_a_grid_of_shares():
    ce, kd, _, _ = arrays(scale=1e4)
    gradient = jax.grad(lambda z: dual_head_log_probs(z, kd)[:, 0].sum())(ce)
    assert np.isfinite(gradient).all()
    alphas = jnp.linspace(0, 1, 5)
    grid = jax.vmap(lambda a: dual_head_log_probs(ce, kd, a, 0.5))(alphas)
    np.testing.assert_allclose(jnp.exp(grid).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(grid[3], dual_head_log_probs(ce, kd, 0.75, 0.5))


CE, KD, TEACHER, LABELS = arrays()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dual_head_log_probs(CE, KD[:3]), r"ce_logits has shape \(6, 4\)"),
        (lambda: dual_head_log_probs(CE, KD, 1.5), r"alpha must be in \[0, 1\]"),
        (lambda: dual_head_log_probs(CE, KD, 0.5, 0.0), "beta must be above 0"),
        (lambda: dho_loss(CE, KD, TEACHER, LABELS, LABELLED, lam=-1), "lam must be in"),
        (
            lambda: dho_loss(CE, KD, TEACHER, LABELS, LABELLED, temperature=0.0),
            "temperature must be above 0",
        ),
        (lambda: dho_loss(CE, KD, TEACHER[:, :2], LABELS, LABELLED), "same classes"),
        (lambda: dho_loss(CE, KD, TEACHER, CE, LABELLED), "needs class indices"),
    ],
)
def test_bad_input_is_named(call, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        call()


def outputs(ce, kd):
    return Outputs(dual_head_log_probs(ce, kd), {"ce.logits": ce, "kd.logits": kd})


def test_the_method_reads_the_taps_and_a_cache():
    student, batch = outputs(CE, KD), {"label": LABELS, "labelled": LABELLED}
    variables = {"params": {}, "state": {}}
    key = jax.random.key(0)
    with_teacher, (_, metrics) = call(
        dho(0.3), variables, student, Outputs(TEACHER), batch, key, 0
    )
    expected, _ = one_loss(CE, KD, TEACHER, LABELS, LABELLED, lam=0.3)
    np.testing.assert_allclose(with_teacher, expected, rtol=1e-6)
    assert set(metrics) == {"dho", "ce", "kd_labelled", "kd_unlabelled"}
    method = cached(dho(0.3))
    full = {**batch, "teacher_logits": TEACHER}
    assert method.init(key, student, Outputs(None), full) == variables
    from_cache, _ = call(method, variables, student, Outputs(None), full, key, 0)
    assert from_cache == with_teacher
    with pytest.raises(ValueError, match="cached\\(\\) needs teacher_logits"):
        call(method, variables, student, Outputs(None), batch, key, 0)
    with pytest.raises(ValueError, match="needs labelled, a boolean"):
        call(dho(), variables, student, Outputs(TEACHER), {"label": LABELS}, key, 0)
    with pytest.raises(ValueError, match="reads the teacher's features"):
        cached(fitnets("stage1"))
