"""Sample-wise fusion of teacher and labels: the authors' numbers and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from jaxkd.adapters import merge_module
from jaxkd.losses.divergences import cross_entropy_loss, kd_loss
from jaxkd.losses.fusion import (
    GEOMETRY,
    ada_alpha,
    class_average_predictions,
    fused_kd_loss,
    trilateral_features,
    wls_alpha,
)
from jaxkd.methods.modules.fusion import FusionController

LABELS = jnp.array([1, 0, 4, 2, 4, 1])


def logits(seed, scale=3.0):
    return jnp.asarray(
        np.random.default_rng(seed).normal(0, scale, (6, 5)), jnp.float32
    )


def controller(found, prefix, dtype, weight="weight", bias="bias"):
    """Return the authors' controller."""
    first, second, last = (
        {
            "kernel": jnp.asarray(found[f"{prefix}fc{i}_{weight}"].T, dtype),
            "bias": jnp.asarray(found[f"{prefix}fc{i}_{bias}"], dtype),
        }
        for i in (1, 2, 3)
    )
    params = {"layers": {"0": first, "1": second}, "out": last}
    features = len(first["kernel"])
    abstract = nnx.eval_shape(lambda: FusionController(features, rngs=nnx.Rngs(0)))
    return merge_module(abstract, params, {})


class TestAuthorsNumbers:
    @pytest.mark.parametrize("case", ["state0_", "state1_"])
    @pytest.mark.parametrize("precision", ["float32", "float64"])
    def test_features_and_controller(self, load_golden, case, precision, request):
        if precision == "float64":
            request.getfixturevalue("x64")
        found = load_golden("35-tgeokd")
        get = {k.removeprefix(case): v for k, v in found.items()}
        s, t = (
            jnp.asarray(get[f"{w}_prob"], precision) for w in ("student", "teacher")
        )
        labels = jnp.asarray(get["labels"])
        average = class_average_predictions(t, labels)
        rtol = 1e-12 if precision == "float64" else 1e-5
        features = jax.jit(trilateral_features)(s, t, labels, average)
        # An edge is a difference of numbers below 1: its float32 error is absolute.
        np.testing.assert_allclose(features, get["state"], rtol=rtol, atol=rtol / 100)
        alpha = controller(get, "c_", precision)(features)
        np.testing.assert_allclose(alpha, get["alpha"], rtol=rtol)

    def test_released_script(self, load_golden, x64):
        """The script's run, which is not the paper's: its controller never learns.

        Its cross-entropies are of softmax outputs, as if they were logits.
        """
        found = {
            k.removeprefix("script_"): v for k, v in load_golden("35-tgeokd").items()
        }
        x, y = jnp.asarray(found["x_train"]), jnp.asarray(found["y_train"])
        taught = jnp.asarray(found["teacher_logits"])
        params = [
            (jnp.asarray(found[f"student0_fc{i}_w"].T), found[f"student0_fc{i}_b"])
            for i in (1, 2, 3)
        ]
        params = jax.tree.map(jnp.asarray, params)
        frozen = controller(found, "ctrl_", "float64", "w", "b")
        average = class_average_predictions(jax.nn.softmax(taught), y)

        def student(params, x):
            for kernel, bias in params[:-1]:
                x = nnx.leaky_relu(x @ kernel + bias, 0.01)
            return x @ params[-1][0] + params[-1][1]

        def lower(params):
            z = student(params, x)
            p = jax.lax.stop_gradient(jax.nn.softmax(z))
            alpha = frozen(trilateral_features(p, jax.nn.softmax(taught), y, average))
            soft = kd_loss(z, taught, float(found["T"]))
            hard = cross_entropy_loss(jax.nn.softmax(z), y)
            return (alpha * soft + (1 - alpha) * hard).mean()

        def upper(params):
            z = student(params, jnp.asarray(found["x_valid"]))
            return cross_entropy_loss(
                jax.nn.softmax(z), jnp.asarray(found["y_valid"])
            ).mean()

        optimizer = optax.adam(0.1)

        @jax.jit
        def step(params, state):
            value, gradient = jax.value_and_grad(lower)(params)
            updates, state = optimizer.update(gradient, state)
            params = optax.apply_updates(params, updates)
            return params, state, value, upper(params)

        state, losses = optimizer.init(params), []
        for _ in range(int(found["epochs"])):
            params, state, *both = step(params, state)
            losses.append(both)
        expected = np.stack([found["lower_losses"], found["upper_losses"]], axis=1)
        np.testing.assert_allclose(losses, expected, rtol=1e-7)


class TestFeatures:
    def test_parts_against_numpy(self):
        s, t, average = (jax.nn.softmax(logits(i)) for i in (0, 1, 2))
        average = average[:5]
        g, a = np.eye(5)[np.asarray(LABELS)], average[np.asarray(LABELS)]
        parts = {
            "S": s,
            "A": a,
            "SA": (a - s) ** 2,
            "TG": (t - g) ** 2,
            "AG": (a - g) ** 2,
            "SA.SG": (a - s) * (g - s),
            "ST.SG": (t - s) * (g - s),
        }
        found = trilateral_features(s, t, LABELS, average, list(parts))
        np.testing.assert_allclose(
            found, np.concatenate(list(parts.values()), axis=1), rtol=1e-5, atol=1e-7
        )
        summed = trilateral_features(
            s, t, LABELS, average, ["T", "SG", "ST.SG"], per_class=False
        )
        label = t[np.arange(6), LABELS]
        expected = [
            label,
            t.max(1),
            ((g - s) ** 2).sum(1),
            ((t - s) * (g - s)).sum(1),
        ]
        np.testing.assert_allclose(summed, np.stack(expected, axis=1), rtol=1e-5)

    def test_a_student_like_teacher_and_label_has_edges_of_zero(self):
        sure = jax.nn.one_hot(LABELS, 5)
        found = trilateral_features(sure, sure, LABELS, jnp.eye(5), GEOMETRY[4:])
        np.testing.assert_array_equal(found, 0)

    def test_class_averages_and_an_empty_class(self):
        p = jax.nn.softmax(logits(0))
        found = jax.jit(class_average_predictions)(p, LABELS)
        np.testing.assert_allclose(found[4], (p[2] + p[4]) / 2, rtol=1e-6)
        np.testing.assert_allclose(found[1], (p[0] + p[5]) / 2, rtol=1e-6)
        np.testing.assert_allclose(found[3], 0.2, rtol=1e-6)
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)

    @pytest.mark.usefixtures("unchecked_shapes")
    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            (["S", "SX"], "unknown part 'SX'"),
            (["SS"], "unknown part 'SS'"),
            (["SA.SG.ST"], "unknown part"),
            ([""], "unknown part ''"),
            ([], "at least one part"),
            ("SA", "sequence"),
        ],
    )
    def test_bad_parts_are_named(self, parts, message):
        p = jnp.full((6, 5), 0.2)
        with pytest.raises(ValueError, match=message):
            trilateral_features(p, p, LABELS, p[:5], parts)

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_bad_shapes_are_named(self):
        p = jnp.full((6, 5), 0.2)
        with pytest.raises(ValueError, match=r"class_average \(6, 5\)"):
            trilateral_features(p, p, LABELS, p)
        with pytest.raises(ValueError, match=r"teacher_probabilities \(6, 4\)"):
            trilateral_features(p, p[:, :4], LABELS, p[:5])
        with pytest.raises(ValueError, match="needs class indices"):
            class_average_predictions(p, p)


class TestFusedLoss:
    @given(st.integers(0, 10**6), st.floats(0.5, 8))
    @settings(max_examples=15, deadline=None)
    def test_is_its_formula_example_by_example(self, seed, temperature):
        s, t = logits(seed), logits(seed + 1)
        alpha = np.random.default_rng(seed).uniform(size=6).astype("f4")
        found = fused_kd_loss(s, t, LABELS, jnp.asarray(alpha), temperature)
        log_s, log_t = (
            log_softmax(np.asarray(z, float) / temperature, axis=1) for z in (s, t)
        )
        kl = (np.exp(log_t) * (log_t - log_s)).sum(1)
        ce = -log_softmax(np.asarray(s, float), axis=1)[np.arange(6), LABELS]
        expected = alpha * temperature**2 * kl + (1 - alpha) * ce
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_the_ends_are_its_two_losses(self):
        s, t = logits(0), logits(1)
        for alpha, expected in (
            (0.0, cross_entropy_loss(s, LABELS)),
            (1.0, kd_loss(s, t, 2.0)),
        ):
            found = fused_kd_loss(s, t, LABELS, alpha, 2.0)
            np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_gradients_of_student_alpha_and_teacher(self):
        s, t, alpha = logits(0), logits(1), jnp.linspace(0, 1, 6)

        def total(s, t, alpha):
            return fused_kd_loss(s, t, LABELS, alpha, 2.0).sum()

        g_s, g_t, g_alpha = jax.jit(jax.grad(total, (0, 1, 2)))(s, t, alpha)
        p, p_2, q_2 = softmax(s, axis=1), softmax(s / 2, axis=1), softmax(t / 2, axis=1)
        a = np.asarray(alpha)[:, None]
        expected = a * 2 * (p_2 - q_2) + (1 - a) * (p - np.eye(5)[np.asarray(LABELS)])
        np.testing.assert_allclose(g_s, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(g_t, 0)
        difference = kd_loss(s, t, 2.0) - cross_entropy_loss(s, LABELS)
        np.testing.assert_allclose(g_alpha, difference, rtol=1e-5)

    @pytest.mark.parametrize("alpha", [-0.1, 1.5, np.array([0, 0, 0, 0, 0, 1.01])])
    def test_alpha_out_of_range_is_named(self, alpha, unchecked_shapes):
        with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\].*got"):
            fused_kd_loss(logits(0), logits(1), LABELS, alpha)


class TestRules:
    def test_wls_is_its_formula(self):
        s, t = logits(0), logits(1)
        ce_s, ce_t = (
            -log_softmax(np.asarray(z, float), axis=1)[np.arange(6), LABELS]
            for z in (s, t)
        )
        found = jax.jit(wls_alpha)(s, t, LABELS)
        np.testing.assert_allclose(found, 1 - np.exp(-ce_s / ce_t), rtol=1e-5)

    def test_wls_listens_to_a_certain_teacher(self):
        certain = 1e4 * jax.nn.one_hot(LABELS, 5)
        np.testing.assert_array_equal(wls_alpha(logits(0), certain, LABELS), 1)
        wrong = wls_alpha(certain, -certain, LABELS)
        np.testing.assert_array_equal(wrong, 0)

    def test_ada_is_the_margin_cut_at_zero(self):
        t = logits(1)
        p = softmax(np.asarray(t, float), axis=1)
        label = p[np.arange(6), LABELS]
        expected = np.maximum(0, label - (1 - label) / 4)
        assert (expected == 0).any()
        assert (expected > 0).any()
        np.testing.assert_allclose(ada_alpha(t, LABELS), expected, rtol=1e-5, atol=1e-7)

    def test_neither_is_differentiated(self):
        s, t = logits(0), logits(1)
        gradients = jax.grad(lambda s, t: wls_alpha(s, t, LABELS).sum(), (0, 1))(s, t)
        assert all((g == 0).all() for g in gradients)
        assert (jax.grad(lambda t: ada_alpha(t, LABELS).sum())(t) == 0).all()

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match="1 class: a margin needs 2"):
            ada_alpha(logits(0)[:, :1], jnp.zeros(6, int))
        with pytest.raises(ValueError, match="needs class indices"):
            ada_alpha(logits(0), logits(0))
        with pytest.raises(ValueError, match="same classes"):
            fused_kd_loss(logits(0), logits(1)[:, :4], LABELS, 0.5)
