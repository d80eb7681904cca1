"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass

from experiments.common.classification import ImagesConfig
from experiments.common.configs import CIFAR_SGD, NetworkConfig, OptimizerConfig
from jaxkd.network import Network
from jaxkd.search import ChoiceSpace

Architecture = tuple[int, ...]


@dataclass(frozen=True)
class SearchConfig:
    """How long a search goes on.

    Attributes:
        evaluations: of the score.
        population: of evolution.
        tournament: of evolution.
    """

    evaluations: int
    population: int
    tournament: int


@dataclass(frozen=True)
class Config:
    """What is searched and trained.

    Attributes:
        scored: images of which a batch is scored on.
        choices: blocks that a stage of S1's networks may have.
        widths: channels of the stem and stages of S1's networks and of the teachers.
        cells: of NAS-Bench-201's networks in each stage.
        teacher_depth: of the ResNet that students are scored against.
        search: in S1.
        repeats: of each search in S1, for every seed.
        cell_search: in NAS-Bench-201.
        cell_multiply_adds: most that a cell's network may take.
        timed_student: blocks of the student whose training is timed.
        timed_steps: of its training, from which the whole training's time is reckoned.
        task: images that students are trained on, and for how long.
        optimizer: of their training.
        teachers: depths of the trained teachers.
        students: blocks of the students' stages, such as ``5-5-7``, or ``found`` for
            the search's best and ``median`` for the middle by score.
        methods: that the students are distilled by; empty for all.
    """

    scored: ImagesConfig = ImagesConfig("cifar100", batch_size=32)
    choices: tuple[int, ...] = (1, 3, 5, 7)
    widths: tuple[int, ...] = (16, 16, 32, 64)
    cells: int = 5
    teacher_depth: int = 56
    search: SearchConfig = SearchConfig(24, 8, 4)
    repeats: int = 20
    cell_search: SearchConfig = SearchConfig(40, 10, 4)
    cell_multiply_adds: float = 100e6
    timed_student: tuple[int, ...] = (3, 3, 3)
    timed_steps: int = 5
    task: ImagesConfig = ImagesConfig("digits", epochs=8, evaluate_every=2)
    optimizer: OptimizerConfig = OptimizerConfig("adam", 3e-3)
    teachers: tuple[int, ...] = (20,)
    students: tuple[str, ...] = ("found", "median")
    methods: tuple[str, ...] = ("cross_entropy", "kd", "diswot")

    @property
    def space(self) -> ChoiceSpace:
        """S1: the blocks of each stage of a CIFAR ResNet."""
        return ChoiceSpace(self.choices, 3)

    def resnet(
        self, depth: int | Architecture, classes: int = 100, channels: int = 3
    ) -> Network:
        """Return a student of S1 by its blocks, or a teacher by its depth."""
        shape = {"widths": self.widths, "channels_in": channels}
        return NetworkConfig("cifar_resnet", {"depth": depth, **shape}).build(classes)


PRESETS = {
    "small": Config(),
    "paper": Config(
        scored=ImagesConfig("tfds/cifar100", batch_size=64),
        cell_search=SearchConfig(1000, 36, 8),
        task=ImagesConfig(
            "tfds/cifar100", epochs=240, batch_size=64, evaluate_every=60
        ),
        optimizer=CIFAR_SGD,
        teachers=(56, 110),
        students=("found", "3-3-3", "5-5-7", "7-7-7"),
    ),
}
