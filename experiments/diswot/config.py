"""What can be set of a run, and the settings by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """What is searched and trained.

    Attributes:
        dataset: scored on; a name of ``jaxkd.data.DATASETS``.
        choices: blocks that a stage of S1's networks may have.
        widths: channels of S1's stem and stages, and of the teacher's.
        cells: of NAS-Bench-201's networks in each stage.
        scored_examples: in the batch that scores are made of.
        teacher_depth: of the ResNet that students are scored against.
        evaluations: of a search in S1.
        population: of its evolution.
        tournament: of its evolution.
        repeats: of each search, for every seed.
        cell_evaluations: of a search in NAS-Bench-201.
        cell_population: of its evolution.
        cell_tournament: of its evolution.
        cell_multiply_adds: most that a cell's network may take.
        timed_student: blocks of the student whose training is timed.
        timed_steps: of its training, from which the whole training's time is reckoned.
        distilled_dataset: what students are trained on.
        teachers: depths of the trained teachers.
        students: blocks of the students' stages, such as ``5-5-7``, or ``found`` for
            the search's best and ``median`` for the middle by score.
        methods: that the students are distilled by.
        epochs: of students and teachers.
        batch_size: of their training.
        learning_rate: of their training, by SGD with milestones, or else Adam.
        milestones: epochs after which the rate of SGD is a tenth; empty for Adam.
    """

    dataset: str = "cifar100"
    choices: tuple[int, ...] = (1, 3, 5, 7)
    widths: tuple[int, ...] = (16, 16, 32, 64)
    cells: int = 5
    scored_examples: int = 32
    teacher_depth: int = 56
    evaluations: int = 24
    population: int = 8
    tournament: int = 4
    repeats: int = 20
    cell_evaluations: int = 40
    cell_population: int = 10
    cell_tournament: int = 4
    cell_multiply_adds: float = 100e6
    timed_student: tuple[int, ...] = (3, 3, 3)
    timed_steps: int = 5
    distilled_dataset: str = "digits"
    teachers: tuple[int, ...] = (20,)
    students: tuple[str, ...] = ("found", "median")
    methods: tuple[str, ...] = ("cross_entropy", "kd", "diswot")
    epochs: int = 8
    batch_size: int = 50
    learning_rate: float = 3e-3
    milestones: tuple[int, ...] = ()


PRESETS = {
    "small": Config(),
    "paper": Config(
        dataset="tfds/cifar100",
        scored_examples=64,
        cell_evaluations=1000,
        cell_population=36,
        cell_tournament=8,
        distilled_dataset="tfds/cifar100",
        teachers=(56, 110),
        students=("found", "3-3-3", "5-5-7", "7-7-7"),
        epochs=240,
        batch_size=64,
        learning_rate=0.05,
        milestones=(150, 180, 210),
    ),
}
