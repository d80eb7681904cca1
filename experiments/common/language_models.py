"""What experiments with a Llama teaching a smaller one share: sizes, runs, records."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from experiments.common.configs import OptimizerConfig, choose
from experiments.common.corpus import CorpusConfig, read
from jaxkd import distill, methods, models
from jaxkd.compression.quantise.mixed_bits import quantized
from jaxkd.kernels.linear_distill import Divergence
from jaxkd.models.language.rope import RopeScaling
from jaxkd.network import Network
from jaxkd.programs import on_policy
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Method, Program

_LLAMA3 = {"kv_heads": 8, "rope_theta": 500_000.0, "epsilon": 1e-5}
_LONG = {"rope_scaling": RopeScaling(factor=8.0), **_LLAMA3}
_QWEN = {"qkv_bias": True, "rope_theta": 1e6, "epsilon": 1e-6}
SIZES: dict[str, dict[str, Any]] = {
    "chars-32": {"width": 32, "layers": 2, "heads": 2, "hidden": 80},
    "chars-64": {"width": 64, "layers": 2, "heads": 4, "hidden": 160},
    "chars-64x6": {
        "width": 64,
        "layers": 6,
        "heads": 4,
        "kv_heads": 2,
        "hidden": 160,
    },
    "chars-128": {"width": 128, "layers": 4, "heads": 4, "hidden": 320},
    "chars-192": {"width": 192, "layers": 2, "heads": 4, "hidden": 512},
    "chars-256": {"width": 256, "layers": 4, "heads": 4, "hidden": 704},
    "llama-120m": {"width": 768, "layers": 12, "heads": 12, "hidden": 2048},
    "llama-1.5b": {"width": 1600, "layers": 48, "heads": 25, "hidden": 4352},
    "qwen1.5-1.8b": {
        **_QWEN,
        "vocabulary": 151_936,
        "width": 2048,
        "layers": 24,
        "heads": 16,
        "hidden": 5504,
    },
    "qwen1.5-14b": {
        **_QWEN,
        "vocabulary": 152_064,
        "width": 5120,
        "layers": 40,
        "heads": 40,
        "hidden": 13_696,
    },
    "tinyllama-1.1b": {
        "width": 2048,
        "layers": 22,
        "heads": 32,
        "kv_heads": 4,
        "hidden": 5632,
        "epsilon": 1e-5,
    },
    "phi3-mini": {
        "width": 3072,
        "layers": 32,
        "heads": 32,
        "hidden": 8192,
        "epsilon": 1e-5,
    },
    "llama3.2-1b": {
        **_LLAMA3,
        "width": 2048,
        "layers": 16,
        "heads": 32,
        "hidden": 8192,
        "tied": True,
        "rope_scaling": RopeScaling(factor=32.0),
    },
    "llama3.1-8b": {
        **_LONG,
        "width": 4096,
        "layers": 32,
        "heads": 32,
        "hidden": 14_336,
    },
    "llama3.1-70b": {
        **_LONG,
        "width": 8192,
        "layers": 80,
        "heads": 64,
        "hidden": 28_672,
    },
}
"""Arguments of `jaxkd.models.llama`, with the vocabulary where it is not the text's."""


def llama(size: str, vocabulary: int, **how: Any) -> Network:
    """Return a Llama of `SIZES`, and of the text's vocabulary or its own.

    Args:
        size: its name.
        vocabulary: of the text.
        **how: other arguments of `jaxkd.models.llama`.
    """
    return models.llama(**{"vocabulary": vocabulary, **SIZES[size], **how})


@dataclass(frozen=True)
class LanguageConfig:
    """What is trained.

    Attributes:
        setting: the name of the table.
        corpus: the text.
        teacher: a name of `SIZES`.
        student: likewise.
        plain: whether attention's scores and all activations are kept in memory.
        weights: folder of the trained teacher below JAXKD_DATA; empty to train one.
        teacher_bits: what the teacher's blocks are rounded to, such as ``int8``, or "".
        teacher_steps: of its training here.
        start_steps: that every student first learns from the text alone.
        methods: the rows; empty for all.
        label_weight: of the cross-entropy beside a divergence.
        steps: of every student.
        optimizer: of all training.
        prompt: tokens of a window that sampled text continues.
        compute: dtype of the student's passes, and of the teacher.
    """

    setting: str = "tiny_shakespeare"
    corpus: CorpusConfig = CorpusConfig()
    teacher: str = "chars-256"
    student: str = "chars-128"
    plain: bool = False
    weights: str = ""
    teacher_bits: str = ""
    teacher_steps: int = 600
    start_steps: int = 0
    methods: tuple[str, ...] = ()
    label_weight: float = 0.5
    steps: int = 160
    optimizer: OptimizerConfig = OptimizerConfig(
        "adamw", 3e-3, 1e-4, warmup=20, clip=1.0
    )
    prompt: int = 32
    compute: str = "float32"

    def networks(self, vocabulary: int) -> tuple[Network, Network]:
        """Return student and teacher."""
        how: dict[str, Any] = {"remat": True}
        if self.plain:
            how = {"implementation": "reference"}
        student, teacher = (
            llama(name, vocabulary, **how) for name in (self.student, self.teacher)
        )
        return student.computing_in(self.compute), teacher

    def frozen(self, teacher: Network) -> Network:
        """Return the teacher in its dtype, and its blocks in their bits."""
        teacher = teacher.astype(self.compute)
        if not self.teacher_bits:
            return teacher
        return quantized(teacher, [(r"blocks\..*\.kernel", self.teacher_bits)])


Row = Callable[[LanguageConfig, Network, Network], Program]
"""``(config, student, teacher) ->`` the program of a method."""


def method_row(build: Callable[[LanguageConfig], Method]) -> Row:
    """Return the row that distils with a method."""

    def row(config: LanguageConfig, student: Network, teacher: Network) -> Program:
        return distill(
            student, teacher, build(config), config.optimizer.build(config.steps)
        )

    return row


def labels_row(config: LanguageConfig, student: Network, _: Network) -> Program:
    """Return training on the text alone."""
    method = methods.cross_entropy()
    return distill(student, None, method, config.optimizer.build(config.steps))


def word_row(divergence: Divergence) -> Row:
    """Return a divergence of every token alone, from hidden states and heads."""
    return method_row(lambda config: methods.linear_kd(divergence))


def sampled_row(
    method: Method,
    *,
    student_share: float = 0.0,
    teacher_share: float = 0.0,
    teacher_mixture: float = 0.0,
) -> Row:
    """Return a method on windows of which all but the prompt is sampled.

    Args:
        method: any.
        student_share: of the steps, in which the student writes.
        teacher_share: of the steps, in which the teacher does.
        teacher_mixture: of the teacher's probabilities in what the student writes.
    """

    def row(config: LanguageConfig, student: Network, teacher: Network) -> Program:
        program = on_policy(
            student,
            teacher,
            method,
            config.optimizer.build(config.steps),
            max_new_tokens=config.corpus.length - config.prompt,
            student_share=student_share,
            teacher_share=teacher_share,
            teacher_mixture=teacher_mixture,
        )
        return _prompted(program, config.prompt)

    return row


def _prompted(program: Program, prompt: int) -> Program:
    """Return a program that samples answers for windows, whose begin is the prompt."""

    def split(batch: Batch) -> Batch:
        ids = batch["input_ids"]
        first, rest = ids[:, :prompt], ids[:, prompt:]
        return {
            "input_ids": first,
            "attention_mask": jnp.ones_like(first),
            "response_ids": rest,
            "response_mask": jnp.ones_like(rest),
        }

    return program._replace(
        init=lambda key, batch: program.init(key, split(batch)),
        step=lambda state, batch: program.step(state, split(batch)),
    )


def language_arms(
    rows: Mapping[str, Row],
    measure: Callable[[Any, History], Values] = lambda state, history: {},
) -> Callable[[LanguageConfig, Run, int], Iterator[tuple[Arm, Task]]]:
    """Return the arms of an experiment: the teacher, trained or read, and its students.

    Students that begin from the text (``start_steps``) do so with every seed anew, and
    their arms are made for each. The teacher is one for all, a row of the first seed's.

    Args:
        rows: of the table.
        measure: ``(state, evaluations) ->`` metrics beside the usual ones.
    """

    def arms(config: LanguageConfig, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
        chosen = choose("method", config.methods, rows)
        corpus = config.corpus.load()
        student, network = config.networks(corpus.vocabulary)
        if config.weights:
            teacher = read(network, config.weights)
        else:
            steps = config.teacher_steps
            teacher = corpus.learn(run, network, config.optimizer, steps)
        taught = config.frozen(teacher.deployed)
        if seed == 0:
            teacher = replace(teacher, deployed=taught)
            yield teacher, corpus.task(config.setting, config.steps)
        if config.start_steps:
            start = config.optimizer, config.start_steps, "start", 1000 + seed
            student = corpus.learn(run, student, *start).deployed
        task = corpus.task(config.setting, config.steps, taught)
        for name, row in chosen.items():
            program = row(config, student, taught)
            yield Arm(name, program, student, measure=measure), task

    return arms


def language_programs(
    rows: Mapping[str, Row],
) -> Callable[[LanguageConfig], dict[str, tuple[Program, Batch]]]:
    """Return ``config ->`` the step of each of its rows, and its batch's shapes."""

    def full_scale(config: LanguageConfig) -> dict[str, tuple[Program, Batch]]:
        student, teacher = config.networks(config.corpus.vocabulary)
        bits = config.teacher_bits and f" {config.teacher_bits}"
        return {
            f"{config.teacher}{bits}, {config.student}, {name}": (
                row(config, student, config.frozen(teacher)),
                config.corpus.batch(),
            )
            for name, row in choose("method", config.methods, rows).items()
        }

    return full_scale
