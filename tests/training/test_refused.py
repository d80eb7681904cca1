"""What would train on nothing, or on the wrong thing, is refused in every batch."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, methods, models
from jaxkd.generation import GREEDY, generate
from jaxkd.losses.basics import weighted_loss
from jaxkd.methods import from_loss
from jaxkd.programs import on_policy, with_average, with_best
from jaxkd.training import Checkpoints, fit
from jaxkd.types import Loss

KEY = jax.random.key(0)
NET = models.mlp(4, (4,), 3)
PROGRAM = with_average(distill(NET, NET, methods.dkd(), optax.sgd(0.1)), 0.9)
TEXT = models.llama(vocabulary=11, width=8, layers=1, heads=2, hidden=8)
TEXT_PROGRAM = distill(TEXT, TEXT, methods.linear_kd(), optax.sgd(0.1))


def images(**changes):
    image = np.ones((4, 2, 2, 1), np.float32)
    return {"image": image, "label": np.array([0, 1, 2, 1], np.int32), **changes}


def texts(token=3, name="input_ids", **changes):
    batch = {
        "input_ids": np.ones((2, 4), np.int32),
        "attention_mask": np.ones((2, 4), np.int32),
        "response_ids": np.ones((2, 3), np.int32),
        "response_mask": np.ones((2, 3), np.int32),
    }
    batch[name][1, 2] = token
    return {**batch, **changes}


BAD = [
    (dict(label=np.array([0, 1, 3, 1])), r"label'\] has label 3 at example 2, .* 0 to"),
    (dict(label=np.array([0, -1, 2, 1])), r"label'\] has label -1 at example 1"),
    (dict(mask=np.array([1, 1, -1, 1])), r"\['mask'\] holds -1.0 in example 2: a mask"),
    (dict(mask=np.zeros(4, bool)), r"\['mask'\] is 0 throughout, so no example"),
    (dict(weight=np.float32([1, -2, 1, 1])), r"weight'\] holds -2.0 in example 1"),
    (dict(weight=np.zeros(4)), r"\['weight'\] is 0 throughout"),
    (dict(weight=np.float32([1, 1, 1, np.nan])), r"weight'\].*\(nan\) in example 3"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
@pytest.mark.parametrize("place", [0, 2])
def test_a_batch_that_trains_nothing_or_wrongly_is_refused(changes, message, place):
    given = {k: np.ones(4, np.float32) for k in changes if k != "label"}
    data = [images(**given) for _ in range(3)]
    data[place] = images(**{k: v.astype(data[0][k].dtype) for k, v in changes.items()})
    with pytest.raises(ValueError, match=message):
        fit(PROGRAM, data, key=KEY, steps=3)


def test_a_masked_label_may_be_anything():
    data = [images(label=np.array([0, -100, 2, 1]), mask=np.array([1, 0, 1, 1]))]
    _, history = fit(PROGRAM, data, key=KEY, steps=2)
    assert np.isfinite(history[-1]["train_loss"])


@pytest.mark.parametrize(
    ("token", "message"),
    [(-1, "holds -1 in example 1: "), (11, "holds 11 in example 1: .*0 to 10: use")],
)
@pytest.mark.parametrize("name", ["input_ids", "response_ids"])
def test_tokens_outside_the_vocabulary_are_refused(token, message, name):
    program = on_policy(
        TEXT,
        TEXT,
        methods.linear_kd(),
        optax.sgd(0.1),
        max_new_tokens=3,
        student_share=0.0,
    )
    bad = texts(token, name)
    with pytest.raises(ValueError, match=rf"batch\['{name}'\] {message}"):
        fit(program, [texts(), bad], key=KEY)
    if name == "input_ids":
        with pytest.raises(ValueError, match=rf"inputs\['input_ids'\] {message}"):
            generate(TEXT, {}, {name: bad[name]}, max_new_tokens=2, sampling=GREEDY)


@pytest.mark.parametrize("name", ["step", "train_loss"])
def test_a_metric_does_not_overwrite_the_historys(name, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=f"evaluate returned a metric '{name}'"):
        fit(
            PROGRAM,
            [images()] * 2,
            key=KEY,
            evaluate=lambda state: {name: 1.0},
            checkpoints=checkpoints,
        )
    assert checkpoints.latest == 2  # what was trained is not lost


def test_an_evaluation_returns_metrics():
    with pytest.raises(
        ValueError, match=r"evaluate must return a dict .* got NoneType"
    ):
        fit(PROGRAM, [images()], key=KEY, evaluate=lambda state: None)


def test_a_method_names_what_the_batch_does_not_hold():
    batch = images()
    batch["labels"] = batch.pop("label")
    with pytest.raises(ValueError, match=r"asks for 'label', .*'labels'\] and"):
        fit(PROGRAM, [batch], key=KEY)


@pytest.mark.parametrize(
    "program",
    [
        distill(
            NET,
            None,
            from_loss(lambda s, t, b: s.logits.sum(1), name="grad_norm"),
            optax.sgd(0.1),
        ),
        with_best(with_best(PROGRAM, lambda s, b: 0.0), lambda s, b: 0.0),
        PROGRAM._replace(step=lambda s, b: (s, {"loss": 1.0, "step": 3.0})),
    ],
)
def test_a_programs_metric_does_not_overwrite_another(program):
    with pytest.raises(ValueError, match=r"grad_norm|'score'|returned a metric 'step'"):
        fit(program, [images()] * 2, key=KEY)


@pytest.mark.parametrize("weights", [[1, -1, 1], [-1, -1, -1], [np.nan, 1, 1]])
def test_bad_weights_give_nan_where_values_are_not_known(weights):
    value = jax.jit(lambda w: weighted_loss(jnp.ones(3), w).value)
    assert np.isnan(value(jnp.array(weights, float)))
    assert value(jnp.zeros(3)) == 0
    assert np.isnan(Loss(jnp.ones(()), jnp.float32(-1)).value)


def test_checking_a_batch_takes_no_time():
    batch = {
        "input_ids": np.ones((64, 1024), np.int32),
        "attention_mask": np.ones((64, 1024), np.int32),
        "label": np.ones((64, 1024), np.int32),
        "mask": np.ones((64, 1024), np.int32),
    }
    state = jax.eval_shape(TEXT_PROGRAM.init, KEY, batch)
    assert state.classes == 11
    start = time.process_time()
    for _ in range(10):
        TEXT_PROGRAM.check(state, batch)
    # 65,536 tokens: a step of the smallest language model takes seconds here.
    assert (time.process_time() - start) / 10 < 0.02
