"""The image models: published sizes, taps, gradients, precision, and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models

X4 = (32, 64, 128, 256)
BASIC = {"shortcut": "identity", "classes": 10}
BODY = {"classes": None, "mask_token": True}
COUNTS = [
    # He et al. 2015: the public CIFAR-10 weights' own counts.
    (models.cifar_resnet, {"depth": 20, **BASIC}, 269_722),
    (models.cifar_resnet, {"depth": 32, **BASIC}, 464_154),
    (models.cifar_resnet, {"depth": 44, **BASIC}, 658_586),
    (models.cifar_resnet, {"depth": 56, **BASIC}, 853_018),
    # The benchmarks' networks for 100 classes, as their tables round them.
    (models.cifar_resnet, {"depth": 20}, 278_324),
    (models.cifar_resnet, {"depth": 32}, 472_756),
    (models.cifar_resnet, {"depth": 44}, 667_188),
    (models.cifar_resnet, {"depth": 56}, 861_620),
    (models.cifar_resnet, {"depth": 110}, 1_736_564),
    (models.cifar_resnet, {"depth": (3, 3, 3)}, 278_324),
    (models.cifar_resnet, {"depth": 8, "widths": X4}, 1_233_540),
    (models.cifar_resnet, {"depth": 32, "widths": X4}, 7_433_860),
    (
        models.imagenet_resnet,
        {"depth": 50, "stem": "cifar", "classes": 100},
        23_705_252,
    ),
    (models.wide_resnet, {"depth": 16, "width": 2}, 703_284),
    (models.wide_resnet, {"depth": 40, "width": 1}, 569_780),
    (models.wide_resnet, {"depth": 40, "width": 2}, 2_255_156),
    (models.vgg, {"depth": 8}, 3_965_028),
    (models.vgg, {"depth": 13}, 9_462_180),
    (models.mobilenet_v2, {}, 812_836),
    (models.shufflenet_v1, {}, 949_258),
    (models.shufflenet_v2, {}, 1_355_528),
    # torchvision's.
    (models.imagenet_resnet, {"depth": 18}, 11_689_512),
    (models.imagenet_resnet, {"depth": 34}, 21_797_672),
    (models.imagenet_resnet, {"depth": 50}, 25_557_032),
    (
        models.mobilenet_v2,
        {"width": 1.0, "form": "imagenet", "classes": 1000},
        3_504_872,
    ),
    (models.convnext, {"size": "tiny"}, 28_589_128),
    (models.convnext, {"size": "small"}, 50_223_688),
    (models.convnext, {"size": "base"}, 88_591_464),
    (models.swin, {"size": "tiny"}, 28_288_354),
    (models.swin, {"size": "small"}, 49_606_258),
    (models.swin, {"size": "base"}, 87_768_224),
    # timm's.
    (models.vit, {"size": "tiny"}, 5_717_416),
    (models.vit, {"size": "small"}, 22_050_664),
    (models.vit, {"size": "base"}, 86_567_656),
    (models.vit, {"size": "tiny", "distilled": True}, 5_910_800),
    (models.vit, {"size": "small", "distilled": True}, 22_436_432),
    (models.dinov2, {"size": "small", **BODY}, 22_056_576),
    (models.dinov2, {"size": "base", **BODY}, 86_580_480),
    (models.dinov2, {"size": "large", **BODY}, 304_368_640),
    (models.dinov2, {"size": "giant", "swiglu": True, **BODY}, 1_136_480_768),
    (models.mlp_mixer, {"size": "small"}, 18_528_264),
    (models.mlp_mixer, {"size": "base"}, 59_880_472),
    (models.resmlp, {"size": "s12"}, 15_350_872),
    (models.resmlp, {"size": "s24"}, 30_020_680),
    # transformers': patches of 16 pixels.
    (models.siglip, {"image": "base", "text": "base"}, 203_155_970),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "arguments", "expected"),
    COUNTS,
    ids=[f"{b.__name__}-{'-'.join(map(str, a.values()))}" for b, a, _ in COUNTS],
)
def test_published_parameter_counts(build, arguments, expected):
    network = build(**arguments)
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


TINY = {"classes": 5, "image_size": 8, "patch_size": 4}
SMALL = {
    "cifar_resnet": lambda: models.cifar_resnet(8, 5, widths=(4, 4, 8, 8)),
    "option_a": lambda: models.cifar_resnet(
        8, 5, widths=(4, 4, 8, 8), shortcut="identity"
    ),
    "wide_resnet": lambda: models.wide_resnet(10, 1, 5, dropout=0.1),
    "vgg": lambda: models.vgg(8, 5),
    "mobilenet_v2": lambda: models.mobilenet_v2(0.1, 5),
    "shufflenet_v1": lambda: models.shufflenet_v1(5),
    "shufflenet_v2": lambda: models.shufflenet_v2(5),
    "imagenet_resnet": lambda: models.imagenet_resnet(18, 5),
    "convnext": lambda: models.convnext((4, 1, 1, 1, 1), 5),
    "swin": lambda: models.swin(
        (4, 1, 1, 2, 1, 1, 1, 2, 2), 5, image_size=16, patch_size=1, window=2
    ),
    "vit": lambda: models.vit((12, 2, 3), distilled=True, drop_path=0.1, **TINY),
    "dinov2": lambda: models.dinov2((12, 2, 3), swiglu=True, **TINY),
    "vmoe": lambda: models.vmoe((12, 2, 3), experts=2, drop_path=0.1, **TINY),
    "mlp_mixer": lambda: models.mlp_mixer((12, 2, 8, 16), **TINY),
    "resmlp": lambda: models.resmlp((12, 2), **TINY),
}
TOKENS = ("swin", "vit", "dinov2", "vmoe", "mlp_mixer", "resmlp")
CONVOLUTIONAL = [n for n in SMALL if n not in TOKENS]


@functools.cache
def small(name):
    """Return a network: built when a test asks for it, not to list the tests."""
    return SMALL[name]()


def side(name):
    return 16 if name == "swin" else 8 if name in TOKENS else 32


def shapes(network, size, train=False, dtype=jnp.float32, taps=None):
    def forward(key):
        image = jnp.zeros((2, size, size, 3), dtype)
        taken = network.taps if taps is None else taps
        return network.apply(network.init(key), image, taps=taken, train=train, key=key)

    return jax.eval_shape(forward, jax.random.key(0))


# The stem and the stages of the benchmarks' networks on 32x32 images.
STAGES = {
    "resnet56": (
        lambda: models.cifar_resnet(56),
        [(32, 16), (32, 16), (16, 32), (8, 64)],
    ),
    "resnet8x4": (
        lambda: models.cifar_resnet(8, widths=X4),
        [(32, 32), (32, 64), (16, 128), (8, 256)],
    ),
    "wrn40_2": (
        lambda: models.wide_resnet(40, 2),
        [(32, 16), (32, 32), (16, 64), (8, 128)],
    ),
    "vgg13": (
        lambda: models.vgg(13),
        [(32, 64), (16, 128), (8, 256), (4, 512), (4, 512)],
    ),
    "mobilenet_v2": (
        lambda: models.mobilenet_v2(),
        [(16, 16), (16, 12), (8, 16), (4, 48), (2, 160)],
    ),
    "shufflenet_v1": (
        lambda: models.shufflenet_v1(),
        [(32, 24), (16, 240), (8, 480), (4, 960)],
    ),
    "shufflenet_v2": (
        lambda: models.shufflenet_v2(),
        [(32, 24), (16, 116), (8, 232), (4, 464)],
    ),
    "resnet50": (
        lambda: models.imagenet_resnet(50, 100, stem="cifar"),
        [(32, 64), (32, 256), (16, 512), (8, 1024), (4, 2048)],
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_have_the_benchmarks_sizes(name):
    build, expected = STAGES[name]
    network = build()
    outputs, _ = shapes(network, 32)
    for i, (height, channels) in enumerate(expected):
        for tap in (f"stage{i}", f"stage{i}.pre"):
            assert outputs.features[tap].shape == (2, height, height, channels)
    assert set(outputs.features) == set(network.taps)
    assert f"stage{len(expected)}" not in network.taps
    assert outputs.logits.shape == (2, 100)


def test_imagenet_stages():
    outputs, _ = shapes(models.imagenet_resnet(18), 224)
    found = [outputs.features[f"stage{i}"].shape[1:] for i in range(5)]
    assert found == [
        (112, 112, 64),
        (56, 56, 64),
        (28, 28, 128),
        (14, 14, 256),
        (7, 7, 512),
    ]


@pytest.fixture(scope="module")
def trained():
    """Return each small network's outputs, gradients and variables of one step."""
    found = {}

    def step(name):
        if name in found:
            return found[name]
        network, size = small(name), side(name)
        image = jax.random.normal(jax.random.key(1), (4, size, size, 3))

        @jax.jit
        def run(key):
            variables = network.init(key)

            def loss(params):
                outputs, changed = network.apply(
                    {**variables, "params": params},
                    image,
                    taps=network.taps,
                    train=True,
                    key=key,
                )
                return (outputs.logits**2).mean(), (outputs, changed)

            return variables, jax.grad(loss, has_aux=True)(variables["params"])

        found[name] = run(jax.random.key(0))
        return found[name]

    return step


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_step_reaches_every_parameter(trained, name):
    variables, (gradients, (outputs, changed)) = trained(name)
    silent = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]
        if not np.isfinite(leaf).all() or not np.any(leaf)
    }
    # The second head is trained by the method that reads it.
    heads = {f"['distillation_head']['{part}']" for part in ("kernel", "bias")}
    assert silent <= (heads if name == "vit" else set())
    assert outputs.logits.shape == (4, 5)
    if variables["stats"]:
        moved = jax.tree.map(
            lambda a, b: bool(np.any(a != b)), variables["stats"], changed["stats"]
        )
        assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", SMALL)
def test_no_variable_is_weakly_typed(name):
    # The first step would make it strong, and the second compile all anew.
    variables = jax.eval_shape(small(name).init, jax.random.key(0))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(variables))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_map_before_the_relu_makes_the_stage(trained, name):
    _, (_, (outputs, _)) = trained(name)
    features = outputs.features
    for tap in features:
        if not tap.endswith(".pre"):
            continue
        stage = features[tap.removesuffix(".pre")]
        linear = name == "mobilenet_v2" and tap != "stage0.pre"
        if name == "wide_resnet":
            # What comes before the ReLU is the next block's BatchNorm of the stage.
            assert features[tap].shape == stage.shape
        else:
            expected = features[tap] if linear else np.maximum(features[tap], 0)
            np.testing.assert_array_equal(stage, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_bf16_stays_bf16_in_training_and_evaluation(name):
    for train in (False, True):
        for network in (
            small(name).astype(jnp.bfloat16),
            small(name).computing_in(jnp.bfloat16),
        ):
            outputs, after = shapes(network, side(name), train)
            found = {"logits": outputs.logits, **outputs.features}
            # Which experts a token goes to is decided in float32.
            routers = [found.pop(tap) for tap in [*found] if tap.endswith(".router")]
            assert {x.dtype for x in found.values()} == {jnp.dtype(jnp.bfloat16)}
            assert {x.dtype for x in routers} <= {jnp.dtype(jnp.float32)}
            stats = {leaf.dtype.name for leaf in jax.tree.leaves(after["stats"])}
            assert stats <= {"float32"}


@pytest.mark.parametrize("name", SMALL)
def test_an_image_of_another_kind_is_refused(name, unchecked_shapes):
    network = small(name)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    for shape in ((2, side(name), side(name), 1), (2, side(name), side(name))):
        with pytest.raises(ValueError, match=r"image has shape .* build"):
            jax.eval_shape(network.apply, variables, jnp.zeros(shape))
    if side(name) == 8 and name != "dinov2":  # It takes images of any size.
        with pytest.raises(ValueError, match=r"takes \(batch, 8, 8, 3\): resize it"):
            jax.eval_shape(network.apply, variables, jnp.zeros((2, 16, 16, 3)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.cifar_resnet(21), "depth must be 6n [+] 2, .* got 21"),
        (lambda: models.cifar_resnet((3, 3)), r"blocks of three stages .* got \(3, 3"),
        (lambda: models.cifar_resnet((3, 0, 3)), r"got \(3, 0, 3\)"),
        (lambda: models.cifar_resnet(8, widths=(1, 2)), "widths must be 4 positive"),
        (lambda: models.cifar_resnet(8, shortcut="a"), "'projection' or 'identity'"),
        (lambda: models.imagenet_resnet(101), "one of 18, 34, 50, .* got 101"),
        (lambda: models.imagenet_resnet(18, stem="x"), "stem 'imagenet' or 'cifar'"),
        (lambda: models.wide_resnet(20), "depth must be 6n [+] 4"),
        (lambda: models.vgg(11), "depth must be one of 8, 13, got 11"),
        (lambda: models.mobilenet_v2(0.01), "width must be at least 1/16"),
        (lambda: models.vit("tinny"), "unknown ViT size 'tinny': did you mean 'tiny'"),
        (lambda: models.vit((10, 2, 3)), "the width a multiple of the heads"),
        (lambda: models.vit(drop_path=1.0), r"drop_path must be in \[0, 1\), got 1.0"),
        (
            lambda: models.vit(patch_size=15),
            "patch_size 15 does not tile images of 224",
        ),
        (lambda: models.mlp_mixer("smal"), "did you mean 'small'"),
        (lambda: models.mlp_mixer((1, 2)), "size must be 4 positive numbers"),
        (lambda: models.resmlp("s13"), "unknown ResMLP size 's13'"),
    ],
)
def test_impossible_models_are_refused(build, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        build()


def test_every_model_is_in_the_registry():
    for name in (n for n in SMALL if n != "option_a"):
        assert models.MODELS[name] is getattr(models, name)
