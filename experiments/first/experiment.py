"""FIRST: a teacher's five best tokens, made reliable before the student learns them.

Shum et al. 2024 (arXiv:2408.12168) find fine-tuned language models too sure of their
best token. They keep a teacher's five best tokens, which hold nearly all of its mass,
find one temperature by its calibration error on held-out data, and train students on
the result, which are as accurate as the teacher's and more reliable.

``small`` has noisy digits, an over-confident perceptron and five of ten classes.
``paper`` trains Qwen1.5 1.8B on Alpaca's answers from a cache of the 7B model.
"""

from collections.abc import Sequence

from experiments.first import answers, digits
from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Run, run_arms

declare(
    validation_ece10=Metric("validation ECE₁₀ %", higher_is_better=False),
    kept_best=Metric("kept its best %"),
    top5_mass=Metric("top-5 mass %"),
)

Config = digits.Config | answers.Config

CLAIMS = [
    contrast("first_log", "direct", "ece10"),
    contrast("direct", "sft", "ece10"),
    contrast("sft", "teacher", "ece10"),
    contrast("first_log", "sft", "ece10"),
    contrast(
        "first_log",
        "direct",
        "last_accuracy",
        0.015,
        "non-inferiority",
        because="one standard error of an earlier trial",
    ),
    contrast("teacher", 0.95, "top5_mass", lower=False),
    observed(
        "top5", "<=", 0.5 * cell("all_logits"), "bytes", setting="an example on disk"
    ),
    observed("first_log", ">", 0.99, "kept_best"),
    observed("first_probability", ">", 0.99, "kept_best"),
]


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train a teacher of every seed's images, or read its cache, and students."""
    if isinstance(config, digits.Config):
        return run_arms(digits.arms, config, seeds, run, anew=True)
    return run_arms(answers.arms, config, seeds, run)


EXPERIMENT = Experiment(
    presets={"small": digits.Config(), "paper": answers.Config()},
    run=run,
    claims=CLAIMS,
    full_scale=answers.full_scale,
    topology="v5p:4x4x8",
    mesh="fsdp",
    seeds={"small": 5},
    varies=("teacher", "split", "student", "order"),
)
