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
from jaxkd.reporting.claims import at_most, every_seed_above, exceeds, not_below
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record

Config = digits.Config | answers.Config

PRESETS = {"small": digits.Config(), "paper": answers.Config()}
SLICE = "v5p:4x4x8"
MESH = "fsdp"

CLAIMS = [
    # An error is better below: each claim is that the second method beats the first.
    exceeds("direct", "first_log", "ece10", errors=0.0),
    exceeds("sft", "direct", "ece10", errors=0.0),
    exceeds("teacher", "sft", "ece10", errors=0.0),
    exceeds("sft", "first_log", "ece10"),
    not_below("first_log", "direct", "last_accuracy"),
    every_seed_above("teacher", "top5_mass", 0.95),
    at_most("top5", "all_logits", "bytes", 0.5, "an example on disk"),
    every_seed_above("first_log", "kept_best", 0.99),
    every_seed_above("first_probability", "kept_best", 0.99),
]


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train a teacher, or read its cache, and students of all methods."""
    if isinstance(config, digits.Config):
        return digits.run(config, seeds, run)
    return answers.run(config, seeds, run)


full_scale = answers.full_scale
