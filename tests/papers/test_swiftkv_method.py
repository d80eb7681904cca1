"""SwiftKV's loss against the authors' code, and what counts in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import call

from jaxkd import Outputs
from jaxkd.papers.swiftkv import swiftkv

EMPTY = {"params": {}, "state": {}}


def value(arrays, batch, **options):
    """Return (loss, metrics) from the student's arrays and the teacher's."""
    student, teacher = (
        Outputs(None, {"final": last, "head": arrays["head"], "block0": hidden})
        for last, hidden in (arrays["student"], arrays["teacher"])
    )
    method = swiftkv("block0", **options)
    loss, (_, metrics) = call(method, EMPTY, student, teacher, batch)
    return loss, metrics


def golden_arrays(golden, case):
    found = {k.removeprefix(f"{case}/"): v for k, v in golden.items()}
    return found, {
        "head": jnp.asarray(found["lm_head"].T),
        "student": tuple(
            jnp.asarray(found[f"student_{k}"]) for k in ("last", "hidden")
        ),
        "teacher": tuple(
            jnp.asarray(found[f"teacher_{k}"]) for k in ("last", "hidden")
        ),
    }


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_losses_and_gradients_are_the_authors(load_golden, case):
    expected, arrays = golden_arrays(load_golden("01-swiftkv"), case)

    def total(student):
        return value(
            {**arrays, "student": student},
            {"mask": jnp.asarray(expected["mask"])},
            temperature=float(expected["temp"]),
            hidden_weight=float(expected["hidden_mult"]),
            divisor="positions",
        )

    (loss, metrics), gradients = jax.value_and_grad(total, has_aux=True)(
        arrays["student"]
    )
    np.testing.assert_allclose(loss, expected["total"], rtol=1e-5)
    np.testing.assert_allclose(
        metrics["swiftkv_kl"], expected["logits_loss"], rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics["swiftkv_hidden"], expected["hidden_loss"], rtol=1e-5
    )
    for kind, found in zip(("last", "hidden"), gradients, strict=True):
        wanted = expected[f"grad_student_{kind}"]
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_tokens_that_count_divide_unless_all_positions_do(load_golden):
    expected, arrays = golden_arrays(load_golden("01-swiftkv"), "a")
    mask = jnp.asarray(expected["mask"])
    counted, all_of_them = (
        value(arrays, {"mask": mask}, divisor=divisor)[1]["swiftkv_kl"]
        for divisor in ("tokens", "positions")
    )
    np.testing.assert_allclose(all_of_them, counted * mask.mean(), rtol=1e-6)


def test_hidden_states_count_at_prompts_but_not_at_padding(load_golden):
    _, arrays = golden_arrays(load_golden("01-swiftkv"), "a")
    mask = jnp.ones((2, 5)).at[:, 0].set(0)
    real = jnp.ones((2, 5), int).at[0, 4].set(0)
    last, hidden = arrays["student"]

    def hidden_loss(place, batch):
        moved = {**arrays, "student": (last, hidden.at[place].add(1.0))}
        return float(value(moved, batch)[1]["swiftkv_hidden"])

    batch = {"mask": mask, "attention_mask": real}
    plain = float(value(arrays, batch)[1]["swiftkv_hidden"])
    assert hidden_loss((0, 4), batch) == plain
    assert hidden_loss((0, 0), batch) != plain
    nothing = {"mask": jnp.zeros((2, 5))}
    assert float(value(arrays, nothing)[0]) == 0


def test_without_a_tap_no_hidden_states_are_compared():
    assert swiftkv().student_taps == ("final", "head")
    assert swiftkv("block3").teacher_taps == ("final", "head", "block3")


def test_an_unknown_divisor_is_refused():
    with pytest.raises(ValueError, match="unknown divisor 'all'"):
        swiftkv(divisor="all")
