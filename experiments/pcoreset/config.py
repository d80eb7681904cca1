"""The configurations: a minute on digits, and the paper's two full-scale settings."""

from dataclasses import dataclass, replace
from typing import Literal

from experiments.common.configs import NetworkConfig, OptimizerConfig

STUDENTS = {
    "mlp": (NetworkConfig("mlp", {"features": 64, "widths": (64, 64)}), 64),
    "resnet18": (NetworkConfig("imagenet_resnet", {"depth": 18}), 512),
    "resnet50": (NetworkConfig("imagenet_resnet", {"depth": 50}), 2048),
}
"""The students' networks and their pooled features."""

CLASSES = {"digits": 10, "caltech101": 102, "imagenet2012": 1000}
"""Of the presets' data sets."""


@dataclass(frozen=True)
class Config:
    """One setting of active learning.

    Attributes:
        dataset: ``digits``, or a name in tensorflow-datasets.
        student: a key of ``STUDENTS``.
        weights: of the pre-trained student below ``$JAXKD_DATA``; empty for none.
        embeddings: of the images by a vision-language model, likewise; empty for the
            random projection that stands for one on digits.
        teachers: ``zero-shot`` and ``few-shot``; each has a table.
        ce_shares: α of each teacher's students when they are tested.
        kd_temperature: β when they are tested. Selection always uses α = ½, β = 1.
        methods: rows of the tables, training + selection; empty for all.
        rounds: of labelling, after the round on the first labels.
        labels_per_class: at the start.
        queries: labels asked for in a round; 0 for as many as classes.
        candidates: unlabelled examples, drawn at random, that a selection sees; 0: all.
        batch_size: of labelled examples, and again of unlabelled ones.
        length: of a round's training, in ``unit``.
        unit: steps, or passes over the labelled or the unlabelled examples.
        optimizer: of a round's training.
        scale: of the teacher's cosines.
        clap_passes: of the few-shot teacher over the labelled examples.
        clap_batch_size: likewise.
        checkpoint_every: steps of a round's training; 0 for its end only.
    """

    dataset: str = "digits"
    student: str = "mlp"
    weights: str = ""
    embeddings: str = ""
    teachers: tuple[str, ...] = ("zero-shot", "few-shot")
    ce_shares: tuple[float, ...] = (0.5, 0.5)
    kd_temperature: float = 1.0
    methods: tuple[str, ...] = ()
    rounds: int = 6
    labels_per_class: int = 1
    queries: int = 0
    candidates: int = 0
    batch_size: int = 32
    length: int = 300
    unit: Literal["steps", "labelled", "unlabelled"] = "steps"
    optimizer: OptimizerConfig = OptimizerConfig("adamw", 3e-3, 0.01, "constant")
    scale: float = 12.0
    clap_passes: int = 300
    clap_batch_size: int = 32
    checkpoint_every: int = 0

    def steps(self, labelled: int, unlabelled: int) -> int:
        """Return the steps of a round with so many examples of each kind."""
        if self.unit == "steps":
            return self.length
        examples = {"labelled": labelled, "unlabelled": unlabelled}[self.unit]
        return max(self.length * examples // self.batch_size, 1)


_TEN_DATA_SETS = Config(
    dataset="caltech101",
    student="resnet18",
    weights="weights/resnet18.npz",
    embeddings="embeddings/caltech101-clip-rn50.npz",
    rounds=15,
    batch_size=64,
    length=200,
    unit="labelled",
    optimizer=OptimizerConfig("adamw", 1e-3, 0.01, "linear", warmup=0.1),
    scale=100.0,
    clap_batch_size=64,
    checkpoint_every=1000,
)

PRESETS = {
    "small": Config(),
    "paper": _TEN_DATA_SETS,
    "imagenet": replace(
        _TEN_DATA_SETS,
        dataset="imagenet2012",
        student="resnet50",
        weights="weights/dino_resnet50.npz",
        embeddings="embeddings/imagenet2012-clip-rn50.npz",
        ce_shares=(0.4, 0.2),
        kd_temperature=0.5,
        rounds=8,
        candidates=100_000,
        batch_size=256,
        length=20,
        unit="unlabelled",
        optimizer=OptimizerConfig("adamw", 1e-3, 0.01, "cosine"),
    ),
}
