"""The paper's graphs, hyper-parameters and numbers, and what can be set of a run."""

from dataclasses import dataclass

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
        weight_decay: of teacher and student, added to the gradient.
        teacher_learning_rate: of the teacher.
    """

    settings: tuple[str, ...]
    methods: tuple[str, ...] = METHODS
    epochs: int = 500
    patience: int = 50
    weight_decay: float = 5e-4
    teacher_learning_rate: float = 0.01


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

_TABLE = {
    "cora-gcn": (0.596, 0.817, 0.822, 0.8406),
    "citeseer-gcn": (0.603, 0.716, 0.717, 0.7385),
    "pubmed-gcn": (0.734, 0.795, 0.802, 0.8162),
    "amazon_photo-gcn": (0.787, 0.906, 0.914, 0.9184),
    "coauthor_cs-gcn": (0.878, 0.900, 0.922, 0.9335),
    "coauthor_physics-gcn": (0.888, 0.925, 0.931, 0.9359),
}

PAPER = {
    f"{setting}/{method}": {"test_accuracy": value}
    for setting, row in _TABLE.items()
    for method, value in zip(("mlp", "teacher", "glnn", "ffg2m"), row, strict=True)
}
"""The paper's means of five seeds, recalled from it and its authors' later work."""
