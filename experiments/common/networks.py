"""Pairs of networks by name: digits, small CIFAR, and the CIFAR-100 benchmarks'."""

from dataclasses import dataclass
from typing import Any

from experiments.common.configs import NetworkConfig
from jaxkd.network import Network


@dataclass(frozen=True)
class PairSpec:
    """A teacher and a student.

    Attributes:
        teacher: the network to learn from.
        student: the network to train.
        stages: taps of both networks' convolutional stages, shallow to deep; none if
            the student has none, or none of the teacher's size.
        branched: arguments of ``one_cnn`` for a branched student; None without one.
        dkd_beta: DKD's weight of the other classes, which its authors set by pair.
        learning_rate: of the student's and teacher's SGD, as a share of the
            configuration's: the benchmarks train depthwise networks at a fifth.
    """

    teacher: NetworkConfig
    student: NetworkConfig
    stages: tuple[str, ...] = ()
    branched: dict[str, Any] | None = None
    dkd_beta: float = 8.0
    learning_rate: float = 1.0

    def networks(self, classes: int) -> tuple[Network, Network]:
        """Return student and teacher."""
        return self.student.build(classes), self.teacher.build(classes)


THREE = ("stage1", "stage2", "stage3")
FOUR = (*THREE, "stage4")
X4 = {"widths": (32, 64, 128, 256)}
DIGITS_CNN = {"channels": (8, 16, 32)}


def _resnet(depth: int, **arguments: Any) -> NetworkConfig:
    return NetworkConfig("cifar_resnet", {"depth": depth, **arguments})


def _wrn(depth: int, width: int) -> NetworkConfig:
    return NetworkConfig("wide_resnet", {"depth": depth, "width": width})


PAIRS = {
    # Digits.
    "mlp": PairSpec(
        NetworkConfig("mlp", {"features": 64, "widths": (256, 256)}),
        NetworkConfig("mlp", {"features": 64, "widths": (16,)}),
    ),
    "cnn": PairSpec(
        NetworkConfig("cnn", {**DIGITS_CNN, "depth": 3}),
        NetworkConfig("cnn", {**DIGITS_CNN, "depth": 1}),
        ("stage0", "stage1", "stage2"),
        branched=DIGITS_CNN,
    ),
    # CIFAR at half its resolution.
    "resnet20-resnet8": PairSpec(_resnet(20), _resnet(8), THREE, dkd_beta=2.0),
    "resnet20-vit": PairSpec(
        _resnet(20),
        NetworkConfig("vit", {"size": (64, 4, 4), "image_size": 16, "patch_size": 4}),
        dkd_beta=8.0,
    ),
    # The benchmarks' pairs on CIFAR-100.
    "resnet56-resnet20": PairSpec(_resnet(56), _resnet(20), THREE, dkd_beta=2.0),
    "resnet110-resnet32": PairSpec(_resnet(110), _resnet(32), THREE, dkd_beta=2.0),
    "resnet32x4-resnet8x4": PairSpec(_resnet(32, **X4), _resnet(8, **X4), THREE),
    "wrn40_2-wrn16_2": PairSpec(_wrn(40, 2), _wrn(16, 2), THREE, dkd_beta=6.0),
    "wrn40_2-wrn40_1": PairSpec(_wrn(40, 2), _wrn(40, 1), THREE, dkd_beta=6.0),
    "vgg13-vgg8": PairSpec(
        NetworkConfig("vgg", {"depth": 13}),
        NetworkConfig("vgg", {"depth": 8}),
        FOUR,
        dkd_beta=6.0,
    ),
    "resnet50-mobilenet_v2": PairSpec(
        NetworkConfig("imagenet_resnet", {"depth": 50, "stem": "cifar"}),
        NetworkConfig("mobilenet_v2", {}),
        FOUR,
        learning_rate=0.2,
    ),
    "resnet32x4-shufflenet_v1": PairSpec(
        _resnet(32, **X4), NetworkConfig("shufflenet_v1", {}), THREE, learning_rate=0.2
    ),
    "resnet32x4-shufflenet_v2": PairSpec(
        _resnet(32, **X4), NetworkConfig("shufflenet_v2", {}), THREE, learning_rate=0.2
    ),
}
"""Pairs by name, teacher first; FSP needs pairs of equal widths."""

PAPER_PAIRS = tuple(list(PAIRS)[4:])
"""The pairs of the CIFAR-100 benchmarks."""

PAIRS |= {
    "resnet110-resnet20": PairSpec(_resnet(110), _resnet(20), THREE),
    "mlp8": PairSpec(
        NetworkConfig("mlp", {"features": 64, "widths": (128,)}),
        NetworkConfig("mlp", {"features": 64, "widths": (8,)}),
    ),
}
