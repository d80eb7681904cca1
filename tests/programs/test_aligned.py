"""Gradient alignment: the authors' numbers, its law, and the program that uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import Network, models
from jaxkd.methods import combine, cross_entropy, dhkd, from_loss, kd
from jaxkd.methods.modules.heads import AuxiliaryHead
from jaxkd.programs import (
    align_gradients,
    distill,
    distill_aligned,
    gradient_cosine,
)
from jaxkd.types import Outputs


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("case", "conflicting"), [("merge0", True), ("merge1", False)])
def test_the_authors_merge_rule(load_golden, case, conflicting):
    found = load_golden("08-dhkd")
    g = [jnp.asarray(found[f"{case}_g_{name}"]) for name in ("ce", "kd")]
    merged, conflict = align_gradients({"w": g[0]}, {"w": g[1]})
    assert bool(conflict) is conflicting
    np.testing.assert_allclose(merged["w"], found[f"{case}_merged"], rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["ga0", "ga1"])
def test_the_authors_gradients_of_a_network_of_two_heads(load_golden, case):
    get = {k[4:]: v for k, v in load_golden("08-dhkd").items() if k.startswith(case)}

    def layer(name):
        return {
            "kernel": jnp.asarray(get[f"p_{name}_weight"].T),
            "bias": jnp.asarray(get[f"p_{name}_bias"]),
        }

    def apply(params, inputs, *, taps=()):
        h = jnp.tanh(inputs @ params["body"]["kernel"] + params["body"]["bias"])
        logits = h @ params["head"]["kernel"] + params["head"]["bias"]
        return Outputs(logits, {"pooled": h})

    start = {"body": layer("body"), "head": layer("head_ce")}
    student = Network.from_apply(lambda key: start, apply, taps=("pooled",))
    teacher_logits = jnp.asarray(get["teacher_logits"])
    teacher = Network.from_apply(lambda key: {}, lambda params, inputs: teacher_logits)
    program = distill_aligned(
        student,
        teacher,
        (float(get["gamma"]), cross_entropy()),
        (float(get["alpha"]), dhkd(float(get["T"]), hidden=None)),
        optax.sgd(1.0),
    )
    batch = {"image": jnp.asarray(get["x"]), "label": jnp.asarray(get["labels"])}
    state = program.init(jax.random.key(0), batch)
    state.method["params"]["1"]["out"] = layer("head_kd")
    after, metrics = jax.jit(program.step)(state, batch)

    # Plain SGD of rate 1: what a step takes away is the gradient.
    steps = jax.tree.map(
        jnp.subtract,
        (state.student["params"], state.method["params"]),
        (after.student["params"], after.method["params"]),
    )
    found = {**steps[0], "head_kd": steps[1]["1"]["out"]}
    for ours, theirs in (("body", "body"), ("head", "head_ce"), ("head_kd", "head_kd")):
        np.testing.assert_allclose(
            found[ours]["kernel"].T, get[f"g_{theirs}_weight"], rtol=1e-9, atol=1e-12
        )
        np.testing.assert_allclose(
            found[ours]["bias"], get[f"g_{theirs}_bias"], rtol=1e-9, atol=1e-12
        )
    flat = [get["flat_grad_ce"], get["flat_grad_kd"]]
    cosine = get["dot"] / np.prod([np.linalg.norm(g) for g in flat])
    np.testing.assert_allclose(metrics["gradient_cosine"], cosine, rtol=1e-9)
    assert metrics["conflict"] == (get["dot"] < 0)
    loss = get["gamma"] * get["loss_ce"] + get["alpha"] * get["loss_kd"]
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-9)


def test_the_merged_gradient_never_opposes_the_first():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, b = ({"w": jnp.asarray(rng.normal(size=4)), "b": 0.0} for _ in range(2))
        merged, conflict = align_gradients(a, b)
        assert optax.tree.vdot(merged, a) >= 0
        assert bool(conflict) == (gradient_cosine(a, b) < 0)
        if not conflict:
            np.testing.assert_allclose(merged["w"], a["w"] + b["w"], rtol=1e-6)


def test_zero_gradients():
    zero, one = {"w": jnp.zeros(3)}, {"w": jnp.ones(3)}
    merged, conflict = align_gradients(zero, one)
    np.testing.assert_array_equal(merged["w"], 1)
    assert not conflict
    assert gradient_cosine(zero, one) == 0


def test_different_parameters_are_refused():
    with pytest.raises(ValueError, match="take both gradients for the same parameters"):
        align_gradients({"w": jnp.ones(1)}, {"v": jnp.ones(1)})


def test_without_conflict_it_is_the_sum(source):
    student, teacher = (
        models.mlp(features=16, widths=(8,), classes=3) for _ in range(2)
    )
    batch = jax.device_put(source.take(np.arange(8)))
    terms = (0.5, cross_entropy()), (0.5, cross_entropy())
    optimizer = optax.sgd(0.1)
    aligned = distill_aligned(student, teacher, *terms, optimizer)
    summed = distill(student, teacher, combine(*terms), optimizer)
    after = [
        jax.jit(p.step)(p.init(jax.random.key(0), batch), batch)
        for p in (aligned, summed)
    ]
    assert after[0][1]["conflict"] == 0
    for a, b in zip(*(jax.tree.leaves(s.student) for s, _ in after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_loss_against_cross_entropy_cannot_raise_it(source):
    student = models.mlp(features=16, widths=(8,), classes=3)
    against = from_loss(
        lambda student, teacher, batch: jax.nn.log_softmax(student.logits)[
            jnp.arange(8), batch["label"]
        ],
        name="against",
    )
    batch = jax.device_put(source.take(np.arange(8)))
    program = distill_aligned(
        student, student, (1.0, cross_entropy()), (5.0, against), optax.sgd(0.05)
    )
    state = program.init(jax.random.key(0), batch)
    step = jax.jit(program.step)
    losses = []
    for _ in range(5):
        state, metrics = step(state, batch)
        losses.append(float(metrics["cross_entropy"]))
    assert metrics["conflict"] == 1
    np.testing.assert_allclose(metrics["gradient_cosine"], -1, rtol=1e-5)
    assert losses == sorted(losses, reverse=True)


def test_a_method_that_returns_no_scalar_is_refused(source):
    student = models.mlp(features=16, widths=(8,), classes=3)
    bad = kd()._replace(
        loss=lambda v, student, teacher, batch, key, step: (student.logits, ({}, {}))
    )
    program = distill_aligned(
        student, student, (1.0, cross_entropy()), (1.0, bad), optax.sgd(0.1)
    )
    batch = jax.device_put(source.take(np.arange(8)))
    state = jax.eval_shape(program.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="it must be a Loss or a scalar"):
        jax.eval_shape(program.step, state, batch)


@pytest.mark.parametrize("hidden", [None, 7])
def test_auxiliary_head(hidden):
    from flax import nnx

    head = AuxiliaryHead(5, 3, hidden, dropout=0.5, rngs=nnx.Rngs(0))
    sizes = [x.size for x in jax.tree.leaves(nnx.state(head, nnx.Param))]
    assert sum(sizes) == (5 * 3 + 3 if hidden is None else 5 * 7 + 7 + 14 + 7 * 3 + 3)
    x = jnp.arange(20.0).reshape(4, 5)
    mask = jnp.array([1, 1, 1, 0])
    head.eval()
    assert head(x).shape == (4, 3)
    head.train()
    if hidden is not None:
        assert not np.allclose(head(x, mask), head(x, mask)), "dropout draws anew"
        assert np.isfinite(head(x.at[3].set(jnp.nan), mask)[:3]).all()
