"""The configurations: digits, CIFAR-10 at half its resolution, and full scale."""

from dataclasses import dataclass, replace

from experiments.common.classification import ImagesConfig
from experiments.common.configs import NetworkConfig, OptimizerConfig

NETWORKS = {
    **{
        f"mlp{width}": NetworkConfig("mlp", {"features": 64, "widths": (width,)})
        for width in (8, 64, 512)
    },
    **{
        f"resnet{depth}": NetworkConfig("cifar_resnet", {"depth": depth})
        for depth in (8, 14, 20, 32, 56, 110)
    },
}
"""Students and teachers by name."""


@dataclass(frozen=True)
class ScoringConfig:
    """How examples are scored.

    Attributes:
        runs: first weights of the early networks, for EL2N and GraNd.
        steps: of training until they are looked at, a tenth of a whole run.
        evaluations: of the one whole run that forgetting and AUM watch.
        subsets: networks for memorization, each trained on random examples.
        share: of the examples in such a subset.
        chunk: examples whose full gradients are in memory at a time.
    """

    runs: int = 5
    steps: int = 40
    evaluations: int = 20
    subsets: int = 10
    share: float = 0.7
    chunk: int = 256


@dataclass(frozen=True)
class Config:
    """What is pruned and trained.

    Attributes:
        task: the images; every network sees batches of its ``batch_size``.
        train_examples: the whole data set, drawn anew for every seed; 0 for all.
        test_examples: drawn anew for every seed from all images; 0 for the data set's
            own test part.
        network: the student, and the teacher but in the study of capacity.
        optimizer: of every network.
        steps: of every network, whatever the fraction.
        temperature: of distillation.
        fractions: that are kept at random, one table each.
        alphas: rows of those tables.
        rules: of pruning, rows of the other tables without and with a teacher.
        rule_fractions: one table each.
        rule_alpha: the teacher's share there.
        teachers: of the study of capacity.
        teacher_fractions: one table each.
        scoring: of examples.
        ridge_repeats: simulated regressions a seed; 0 for none.
        title: before the tables' names.
    """

    task: ImagesConfig = ImagesConfig(batch_size=64)
    train_examples: int = 0
    test_examples: int = 500
    network: str = "mlp64"
    optimizer: OptimizerConfig = OptimizerConfig("adamw", 1e-2, weight_decay=0.01)
    steps: int = 400
    temperature: float = 4.0
    fractions: tuple[float, ...] = (0.02, 0.05, 0.1, 0.3, 1.0)
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rules: tuple[str, ...] = ()
    rule_fractions: tuple[float, ...] = (0.03, 0.1, 0.3)
    rule_alpha: float = 1.0
    teachers: tuple[str, ...] = ("mlp8", "mlp64", "mlp512")
    teacher_fractions: tuple[float, ...] = (0.03, 0.1, 0.3)
    scoring: ScoringConfig = ScoringConfig()
    ridge_repeats: int = 60
    title: str = ""


# DeepCore's recipe, 200 epochs of CIFAR at a batch size of 128.
FULL = Config(
    task=ImagesConfig("tfds/cifar100", batch_size=128),
    test_examples=0,
    network="resnet32",
    optimizer=OptimizerConfig("sgd", 0.1, weight_decay=5e-4),
    steps=78_000,
    fractions=(0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    rules=("random", "el2n", "grand", "forgetting", "memorization"),
    rule_fractions=(0.1, 0.3, 0.5, 0.7),
    teachers=("resnet14", "resnet20", "resnet32", "resnet56", "resnet110"),
    teacher_fractions=(0.1, 0.3, 0.5),
    scoring=ScoringConfig(10, 7800, 200, 20),
    ridge_repeats=0,
    title="CIFAR-100, ",
)

PRESETS = {
    "small": Config(),
    "cifar": replace(
        FULL,
        task=ImagesConfig("cifar10", 1000, shrink=2, batch_size=64),
        train_examples=5000,
        network="resnet8",
        optimizer=OptimizerConfig("sgd", 0.05, weight_decay=5e-4),
        steps=250,
        fractions=(1.0,),
        alphas=(0.0, 1.0),
        rules=("random", "el2n"),
        rule_fractions=(0.1, 0.3),
        teachers=(),
        scoring=ScoringConfig(3, 25),
        title="5,000 of CIFAR-10, ",
    ),
    "gpu": replace(
        FULL,
        task=ImagesConfig("cifar10", batch_size=128),
        network="resnet20",
        steps=4000,
        fractions=(0.1, 0.3, 1.0),
        alphas=(0.0, 0.5, 1.0),
        rules=("random", "el2n"),
        rule_fractions=(0.1, 0.3),
        teachers=("resnet8", "resnet20", "resnet56"),
        teacher_fractions=(0.1,),
        scoring=ScoringConfig(5, 400),
        title="20,000 of CIFAR-10, ",
    ),
    "paper": FULL,
}
