"""Language models: a Llama teaches a smaller one, without their logits in memory.

Every method compares the two networks' next-token distributions through hidden states
and heads (`jaxkd.methods.linear_kd`). ``small`` writes Shakespeare character by
character and asks which divergence helps. ``paper`` has the shapes of Llama 3.1 8B and
Llama 3.2 1B on 256 windows of 4,096 tokens, ``paper_int8`` the same with the teacher's
blocks in 8 bits, and ``paper_70b`` the 70B teacher. ``plain`` is ``paper`` with logits,
scores and all activations in memory, which does not fit.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.text import language_records, load_text, train_on_text
from jaxkd import combine, data, distill, methods, models
from jaxkd.checks import unknown_name
from jaxkd.compression.mixed_bits import quantized
from jaxkd.evaluation.claims import exceeds
from jaxkd.evaluation.language import token_evaluator
from jaxkd.evaluation.records import Record
from jaxkd.experiment import Run
from jaxkd.interop import load_pretrained
from jaxkd.kernels import linear_distill as divergences
from jaxkd.models.rope import RopeScaling
from jaxkd.types import Batch, Method, Network, Program

SLICE = "v5e:16x16"
MESH = "v5e-256"

DIVERGENCES = {
    "forward_kl": divergences.forward_kl,
    "reverse_kl": divergences.reverse_kl,
    "jensen_shannon": divergences.jensen_shannon(0.5),
    "skew_kl": divergences.skew_kl(0.1),
    "skew_reverse_kl": divergences.skew_reverse_kl(0.1),
    "total_variation": divergences.total_variation,
}
METHODS = ("cross_entropy", "logits_kl", *DIVERGENCES)

_LLAMA3 = {"kv_heads": 8, "rope_theta": 500_000.0, "epsilon": 1e-5}
_LONG = {"rope_scaling": RopeScaling(factor=8.0), **_LLAMA3}
SIZES: dict[str, dict[str, Any]] = {
    "chars-64": {"width": 64, "layers": 2, "heads": 4, "hidden": 160},
    "chars-128": {"width": 128, "layers": 4, "heads": 4, "hidden": 320},
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

SETTING = "tiny_shakespeare"
# A loss is better below: each claim is that the second method beats the first.
CLAIMS = [
    exceeds("cross_entropy", "forward_kl", "nll", SETTING),
    exceeds("cross_entropy", "jensen_shannon", "nll", SETTING),
    exceeds("reverse_kl", "forward_kl", "nll", SETTING),
]


@dataclass(frozen=True)
class Config:
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
        methods: the rows, names of `METHODS`; ``logits_kl`` is ``forward_kl`` written
            plainly.
        label_weight: of the cross-entropy beside a divergence.
        steps: of every student.
        batch_size: windows.
        learning_rate: of AdamW at its highest, decaying to 0 by a cosine.
        warmup: steps that it rises for.
        compute: dtype of the student's passes, and of the teacher.
    """

    setting: str = SETTING
    text: str = "tiny_shakespeare"
    vocabulary: int = 0
    length: int = 64
    test_windows: int = 512
    teacher: str = "chars-128"
    student: str = "chars-64"
    plain: bool = False
    weights: str = ""
    teacher_bits: str = ""
    teacher_steps: int = 2000
    methods: tuple[str, ...] = ("cross_entropy", *DIVERGENCES)
    label_weight: float = 0.5
    steps: int = 600
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup: int = 50
    compute: str = "float32"

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Return AdamW with clipped gradients, for that many steps."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, self.warmup, steps
        )
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

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


_LLAMA3_8B = Config(
    setting="llama3",
    text="llama3_tokens",
    vocabulary=128_256,
    length=4096,
    test_windows=0,
    teacher="llama3.1-8b",
    student="llama3.2-1b",
    weights="llama3.1-8b",
    methods=("forward_kl",),
    steps=10_000,
    batch_size=256,
    learning_rate=1e-4,
    warmup=500,
    compute="bfloat16",
)

PRESETS = {
    "small": Config(),
    "paper": _LLAMA3_8B,
    "paper_int8": replace(_LLAMA3_8B, teacher_bits="int8"),
    "paper_70b": replace(_LLAMA3_8B, teacher="llama3.1-70b", weights="llama3.1-70b"),
    "plain": replace(_LLAMA3_8B, methods=("logits_kl",), plain=True),
}


def objective(config: Config, name: str) -> Method:
    """Return a method by its name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in METHODS:
        raise ValueError(unknown_name("method", name, METHODS))
    labels = methods.cross_entropy()
    if name == "cross_entropy":
        return labels
    if name == "logits_kl":
        return combine((1.0, methods.kd(1.0)), (config.label_weight, labels))
    return methods.linear_kd(DIVERGENCES[name], label_weight=config.label_weight)


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the teacher, or read it, and students by every method."""
    objectives = {name: objective(config, name) for name in config.methods}
    train, test = load_text(
        config.text, config.length, config.vocabulary, config.test_windows
    )
    student, teacher = config.networks(train.classes)

    fit = functools.partial(
        train_on_text, run, train=train, batch_size=config.batch_size, mesh=MESH
    )

    started = time.perf_counter()
    if config.weights:
        folder = data.data_file(f"{config.weights}/config.json").parent
        variables = load_pretrained(folder)[1]
    else:
        steps = config.teacher_steps
        program = distill(
            teacher, None, methods.cross_entropy(), config.optimizer(steps)
        )
        state, _ = fit(
            program, steps=steps, seed=0, folder=run.folder / "teacher", name="teacher"
        )
        variables = state.student
    taught = config.frozen(teacher.with_variables(variables))
    seconds = time.perf_counter() - started
    records = run.part(
        "teacher scores",
        lambda _: language_records(
            config.setting,
            "teacher",
            0,
            [token_evaluator(taught, test)(taught.init(jax.random.key(0)))],
            seconds,
        ),
    )
    evaluate = token_evaluator(student, test)
    for name, method in objectives.items():
        program = distill(
            student,
            None if name == "cross_entropy" else taught,
            method,
            config.optimizer(config.steps),
        )

        def one(folder: Path, seed: int, name=name, program=program) -> list[Record]:
            started = time.perf_counter()
            measure: Callable[[Any], dict[str, float]]
            measure = lambda state: evaluate(state.student)  # noqa: E731
            _, history = fit(
                program,
                steps=config.steps,
                seed=seed,
                folder=folder,
                name=f"{name} seed {seed}",
                evaluate=measure,
            )
            seconds = time.perf_counter() - started
            return language_records(config.setting, name, seed, history, seconds)

        for seed in seeds:
            records += run.part(
                f"{name}/seed{seed}",
                lambda folder, seed=seed, one=one: one(folder, seed),
            )
    return records


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the step of each method of the preset, and its batch."""
    student, teacher = config.networks(config.vocabulary)
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.length), jnp.int32)
    bits = config.teacher_bits and f" {config.teacher_bits}"
    return {
        f"{config.teacher}{bits}, {config.student}, {name}": (
            distill(
                student,
                config.frozen(teacher),
                objective(config, name),
                config.optimizer(config.steps),
            ),
            {"input_ids": tokens, "label": tokens},
        )
        for name in config.methods
    }
