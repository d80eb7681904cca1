"""The Pallas version of the linear heads' distillation: values, meshes, memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkd.kernels.linear_distill import (
    blocks,
    forward_kl,
    jensen_shannon,
    linear_distill,
    reverse_kl,
    skew_kl,
    soft_cross_entropy,
    total_variation,
)
from jaxkd.kernels.linear_distill.reference import reference
from jaxkd.kernels.linear_distill.rows import Objective
from jaxkd.kernels.linear_distill.tpu import tpu
from jaxkd.training.ahead import compile_for, slice_devices
from jaxkd.training.costs import program_costs


@pytest.fixture(autouse=True)
def small_blocks(request, monkeypatch):
    """Several blocks of both kinds; those compiled have the real size."""
    if "compiled" not in request.node.name:
        small = {"REDUCING": (8, 4), "DIFFERENTIATING": (4, 8), "LANES": 4, "ROWS": 4}
        for name, value in small.items():
            monkeypatch.setattr(blocks, name, value)


def arguments(tokens=13, vocabulary=11, dtype="f8"):
    """Return hidden states, heads and two weights, some of them 0, and labels."""
    rng = np.random.default_rng(0)
    shapes = [s for w in (3, 5) for s in ((tokens, w), (w, vocabulary))]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    kept = rng.random((2, tokens)) < 0.7
    weights = [jnp.asarray(w, dtype) for w in rng.random((2, tokens)) * kept]
    labels = jnp.asarray(rng.integers(0, vocabulary, tokens), jnp.int32)
    return (*arrays, *weights), labels


def results(version, arrays, labels, interpolation=None):
    """Return three times the loss, the tokens' values, and all gradients."""

    def loss(*arrays):
        total, *values = version(*arrays, labels, interpolation)
        return 3 * total, values

    wanted = tuple(range(len(arrays)))
    return jax.jit(jax.value_and_grad(loss, wanted, has_aux=True))(*arrays)


def both(objective, arrays, labels, interpolation=None):
    versions = (
        functools.partial(tpu, objective, True),
        functools.partial(reference, objective),
    )
    return [results(v, arrays, labels, interpolation) for v in versions]


def assert_close(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, "f8"), np.asarray(b, "f8")
        largest = max(np.abs(b).max(), 1e-30)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)


CASES: dict[str, tuple[tuple[int, int], Any, float, float | None]] = {
    "parts of blocks": ((13, 11), forward_kl, 1.0, None),
    "whole blocks": ((16, 8), jensen_shannon(0.3), 2.0, None),
    "one block": ((3, 3), reverse_kl, 1.0, None),
    "one word": ((1, 1), forward_kl, 1.0, None),
    "interpolated": ((13, 11), soft_cross_entropy, 2.0, 0.3),
    "skew": ((9, 12), skew_kl(0.1), 0.5, None),
    "absolute": ((13, 11), total_variation, 1.0, None),
}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_reference_s(name):
    sizes, divergence, temperature, share = CASES[name]
    objective = Objective(divergence, temperature, None, None)
    interpolation = None if share is None else jnp.asarray(share)
    found, expected = both(objective, *arguments(*sizes), interpolation)
    assert_close(found, expected, 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("f4", 2e-6), ("bfloat16", 1e-2)])
def test_low_precision_against_float64(dtype, tolerance):
    arrays, labels = arguments(dtype=dtype)
    # The sums are in the weights' dtype: float32, as `linear_distill` gives them.
    arrays = (*arrays[:4], *(w.astype("f4") for w in arrays[4:]))
    objective = Objective(jensen_shannon(), 1.0, None, None)
    found = results(functools.partial(tpu, objective, True), arrays, labels)
    assert [x.dtype for x in found[1]] == [x.dtype for x in arrays]
    with jax.enable_x64(True):
        arrays = [jnp.asarray(np.asarray(x, "f8")) for x in arrays]
        version = functools.partial(reference, objective)
        expected = results(version, arrays, labels)
    assert_close(found, expected, tolerance)


def test_masked_tokens_and_extreme_logits():
    (h, w, th, tw, weights, _), labels = arguments(dtype="f4")
    masked = (weights == 0)[:, None]
    heads = 1e2 * jnp.sign(w), -1e2 * tw
    objective = Objective(jensen_shannon(), 1.0, None, None)
    version = functools.partial(tpu, objective, True)
    good = 1e2 * jnp.sign(h), heads[0], 1e2 * th, heads[1], weights, weights
    bad = jnp.where(masked, jnp.nan, good[0]), heads[0]
    bad = *bad, jnp.where(masked, jnp.inf, good[2]), *good[3:]
    found = results(version, bad, jnp.where(weights == 0, -100, labels))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found))
    assert_close(found, results(version, good, labels), 1e-6)


def test_labels_outside_the_vocabulary_are_nan():
    arrays, labels = arguments(dtype="f4")
    arrays = (*arrays[:5], jnp.ones(13))
    objective = Objective(forward_kl, 1.0, None, None)
    total, _, each = tpu(objective, True, *arrays, labels.at[2].set(11), None)
    assert np.flatnonzero(np.isnan(each)).tolist() == [2]
    assert np.isnan(total)


def test_no_tokens():
    arrays, _ = arguments(tokens=0, dtype="f4")
    objective = Objective(forward_kl, 1.0, None, None)

    def loss(*arrays):
        return tpu(objective, True, *arrays, None, None)[0]

    value, slopes = jax.value_and_grad(loss, (0, 1))(*arrays)
    assert value == 0
    assert slopes[0].shape == (0, 3)
    assert not slopes[1].any()


@pytest.mark.slow
def test_a_split_vocabulary():
    arrays, labels = arguments(tokens=14, vocabulary=12, dtype="f4")
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    tokens, columns = P("data"), P(None, "tensor")
    specs = (tokens, columns, tokens, columns, tokens, tokens, tokens)
    objective = Objective(jensen_shannon(0.3), 2.0, None, "tensor")

    def local(*arrays):
        # Only this interpreter knows what varies over a mesh; it has no float64.
        total, *values = tpu(objective, pltpu.InterpretParams(), *arrays, None)
        return lax.psum(total, "data"), *values

    function = jax.shard_map(
        local, mesh=mesh, in_specs=specs, out_specs=(P(), tokens, tokens)
    )
    whole = functools.partial(
        reference, Objective(jensen_shannon(0.3), 2.0, None, None)
    )
    found = results(lambda *x: function(*x[:-1]), arrays, labels)
    assert_close(found, results(whole, arrays, labels), 2e-6)


REAL = (8192, 128_256, 2048, 4096)


def shapes(tokens, vocabulary, *widths):
    sizes = [s for w in widths for s in ((tokens, w), (w, vocabulary))]
    arrays = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in sizes]
    return *arrays, jax.ShapeDtypeStruct((tokens,), jnp.int32)


def student_gradients(h, w, th, tw, labels, axis_name=None):
    def loss(h, w):
        found = linear_distill(
            *(h, w, th, tw, labels),
            divergence=jensen_shannon(),
            axis_name=axis_name,
            implementation="pallas",
        )
        return found.loss if axis_name is None else lax.psum(found.loss, "data")

    return jax.value_and_grad(loss, (0, 1))(h, w)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        ("v5e:2x2", REAL),
        ("v5p:2x2x1", (1100, 5003, 4096, 8192)),
        ("v6e:2x2", (37, 1003, 33, 130)),
    ],
)
def test_compiled_for_tpus(topology, sizes):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")
    compiled = compile_for(topology, student_gradients, *shapes(*sizes))
    if sizes == REAL:
        memory: Any = compiled.memory_analysis()
        # 8,016 MiB as they are written plainly, 755 in chunks.
        assert memory.temp_size_in_bytes < 10 * 2**20
        # Three times all logits, and the student's two products.
        tokens, vocabulary, student, teacher = REAL
        products = 3 * (student + teacher) + 2 * student
        flops = program_costs(compiled.as_text()).flops
        assert flops == pytest.approx(2 * tokens * vocabulary * products, rel=1e-3)


def test_compiled_for_a_mesh():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")
    devices = np.array(slice_devices("v5e:2x2")).reshape(2, 2)
    mesh = Mesh(devices, ("data", "tensor"))
    tokens, columns = P("data"), P(None, "tensor")
    specs = tokens, columns, tokens, columns, tokens
    function = jax.shard_map(
        functools.partial(student_gradients, axis_name="tensor"),
        mesh=mesh,
        in_specs=specs,
        out_specs=(P(), (tokens, columns)),
    )
    arrays = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
        for x, spec in zip(shapes(96, 1024, 32, 64), specs, strict=True)
    ]
    text = jax.jit(function).lower(*arrays).compile().as_text()
    assert text.count("tpu_custom_call") >= 3


def test_what_has_no_kernel_is_refused(monkeypatch):
    (h, w, th, tw, *_), _ = arguments(dtype="f4")
    objective = Objective(forward_kl, 1.0, None, None)
    pallas = functools.partial(linear_distill, implementation="pallas")
    with pytest.raises(ValueError, match="top_k has no Pallas kernel: choose"):
        pallas(h, w, th, tw, top_k=2)
    with pytest.raises(ValueError, match="float16 has no Pallas kernel: choose"):
        pallas(*(x.astype("f2") for x in (h, w, th, tw)))
    with pytest.raises(NotImplementedError, match="Pallas kernels for tpu, not for"):
        jax.jit(pallas)(h, w, th, tw)
    monkeypatch.setattr(blocks, "BLOCKS", 1000)
    with pytest.raises(ValueError, match="widths 3 and 5 are too large for"):
        results(functools.partial(tpu, objective, True), *arguments(dtype="f4"))
