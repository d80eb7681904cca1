"""Projectors: the authors' numbers, shapes, and padding without influence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd.losses.features import hint_loss, vid_loss
from jaxkd.losses.pooling import match_size, nearest_resize
from jaxkd.methods.modules.projectors import (
    ABF,
    Connector,
    ConvRegressor,
    Embed,
    EmbedPair,
    MGDGenerator,
    Paraphraser,
    ReviewFusion,
    SimKDProjector,
    Translator,
    VIDRegressor,
)


def random_map(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def made(build, *args, **kwargs):
    """Return a module with NumPy's weights: to draw its own, JAX compiles for long."""
    graph, state = nnx.split(
        nnx.eval_shape(lambda: build(*args, **kwargs, rngs=nnx.Rngs(0)))
    )

    def fill(path, x):
        names = [str(getattr(key, "key", key)) for key in path]
        if "kernel" in names:
            return random_map(*x.shape) / np.sqrt(np.prod(x.shape[:-1]))
        return jnp.full(x.shape, float("scale" in names or "var" in names))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


@pytest.fixture(params=["float32", "float64"])
def array(request, golden):
    """Return a function from a golden key to the array, channels last."""
    if request.param == "float64":
        request.getfixturevalue("x64")

    def get(key):
        x = golden[key]
        if x.ndim == 4:
            # PyTorch's kernels are (out, in, height, width), its maps channels first.
            is_kernel = "weight" in key or "vid_w" in key
            x = x.transpose((2, 3, 1, 0) if is_kernel else (0, 2, 3, 1))
        return jnp.asarray(x, request.param)

    return get


def assert_golden(result, expected):
    """Compare to 1e-6 in float64 and to 1e-5 of the largest entry in float32."""
    double = result.dtype == jnp.float64
    rtol, atol = (1e-6, 1e-9) if double else (1e-5, 1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)


def load(layer, array, conv_key, norm_key=None):
    """Put golden weights into a convolution, or into one with BatchNorm."""
    conv = layer if norm_key is None else layer.conv
    conv.kernel = nnx.Param(array(conv_key))
    if norm_key is not None:
        weight = array(f"{norm_key}_weight")
        layer.norm.scale = nnx.Param(weight)
        layer.norm.bias = nnx.Param(array(f"{norm_key}_bias"))
        layer.norm.mean = nnx.BatchStat(jnp.zeros_like(weight))
        layer.norm.var = nnx.BatchStat(jnp.ones_like(weight))


def as_function(module):
    """Return ``(params, *inputs) -> output`` and the params."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return lambda p, *args: nnx.merge(graph, p, rest, copy=True)(*args), params


def test_conv_regressor_matches_the_authors(array):
    student, teacher = array("fitnet_f_s"), array("fitnet_f_t")
    module = made(ConvRegressor, student.shape, teacher.shape)
    module.conv.kernel = nnx.Param(array("fitnet_conv_weight"))
    stats = [jnp.zeros(5, student.dtype), jnp.ones(5, student.dtype)]
    module.norm.mean, module.norm.var = map(nnx.BatchStat, stats)
    apply, params = as_function(module)
    value, (of_params, of_student) = jax.jit(
        jax.value_and_grad(lambda p, s: hint_loss(apply(p, s), teacher).mean(), (0, 1))
    )(params, student)
    # The authors' convolution has a bias, which BatchNorm takes away again.
    assert_golden(value, array("fitnet_loss"))
    assert_golden(of_student, array("fitnet_grad"))
    assert_golden(of_params.conv.kernel[...], array("fitnet_conv_weight_grad"))


@pytest.mark.parametrize("case", ["conv0", "conv1"])
def test_vid_regressor_matches_the_authors(array, case):
    student, teacher = array(f"{case}_f_s"), array(f"{case}_f_t")
    module = made(VIDRegressor, student.shape[-1], teacher.shape[-1])
    for i, conv in enumerate(module.convs):
        load(conv, array, f"{case}_vid_w{i}")
    module.log_scale = nnx.Param(array(f"{case}_vid_log_scale"))
    apply, params = as_function(module)

    def loss(p, s):
        matched, target = match_size(s, teacher)
        return vid_loss(apply(p, matched), p.log_scale[...], target).mean()

    value, (of_params, of_student) = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        params, student
    )
    assert_golden(value, array(f"{case}_vid_loss"))
    assert_golden(of_student, array(f"{case}_vid_grad"))
    assert_golden(of_params.convs[0].kernel[...], array(f"{case}_vid_w0_grad"))
    assert_golden(of_params.log_scale[...], array(f"{case}_vid_log_scale_grad"))


def test_simkd_projector_matches_the_authors(array):
    student, teacher = array("simkd_f_s"), array("simkd_f_t")
    module = made(SimKDProjector, student.shape[-1], teacher.shape[-1])
    for i, layer in zip((0, 3, 6), module.layers, strict=True):
        prefix = "simkd_p_transfer"
        load(layer, array, f"{prefix}_{i}_weight", f"{prefix}_{i + 1}")
    apply, params = as_function(module)

    def loss(s):
        matched, target = match_size(s, teacher)
        projected = apply(params, matched)
        return hint_loss(projected, target).mean(), projected

    (value, projected), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        student
    )
    assert_golden(value, array("simkd_loss"))
    assert_golden(projected, array("simkd_proj"))
    assert_golden(gradient, array("simkd_grad"))
    logits = projected.mean((1, 2)) @ array("simkd_cls_w").T + array("simkd_cls_b")
    assert_golden(logits, array("simkd_pred"))


@pytest.mark.slow
def test_abf_matches_the_authors(array):
    module = made(ABF, 4, 6, 5, True)
    load(module.reduce, array, "abf_p_conv1_0_weight", "abf_p_conv1_1")
    load(module.expand, array, "abf_p_conv2_0_weight", "abf_p_conv2_1")
    load(module.attention, array, "abf_p_att_conv_0_weight")
    module.attention.bias = nnx.Param(array("abf_p_att_conv_0_bias"))
    output, residual = nnx.jit(lambda m, x, y: m(x, y, 4))(
        module, array("abf_x"), array("abf_y")
    )
    assert_golden(output, array("abf_out"))
    assert_golden(residual, array("abf_residual"))


@pytest.mark.parametrize(
    ("student", "teacher", "kernel"),
    [
        ((4, 4), (4, 4), (1, 1)),
        ((8, 8), (4, 4), (3, 3)),
        ((4, 3), (8, 6), (4, 4)),
        ((7, 5), (4, 4), (4, 2)),
        ((8, 4), (4, 4), (5, 1)),
    ],
)
def test_conv_regressor_reaches_the_teachers_shape(student, teacher, kernel):
    module = nnx.eval_shape(
        lambda: made(ConvRegressor, (2, *student, 3), (2, *teacher, 5))
    )
    assert module.conv.kernel.shape[:2] == kernel
    output = nnx.eval_shape(lambda m, x: m(x), module, random_map(2, *student, 3))
    assert output.shape == (2, *teacher, 5)


def test_transposed_regressor_is_pytorchs():
    module = made(ConvRegressor, (1, 3, 3, 2), (1, 6, 6, 4))
    x, kernel = random_map(1, 3, 3, 2), module.conv.kernel[...]
    # Every input stamps the 4x4 kernel at twice its position, less the padding of 1.
    stamped = np.zeros((1, 8, 8, 4))
    for i in range(3):
        for j in range(3):
            stamp = np.einsum("bi,hwoi->bhwo", x[:, i, j], kernel)
            stamped[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += stamp
    np.testing.assert_allclose(module.conv(x), stamped[:, 1:7, 1:7], atol=1e-5)


@pytest.mark.slow
def test_paraphraser_rebuilds_its_input_from_a_narrow_factor():
    module = made(Paraphraser, 5, rate=0.5)
    x = random_map(2, 4, 4, 5)
    assert module.encode(x).shape == (2, 4, 4, 2)
    apply, params = as_function(module)
    descend = jax.jit(jax.value_and_grad(lambda p: hint_loss(apply(p, x), x).mean()))
    first, _ = descend(params)
    for _ in range(20):
        loss, gradient = descend(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    assert loss < first


@pytest.mark.slow
def test_embeddings_flatten_and_normalise():
    maps, vectors = random_map(3, 2, 2, 4), random_map(3, 7)
    module = made(Embed, 16, dim=6, normalize=True)
    np.testing.assert_allclose(
        jnp.linalg.norm(module(maps), axis=-1), jnp.ones(3), rtol=1e-6
    )
    plain = made(Embed, 16, dim=6)
    flat = maps.reshape(3, 16) @ plain.linear.kernel[...]
    np.testing.assert_allclose(plain(maps), flat, atol=1e-5)
    pair = EmbedPair(maps.shape, vectors.shape, 6, nnx.Rngs(0))
    assert [e.shape for e in pair(maps, vectors)] == [(3, 6), (3, 6)]


def test_mgd_generator_keeps_the_shape_and_sees_neighbours():
    module = made(MGDGenerator, 3)
    at_centre = jnp.zeros((1, 7, 7, 3)).at[0, 3, 3].set(1.0)
    change = jnp.abs(module(at_centre) - module(0 * at_centre)).sum(-1)[0]
    # Two 3x3 kernels reach two pixels far and no further.
    assert (change[1:6, 1:6] > 0).any()
    assert change.at[1:6, 1:6].set(0).sum() == 0


@pytest.mark.slow
def test_review_fusion_runs_from_deep_to_shallow():
    features = [random_map(2, 8, 8, 3), random_map(2, 4, 4, 5), random_map(2, 6)]
    module = made(ReviewFusion, (3, 5, 6), (4, 7, 9), mid=5)

    @nnx.jit
    def both(module, features):
        third, deep = module.levels[2](features[2][:, None, None])
        second, middle = module.levels[1](features[1], deep)
        first, _ = module.levels[0](features[0], middle, 4)
        by_hand = [first, second, third]
        return module(features, [(4, 4), (4, 4), (1, 1)]), by_hand, module(features)

    outputs, by_hand, unresized = both(module, features)
    shapes = [(2, 4, 4, 4), (2, 4, 4, 7), (2, 1, 1, 9)]
    assert [o.shape for o in outputs] == shapes
    for output, expected in zip(outputs, by_hand, strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-6)
    assert unresized[0].shape == (2, 8, 8, 4)


def test_review_fusion_is_as_wide_as_the_deepest_student_level():
    for deepest, width in ((64, 64), (600, 512)):
        module = nnx.eval_shape(lambda c=deepest: made(ReviewFusion, (3, c), (4, 7)))
        assert module.levels[0].reduce.conv.out_features == width


def test_abf_gates_the_resized_residual():
    module = made(ABF, 3, 4, 5, True)
    # Gates of sigmoid(−100) and sigmoid(100): only the deeper residual passes.
    module.attention.kernel = nnx.Param(jnp.zeros((1, 1, 8, 2)))
    module.attention.bias = nnx.Param(jnp.array([-100.0, 100.0]))
    deeper = random_map(2, 2, 2, 4)
    _, residual = nnx.jit(ABF.__call__)(module, random_map(2, 4, 4, 3), deeper)
    np.testing.assert_allclose(residual, nearest_resize(deeper, 4), atol=1e-6)


MASKED = {
    "connector": (partial(made, Connector, 3, 5), [(4, 4, 3)]),
    "regressor": (
        partial(made, ConvRegressor, (1, 4, 4, 3), (1, 2, 2, 5)),
        [(4, 4, 3)],
    ),
    "upsampling": (
        partial(made, ConvRegressor, (1, 4, 4, 3), (1, 8, 8, 5)),
        [(4, 4, 3)],
    ),
    "translator": (partial(made, Translator, 3, 5), [(4, 4, 3)]),
    "simkd": (partial(made, SimKDProjector, 3, 6), [(4, 4, 3)]),
    "abf": (partial(made, ABF, 3, 4, 5, True), [(4, 4, 3), (2, 2, 4)]),
    "review": (
        partial(made, ReviewFusion, (3, 4), (5, 6), mid=4),
        [(4, 4, 3), (4,)],
    ),
}


@pytest.fixture(params=MASKED)
def run(request):
    """Return ``(inputs, mask) -> outputs, statistics, gradients`` of a module."""
    build, shapes = MASKED[request.param]
    graph, params, rest = nnx.split(build(), nnx.Param, ...)

    def loss(params, inputs, mask):
        module = nnx.merge(graph, params, rest, copy=True)
        arguments = [list(inputs)] if request.param == "review" else inputs
        outputs = jax.tree.leaves(module(*arguments, mask=mask))
        counted = jnp.ones(len(inputs[0]), bool) if mask is None else mask > 0
        total = sum(
            jnp.where(counted, (o**2).mean((1, 2, 3)), 0).sum() for o in outputs
        )
        return total, (outputs, nnx.state(module, nnx.BatchStat))

    def run(inputs, mask=None):
        grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (_, (outputs, stats)), grads = jax.jit(grad)(params, inputs, mask)
        return outputs, jax.tree.leaves(stats), jax.tree.leaves(grads)

    inputs = tuple(random_map(3, *s, seed=i) for i, s in enumerate(shapes))
    return run, inputs


@pytest.mark.slow
def test_a_padded_example_has_no_influence(run):
    run, inputs = run
    outputs, stats, grads = run(inputs)
    padded = tuple(jnp.concatenate([x, jnp.full_like(x[:1], jnp.nan)]) for x in inputs)
    found = run(padded, jnp.array([1.0, 0.5, 1.0, 0.0]))
    for clean, with_padding in zip(outputs, found[0], strict=True):
        np.testing.assert_allclose(with_padding[:3], clean, rtol=1e-5, atol=1e-5)
    for clean, with_padding in zip(stats, found[1], strict=True):
        np.testing.assert_allclose(with_padding, clean, rtol=1e-5, atol=1e-6)
    for clean, with_padding in zip(grads, found[2], strict=True):
        same_batch = clean.shape == with_padding.shape
        rest = with_padding if same_batch else with_padding[:3]
        np.testing.assert_allclose(rest, clean, rtol=1e-4, atol=1e-4)
        if not same_batch:
            np.testing.assert_array_equal(with_padding[3], jnp.zeros_like(clean[0]))


@pytest.mark.slow
def test_a_batch_of_padding_alone_stays_finite(run):
    run, inputs = run
    padding = tuple(jnp.full_like(x, jnp.nan) for x in inputs)
    outputs, stats, grads = run(padding, jnp.zeros(3))
    assert all(np.isfinite(x).all() for x in (*outputs, *stats))
    for gradient in grads:
        np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


@pytest.mark.slow
def test_running_averages_follow_training_and_serve_evaluation():
    module = made(Connector, 3, 5)
    x = random_map(4, 3, 3, 3)
    before = module.conv(x)
    trained = module(x)
    np.testing.assert_allclose(
        module.norm.mean[...], 0.1 * before.mean((0, 1, 2)), atol=1e-6
    )
    np.testing.assert_allclose(
        module.norm.var[...], 0.9 + 0.1 * before.var((0, 1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(trained.std((0, 1, 2)), jnp.ones(5), rtol=1e-3)
    module.eval()
    deviation = jnp.sqrt(module.norm.var[...] + 1e-5)
    expected = (before - module.norm.mean[...]) / deviation
    np.testing.assert_allclose(module(x), expected, atol=1e-5)


def rngs():
    return nnx.Rngs(0)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: ConvRegressor((1, 4, 4, 3), (1, 7, 7, 5), rngs=rngs()),
            r"\(1, 4, 4, 3\).*\(1, 7, 7, 5\).*tap an earlier layer",
        ),
        (
            lambda: ConvRegressor((1, 3), (1, 5), rngs=rngs()),
            r"height, width, channels\), got \(1, 3\)",
        ),
        (lambda: Paraphraser(2, 0.1, rngs=rngs()), "rate = 0.1 of 2 channels"),
        (
            lambda: ABF(3, 4, 5, True, rngs=rngs())(random_map(1, 2, 2, 3)),
            "deeper is missing.*fuse=True",
        ),
        (
            lambda: ABF(3, 4, 5, False, rngs=rngs())(
                random_map(1, 2, 2, 3), random_map(1, 1, 1, 4)
            ),
            "deeper is given.*fuse=False",
        ),
        (
            lambda: ReviewFusion((3, 4), (5,), rngs=rngs()),
            "student_channels has 2 levels but teacher_channels has 1",
        ),
        (
            lambda: ReviewFusion((3, 4), (5, 6), rngs=rngs())([random_map(1, 2, 2, 3)]),
            "features has 1.*2 levels",
        ),
        (lambda: VIDRegressor(3, 4, variance=0.0, rngs=rngs()), "variance must be"),
    ],
)
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
