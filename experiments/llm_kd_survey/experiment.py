"""Distillation of language models: the survey's algorithms side by side.

Xu et al. 2024 (arXiv:2402.13116) order the distillation of language models by what is
taken from the teacher and how the student is trained on it. They run nothing
themselves: reproducing them is having every piece, and one table of those that train a
student on a text.

``small`` writes Shakespeare character by character, ``paper`` has the shapes of GPT-2
1.5B and 120M that MiniLLM and DistiLLM take, as Llamas of those sizes.
"""

from experiments.common.configs import OptimizerConfig
from experiments.common.corpus import CorpusConfig
from experiments.common.language_models import (
    LanguageConfig,
    Row,
    labels_row,
    language_arms,
    language_programs,
    method_row,
    sampled_row,
    word_row,
)
from jaxkd import methods
from jaxkd.kernels import linear_distill as divergences
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment

SETTING = "tiny_shakespeare"
CLAIMS = [
    contrast("forward_kl", "cross_entropy", "teacher_kl", setting=SETTING),
    contrast("forward_kl", "cross_entropy", "agreement", setting=SETTING),
    contrast("forward_kl", "reverse_kl", "teacher_kl", setting=SETTING),
    contrast("reverse_kl", "forward_kl", "reverse_teacher_kl", setting=SETTING),
]


ROWS: dict[str, Row] = {
    "cross_entropy": labels_row,
    **{
        name: word_row(divergence)
        for name, divergence in {
            "forward_kl": divergences.forward_kl,
            "reverse_kl": divergences.reverse_kl,
            "jsd_0.1": divergences.jensen_shannon(0.1),
            "jsd_0.5": divergences.jensen_shannon(0.5),
            "jsd_0.9": divergences.jensen_shannon(0.9),
            "skew_kl": divergences.skew_kl(0.1),
            "skew_reverse_kl": divergences.skew_reverse_kl(0.1),
            "total_variation": divergences.total_variation,
        }.items()
    },
    "akl": method_row(lambda config: methods.akl()),
    "seq_kd": sampled_row(methods.cross_entropy(), teacher_share=1.0),
    "gkd": sampled_row(
        methods.linear_kd(divergences.jensen_shannon(0.5)), student_share=0.5
    ),
}

PRESETS = {
    "small": LanguageConfig(
        corpus=CorpusConfig(test_windows=1024, batch_size=32),
        teacher="chars-192",
        student="chars-32",
        steps=400,
        optimizer=OptimizerConfig("adamw", 4e-3, 1e-4, warmup=20, clip=1.0),
    ),
    "paper": LanguageConfig(
        setting="dolly",
        corpus=CorpusConfig("dolly_tokens", 50_257, 512, 0, batch_size=32),
        teacher="llama-1.5b",
        student="llama-120m",
        weights="llama-1.5b",
        methods=("forward_kl", "skew_reverse_kl"),
        # Twenty epochs of 11,435 answers in batches of 32.
        steps=7140,
        optimizer=OptimizerConfig("adamw", 5e-4, 0.01, warmup=100, clip=1.0),
        prompt=256,
        compute="bfloat16",
    ),
}

EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=language_arms(ROWS),
    claims=CLAIMS,
    full_scale=language_programs(ROWS),
    mesh="fsdp",
)
