"""The paper's graphs and hyper-parameters, and what can be set of a run."""

from dataclasses import dataclass

from experiments.common.configs import OptimizerConfig

TEACHERS = {"gcn": "gcn", "sage": "graphsage", "gat": "gat"}
"""Models of ``jaxkd.models`` by the names of the settings."""

PUBLIC_SPLIT = ("cora", "citeseer", "pubmed")
"""Graphs with the split everybody uses; of the others one is drawn with every seed."""


@dataclass(frozen=True)
class Setting:
    """The hyper-parameters of one graph and teacher, as the authors' code has them.

    Attributes:
        layers: of teacher and student alike.
        hidden: the width of their inner layers.
        student_dropout: of the student.
        teacher_dropout: of the teacher.
        temperature: τ of the high-frequency term.
        label_weight: λ.
        learning_rate: of the student; the teacher's is 0.01.
    """

    layers: int
    hidden: int
    student_dropout: float
    teacher_dropout: float
    temperature: float
    label_weight: float
    learning_rate: float = 0.01


SETTINGS = {
    "cora-gcn": Setting(3, 512, 0.6, 0.5, 1.5, 0.4),
    "cora-sage": Setting(3, 512, 0.4, 0.3, 1.3, 0.5),
    "cora-gat": Setting(3, 1024, 0.3, 0.6, 1.2, 0.5),
    "citeseer-gcn": Setting(2, 256, 0.5, 0.5, 1.5, 0.1),
    "citeseer-sage": Setting(2, 1024, 0.5, 0.5, 1.2, 0.1),
    "citeseer-gat": Setting(2, 2048, 0.4, 0.5, 1.0, 0.1),
    "pubmed-gcn": Setting(2, 1024, 0.3, 0.6, 1.5, 0.0),
    "pubmed-sage": Setting(2, 2048, 0.6, 0.3, 1.3, 0.0),
    "pubmed-gat": Setting(2, 2048, 0.3, 0.5, 1.2, 0.0),
    "amazon_photo-gcn": Setting(3, 2048, 0.5, 0.6, 1.3, 0.1, 0.001),
    "amazon_photo-sage": Setting(3, 1024, 0.4, 0.4, 1.5, 0.2, 0.001),
    "amazon_photo-gat": Setting(3, 256, 0.3, 0.3, 1.4, 0.3, 0.001),
    "coauthor_cs-gcn": Setting(2, 1024, 0.5, 0.6, 1.5, 0.3),
    "coauthor_cs-sage": Setting(2, 256, 0.6, 0.3, 1.4, 0.5),
    "coauthor_cs-gat": Setting(2, 128, 0.4, 0.5, 1.1, 0.3),
    "coauthor_physics-gcn": Setting(2, 2048, 0.3, 0.4, 1.2, 0.2),
    "coauthor_physics-sage": Setting(2, 1024, 0.5, 0.6, 1.1, 0.5),
    "coauthor_physics-gat": Setting(2, 256, 0.3, 0.4, 1.4, 0.3),
}
"""By graph and teacher."""

METHODS = ("mlp", "glnn", "low", "high", "ffg2m")
"""Students: on labels alone, node by node, with either of FF-G2M's terms, and both."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        settings: names of `SETTINGS`.
        methods: names of `METHODS`.
        epochs: at most; the whole graph is one step.
        patience: epochs without a better validation accuracy after which to stop.
        optimizer: of the teacher; the students' rates are their settings'.
    """

    settings: tuple[str, ...]
    methods: tuple[str, ...] = METHODS
    epochs: int = 500
    patience: int = 50
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.01, weight_decay=5e-4, schedule="constant"
    )


QUICK = ("cora-gcn", "cora-sage", "citeseer-gcn", "citeseer-sage")
"""Settings that are small enough for ten seeds and every student."""

MEDIUM = ("cora-gat", "citeseer-gat", "coauthor_cs-sage", "coauthor_cs-gat")
"""Those whose runs take about a minute or less: ten seeds, without the terms alone."""

_ROWS = ("mlp", "glnn", "ffg2m")
"""The students of the paper's table."""

PRESETS = {
    "small": Config(
        settings=("cora-gcn", "citeseer-gcn"),
        methods=("mlp", "glnn", "low", "ffg2m"),
        epochs=200,
    ),
    "paper": Config(settings=QUICK),
    "medium": Config(settings=MEDIUM, methods=_ROWS),
    # Pubmed's features are not part of the data that the others are in: ask for its
    # settings by name.
    "large": Config(
        settings=tuple(
            name
            for name in SETTINGS
            if name not in QUICK + MEDIUM and not name.startswith("pubmed")
        ),
        methods=_ROWS,
    ),
}
