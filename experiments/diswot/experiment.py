"""DisWOT: students for a teacher found without training any.

Dong, Li, Wei 2023 (arXiv:2303.15678) score an untrained student by how close its
relations between classes and between examples are to an untrained teacher's, and search
with that score.

``small`` scores the 64 CIFAR ResNets of the paper's first space against a ResNet-56 on
real CIFAR-100 crops, compares the order with the accuracies that the authors publish of
all 64 after distillation, and with cheaper scores; evolution and random search look for
the best of them, and of NAS-Bench-201's cells; the search's time is set against the
training it replaces; and the found student is distilled, briefly, on digits. ``paper``
searches with the paper's budget and distils on CIFAR-100.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.common.training import image_batch
from experiments.diswot.config import PRESETS as PRESETS  # read by the runner
from experiments.diswot.config import Config
from experiments.diswot.scoring import CELLS, Images, Proxies, Scorer, depth_space
from experiments.diswot.searching import (
    CELL_SEARCH,
    DEPTH_SEARCH,
    MAIN,
    SETTINGS,
    rank,
    saved_scores,
    search_cells,
    search_depths,
)
from experiments.diswot.students import (
    COST,
    distil_students,
    measure_cost,
    student_program,
)
from jaxkd import data
from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Program

SLICE = "v5e:2x4"

CLAIMS = [
    contrast("diswot", 0.3, "kendall", setting=MAIN),
    contrast("diswot", "depth", "kendall", setting=MAIN),
    contrast(
        "evolution",
        "random",
        "best_score",
        0.05,
        "non-inferiority",
        setting=DEPTH_SEARCH,
        because="half the deviation of the best score from seed to seed",
    ),
    observed("diswot", ">", 180.0, "search_speedup", setting=COST),
]
BEST = (5, 5, 7)
"""The student of S1 that the authors find best after distillation."""

PAPER = {f"{COST}/diswot": {"search_speedup": 180.0}}


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Score, search, time and distil."""
    dataset = data.load(config.dataset)
    images = Images.of(dataset)
    scorer = Scorer(config, images, depth_space(config))
    proxies = Proxies(config, images)
    records = []
    for setting in SETTINGS:
        for seed in seeds:

            def ranking(folder: Path, setting=setting, seed=seed) -> list[Record]:
                return rank(config, dataset, scorer, proxies, setting, seed, folder)

            records += run.part(f"{setting}/seed{seed}", ranking)
    scores = {seed: saved_scores(config, run, seed) for seed in seeds}
    for seed in seeds:
        records += run.part(
            f"{DEPTH_SEARCH}/seed{seed}",
            lambda folder, seed=seed: search_depths(config, seed, scores[seed]),
        )
    cells = Scorer(config, images, CELLS)
    for seed in seeds:
        records += run.part(
            f"{CELL_SEARCH}/seed{seed}",
            lambda folder, seed=seed: search_cells(
                config, dataset, cells, seed, folder
            ),
        )
    records += run.part(COST, lambda folder: measure_cost(config, dataset))
    return records + distil_students(config, seeds, run, scores[seeds[0]])


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return L_DisWOT† of the best distilled student with each teacher."""
    images = Images(32, 3, 100)
    return {
        f"resnet{depth}-{'-'.join(map(str, BEST))}": (
            student_program(config, images, BEST, depth),
            image_batch(config.batch_size, images.side),
        )
        for depth in config.teachers
    }
