"""The primitive of all programs: named keys, accumulation that is exact, and turns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import Network, distill, methods, networks
from jaxkd.methods import combine, cross_entropy, from_loss, kd, taid
from jaxkd.programs import Keys, Player, Turn, alternate, with_average
from jaxkd.sharding.mesh import make_mesh, on_mesh, shard_batch
from jaxkd.types import Loss

KEY = jax.random.key(0)
TOKENS, WIDTH, CLASSES = 5, 3, 4


def linear(scale=1.0):
    """A linear model of (batch, tokens, width)."""

    def init(key):
        return {"w": scale * jax.random.normal(key, (WIDTH, CLASSES))}

    return Network.from_apply(init, lambda params, x: x @ params["w"], reads=("x",))


def make_batch(examples=4):
    """Rows of which the first counts 1 token, the second 4, and others some."""
    rng = np.random.default_rng(0)
    counted = np.array([1, 4, 2, 0, 5, 3, 1, 2])[:examples]
    return {
        "x": jnp.asarray(rng.normal(size=(examples, TOKENS, WIDTH)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, CLASSES, (examples, TOKENS))),
        "mask": jnp.asarray(np.arange(TOKENS) < counted[:, None], jnp.float32),
    }


METHOD = combine((0.3, cross_entropy()), (0.7, kd(2.0)), (1.0, taid(10)))


def one_step(accumulate, batch, method=METHOD, steps=1, program=lambda p: p):
    teacher = linear(2.0).with_variables(linear(2.0).init(jax.random.key(9)))
    made = program(
        distill(linear(), teacher, method, optax.sgd(0.5), accumulate=accumulate)
    )
    chex.clear_trace_counter()
    state = jax.jit(made.init)(KEY, batch)
    step = jax.jit(chex.assert_max_traces(made.step, n=1))
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_the_gradient_is_that_of_the_whole_batch(parts):
    batch = make_batch()
    whole, whole_metrics = one_step(1, batch)
    found, metrics = one_step(parts, batch)
    chex.assert_trees_all_close(found.student, whole.student, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, whole_metrics, rtol=1e-5, atol=1e-6)


def test_one_and_four_counted_labels():
    """The masked mean over the window, in closed form; a mean of means is 61 % off."""
    batch = make_batch(2)
    state, metrics = one_step(2, batch, cross_entropy())
    first = linear().init(Keys(KEY).student)["params"]["w"]
    p = jax.nn.softmax(batch["x"] @ first)
    gap = (p - jax.nn.one_hot(batch["label"], CLASSES)) * batch["mask"][..., None]
    gradient = jnp.einsum("btw,btc->wc", batch["x"], gap) / 5
    np.testing.assert_allclose(
        first - 0.5 * gradient, state.student["params"]["w"], rtol=1e-5, atol=1e-6
    )
    of_parts = jnp.einsum(
        "btw,btc->bwc", batch["x"], gap / batch["mask"].sum(1)[:, None, None]
    ).mean(0)
    assert optax.tree.norm(of_parts - gradient) > 0.3 * optax.tree.norm(gradient)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), 1e-5)


@pytest.mark.slow
def test_averages_and_schedules_count_updates():
    batch = make_batch()
    rate = combine((lambda step: 1.0 + step, cross_entropy()), (1.0, taid(4)))
    runs = [
        one_step(parts, batch, rate, 3, lambda program: with_average(program, 0.5))
        for parts in (1, 4)
    ]
    (whole, whole_metrics), (found, metrics) = runs
    assert found.program.step == 3
    chex.assert_trees_all_close(found.average, whole.average, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["t"], whole_metrics["t"], rtol=1e-5)
    assert metrics["t"] > 0.4


def test_a_scalar_counts_as_often_as_its_part_has_examples():
    """Of relations between examples the window's value is the mean over its parts."""
    batch = make_batch(8)
    spread = from_loss(
        lambda student, teacher, batch: student.logits.std(), name="spread"
    )
    _, metrics = one_step(2, batch, spread)
    state = jax.jit(distill(linear(), None, spread, optax.sgd(0.1)).init)(KEY, batch)
    logits = batch["x"] @ state.student["params"]["w"]
    counted = (batch["mask"].max(1) > 0).astype(float)
    parts = [(logits[i::2].std(), counted[i::2].sum()) for i in (0, 1)]
    expected = sum(v * n for v, n in parts) / counted.sum()
    np.testing.assert_allclose(metrics["spread"], expected, rtol=1e-5)


def test_all_masked_windows_move_nothing():
    batch = {**make_batch(), "mask": jnp.zeros((4, TOKENS))}
    state, metrics = one_step(2, batch)
    assert metrics["loss"] == metrics["grad_norm"] == 0
    chex.assert_trees_all_equal(state.student, linear().init(Keys(KEY).student))


def test_accumulation_on_a_mesh_is_that_of_one_device():
    batch = make_batch(8)
    teacher = linear(2.0).with_variables(linear(2.0).init(jax.random.key(9)))
    program = distill(linear(), teacher, METHOD, optax.sgd(0.5), accumulate=2)
    mesh = make_mesh("data")
    state = jax.jit(program.init)(KEY, batch)
    _, alone = jax.jit(program.step)(state, batch)
    _, split = jax.jit(on_mesh(program.step, mesh))(state, shard_batch(batch, mesh))
    chex.assert_trees_all_close(split, alone, rtol=1e-5, atol=1e-6)


def test_the_rounds_of_weights_run_no_forward_pass():
    """The compiler counts what one pass forward and back costs, not two forward."""
    batch = make_batch()
    flops = {}
    for name, weight in (("masks", None), ("logits", lambda z: (z > 0).sum())):

        def loss(student, teacher, batch, weight=weight):
            total = (student.logits**2).sum()
            counted = batch["mask"].sum() if weight is None else weight(student.logits)
            return Loss(total, counted.astype(float))

        program = distill(
            linear(), None, from_loss(loss, name="x"), optax.sgd(0.1), accumulate=2
        )
        state = jax.eval_shape(program.init, KEY, batch)
        compiled = jax.jit(program.step).lower(state, batch).compile()
        flops[name] = compiled.cost_analysis()["flops"]
    assert flops["masks"] < flops["logits"]


@pytest.mark.parametrize(
    ("accumulate", "message"),
    [(0, "accumulate must be at least 1"), (3, "holds 4 examples, which accumulate=3")],
)
def test_parts_that_do_not_fit_are_refused(accumulate, message):
    with pytest.raises(ValueError, match=message):
        one_step(accumulate, make_batch())


def test_streams_of_keys_have_names():
    keys = Keys(KEY)
    drawn = [keys.student, keys.sampling, keys.at(0).student, keys.of("a").student]
    assert len({tuple(np.asarray(jax.random.key_data(k))) for k in drawn}) == 4
    assert jnp.array_equal(keys.student, Keys(KEY).student)
    assert jnp.array_equal(keys.at(3).x, jax.jit(lambda i: keys.at(i).x)(3))


def test_two_players_take_turns():
    """A student and what perturbs its inputs: one goes down the loss, the other up.

    On the loss (w + a − 3)² the student's step is w − 2η(w + a − 3), and the
    augmenter's, every second step, goes the other way from where the student is then.
    """

    def gap(params):
        return (params["student"] + params["augmenter"] - 3.0) ** 2

    def student(params, carry, batch, keys, step):
        return gap(params), (carry, {"gap": gap(params)})

    def augmenter(params, carry, batch, keys, step):
        return -gap(params), (carry + 1, {})

    program = alternate(
        lambda keys, batch: (
            {"student": jnp.zeros(()), "augmenter": jnp.zeros(())},
            jnp.zeros(()),
        ),
        {
            "student": Turn(Player(("student",), optax.sgd(0.1)), student),
            "augmenter": Turn(Player(("augmenter",), optax.sgd(0.01)), augmenter, 2),
        },
    )
    state = program.init(KEY, {"x": jnp.zeros(2)})
    step, w, a = jax.jit(program.step), 0.0, 0.0
    for i in range(4):
        state, metrics = step(state, {"x": jnp.zeros(2)})
        assert metrics["student_gap"] == pytest.approx((w + a - 3) ** 2, rel=1e-5)
        w -= 0.1 * 2 * (w + a - 3)
        assert metrics["augmenter_loss"] == pytest.approx(-((w + a - 3) ** 2), rel=1e-5)
        if i % 2 == 0:
            a += 0.01 * 2 * (w + a - 3)
    assert state.params["student"] == pytest.approx(w, rel=1e-5)
    assert state.params["augmenter"] == pytest.approx(a, rel=1e-5)
    # What a player's forward pass changes is kept where it moves alone.
    assert state.carry == 2


def test_two_teachers_and_a_student():
    """Three players: two teachers learn the labels, the student the mean of both."""
    network, batch = linear(), make_batch()
    names = ("first", "second", "student")
    labels, soft = cross_entropy(), kd(1.0)

    def logits(params, name, batch):
        variables = {"params": params[name], "stats": {}}
        return network.apply(variables, network.read(batch))[0]

    def from_labels(name):
        def objective(params, carry, batch, keys, step):
            mine = logits(params, name, batch)
            empty = {"params": {}, "state": {}}
            loss, (_, metrics) = labels.loss(empty, mine, None, batch, None, step)
            return loss, (carry, metrics)

        return objective

    def student(params, carry, batch, keys, step):
        both = [logits(params, name, batch).logits for name in names[:2]]
        taught = methods.cached(soft)
        found = {**batch, "teacher_logits": sum(both) / 2}
        mine = logits(params, "student", batch)
        empty = {"params": {}, "state": {}}
        loss, (_, metrics) = taught.loss(empty, mine, None, found, None, step)
        return loss, (carry, metrics)

    def init(keys, batch):
        return {n: network.init(getattr(keys, n))["params"] for n in names}, {}

    turns = {
        name: Turn(
            Player((name,), optax.adam(0.05)),
            student if name == "student" else from_labels(name),
        )
        for name in names
    }
    program = alternate(init, turns, accumulate=2)
    state = jax.jit(program.init)(KEY, batch)
    step = jax.jit(program.step)
    first = None
    for _ in range(60):
        state, metrics = step(state, batch)
        first = first or metrics
    for name in names:
        assert metrics[f"{name}_loss"] < 0.7 * first[f"{name}_loss"], name
    assert set(state.opt_state) == set(names)


def test_turns_that_never_come_are_refused():
    turn = Turn(Player(("a",), optax.sgd(0.1)), lambda *a: None, every=0)
    with pytest.raises(ValueError, match="every of at least 1"):
        alternate(lambda keys, batch: ({}, {}), {"a": turn})


def test_an_average_of_bfloat16_weights_stays():
    """Constant weights keep their average; in bfloat16 it would shrink."""
    weights = jnp.full(4, 1.5, jnp.bfloat16)
    network = Network.from_apply(
        lambda key: {"w": weights}, lambda params, x: x * params["w"], reads=("x",)
    )
    method = from_loss(lambda s, t, b: s.logits.sum(-1) * 0, name="nothing")
    program = with_average(distill(network, None, method, optax.set_to_zero()), 0.998)
    batch = {"x": jnp.ones((2, 4), jnp.bfloat16)}
    state, step = program.init(KEY, batch), jax.jit(program.step)
    for _ in range(300):
        state, _ = step(state, batch)
    assert state.average["params"]["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.average["params"]["w"], 1.5, rtol=1e-5)


def test_an_ensemble_accumulates_too():
    """What is trained may be several networks: gradients add up leaf by leaf."""
    both = networks.ensemble([linear(), linear()])
    batch = make_batch()
    found = []
    for parts in (1, 2):
        program = distill(both, None, cross_entropy(), optax.sgd(0.5), accumulate=parts)
        state, _ = jax.jit(program.step)(jax.jit(program.init)(KEY, batch), batch)
        found.append(state.student)
    chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-6)
