"""Taps, edits and segments of the zoo: one line of steps for all three."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.evaluation.cost import compiled_cost

KEY = jax.random.key(0)
TEXT = {
    "input_ids": jnp.asarray([[3, 1, 4, 1, 5], [9, 2, 6, 5, 0]]),
    "attention_mask": jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
}


def image(*shape):
    return jax.random.normal(KEY, shape)


SMALL = image(2, 8, 8, 3)
CASES = {
    "mlp": (lambda: models.mlp(12, (5, 6), 3), image(2, 2, 2, 3), "hidden0"),
    "cnn": (lambda: models.cnn(3, (4, 6), 3), SMALL, "stage0"),
    "cifar_resnet": (
        lambda: models.cifar_resnet(8, 3, widths=(4, 4, 6, 8)),
        SMALL,
        "stage1.pre",
    ),
    "imagenet_resnet": (
        lambda: models.imagenet_resnet((1, 1), 3, widths=(4, 4, 6)),
        image(2, 16, 16, 3),
        "stage0",
    ),
    "wide_resnet": (lambda: models.wide_resnet(10, 1, 3), SMALL, "stage1"),
    "vgg": (lambda: models.vgg(8, 3), SMALL, "stage1"),
    "mobilenet_v2": (lambda: models.mobilenet_v2(0.1, 3), SMALL, "stage2"),
    "shufflenet_v1": (lambda: models.shufflenet_v1(3), SMALL, "stage1"),
    "shufflenet_v2": (lambda: models.shufflenet_v2(3), SMALL, "stage1"),
    "lenet": (lambda: models.lenet(16, 3, (4, 5), 6, 3), image(2, 16, 16, 3), "stage0"),
    "nasbench201": (
        lambda: models.nasbench201(
            "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|",
            3,
            channels=4,
            cells=1,
        ),
        SMALL,
        "stage1",
    ),
    "vit": (
        lambda: models.vit((8, 2, 2), 3, image_size=8, patch_size=4),
        SMALL,
        "block0",
    ),
    "distilled": (
        lambda: models.vit((8, 2, 2), 3, image_size=8, patch_size=4, distilled=True),
        SMALL,
        "block0",
    ),
    "dinov2": (
        lambda: models.dinov2((8, 2, 2), 3, image_size=8, patch_size=4),
        SMALL,
        "block0",
    ),
    "vmoe": (
        lambda: models.vmoe((8, 2, 2), 3, experts=3, image_size=8, patch_size=4),
        SMALL,
        "block0",
    ),
    "mlp_mixer": (
        lambda: models.mlp_mixer((8, 2, 5, 6), 3, image_size=8, patch_size=4),
        SMALL,
        "block0",
    ),
    "resmlp": (
        lambda: models.resmlp((8, 2), 3, image_size=8, patch_size=4),
        SMALL,
        "block0",
    ),
    "swin": (
        lambda: models.swin(
            (8, 1, 1, 1, 1, 1, 1, 1, 1), 3, image_size=16, patch_size=2, window=2
        ),
        image(2, 16, 16, 3),
        "stage2",
    ),
    "convnext": (
        lambda: models.convnext((4, 1, 1, 1, 1), 3),
        image(2, 32, 32, 3),
        "stage2",
    ),
    "llama": (lambda: models.llama(10, 8, 3, 2, 12), TEXT, "block1"),
    "llama unrolled": (
        lambda: models.llama(10, 8, 3, 2, 12, scan=False),
        TEXT,
        "block1",
    ),
    "gpt2": (lambda: models.gpt2(10, 6, 8, 3, 2), TEXT, "block1"),
    "bert": (lambda: models.bert(10, 6, 8, 3, 2, 12), TEXT, "block1"),
    "modernbert": (lambda: models.modernbert(10, 8, 3, 2, 12), TEXT, "block1"),
    "mamba2": (
        lambda: models.mamba2(10, 8, 3, heads=2, head_dim=8, state_size=4),
        TEXT,
        "block1",
    ),
}


QUICK = ("mlp", "cnn", "vit", "llama")


@pytest.fixture(
    params=[
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
    ],
    scope="module",
)
def case(request):
    build, inputs, cut = CASES[request.param]
    return build(), inputs, cut


def beside(inputs, activation):
    """Return a segment's inputs: what a text's blocks read comes along."""
    if not isinstance(inputs, dict):
        return activation
    rest = {name: x for name, x in inputs.items() if name != "input_ids"}
    return {"activation": activation, **rest}


def test_two_segments_are_the_whole_and_edits_go_on(case):
    """All in one program, since compiling is what takes the time."""
    network, inputs, cut = case
    first, second = network.segment(None, cut), network.segment(cut, None)
    taps = tuple(t for t in network.taps if t not in ("head", "cache"))

    @jax.jit
    def everything(key, inputs):
        variables = network.init(key)
        whole, _ = network.apply(variables, inputs, taps=taps)
        middle = first.apply(variables, inputs)[0].logits
        last = second.apply(variables, beside(inputs, middle))[0].logits
        edits = {cut: lambda x: 2 * x}
        twice, _ = network.apply(variables, inputs, taps=(cut,), edits=edits)
        after = second.apply(variables, beside(inputs, 2 * middle))[0].logits
        return whole, middle, last, twice, after

    whole, middle, last, twice, after = everything(KEY, inputs)
    assert set(whole.features) == set(taps)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(middle, whole.features[cut], **close)
    np.testing.assert_allclose(last, whole.logits, **close)
    np.testing.assert_allclose(twice.logits, after, **close)
    np.testing.assert_allclose(twice.features[cut], 2 * middle, **close)
    assert not np.array_equal(twice.logits, whole.logits)


def test_every_cut_starts_and_stops_a_segment(case):
    network, inputs, _ = case
    assert set(network.cuts) <= set(network.taps)
    variables = jax.eval_shape(network.init, KEY)
    for start, stop in pairwise((None, *network.cuts, None)):
        part = network.segment(start, stop)
        assert part.cuts == (() if stop is None else (stop,))
        found = jax.eval_shape(partial(part.apply, taps=part.cuts), variables, inputs)
        inputs = beside(case[1], found[0].logits)
    assert found[0].logits.shape[-1] in (3, 10, 2)


def test_a_segment_costs_its_share():
    network = models.llama(10, 32, 8, 2, 64, scan=False)
    variables = jax.eval_shape(network.init, KEY)
    x = jax.ShapeDtypeStruct((2, 16, 32), jnp.float32)

    def flops(stop):
        part = network.segment("embed", stop)
        run = jax.jit(lambda v, x: part.apply(v, x)[0].logits)
        return compiled_cost(run, variables, x).flops

    # A loop's body is counted once, so that these are unrolled.
    assert flops("block3") == pytest.approx(flops("block7") / 2, rel=0.01)
