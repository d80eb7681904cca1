"""Next-token losses: the numbers of DistiLLM, AKL and TRL, their laws and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.kernels.linear_distill import divergences
from jaxkd.losses.basics import weighted_mean
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.losses.language import (
    adaptive_kl_loss,
    adaptive_kl_weights,
    divergence_loss,
    relation_loss,
    uld_loss,
)

FAMILY = {
    "distillm_forward_kl": divergences.soft_cross_entropy,
    "distillm_reverse_kl": divergences.reverse_kl,
    "distillm_tv_distance": divergences.total_variation,
    "distillm_skewed_reverse_kl_lam0.1": divergences.skew_reverse_kl(0.1),
    "distillm_skewed_reverse_kl_lam0.5": divergences.skew_reverse_kl(0.5),
    "distillm_js_distance_lam0.9": divergences.jensen_shannon(0.1),
    "distillm_js_distance_lam0.5": divergences.jensen_shannon(0.5),
    "trl_gjsd_beta0": divergences.forward_kl,
    "trl_gjsd_beta0.1": divergences.jensen_shannon(0.1),
    "trl_gjsd_beta0.25": divergences.jensen_shannon(0.25),
    "trl_gjsd_beta0.5": divergences.jensen_shannon(0.5),
    "trl_gjsd_beta0.9": divergences.jensen_shannon(0.9),
    "trl_gjsd_beta1": divergences.reverse_kl,
}


def logits(seed, shape=(2, 3, 7), scale=2.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


@pytest.fixture(scope="module", params=["div_a", "div_b"])
def case(request, load_golden):
    found = load_golden("24-llm_kd_survey")
    prefix = request.param + "/"
    return {
        k[len(prefix) :]: jnp.asarray(v)
        for k, v in found.items()
        if k.startswith(prefix)
    }


def compare(loss, case, name, rtol=1e-5):
    """Compare the mean over the counted tokens, and its gradient."""
    z_s, z_t, labels = (case[k] for k in ("student_logits", "teacher_logits", "labels"))
    value, gradient = jax.value_and_grad(
        lambda z: weighted_mean(loss(z, z_t), labels != -100)
    )(z_s)
    np.testing.assert_allclose(value, case[f"{name}/loss"], rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(
        gradient, case[f"{name}/grad_student"], rtol=1e-4, atol=1e-7
    )


@pytest.mark.slow
def test_authors_divergences(case):
    names = [name for name in FAMILY if f"{name}/loss" in case]
    assert len(names) >= 4
    for name in names:
        compare(lambda s, t, name=name: divergence_loss(s, t, FAMILY[name]), case, name)


def test_authors_skew_kl_but_for_the_teachers_entropy(case):
    z_s, z_t, labels = (case[k] for k in ("student_logits", "teacher_logits", "labels"))
    loss = divergences.skew_kl(0.1)
    gradient = jax.grad(
        lambda z: weighted_mean(divergence_loss(z, z_t, loss), labels != -100)
    )(z_s)
    expected = case["distillm_skewed_forward_kl_lam0.1/grad_student"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_trl_at_temperature_2_has_no_square(load_golden):
    found = load_golden("24-llm_kd_survey")
    case = {k[6:]: jnp.asarray(v) for k, v in found.items() if k.startswith("div_a/")}
    loss = divergences.jensen_shannon(0.3)
    compare(
        lambda s, t: divergence_loss(s, t, loss, 2.0) / 4, case, "trl_gjsd_beta0.3_T2"
    )


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_authors_adaptive_kl(case, share):
    name = f"akl_mu{share}"
    head, tail = adaptive_kl_weights(
        case["student_logits"], case["teacher_logits"], share
    )
    counted = case["labels"] != -100
    for found, key in ((head, "head_weight"), (tail, "tail_weight")):
        np.testing.assert_allclose(
            np.where(counted, found, 0),
            np.where(counted, case[f"{name}/{key}"], 0),
            rtol=1e-5,
        )
    compare(lambda s, t: adaptive_kl_loss(s, t, share), case, name)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_bounds(seed):
    s, t = logits(seed, scale=8), logits(seed + 1, scale=8)
    tolerance = 1e-5
    skewed = divergence_loss(s, t, divergences.skew_kl(0.1))
    assert (skewed <= -np.log(0.1) + tolerance).all()
    mixed = divergence_loss(s, t, divergences.jensen_shannon(0.5))
    assert (mixed <= np.log(2) + tolerance).all()
    total = divergence_loss(s, t, divergences.total_variation)
    assert (total <= 1 + tolerance).all()
    for loss in (skewed, mixed, total, adaptive_kl_loss(s, t)):
        assert (loss >= -tolerance).all()


@pytest.mark.slow
@pytest.mark.parametrize("case_name", ["uld_a", "uld_b"])
def test_trl_universal_logit_distillation(load_golden, case_name):
    found = load_golden("24-llm_kd_survey")
    get = {
        k.split("/", 1)[1]: v for k, v in found.items() if k.startswith(case_name + "/")
    }
    z_t = jnp.asarray(get["teacher_logits"])
    masks = []
    for who in ("student", "teacher"):
        mask = get[f"{who}_labels"] != -100
        if get["skip_eos"]:
            last = mask.shape[1] - 1 - mask[:, ::-1].argmax(1)
            mask = mask.copy()
            mask[np.arange(len(mask)), last] = False
        masks.append(jnp.asarray(mask))
    labels = jnp.asarray(get["student_labels"])

    def loss(z):
        distances = uld_loss(
            z,
            z_t,
            *masks,
            float(get["student_temperature"]),
            float(get["teacher_temperature"]),
        )
        counted = labels[:, 1:] != -100
        shifted = jnp.where(counted, labels[:, 1:], 0)
        hard = weighted_mean(cross_entropy_loss(z[:, :-1], shifted), counted)
        return (
            float(get["distillation_weight"]) * distances.mean()
            + float(get["crossentropy_weight"]) * hard
        )

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(get["student_logits"]))
    np.testing.assert_allclose(value, get["uld/loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, get["uld/grad_student"], rtol=1e-4, atol=1e-7)


def test_uld_forgets_which_token_is_which():
    s, t, mask = logits(0), logits(1), jnp.ones((2, 3))
    shuffled = t[..., jnp.array([3, 1, 0, 6, 2, 5, 4])]
    np.testing.assert_array_equal(
        uld_loss(s, t, mask, mask), uld_loss(s, shuffled, mask, mask)
    )


def test_uld_of_an_empty_answer_is_zero():
    s, t = logits(0), logits(1, (2, 4, 9))
    value, gradient = jax.value_and_grad(
        lambda s: uld_loss(s, t, jnp.zeros((2, 3)), jnp.ones((2, 4))).sum()
    )(s)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_uld_refuses_masks_of_other_tokens(unchecked_shapes):
    with pytest.raises(ValueError, match="teacher_mask has shape"):
        uld_loss(logits(0), logits(1, (2, 4, 9)), jnp.ones((2, 3)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="teacher_temperature must be above 0"):
        uld_loss(logits(0), logits(1), jnp.ones((2, 3)), jnp.ones((2, 3)), 1.0, 0.0)


def test_relations_do_not_see_rotations_and_scale_with_no_width():
    x = logits(0, (2, 5, 8), 1.0)
    turned = x.reshape(2, 5, 2, 4) @ jnp.linalg.qr(logits(1, (4, 4)))[0]
    np.testing.assert_allclose(
        relation_loss(x, turned.reshape(2, 5, 8), 2), 0, atol=1e-5
    )
    wide = logits(2, (2, 5, 12), 1.0)
    assert (relation_loss(x, wide, 2) > 1e-3).all()


def test_relations_of_counted_tokens_ignore_the_others():
    x, y = logits(0, (1, 4, 6)), logits(1, (1, 4, 6))
    mask = jnp.array([[1, 1, 1, 0]])
    found = relation_loss(x, y, 3, mask)[:, :3]
    np.testing.assert_allclose(
        found, relation_loss(x[:, :3], y[:, :3], 3), rtol=1e-5, atol=1e-6
    )


def test_relations_refuse_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="heads 4 do not divide 6"):
        relation_loss(logits(0, (1, 4, 6)), logits(1, (1, 4, 6)), 4)


def test_share_outside_its_range():
    with pytest.raises(ValueError, match="share must be in"):
        adaptive_kl_loss(logits(0), logits(1), 1.0)
