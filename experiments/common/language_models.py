"""What experiments with a Llama teaching a smaller one share: sizes, runs, records."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common.text import language_records, load_text, train_on_text
from jaxkd import data, distill, methods, models
from jaxkd.checks import unknown_name
from jaxkd.compression.quantise.mixed_bits import quantized
from jaxkd.evaluation.language import fidelity_evaluator, token_evaluator
from jaxkd.interop import load_pretrained
from jaxkd.kernels.linear_distill import Divergence
from jaxkd.models.language.rope import RopeScaling
from jaxkd.network import Network
from jaxkd.programs import on_policy
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Method, Program, Variables

SLICE = "v5e:16x16"
MESH = "v5e-256"

_LLAMA3 = {"kv_heads": 8, "rope_theta": 500_000.0, "epsilon": 1e-5}
_LONG = {"rope_scaling": RopeScaling(factor=8.0), **_LLAMA3}
SIZES: dict[str, dict[str, Any]] = {
    "chars-32": {"width": 32, "layers": 2, "heads": 2, "hidden": 80},
    "chars-64": {"width": 64, "layers": 2, "heads": 4, "hidden": 160},
    "chars-128": {"width": 128, "layers": 4, "heads": 4, "hidden": 320},
    "chars-192": {"width": 192, "layers": 2, "heads": 4, "hidden": 512},
    "chars-256": {"width": 256, "layers": 4, "heads": 4, "hidden": 704},
    "llama-120m": {"width": 768, "layers": 12, "heads": 12, "hidden": 2048},
    "llama-1.5b": {"width": 1600, "layers": 48, "heads": 25, "hidden": 4352},
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
"""Arguments of `jaxkd.models.llama` but the vocabulary."""


@dataclass(frozen=True)
class LanguageConfig:
    """What is trained.

    Attributes:
        setting: the name of the table.
        text: ``tiny_shakespeare``, or a folder of token files below JAXKD_DATA.
        vocabulary: of the token files.
        length: tokens of a window.
        test_windows: to evaluate on; 0 for all.
        teacher: a name of `SIZES`.
        student: likewise.
        plain: whether attention's scores and all activations are kept in memory.
        weights: folder of the trained teacher below JAXKD_DATA; empty to train one.
        teacher_bits: what the teacher's blocks are rounded to, such as ``int8``, or "".
        teacher_steps: of its training here.
        start_steps: that every student first learns from the text alone.
        methods: the rows.
        label_weight: of the cross-entropy beside a divergence.
        steps: of every student.
        batch_size: windows.
        learning_rate: of AdamW at its highest, decaying to 0 by a cosine.
        warmup: steps that it rises for.
        weight_decay: of AdamW.
        prompt: tokens of a window that sampled text continues.
        compute: dtype of the student's passes, and of the teacher.
    """

    setting: str = "tiny_shakespeare"
    text: str = "tiny_shakespeare"
    vocabulary: int = 0
    length: int = 64
    test_windows: int = 512
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
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup: int = 20
    weight_decay: float = 1e-4
    prompt: int = 32
    compute: str = "float32"

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Return AdamW with clipped gradients, for that many steps."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, self.warmup, steps
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(rate, weight_decay=self.weight_decay),
        )

    def networks(self, vocabulary: int) -> tuple[Network, Network]:
        """Return student and teacher."""
        how: dict[str, Any] = {"remat": True}
        if self.plain:
            how = {"implementation": "reference"}
        student, teacher = (
            models.llama(vocabulary, **SIZES[name], **how)
            for name in (self.student, self.teacher)
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
        return distill(student, teacher, build(config), config.optimizer(config.steps))

    return row


def labels_row(config: LanguageConfig, student: Network, _: Network) -> Program:
    """Return training on the text alone."""
    method = methods.cross_entropy()
    return distill(student, None, method, config.optimizer(config.steps))


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
            config.optimizer(config.steps),
            max_new_tokens=config.length - config.prompt,
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


def check_methods(config: LanguageConfig, rows: Mapping[str, Row]) -> None:
    """Refuse methods that are no rows.

    Raises:
        ValueError: it names the rows that there are.
    """
    for name in config.methods:
        if name not in rows:
            raise ValueError(unknown_name("method", name, rows))


def run_language(
    config: LanguageConfig,
    rows: Mapping[str, Row],
    seeds: Sequence[int],
    run: Run,
    further: Callable[[list[dict[str, Any]]], dict[str, float]] = lambda history: {},
) -> list[Record]:
    """Train the teacher, or read it, and students by every method.

    Args:
        config: of the preset.
        rows: of the table; those of ``config.methods`` are run.
        seeds: of the students and the order of their windows.
        run: keeps checkpoints and records.
        further: a student's evaluations ``->`` metrics beside the usual ones.
    """
    check_methods(config, rows)
    train, test = load_text(
        config.text, config.length, config.vocabulary, config.test_windows
    )
    student, teacher = config.networks(train.classes)
    fit = functools.partial(
        train_on_text, run, train=train, batch_size=config.batch_size, mesh=MESH
    )

    def from_text(network: Network, steps: int, seed: int, name: str) -> Variables:
        """Return what training on the text alone makes of a network."""
        method, folder = methods.cross_entropy(), run.folder / name
        program = distill(network, None, method, config.optimizer(steps))
        state, _ = fit(program, steps=steps, seed=seed, folder=folder, name=name)
        return state.student

    started = time.perf_counter()
    if config.weights:
        folder = data.data_file(f"{config.weights}/config.json").parent
        variables = load_pretrained(folder)[1]
    else:
        variables = from_text(teacher, config.teacher_steps, 0, "teacher")
    taught = config.frozen(teacher.with_variables(variables))
    frozen = taught.init(jax.random.key(0))
    seconds = time.perf_counter() - started
    records = run.part(
        "teacher scores",
        lambda _: language_records(
            config.setting,
            "teacher",
            0,
            [token_evaluator(taught, test)(frozen)],
            seconds,
        ),
    )

    @functools.cache
    def beginner(seed: int) -> Network:
        """Return the student as it is before it is taught."""
        if not config.start_steps:
            return student
        name = f"start/seed{seed}"
        learnt = from_text(student, config.start_steps, 1_000 + seed, name)
        return student.with_variables(learnt)

    @functools.cache
    def program(name: str, student: Network) -> Program:
        return rows[name](config, student, taught)

    evaluate = token_evaluator(student, test)
    fidelity = fidelity_evaluator(student, taught, frozen, test)

    def one(folder: Path, seed: int, name: str) -> list[Record]:
        student = beginner(seed)
        started = time.perf_counter()

        def measure(state: Any) -> dict[str, float]:
            return {**evaluate(state.student), **fidelity(state.student)}

        _, history = fit(
            program(name, student),
            steps=config.steps,
            seed=seed,
            folder=folder,
            name=f"{name} seed {seed}",
            evaluate=measure,
        )
        seconds = time.perf_counter() - started
        history[-1] |= further(history)
        return language_records(config.setting, name, seed, history, seconds)

    for name in config.methods:
        for seed in seeds:
            records += run.part(
                f"{name}/seed{seed}",
                lambda folder, seed=seed, name=name: one(folder, seed, name),
            )
    return records


def language_programs(
    config: LanguageConfig, rows: Mapping[str, Row]
) -> dict[str, tuple[Program, Batch]]:
    """Return the step of each method of a preset, and the shapes of its batch."""
    check_methods(config, rows)
    student, teacher = config.networks(config.vocabulary)
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.length), jnp.int32)
    bits = config.teacher_bits and f" {config.teacher_bits}"
    return {
        f"{config.teacher}{bits}, {config.student}, {name}": (
            rows[name](config, student, config.frozen(teacher)),
            {"input_ids": tokens, "label": tokens},
        )
        for name in config.methods
    }
