"""The common program: what is trained, what is frozen, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxkd import Method, Network, Outputs, combine, distill, methods, models, networks
from jaxkd.data import digits

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def batch():
    found = digits().train.take(np.arange(32))
    return {name: jnp.asarray(array) for name, array in found.items()}


def run(program, batch, steps=1, key=KEY):
    """Return the first state, the last, and the metrics of every step."""
    first = state = jax.jit(program.init)(key, batch)
    step, found = jax.jit(program.step), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        found.append(metrics)
    return first, state, found


def same(a, b):
    """Whether two trees are equal bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.slow
def test_kd_with_a_projector(batch):
    teacher = models.cnn(1, (8, 16))
    variables = jax.jit(teacher.init)(jax.random.key(7))
    method = combine(
        (0.1, methods.cross_entropy()),
        (0.9, methods.kd()),
        (1.0, methods.fitnets("stage1")),
    )
    program = distill(
        models.cnn(1, (4, 8)),
        teacher.with_variables(variables),
        method,
        optax.adam(1e-2),
    )
    first, last, found = run(program, batch, 30)
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]
    assert set(found[0]) == {"loss", "grad_norm", "cross_entropy", "kd", "fitnets"}
    assert all(value.shape == () for value in found[0].values())
    parts = 0.1 * found[0]["cross_entropy"] + 0.9 * found[0]["kd"] + found[0]["fitnets"]
    np.testing.assert_allclose(found[0]["loss"], parts, rtol=1e-6)
    assert last.step == 30
    assert same(last.teacher, variables)
    assert jnp.array_equal(last.key, first.key)
    # Student, projector, and both's BatchNorm averages have moved, every leaf of them.
    for before, after in ((first.student, last.student), (first.method, last.method)):
        moved = jax.tree.map(lambda x, y: np.any(x != y), before, after)
        assert all(jax.tree.leaves(moved))
    assert jax.tree.leaves(first.method["params"])
    again = jax.jit(program.init)(KEY, batch)
    assert same(again.student, first.student)


def test_supervised_is_without_a_teacher(batch):
    program = distill(models.mlp(64, (8,)), None, methods.cross_entropy(), SGD)
    _, last, found = run(program, batch, 20)
    assert last.teacher is None
    assert set(found[0]) == {"loss", "grad_norm", "cross_entropy"}
    assert found[-1]["loss"] < found[0]["loss"]


@pytest.mark.slow
def test_one_sgd_step_is_the_gradient_of_the_loss(batch):
    student = models.mlp(64, (8,))
    program = distill(student, None, methods.cross_entropy(), SGD)
    first, last, (metrics,) = run(program, batch)

    def loss(params):
        logits = student.apply({"params": params, "stats": {}}, batch["image"])[
            0
        ].logits
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, batch["label"][:, None], 1).mean()

    value, gradients = jax.value_and_grad(loss)(first.student["params"])
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    expected = jax.tree.map(
        lambda p, g: p - 0.1 * g, first.student["params"], gradients
    )
    assert_close(last.student["params"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_ensemble_of_teachers(batch):
    parts = [models.mlp(64, (8,)), models.mlp(64, (4, 4))]
    teachers = networks.ensemble(parts)
    student = models.mlp(64, (6,))
    first, last, found = run(distill(student, teachers, methods.kd(1.0), SGD), batch, 2)
    assert same(last.teacher, first.teacher)
    members = [networks.member(first.teacher, i) for i in (0, 1)]
    p = sum(
        jax.nn.softmax(part.apply(v, batch["image"])[0].logits)
        for part, v in zip(parts, members, strict=True)
    )
    logits = student.apply(first.student, batch["image"])[0].logits
    kl = (p / 2 * (jnp.log(p / 2) - jax.nn.log_softmax(logits))).sum(-1).mean()
    np.testing.assert_allclose(found[0]["loss"], kl, rtol=1e-4)


@pytest.mark.slow
def test_bf16_teacher_beside_a_float32_student(batch):
    teacher = models.cnn(1, (4, 8))
    teacher = teacher.with_variables(jax.jit(teacher.init)(jax.random.key(3)))
    method = combine((1.0, methods.kd(1.0)), (1.0, methods.fitnets("stage1")))
    losses = []
    for network in (teacher, teacher.astype(jnp.bfloat16)):
        program = distill(models.cnn(1, (3, 6)), network, method, SGD)
        _, last, found = run(program, batch, 3)
        dtypes = {x.dtype.name for x in jax.tree.leaves((last.student, last.method))}
        assert dtypes == {"float32"}
        losses.append([metrics["loss"] for metrics in found])
    leaves = jax.tree.leaves(last.teacher["params"])
    assert {x.dtype.name for x in leaves} == {"bfloat16"}
    assert np.isfinite(losses[1]).all()
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)
    assert losses[1][0] != losses[0][0]


class UserNNX(nnx.Module):
    """A user's model, with BatchNorm and dropout inside."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.first(x.reshape(len(x), -1)))
        return self.head(self.dropout(nnx.relu(x)))


class UserLinen(linen.Module):
    """The same in Linen."""

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Dense(8, name="first")(x.reshape(len(x), -1))
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(linen.relu(x))
        return linen.Dense(10)(x)


USERS = {
    "nnx": lambda: Network.from_nnx(UserNNX, taps={"mid": "first"}),
    "linen": lambda: Network.from_linen(
        UserLinen(), jnp.zeros((1, 8, 8, 1)), taps={"mid": "first"}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("kind", sorted(USERS))
def test_user_models_learn_and_teach_through_taps(kind, role, batch):
    user, zoo = USERS[kind](), models.mlp(64, (12,))
    hint = methods.fitnets(
        *(("mid", "hidden0") if role == "student" else ("hidden0", "mid"))
    )
    method = combine((1.0, methods.kd()), (1.0, hint))
    pair = (user, zoo) if role == "student" else (zoo, user)
    program = distill(*pair, method, optax.adam(1e-2))
    first, last, found = run(program, batch, 15)
    assert found[-1]["fitnets"] < found[0]["fitnets"]
    assert same(last.teacher, first.teacher)
    if role == "student":
        # The key decides the dropout: same key same step, another key another step.
        step = jax.jit(program.step)
        assert same(step(first, batch)[0].student, step(first, batch)[0].student)
        other = first.replace(key=jax.random.key(9))
        assert not same(step(other, batch)[0].student, step(first, batch)[0].student)
        assert not same(last.student["stats"], first.student["stats"])
        # And so does the step: the second step's dropout is not the first's.
        later = first.replace(step=first.step + 1)
        assert not same(step(later, batch)[0].student, step(first, batch)[0].student)


@pytest.mark.slow
def test_vmap_over_seeds_equals_separate_runs(batch):
    method = combine((0.5, methods.cross_entropy()), (0.5, methods.kd()))
    program = distill(models.mlp(64, (8,)), models.mlp(64, (12,)), method, SGD)
    keys = jax.random.split(KEY, 2)

    @jax.jit
    def together(keys):
        states = jax.vmap(program.init, in_axes=(0, None))(keys, batch)
        return jax.vmap(program.step, in_axes=(0, None))(states, batch)

    states, metrics = together(keys)
    assert metrics["loss"].shape == (2,)
    assert metrics["loss"][0] != metrics["loss"][1]
    for i, key in enumerate(keys):
        _, alone, found = run(program, batch, key=key)
        part = jax.tree.map(lambda x, i=i: x[i], states)
        assert_close(part.student, alone.student, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics["loss"][i], found[0]["loss"], rtol=1e-5)


def test_accumulated_gradients_equal_the_whole_batch(batch):
    student, method = models.mlp(64, (8,)), methods.cross_entropy()
    every = optax.MultiSteps(SGD, 2).gradient_transformation()
    program = distill(student, None, method, every)
    halves = [jax.tree.map(lambda x, i=i: x[i : i + 16], batch) for i in (0, 16)]
    first = jax.jit(program.init)(KEY, halves[0])
    step = jax.jit(program.step)
    between, _ = step(first, halves[0])
    assert same(between.student, first.student)
    last, _ = step(between, halves[1])
    _, whole, _ = run(distill(student, None, method, SGD), batch)
    assert_close(last.student, whole.student, rtol=1e-4, atol=1e-6)


def test_a_batch_that_is_all_masked_changes_nothing(batch):
    masked = {**batch, "mask": jnp.zeros(32)}
    method = combine((0.5, methods.cross_entropy()), (0.5, methods.kd()))
    program = distill(models.mlp(64, (8,)), models.mlp(64, (12,)), method, SGD)
    first, last, (metrics,) = run(program, masked)
    assert metrics["loss"] == metrics["grad_norm"] == 0
    assert same(last.student, first.student)


def test_unknown_taps_are_answered_with_the_closest():
    student, teacher = models.cnn(1, (4, 8)), models.mlp(64, (8,))
    with pytest.raises(ValueError, match=r"unknown student tap 'stag1'.*'stage1'\?"):
        distill(student, student, methods.fitnets("stag1", "stage1"), SGD)
    with pytest.raises(ValueError, match=r"unknown teacher tap 'hiden0'.*'hidden0'\?"):
        distill(student, teacher, methods.fitnets("stage1", "hiden0"), SGD)
    with pytest.raises(ValueError, match=r"teacher is None.*'pooled'.*pass the teach"):
        distill(student, None, methods.rkd("pooled"), SGD)


def test_a_loss_that_needs_a_teacher_is_refused_without_one(batch, unchecked_shapes):
    program = distill(models.mlp(64, (8,)), None, methods.kd(), SGD)
    with pytest.raises(ValueError, match=r"teacher_logits is None.*pass one to dist"):
        jax.eval_shape(lambda: program.step(program.init(KEY, batch), batch))


def test_unequal_class_counts_are_refused_with_both_shapes(batch, unchecked_shapes):
    program = distill(models.mlp(64, (8,)), models.mlp(64, (8,), 7), methods.kd(), SGD)
    with pytest.raises(ValueError, match=r"\(32, 10\).*\(32, 7\)"):
        jax.eval_shape(lambda: program.step(program.init(KEY, batch), batch))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": jnp.full(32, 10)}, "label 10 at example 0, but .* 0 to 9: correct"),
        (
            {"image": jnp.ones((32, 8, 8, 1)).at[5].set(jnp.nan)},
            r"\['image'\] holds 64 values that are not finite.*example 5",
        ),
        ({"label": jnp.zeros(31, int)}, "unequal length"),
        (
            {"image": None},
            "reads image, but the batch has index, label: .* reads=",
        ),
    ],
)
def test_bad_batches_are_refused_by_init(changes, message, batch):
    program = distill(models.mlp(64, (8,)), None, methods.cross_entropy(), SGD)
    changed = {k: v for k, v in {**batch, **changes}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        program.init(KEY, changed)


def test_a_loss_that_is_no_scalar_is_refused(batch):
    def loss(variables, student, teacher, batch, key, step):
        return student.logits.sum(-1), ({}, {})

    method = Method(lambda *_: {"params": {}, "state": {}}, loss)
    program = distill(models.mlp(64, (8,)), None, method, SGD)
    with pytest.raises(ValueError, match=r"loss has shape \(32,\): it must be a Loss"):
        jax.eval_shape(lambda: program.step(program.init(KEY, batch), batch))


def test_text_inputs_reach_the_network_by_name(batch):
    def apply(params, inputs):
        assert set(inputs) == {"input_ids", "attention_mask"}
        mean = (inputs["input_ids"] * inputs["attention_mask"]).mean(-1, keepdims=True)
        return Outputs(mean * params)

    reads = "input_ids", "attention_mask", "token_type_ids"
    network = Network.from_apply(lambda key: jnp.ones(3), apply, reads=reads)
    text = {
        "input_ids": jnp.ones((4, 5)),
        "attention_mask": jnp.ones((4, 5)),
        "label": jnp.array([0, 1, 2, 0]),
    }
    program = distill(network, None, methods.cross_entropy(), SGD)
    _, last, _ = run(program, text)
    assert not np.array_equal(last.student["params"], jnp.ones(3))


def test_mutual_learning_trains_every_peer(batch):
    parts = [models.mlp(64, (8,)), models.mlp(64, (4,))]
    peers = networks.ensemble(parts)
    first, last, found = run(distill(peers, None, methods.dml(2), SGD), batch, 2)
    assert found[1]["loss"] < found[0]["loss"]
    for i, part in enumerate(parts):
        own = networks.member(last.student, i)
        assert not same(own, networks.member(first.student, i))
        peer = networks.with_logits(peers, f"{i}.logits")
        np.testing.assert_allclose(
            peer.apply(last.student, batch["image"])[0].logits,
            part.apply(own, batch["image"])[0].logits,
            rtol=1e-6,
        )


@pytest.mark.slow
def test_one_trains_trunk_branches_and_gate(batch):
    network = models.one_cnn(1, (3, 4), 10, 2)
    first, last, found = run(distill(network, None, methods.one(2), SGD), batch, 2)
    assert found[1]["loss"] < found[0]["loss"]
    moved = jax.tree.map(
        lambda x, y: bool(np.any(x != y)),
        first.student["params"],
        last.student["params"],
    )
    assert all(any(jax.tree.leaves(moved[part])) for part in moved)
    assert {"trunk", "branches", "heads", "gate"} <= set(moved)


@pytest.mark.slow
def test_simkd_reuses_the_teachers_classifier(batch):
    teacher = models.cnn(1, (4, 8))
    variables = jax.jit(teacher.init)(jax.random.key(3))
    head = variables["params"]["head"]
    student = methods.simkd_student(
        models.cnn(1, (4, 6)), "stage1", 6, (4, 4, 8), (head["kernel"], head["bias"])
    )
    program = distill(
        student, teacher.with_variables(variables), methods.simkd("stage1"), SGD
    )
    first, last, found = run(program, batch, 2)
    assert found[1]["loss"] < found[0]["loss"]
    assert same(last.student["stats"]["classifier"], dict(head))
    for part in ("student", "projector"):
        assert not same(last.student["params"][part], first.student["params"][part])
    for train in (False, True):
        apply = jax.jit(partial(student.apply, taps=("projected",), train=train))
        outputs, _ = apply(last.student, batch["image"])
        pooled = np.asarray(outputs.features["projected"]).mean((1, 2))
        expected = pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        np.testing.assert_allclose(outputs.logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_factor_transfer_in_two_stages(batch):
    teacher = models.cnn(1, (4, 8))
    variables = jax.jit(teacher.init)(jax.random.key(3))
    paraphrased = methods.paraphrased(teacher.with_variables(variables), "stage1", 8)
    program = distill(paraphrased, None, methods.paraphraser_loss("stage1"), SGD)
    first, last, found = run(program, batch, 3)
    assert found[-1]["loss"] < found[0]["loss"]
    # Only the paraphraser is trained: the teacher's averages stay as they are too.
    assert same(last.student["stats"]["teacher"], variables)
    moved = jax.tree.map(
        lambda x, y: np.any(x != y), first.student["params"], last.student["params"]
    )
    assert all(jax.tree.leaves(moved))
    logits = paraphrased.apply(last.student, batch["image"])[0].logits
    np.testing.assert_array_equal(
        logits, teacher.apply(variables, batch["image"])[0].logits
    )

    fixed = last.student
    program = distill(
        models.cnn(1, (3, 6)),
        paraphrased.with_variables(fixed),
        methods.ft("stage1"),
        SGD,
    )
    first, last, found = run(program, batch, 2)
    assert found[1]["loss"] < found[0]["loss"]
    assert same(last.teacher, fixed)
    assert not same(last.method["params"], first.method["params"])
