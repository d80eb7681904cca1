"""Long-sequence attentions against their authors' numbers, and Nyström's laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.kernels.attention import attention, block_sparse_attention
from jaxkd.kernels.nystrom import newton_pinv, nystrom_attention
from jaxkd.training.ahead import compile_for, lower_for_gpu


@pytest.fixture(scope="module")
def authors(load_golden):
    return load_golden("07-efficient_transformer_kd")


def project(golden, case, x, *names, heads):
    """Return projections of x, cut into heads."""
    found = []
    for name in names:
        weight, bias = (
            golden[f"{case}/p/{name}.{part}"] for part in ("weight", "bias")
        )
        y = x @ weight.T + bias
        found.append(y.reshape(*y.shape[:2], heads, -1))
    return found


def check(golden, case, function):
    """Compare outputs and the gradient of the inputs."""

    def joined(x):
        out = function(x)
        return out.reshape(*out.shape[:2], -1)

    x = jnp.asarray(golden[f"{case}/x"])
    out, pull = jax.vjp(joined, x)
    np.testing.assert_allclose(out, golden[f"{case}/out"], rtol=1e-4, atol=1e-4)
    if f"{case}/dx" in golden:
        (gradient,) = pull(jnp.asarray(golden[f"{case}/cotangent"]))
        expected = golden[f"{case}/dx"]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["longf", "longf_g"])
def test_longformer(case, authors):
    heads, window = authors[f"{case}/hp_heads_window"].tolist()
    kept = jnp.asarray(~authors[f"{case}/is_masked"])
    tokens = np.flatnonzero(authors[f"{case}/is_global"][0]).tolist()

    def function(x):
        query, key, value = project(
            authors, case, x, "query", "key", "value", heads=heads
        )
        out = attention(
            query,
            key,
            value,
            window=window // 2,
            global_tokens=tokens,
            segment_ids=kept,
        )
        if tokens:
            names = "query_global", "key_global", "value_global"
            query, key, value = project(authors, case, x, *names, heads=heads)
            everywhere = jnp.ones((len(x), len(tokens)), int), kept
            rows = attention(
                query[:, jnp.asarray(tokens)], key, value, segment_ids=everywhere
            )
            out = out.at[:, jnp.asarray(tokens)].set(rows)
        return jnp.where(kept[:, :, None, None], out, 0)

    check(authors, case, function)


def test_bigbird(authors):
    heads, block, _ = authors["bigb/hp_heads_block_rand"].tolist()
    allowed = authors["bigb/attn_allowed"][0]
    table = np.ascontiguousarray(allowed[:, ::block, ::block])
    np.testing.assert_array_equal(table.repeat(block, 1).repeat(block, 2), allowed)

    def function(x):
        inputs = project(authors, "bigb", x, "query", "key", "value", heads=heads)
        return block_sparse_attention(*inputs, table)

    check(authors, "bigb", function)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["nys", "nys_conv"])
def test_nystromformer(case, authors):
    heads, landmarks, kernel = authors[f"{case}/hp_heads_landmarks_conv"].tolist()

    def function(x):
        query, key, value = project(
            authors, case, x, "query", "key", "value", heads=heads
        )
        out = nystrom_attention(query, key, value, landmarks, shared_scale=True)
        if kernel:
            weight = jnp.asarray(authors[f"{case}/p/conv.weight"][:, 0, :, 0])
            wide = jnp.pad(value, [(0, 0), (kernel // 2,) * 2, (0, 0), (0, 0)])
            for place in range(kernel):
                shifted = wide[:, place : place + value.shape[1]]
                out += weight[:, place, None] * shifted
        return out

    check(authors, case, function)


@pytest.mark.parametrize("case", ["nys", "nys_conv"])
def test_the_authors_pseudo_inverse(case, authors):
    found = newton_pinv(jnp.asarray(authors[f"{case}/pinv_in"]), shared_scale=True)
    np.testing.assert_allclose(found, authors[f"{case}/pinv_out"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_pseudo_inverse_in_the_limit(x64):
    matrix = jax.nn.softmax(3 * jnp.eye(5) + jnp.arange(25).reshape(5, 5) % 7 / 7)
    matrix = jnp.stack([matrix, matrix[::-1]])
    found = newton_pinv(matrix, 40)
    np.testing.assert_allclose(found, np.linalg.pinv(matrix), atol=1e-10)


def inputs(length, dtype=np.float32):
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.normal(size=(2, length, 2, 4)), dtype) for _ in range(3)]


@pytest.mark.slow
def test_as_many_landmarks_as_tokens_is_full_attention(x64):
    mask = jnp.asarray(np.arange(12) < [[12], [9]])
    arrays = inputs(12, np.float64)
    ids = jnp.ones((2, 12), int), mask
    found = nystrom_attention(*arrays, 12, mask=mask)
    np.testing.assert_allclose(found, attention(*arrays, segment_ids=ids), atol=1e-12)


@pytest.mark.slow
def test_examples_do_not_depend_on_each_other():
    query, key, value = inputs(12)
    whole = nystrom_attention(query, key, value, 3)
    alone = nystrom_attention(query[:1], key[:1], value[:1], 3)
    np.testing.assert_allclose(whole[:1], alone, atol=1e-5)


def test_what_is_masked_is_not_seen():
    query, key, value = inputs(12)
    mask = jnp.asarray(np.arange(12) < [[12], [9]])
    found = nystrom_attention(query, key, value, 4, mask=mask)
    changed = nystrom_attention(
        query, key, jnp.where(mask[:, :, None, None], value, 7), 4, mask=mask
    )
    np.testing.assert_allclose(found, changed, atol=1e-6)
    nothing = nystrom_attention(query, key, value, 4, mask=jnp.zeros_like(mask))
    assert not nothing.any()


def test_bfloat16():
    expected = nystrom_attention(*inputs(12), 4)
    half = [x.astype(jnp.bfloat16) for x in inputs(12)]
    found = nystrom_attention(*half, 4)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiled_for_a_tpu(topology):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")
    x = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.bfloat16)

    def function(*x):
        return nystrom_attention(*x, 64)

    assert "splash" in compile_for(topology, function, x, x, x).as_text()
    assert "1024x1024" not in lower_for_gpu(function, x, x, x)


def test_bad_inputs():
    with pytest.raises(ValueError, match="landmarks must divide the length 12, got 5"):
        nystrom_attention(*inputs(12), 5)
