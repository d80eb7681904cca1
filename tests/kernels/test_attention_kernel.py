"""Block-wise attention: the reference, every version and compilers agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxkd.kernels.attention as attention_module
from jaxkd.kernels.attention import (
    attention,
    bigbird_table,
    block_sparse_attention,
    tpu,
    xla,
)
from jaxkd.kernels.attention.masks import Band, Tiles
from jaxkd.kernels.attention.scores import Scores
from jaxkd.training.ahead import compile_for, lower_for_gpu

CASES = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (7, 3)},
    "causal window": {"causal": True, "window": 9},
    "global": {"window": 4, "global_tokens": (0, 3)},
    "causal global": {"causal": True, "window": 4, "global_tokens": (0, 1, 50)},
}


def arrays(shape, kv_heads=None, columns=None, dtype=np.float64, seed=0):
    draw = np.random.default_rng(seed)
    batch, rows, heads, dim = shape
    other = (batch, columns or rows, kv_heads or heads, dim)
    return [
        jnp.asarray(draw.normal(size=s), dtype) for s in (shape, other, other, shape)
    ]


def visible(rows, columns, causal=False, window=None, global_tokens=()):
    """Say who sees whom pair by pair."""
    seen = np.zeros((rows, columns), bool)
    left, right = (window, window) if isinstance(window, int) else window or (1e9, 1e9)
    for i, j in np.ndindex(rows, columns):
        seen[i, j] = i - left <= j <= i + right or {i, j} & set(global_tokens)
        seen[i, j] &= not causal or j <= i
    return seen


def dense(query, key, value, seen):
    """Attention in NumPy, one query at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros_like(query)
    group = query.shape[2] // key.shape[2]
    for b, i, h in np.ndindex(query.shape[:3]):
        keep = np.broadcast_to(seen, (query.shape[0], *seen.shape[-2:]))[b, i]
        if keep.any():
            scores = key[b, keep, h // group] @ query[b, i, h] / query.shape[3] ** 0.5
            weights = np.exp(scores - scores.max())
            out[b, i, h] = weights / weights.sum() @ value[b, keep, h // group]
    return out


def with_gradients(function, query, key, value, cotangent):
    def both(*x):
        out, pull = jax.vjp(function, *x)
        return [out, *pull(cotangent)]

    return jax.jit(both)(query, key, value)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16, so that short sequences have many."""
    monkeypatch.setattr(xla, "LEAST", 16)
    monkeypatch.setattr(xla, "BLOCK", 16)


@pytest.mark.parametrize("case", CASES)
def test_versions_agree_with_numpy(case, x64, small_blocks):
    length, options = 53, CASES[case]
    query, key, value, cotangent = arrays((2, length, 4, 3), kv_heads=2)
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 3, (2, length)))
    seen = visible(length, length, **options) & np.asarray(
        ids[:, :, None] == ids[:, None]
    )

    def version(implementation):
        return lambda *x: attention(
            *x, segment_ids=ids, implementation=implementation, **options
        )

    reference = with_gradients(version("reference"), query, key, value, cotangent)
    np.testing.assert_allclose(reference[0], dense(query, key, value, seen), atol=1e-12)
    found = with_gradients(version("auto"), query, key, value, cotangent)
    for x, y in zip(found, reference, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


def test_one_token_sees_itself(x64):
    query, key, value, _ = arrays((2, 1, 2, 3))
    for options in ({}, {"causal": True}, {"window": 0, "global_tokens": (0,)}):
        function = jax.jit(functools.partial(attention, **options))
        np.testing.assert_allclose(function(query, key, value), value)


def test_the_references_gradient(x64):
    query, key, value, _ = arrays((1, 9, 2, 3))
    ids = jnp.asarray([[0, 0, 0, 1, 1, 2, 2, 2, 2]])

    @jax.jit
    def function(*x):
        return attention(*x, window=3, segment_ids=ids, implementation="reference")

    check_grads(function, (query, key, value), order=1, modes="rev")


@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas"])
def test_a_query_that_sees_nothing_gets_nothing(implementation):
    query, key, value, cotangent = arrays((2, 5, 1, 4), columns=7, dtype=np.float32)
    ids = (jnp.ones((2, 5), int), jnp.asarray([[0] * 7, [0, 1, 1, 0, 0, 1, 0]]))

    def function(*x):
        if implementation == "pallas":
            return tpu.attend(*x, *ids, band=Band(), scores=Scores(0.5), interpret=True)
        return attention(*x, segment_ids=ids, implementation=implementation)

    found = with_gradients(function, query, key, value, cotangent)
    for x in found:
        assert not np.asarray(x[0]).any()
    seen = np.asarray(ids[1] == 1)[:, None].repeat(5, 1)
    expected = dense(query, key, value, seen)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize("case", ["full", "causal global"])
def test_the_kernel_interpreted(case):
    rows = 150
    query, key, value, cotangent = arrays((1, rows, 2, 8), 1, dtype=np.float32)
    options = CASES[case]
    ids = None if case == "full" else jnp.arange(rows)[None] // 60
    window = options.get("window")
    left, right = (window, window) if isinstance(window, int) else window or (None,) * 2
    causal = options.get("causal", False)
    band = Band(
        left, None if causal else right, causal, options.get("global_tokens", ())
    )

    def kernel(*x):
        return tpu.attend(
            *x, ids, None, band=band, scores=Scores(8**-0.5), interpret=True
        )

    def plain(*x):
        return attention(*x, segment_ids=ids, implementation="reference", **options)

    expected = with_gradients(plain, query, key, value, cotangent)
    found = with_gradients(kernel, query, key, value, cotangent)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


SINKS = np.asarray([0.5, -1.0, 30.0, 2.0])


def scored(implementation, **options):
    def run(query, key, value, sinks):
        if implementation != "interpreted":
            given = {**options, "sinks": sinks, "implementation": implementation}
            return attention(query, key, value, causal=True, **given)
        scores = Scores(options["scale"], options["soft_cap"])
        arrays = query, key, value, options["segment_ids"], None, sinks
        band = Band(causal=True)
        return tpu.attend(*arrays, band=band, scores=scores, interpret=True)

    return run


@pytest.mark.parametrize("implementation", ["reference", "xla", "interpreted"])
def test_scale_cap_and_sinks(implementation, small_blocks):
    """Against one softmax a query, in which the sink is a key without a value."""
    query, key, value, cotangent = arrays((2, 40, 4, 8), 2, dtype=np.float32)
    sinks = jnp.asarray(SINKS, np.float32)
    ids = jnp.arange(40)[None].repeat(2, 0) // 25
    options = {"scale": 0.6, "soft_cap": 1.5, "segment_ids": ids}

    def plain(query, key, value, sinks):
        key, value = (x.repeat(2, axis=2) for x in (key, value))
        scores = 1.5 * jnp.tanh(0.6 / 1.5 * jnp.einsum("brhd,bchd->bhrc", query, key))
        seen = jnp.tri(40, dtype=bool) & (ids[:, None, :, None] == ids[:, None, None])
        scores = jnp.where(seen, scores, -jnp.inf)
        own = jnp.broadcast_to(sinks[None, :, None, None], (*scores.shape[:3], 1))
        weights = jax.nn.softmax(jnp.concatenate([scores, own], -1))[..., :-1]
        return jnp.einsum("bhrc,bchd->brhd", weights, value)

    def gradients(function):
        out, pull = jax.vjp(function, query, key, value, sinks)
        return [out, *pull(cotangent)]

    expected = gradients(plain)
    found = jax.jit(lambda: gradients(scored(implementation, **options)))()
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5)


def test_extreme_scores_and_bfloat16(small_blocks):
    query, key, value, cotangent = arrays((1, 40, 2, 4), dtype=np.float32)
    for q, k, dtype, atol in (
        (query * 1e4, key * 1e4, jnp.float32, 1e-4),
        (query, key, jnp.bfloat16, 0.05),
    ):
        inputs = [x.astype(dtype) for x in (q, k, value, cotangent)]
        expected = with_gradients(
            lambda *x: attention(*x, causal=True, implementation="reference"), *inputs
        )
        found = with_gradients(
            lambda *x: attention(*x, causal=True, implementation="xla"), *inputs
        )
        for x, y in zip(found, expected, strict=True):
            assert x.dtype == dtype
            assert np.isfinite(np.asarray(x, np.float32)).all()
            scale = np.abs(np.asarray(y, np.float32)).max()
            # A saturated softmax's gradients are differences of equal terms: 0, but
            # for the terms' rounding.
            rounding = np.finfo(np.float32).eps * np.abs(q).max()
            np.testing.assert_allclose(
                x.astype(np.float32), y.astype(np.float32), atol=atol * scale + rounding
            )


def test_mapped_over_an_axis(small_blocks):
    query, key, value, _ = arrays((3, 20, 2, 4), dtype=np.float32)

    def whole(*x):
        return attention(*x, causal=True, implementation="xla")

    mapped = jax.vmap(lambda *x: whole(*(y[None] for y in x))[0])
    found, expected = (jax.jit(f)(query, key, value) for f in (mapped, whole))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_split_over_devices(small_blocks):
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4,), ("data",), axis_types=(auto,))
    query, key, value, cotangent = arrays((4, 20, 2, 4), dtype=np.float32)
    batch = jax.sharding.PartitionSpec("data")
    split = jax.shard_map(
        lambda *x: attention(*x, causal=True),
        mesh=mesh,
        in_specs=batch,
        out_specs=batch,
        check_vma=False,
    )
    expected = with_gradients(
        lambda *x: attention(*x, causal=True, implementation="reference"),
        *(query, key, value, cotangent),
    )
    found = with_gradients(split, query, key, value, cotangent)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_block_sparse_attention(x64):
    query, key, value, cotangent = arrays((2, 24, 3, 4))
    table = bigbird_table(6, 1, heads=3, seed=3)
    ids = jnp.asarray(np.arange(24)[None].repeat(2, 0) < [[24], [17]])

    def version(implementation):
        return lambda *x: block_sparse_attention(
            *x, table, segment_ids=ids, implementation=implementation
        )

    expected = with_gradients(version("reference"), query, key, value, cotangent)
    shared = block_sparse_attention(
        query, key, value, table[:1], segment_ids=ids, implementation="reference"
    )
    np.testing.assert_allclose(shared[:, :, 0], expected[0][:, :, 0], atol=1e-12)
    for head in range(3):
        seen = table[head].repeat(4, 0).repeat(4, 1)
        seen = seen & np.asarray(ids[:, :, None] == ids[:, None])
        one = [x[:, :, head : head + 1] for x in (query, key, value)]
        np.testing.assert_allclose(
            expected[0][:, :, head : head + 1], dense(*one, seen), atol=1e-12
        )
    found = with_gradients(version("xla"), query, key, value, cotangent)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


def test_the_block_sparse_kernel_interpreted():
    query, key, value, cotangent = arrays((1, 160, 2, 8), dtype=np.float32)
    table = bigbird_table(10, 1, 2)
    # The last of these blocks see none of their segment.
    table[:, 7] = np.arange(10) < 3
    ids = jnp.arange(160)[None] // 90
    tiles = Tiles(table.tobytes(), table.shape, 16, 16)
    expected = with_gradients(
        lambda *x: block_sparse_attention(
            *x, table, segment_ids=ids, implementation="reference"
        ),
        *(query, key, value, cotangent),
    )
    assert not expected[0][:, 112:128].any()
    found = with_gradients(
        lambda *x: tpu.attend(
            *x, ids, None, band=tiles, scores=Scores(8**-0.5), interpret=True
        ),
        *(query, key, value, cotangent),
    )
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_queries_before_all_keys_of_their_segment():
    arguments = arrays((1, 9, 2, 8), dtype=np.float32)
    ids = jnp.ones((1, 9), int), jnp.arange(9)[None] // 3
    expected = with_gradients(
        lambda *x: attention(
            *x, causal=True, segment_ids=ids, implementation="reference"
        ),
        *arguments,
    )
    assert not expected[0][:, :3].any()
    assert expected[0][:, 3:].all()
    found = with_gradients(
        lambda *x: tpu.attend(
            *x, *ids, band=Band(causal=True), scores=Scores(8**-0.5), interpret=True
        ),
        *arguments,
    )
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_bigbirds_pattern():
    table = bigbird_table(9, 2, 3)
    assert table[:, [0, -1]].all()
    assert table[:, :, [0, -1]].all()
    assert (table[:, 2:-2].sum(-1) == 3 + 2 + 2).all()
    assert (np.diagonal(table, axis1=1, axis2=2)).all()
    assert (table[0] != table[1]).any()
    assert bigbird_table(3, 2, 1).all()


@pytest.mark.parametrize("case", [*CASES, "the ends of blocks"])
def test_blocks_that_nobody_sees_are_left_out(case):
    options = {"window": 1, "global_tokens": (4, 10)} | CASES.get(case, {})
    options["global_tokens"] = [t for t in options["global_tokens"] if t < 23]
    if case in ("full", "causal"):
        options |= {"window": None, "global_tokens": ()}
    band = attention_module._band(
        options.get("causal", False),
        options["window"],
        options["global_tokens"],
        23,
        23,
    )
    seen = visible(23, 23, **options)
    expected = [
        (i, j)
        for i, j in np.ndindex(5, 4)
        if seen[5 * i : 5 * i + 5, 6 * j : 6 * j + 6].any()
    ]
    assert [*map(tuple, band.pairs(23, 23, 5, 6).tolist())] == expected


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiled_for_a_tpu(topology):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")
    length = 2000
    wide = jax.ShapeDtypeStruct((1, length, 4, 64), jnp.bfloat16)
    narrow = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.bfloat16)

    sinks = jax.ShapeDtypeStruct((4,), jnp.float32)

    def loss(*x):
        how = {"window": 128, "global_tokens": (0,), "soft_cap": 30.0, "scale": 0.2}
        out = attention(*x[:3], **how, sinks=x[3])
        return out.astype(jnp.float32).sum()

    given = wide, narrow, narrow, sinks
    compiled = compile_for(topology, jax.grad(loss, (0, 1, 2, 3)), *given)
    assert "splash" in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4 * length**2 / 4


def test_lowered_for_a_gpu():
    x = jax.ShapeDtypeStruct((1, 777, 2, 64), jnp.bfloat16)
    text = lower_for_gpu(lambda q: attention(q, q, q, causal=True).sum(), x)
    assert "777x777" not in text
    assert "stablehlo.while" in text


def test_bad_inputs(unchecked_shapes):
    query, key, value, _ = arrays((1, 6, 4, 2), columns=5)
    table = np.ones((1, 2, 2), bool)
    for message, call in {
        "compare the places": lambda: attention(query, key, value, causal=True),
        "window must be at least 0": lambda: attention(query, query, query, window=-1),
        r"global_tokens has \[6\]": lambda: attention(
            query, query, query, window=1, global_tokens=(6,)
        ),
        "but value": lambda: attention(query, key, value[:, :2]),
        "a multiple of key's": lambda: attention(query, key[:, :, :3], value[:, :, :3]),
        "must not be empty": lambda: attention(query, key[:, :0], value[:, :0]),
        "segment_ids is one array": lambda: attention(
            query, key, value, segment_ids=jnp.ones((1, 6), int)
        ),
        "segment_ids has shape": lambda: attention(
            query, query, query, segment_ids=jnp.ones((2, 6), int)
        ),
        "unknown implementation": lambda: attention(
            query, query, query, implementation="cudnn"
        ),
        "repeat the key's": lambda: block_sparse_attention(
            query, query[:, :, :2], query[:, :, :2], table
        ),
        "blocks that divide": lambda: block_sparse_attention(query, key, value, table),
        "nothing True in row 1 of pattern 0": lambda: block_sparse_attention(
            query, query, query, table & [[[True], [False]]]
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.slow
def test_block_sparse_attention_for_tpus_and_a_gpu():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs jaxkd-distill[aot]")
    x = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.bfloat16)
    table = bigbird_table(8, 1, 2)

    def loss(q, k, v):
        return block_sparse_attention(q, k, v, table).astype(jnp.float32).sum()

    for topology in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
        compiled = compile_for(topology, jax.grad(loss, (0, 1, 2)), x, x, x)
        assert "splash" in compiled.as_text()
    text = lower_for_gpu(loss, x, x, x)
    # XLA's version, which makes no array of all scores.
    assert "dot_general" in text
    assert "1024x1024x" not in text
