"""DHO's whole step and its inference mix: the authors' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import Network, Outputs, distill, methods, networks
from jaxkd.evaluation.dual_head import search_mixture
from jaxkd.evaluation.gradients import grad_cosine
from jaxkd.losses import cosine_logits, dual_head_log_probs

TAPS = ("ce.logits", "kd.logits")


def part(numbers, case):
    return {k[len(case) + 1 :]: v for k, v in numbers.items() if k.startswith(case)}


@pytest.mark.parametrize("case", ["step0", "step1"])
def test_a_step_is_the_authors(load_golden, case, x64):
    g = part(load_golden("36-dho"), case)
    image = np.concatenate([g["x_labeled"], g["x_unlabeled"]]).astype(float)
    many, labels = len(g["labels"]), np.zeros(len(image), int)
    labels[: len(g["labels"])] = g["labels"]
    batch = {
        "image": jnp.asarray(image),
        "label": jnp.asarray(labels),
        "labelled": jnp.arange(len(image)) < many,
    }

    def features(params, x, taps=()):
        z = jnp.tanh(x @ params["weight"].T + params["bias"])
        return Outputs(None, {"pooled": z} if taps else {})

    def weights(name):
        return {k: jnp.asarray(g[f"{name}_{k}"], float) for k in ("weight", "bias")}

    def head(name):
        found = weights(name)
        return {"kernel": found["weight"].T, "bias": found["bias"]}

    trunk = Network.from_apply(lambda key: weights("p_g"), features, taps=("pooled",))
    width, classes = g["p_ce_head_weight"].shape[::-1]
    student = networks.dual_head(
        trunk, width, classes, prototypes=jnp.zeros((width, classes))
    )
    heads = {"ce_head": head("p_ce_head"), "kd_head": head("p_kd_head")}
    params = {"network": weights("p_g"), **heads}
    student = student.with_variables({"params": params, "stats": {}})
    clip = Network.from_apply(
        lambda key: {"w": jnp.asarray(g["image_proj"], float)},
        lambda w, x, taps=(): Outputs(None, {"image_embeds": x @ w["w"]}),
        taps=("image_embeds",),
    )
    prototypes = jnp.asarray(g["clip_weights"], float)
    # Their stand-ins for text embeddings are not of length 1, as real ones are.
    lengths = jnp.linalg.norm(prototypes, axis=0)
    teacher = networks.with_logits(
        clip, "image_embeds", lambda x: lengths * cosine_logits(x, prototypes)
    )
    key = jax.random.key(0)
    logits = teacher.apply(teacher.init(key), image)[0].logits
    expected = [g[f"teacher_logits_{k}"] for k in ("labeled", "unlabeled")]
    np.testing.assert_allclose(logits, np.concatenate(expected), rtol=1e-6)
    found = student.apply(student.init(key), image, taps=TAPS)[0].features
    ce, kd = (found[tap] for tap in TAPS)
    np.testing.assert_allclose(ce[:many], g["logits_ce_labeled"], rtol=1e-6)
    np.testing.assert_allclose(kd[:many], g["logits_kd_labeled"], rtol=1e-6)
    np.testing.assert_allclose(kd[many:], g["logits_kd_unlabeled"], rtol=1e-6)

    method = methods.dho(float(g["lam"]), float(g["T"]))
    program = distill(student, teacher, method, optax.sgd(1.0))
    before = program.init(key, batch)
    start = jax.tree.map(np.asarray, before.student["params"])
    after, metrics = jax.jit(program.step)(before, batch)
    np.testing.assert_allclose(metrics["loss"], g["loss"], rtol=1e-9)
    moved = jax.tree.map(lambda a, b: a - b, start, after.student["params"])
    for name in ("weight", "bias"):
        wanted = g[f"g_g_{name}"]
        np.testing.assert_allclose(moved["network"][name], wanted, rtol=1e-6, atol=1e-9)
        for which in ("ce_head", "kd_head"):
            gradient = moved[which]["kernel" if name == "weight" else "bias"]
            wanted = g[f"g_{which}_{name}"]
            np.testing.assert_allclose(gradient.T, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_search_finds_the_authors_mixture(load_golden, dtype, x64):
    g = part(load_golden("36-dho"), "eval")
    ce, kd = (jnp.asarray(g[f"logits_{head}"], dtype) for head in ("ce", "kd"))
    labels = jnp.asarray(g["labels"])
    found = jax.jit(search_mixture)(ce, kd, labels)
    np.testing.assert_allclose(100 * found.accuracy, g["best_acc"], rtol=1e-6)
    np.testing.assert_allclose(found.alpha, g["best_alpha"], rtol=1e-6)
    np.testing.assert_allclose(found.beta, g["best_beta"], rtol=1e-6)
    for alpha, beta, accuracy in g["fixed_alpha_beta_acc"]:
        mixed = dual_head_log_probs(ce, kd, alpha, beta)
        right = 100 * np.mean(mixed.argmax(-1) == labels)
        np.testing.assert_allclose(right, accuracy, rtol=1e-6)


def test_of_equal_mixtures_the_first_counts_and_bad_grids_are_refused(unchecked_shapes):
    z = jnp.eye(3)
    found = search_mixture(z, z, jnp.arange(3), [0.7, 0.2], [2.0, 1.0])
    np.testing.assert_allclose(found, [1, 0.7, 2.0])
    for grid, message in (
        ({"alphas": []}, "alphas has 0 values and betas 7: give at least one"),
        ({"alphas": [0.5, 1.5]}, r"alphas must be in \[0, 1\]"),
        ({"betas": [1.0, 0.0]}, "betas must be above 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            search_mixture(z, z, jnp.arange(3), **grid)


def test_one_head_is_pulled_two_ways_and_two_heads_are_not():
    """The closed form: (p̂ − y)zᵀ and (p̂ − p)zᵀ have the cosine of p̂ − y and p̂ − p."""
    z, y, p = jnp.array([1.0, -2.0]), jnp.array([1.0, 0, 0]), jnp.array([0, 0.1, 0.9])

    def against(target, head):
        return lambda w: -jnp.sum(target * jax.nn.log_softmax(w[head] @ z))

    one = {"ce": jnp.zeros((3, 2))}
    cosine = grad_cosine(one, against(y, "ce"), against(p, "ce"))
    a, b = 1 / 3 - y, 1 / 3 - p
    wanted = a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)
    np.testing.assert_allclose(cosine, wanted, rtol=1e-5)
    assert cosine < -0.4
    two = {**one, "kd": one["ce"]}
    apart = against(y, "ce"), against(p, "kd")
    assert grad_cosine(two, *apart) == 0
    assert grad_cosine(two, *apart, lambda g: g["kd"]) == 0
