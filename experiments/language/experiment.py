"""Language models: a Llama teaches a smaller one, by words, by whole texts, by policy.

Word-level methods compare the two networks' next-token distributions through hidden
states and heads (`jaxkd.methods.linear_kd`), sequence-level ones train on text that the
teacher or the student writes (`jaxkd.programs.on_policy`). ``small`` writes Shakespeare
character by character and asks which helps; ``on_policy`` asks it of students that can
write already. ``paper`` has the shapes of Llama 3.1 8B
and Llama 3.2 1B on 256 windows of 4,096 tokens, ``paper_int8`` the same with the
teacher's blocks in 8 bits, and ``paper_70b`` the 70B teacher. ``plain`` is ``paper``
with logits, scores and all activations in memory, which does not fit.
"""

from collections.abc import Sequence
from dataclasses import replace

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
)
from jaxkd import combine, methods
from jaxkd.kernels import linear_distill as divergences
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Run, run_arms

DIVERGENCES = {
    "forward_kl": divergences.forward_kl,
    "reverse_kl": divergences.reverse_kl,
    "jensen_shannon": divergences.jensen_shannon(0.5),
    "skew_kl": divergences.skew_kl(0.1),
    "skew_reverse_kl": divergences.skew_reverse_kl(0.1),
    "total_variation": divergences.total_variation,
}

SETTING, CONTINUED = "tiny_shakespeare", "tiny_shakespeare, continued"
CLAIMS = [
    contrast("forward_kl", "cross_entropy", "nll", setting=SETTING),
    contrast("jensen_shannon", "cross_entropy", "nll", setting=SETTING),
    contrast("forward_kl", "reverse_kl", "nll", setting=SETTING),
    contrast("forward_kl", "cross_entropy", "teacher_kl", setting=SETTING),
    contrast("forward_kl", "seq_kd", "nll", setting=SETTING),
    contrast("hidden", "forward_kl", "nll", setting=SETTING),
    contrast("gkd", "cross_entropy", "reverse_teacher_kl", setting=CONTINUED),
    contrast("minillm", "cross_entropy", "reverse_teacher_kl", setting=CONTINUED),
    contrast("gkd", "seq_kd", "reverse_teacher_kl", setting=CONTINUED),
    contrast("forward_kl", "cross_entropy", "nll", setting=CONTINUED),
]

_LLAMA3_8B = LanguageConfig(
    setting="llama3",
    corpus=CorpusConfig("llama3_tokens", 128_256, 4096, 0, batch_size=256),
    teacher="llama3.1-8b",
    student="llama3.2-1b",
    weights="llama3.1-8b",
    methods=("forward_kl",),
    steps=10_000,
    optimizer=OptimizerConfig("adamw", 1e-4, 1e-4, warmup=500, clip=1.0),
    compute="bfloat16",
)


def word_level(divergence: divergences.Divergence) -> Row:
    """Return a divergence of every token beside the cross-entropy."""
    return method_row(
        lambda config: methods.linear_kd(divergence, label_weight=config.label_weight)
    )


def with_hidden_states(config: LanguageConfig) -> methods.Method:
    """Return forward KL with the cross-entropy and the last hidden states."""
    return combine(
        (
            1.0,
            methods.linear_kd(divergences.forward_kl, label_weight=config.label_weight),
        ),
        (1.0, methods.hidden_kd(["final"], cosine=True)),
    )


ROWS: dict[str, Row] = {
    "cross_entropy": labels_row,
    "logits_kl": method_row(
        lambda config: combine(
            (1.0, methods.kd(1.0)), (config.label_weight, methods.cross_entropy())
        )
    ),
    **{name: word_level(divergence) for name, divergence in DIVERGENCES.items()},
    "hidden": method_row(with_hidden_states),
    "seq_kd": sampled_row(methods.cross_entropy(), teacher_share=1.0),
    "gkd": sampled_row(
        methods.linear_kd(divergences.jensen_shannon(0.5)), student_share=0.5
    ),
    "minillm": sampled_row(methods.minillm(), student_share=1.0, teacher_mixture=0.2),
}
"""The rows by name; ``logits_kl`` is ``forward_kl`` written plainly."""

PRESETS = {
    "small": LanguageConfig(
        methods=(
            "cross_entropy",
            "forward_kl",
            "reverse_kl",
            "jensen_shannon",
            "skew_kl",
            "skew_reverse_kl",
            "hidden",
            "seq_kd",
            "gkd",
        )
    ),
    "on_policy": LanguageConfig(
        setting=CONTINUED,
        start_steps=400,
        optimizer=OptimizerConfig("adamw", 2e-3, 1e-4, warmup=20, clip=1.0),
        methods=("cross_entropy", "forward_kl", "seq_kd", "gkd", "minillm"),
    ),
    "paper": _LLAMA3_8B,
    "paper_int8": replace(_LLAMA3_8B, teacher_bits="int8"),
    "paper_70b": replace(_LLAMA3_8B, teacher="llama3.1-70b", weights="llama3.1-70b"),
    "plain": replace(_LLAMA3_8B, methods=("logits_kl",), plain=True),
}


def run(config: LanguageConfig, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the teacher, or read it, and students by every method."""
    begun = config.start_steps > 0
    return run_arms(language_arms(ROWS), config, seeds, run, anew=begun)


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    full_scale=language_programs(ROWS),
    topology="v5e:16x16",
    mesh="v5e-256",
)
