"""Forward passes of MobileNetV2 and the ShuffleNets, against float64 NumPy."""

import numpy as np
import pytest
from test_resnets import bn, head, norm, relu, run, same, windows

from jaxkd import models
from jaxkd.models.vision.shufflenet import ShuffleNetV1, ShuffleNetV2
from jaxkd.network import Network

# Even, and even when halved: padding "SAME" pads such a map on one side only.
SIDE = 20


def conv(x, p, stride=1, groups=1):
    kernel = p["kernel"]
    patches = windows(x, len(kernel), stride, 0.0)
    patches = patches.reshape(
        *x.shape[:1], *patches.shape[1:3], groups, -1, *kernel.shape[:2]
    )
    kernel = kernel.reshape(*kernel.shape[:3], groups, -1)
    y = np.einsum("bhwgcyx,yxcgo->bhwgo", patches, kernel)
    return y.reshape(*y.shape[:3], -1)


def normed(x, p, s, i, stride=1, groups=1):
    """Return a block's i-th convolution and its BatchNorm."""
    return norm(conv(x, p[f"conv{i}"], stride, groups), *bn(p, s, i))


def shuffle(x, groups):
    size = x.shape[-1] // groups
    return x[..., [g * size + i for i in range(size) for g in range(groups)]]


def part(p, s, *path):
    for key in map(str, path):
        p, s = p[key], s[key]
    return p, s


# Expansion, channels, blocks and stride: Sandler et al. 2018, Table 2, but that the
# benchmarks have no stride in the second row; and after which rows they tap.
ROWS = [
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
STAGE_OF_ROW = [0, 0, 1, 2, 2, 3, 3]


def relu6(x):
    return np.minimum(relu(x), 6)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["cifar", "imagenet"])
def test_mobilenet_is_the_papers_forward_pass(form):
    outputs, p, s, x = run(models.mobilenet_v2(0.125, 5, form=form), SIDE)
    imagenet = form == "imagenet"
    act = relu6 if imagenet else relu
    x = normed(x, p, s, 1, stride=2)
    features = {"stage0.pre": x, "stage0": act(x)}
    x = act(x)
    blocks = [0, 0, 0, 0]
    for (expansion, channels, count, first), stage in zip(
        ROWS, STAGE_OF_ROW, strict=True
    ):
        for j in range(count):
            q, t = part(p, s, "stages", stage, blocks[stage])
            blocks[stage] += 1
            stride = 1 if j else 2 if imagenet and channels == 24 else first
            wide = expansion * x.shape[-1]
            y = x
            if expansion > 1 or not imagenet:
                y = act(normed(x, q, t, 1))
            assert y.shape[-1] == wide
            assert ("conv1" in q) == (expansion > 1 or not imagenet)
            y = act(normed(y, q, t, 2, stride, groups=wide))
            y = normed(y, q, t, 3)
            x = x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y
            assert x.shape[-1] == channels // 8
        features[f"stage{stage + 1}"] = features[f"stage{stage + 1}.pre"] = x
    features["final"] = act(normed(x, p, s, 2))
    logits, features["pooled"] = head(features["final"], p["fc"])
    assert features["pooled"].shape == (2, 1280)
    same(outputs, logits, features)


@pytest.mark.slow
def test_shufflenet_v1_is_the_papers_forward_pass():
    # The widths leave convolutions of 9, 15 and 24 channels in 3 groups.
    network = Network.from_nnx(
        lambda rngs: ShuffleNetV1((60, 96), (2, 3), 3, 5, 3, rngs=rngs)
    )
    outputs, p, s, x = run(network, SIDE)
    x = normed(x, p, s, 1)
    features = {"stage0.pre": x, "stage0": relu(x)}
    x = relu(x)
    for i, count in enumerate((2, 3)):
        for j in range(count):
            q, t = part(p, s, "layers", i, j)
            # Only the stem's 24 channels are convolved, and left, in one group.
            groups = 1 if i == j == 0 else 3
            y = shuffle(relu(normed(x, q, t, 1, groups=groups)), groups)
            y = relu(normed(y, q, t, 2, 1 if j else 2, groups=y.shape[-1]))
            y = normed(y, q, t, 3, groups=3)
            # Zeros of the padding count in the mean, as PyTorch has it.
            pre = y + x if j else np.concatenate([y, mean_pool(x)], -1)
            x = relu(pre)
        features |= {f"stage{i + 1}.pre": pre, f"stage{i + 1}": x}
    logits, features["pooled"] = head(x, p["fc"])
    same(outputs, logits, features)


def mean_pool(x):
    return windows(x, 3, 2, 0.0).mean((-2, -1))


@pytest.mark.slow
def test_shufflenet_v2_is_the_papers_forward_pass():
    network = Network.from_nnx(
        lambda rngs: ShuffleNetV2((12, 20), 8, (1, 2), 5, 3, rngs=rngs)
    )
    outputs, p, s, x = run(network, SIDE)
    x = normed(x, p, s, 1)
    features = {"stage0.pre": x, "stage0": relu(x)}
    x = relu(x)
    for i, count in enumerate((1, 2)):
        q, t = part(p, s, "layers", i, 0)
        left = normed(normed(x, q, t, 1, 2, x.shape[-1]), q, t, 2)
        right = relu(normed(x, q, t, 3))
        right = normed(normed(right, q, t, 4, 2, right.shape[-1]), q, t, 5)
        x = shuffle(np.concatenate([relu(left), relu(right)], -1), 2)
        for j in range(count):
            q, t = part(p, s, "layers", i, j + 1)
            beside, y = np.split(x, 2, axis=-1)
            y = relu(normed(y, q, t, 1))
            y = normed(normed(y, q, t, 2, groups=y.shape[-1]), q, t, 3)
            pre = shuffle(np.concatenate([beside, y], -1), 2)
            # The papers' code puts the ReLU on the convolved half alone.
            x = shuffle(np.concatenate([beside, relu(y)], -1), 2)
        features |= {f"stage{i + 1}.pre": pre, f"stage{i + 1}": x}
    logits, features["pooled"] = head(relu(normed(x, p, s, 2)), p["fc"])
    same(outputs, logits, features)
