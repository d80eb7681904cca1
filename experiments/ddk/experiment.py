"""DDK: more of the domains in which the student lags behind its teacher.

Liu et al. 2024 (arXiv:2407.16154) measure the perplexities of student and teacher in
every domain, and draw the text of the next interval by their ratios, smoothly updated.
They report a Qwen1.5 1.8B taught by a 14B at 55.41 on eleven benchmarks, against 52.87
without the domains' weights.

``small`` has four real domains of unequal sizes in bytes: Shakespeare, news, Python's
standard library and Wikipedia. ``paper`` has the shapes of Qwen1.5 14B and 1.8B, ten
domains, and 30 intervals of 1,000 steps.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.ddk.domains import Domains, read_domains
from experiments.ddk.measures import (
    SYNTHETIC,
    gains,
    ratios,
    synthetic_records,
    weight_metrics,
)
from jaxkd import data, distill, methods, models, training
from jaxkd.evaluation.language import domain_evaluator
from jaxkd.interop import load_pretrained
from jaxkd.methods.shared_vocabulary import shared_vocabulary
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Method, Program, Variables

SLICE = "v5e:16x16"
MESH = "v5e-256"
METHODS = ("cpt", "kd", "kd_equal", "ddk_unsmoothed", "ddk")

_QWEN = {"qkv_bias": True, "rope_theta": 1e6, "epsilon": 1e-6}
SIZES: dict[str, dict[str, Any]] = {
    "bytes-32": {"width": 32, "layers": 2, "heads": 2, "hidden": 80},
    "bytes-192": {"width": 192, "layers": 2, "heads": 4, "hidden": 512},
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
}
"""Arguments of `jaxkd.models.llama`; the vocabulary is the domains' where it is not."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        domains: their names.
        corpus: folder of their token files below JAXKD_DATA; empty for texts in bytes.
        vocabulary: of the tokens.
        sizes: tokens of each domain's training text; empty for all.
        length: tokens of a window.
        validation_windows: of each domain, for the sampler.
        test_windows: of each domain, for the tables.
        teacher: a name of `SIZES`.
        student: likewise.
        teacher_weights: folder of the trained teacher below JAXKD_DATA; empty to train
            one, on all domains alike.
        student_weights: likewise of the student, which is trained on them by size.
        teacher_steps: of its training here.
        student_steps: likewise.
        gammas: weights of the divergence, a table each.
        alpha: of the smooth updating.
        interval: steps between two updates.
        intervals: how many.
        methods: the rows, names of `METHODS`.
        batch_size: windows.
        learning_rate: of AdamW at its highest, decaying by a cosine to a tenth.
        warmup: steps that it rises for.
        compute: dtype of the student's passes, and of the teacher.
    """

    domains: tuple[str, ...] = ("shakespeare", "ag_news", "python", "wikitext")
    corpus: str = ""
    vocabulary: int = 256
    sizes: tuple[int, ...] = (600_000, 250_000, 100_000, 50_000)
    length: int = 64
    validation_windows: int = 128
    test_windows: int = 256
    teacher: str = "bytes-192"
    student: str = "bytes-32"
    teacher_weights: str = ""
    student_weights: str = ""
    teacher_steps: int = 800
    student_steps: int = 150
    gammas: tuple[float, ...] = (0.2, 1.0)
    alpha: float = 0.5
    interval: int = 30
    intervals: int = 10
    methods: tuple[str, ...] = METHODS
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup: int = 20
    compute: str = "float32"

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Return AdamW with clipped gradients, for that many steps."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, self.warmup, steps, self.learning_rate / 10
        )
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

    def network(self, name: str) -> Network:
        """Return a network of `SIZES`."""
        return models.llama(
            **{"vocabulary": self.vocabulary, **SIZES[name]}, remat=bool(self.corpus)
        )

    def networks(self) -> tuple[Network, Network]:
        """Return student and teacher."""
        student = self.network(self.student).computing_in(self.compute)
        return student, self.network(self.teacher).astype(self.compute)


PRESETS = {
    "small": Config(),
    "paper": Config(
        domains=(
            "common_crawl",
            "c4",
            "the_stack",
            "wikipedia",
            "books",
            "arxiv",
            "stack_exchange",
            "chinese_books",
            "chinese_common_crawl",
            "open_web_math",
        ),
        corpus="ddk",
        vocabulary=151_936,
        sizes=(),
        length=2048,
        validation_windows=500,
        test_windows=0,
        teacher="qwen1.5-14b",
        student="qwen1.5-1.8b",
        teacher_weights="qwen1.5-14b",
        student_weights="qwen1.5-1.8b",
        gammas=(0.2,),
        interval=1000,
        intervals=30,
        batch_size=256,
        learning_rate=3e-5,
        warmup=1000,
        compute="bfloat16",
    ),
}


def setting(gamma: float) -> str:
    """Return a table's name."""
    return f"γ = {gamma:g}"


CLAIMS = [
    claim
    for gamma in PRESETS["small"].gammas
    for claim in (
        contrast("ddk", 0.0, "worst_gain", setting=setting(gamma)),
        observed("ddk", ">", -1e-6, "weight_slack", setting=setting(gamma)),
        contrast("ddk", 0.25, "hardest_share", setting=setting(gamma), lower=False),
    )
] + [
    contrast("ddk", "ddk_unsmoothed", "weight_change", setting=name, lower=True)
    for name in SYNTHETIC
]

Weights = Callable[[Sequence[Mapping[str, Any]]], Any]


def objective(config: Config, gamma: float) -> Method:
    """Return DDK's loss on the logits that both networks have, or cross-entropy."""
    if not gamma:
        return methods.cross_entropy()
    return shared_vocabulary(methods.ddk(gamma, from_heads=True), config.vocabulary)


def sampling(
    config: Config, name: str, start: dict[str, float], teacher: dict[str, float]
) -> Weights:
    """Return the domains' weights of a method, as `training.fit_intervals` asks."""
    if name in ("cpt", "kd"):
        return lambda history: None
    if name == "kd_equal":
        return lambda history: np.ones(len(config.domains))
    return lambda history: methods.ddk_weights(
        start, teacher, history, alpha=config.alpha, smooth=name == "ddk"
    )


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the teacher, or read it, and students by every method."""
    records = run.part("synthetic", lambda _: synthetic_records(config.alpha, seeds))
    domains = read_domains(
        config.domains,
        config.corpus,
        config.vocabulary,
        length=config.length,
        sizes=config.sizes,
        validation=config.validation_windows,
        test=config.test_windows,
    )
    fit_domains = functools.partial(fit, run, config, domains)
    student, teacher = config.networks()
    taught = teacher.with_variables(trained(config, "teacher", 0, run, fit_domains))
    variables = taught.init(jax.random.key(0))
    reference, final = (
        domain_evaluator(taught, part)(variables)
        for part in (domains.validation, domains.test)
    )
    validate = domain_evaluator(student, domains.validation)
    examine = domain_evaluator(student, domains.test)

    def one(
        folder: Path, program: Program, start: dict[str, float], name: str, seed: int
    ) -> list[Record]:
        started = time.perf_counter()
        weights = sampling(config, name, start, reference)
        state, history = fit_domains(
            program,
            weights,
            config.interval,
            config.intervals,
            seed,
            folder,
            name,
            lambda state: validate(state.student),
        )
        ratio = ratios(examine(state.student), final)
        found = {
            "worst_ratio": ratio.max(),
            "mean_ratio": ratio.mean(),
            **dict(zip((f"ratio {d}" for d in config.domains), ratio, strict=True)),
        }
        if name.startswith("ddk"):
            drawn = [weights(history[:i]) for i in range(1, len(history))]
            hardest = int(ratios(start, reference).argmax())
            found |= weight_metrics(np.stack(drawn), hardest, config.alpha)
        seconds = time.perf_counter() - started
        return [
            Record(name, seed, metric, float(value), seconds)
            for metric, value in found.items()
        ]

    for seed in seeds:
        learnt = trained(config, "student", seed, run, fit_domains)
        start = validate(learnt)
        for gamma in (0.0, *config.gammas):
            program = distill(
                student.with_variables(learnt),
                taught if gamma else None,
                objective(config, gamma),
                config.optimizer(config.interval * config.intervals),
            )
            for name in config.methods:
                # Continued pre-training has no teacher, and is in all tables.
                if (name == "cpt") != (gamma == 0):
                    continue
                found = run.part(
                    f"gamma{gamma:g}/{name}/seed{seed}",
                    functools.partial(
                        one, program=program, start=start, name=name, seed=seed
                    ),
                )
                records += [
                    dataclasses.replace(record, setting=setting(table))
                    for table in ([gamma] if gamma else config.gammas)
                    for record in found
                ]
    return records + gains(records)


def fit(
    run: Run,
    config: Config,
    domains: Domains,
    program: Program,
    weights: Weights,
    interval: int,
    intervals: int,
    seed: int,
    folder: Path,
    name: str,
    evaluate: Callable[[Any], dict[str, float]] = lambda state: {},
) -> tuple[Any, list[dict[str, Any]]]:
    """Return a program's last state and evaluations, trained on the domains.

    Args:
        run: has the progress bar.
        config: has the batch size.
        domains: to train on.
        program: to train.
        weights: of the domains in each interval.
        interval: steps of each.
        intervals: how many.
        seed: of the weights and the order of the windows.
        folder: keeps the checkpoints.
        name: on the bar.
        evaluate: ``state -> metrics``, after each interval.
    """
    with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        return training.fit_intervals(
            program,
            domains.train,
            config.batch_size,
            weights=weights,
            interval=interval,
            intervals=intervals,
            evaluate=evaluate,
            checkpoints=checkpoints,
            key=jax.random.key(seed),
            seed=seed,
            mesh=training.make_mesh(MESH) if jax.process_count() > 1 else None,
            progress=run.progress,
            name=f"{name} seed {seed}",
        )


def trained(
    config: Config, who: str, seed: int, run: Run, fit_domains: Callable[..., Any]
) -> Variables:
    """Return the variables of the teacher, or of the student before distillation."""
    folder = getattr(config, f"{who}_weights")
    if folder:
        path = data.data_file(f"{folder}/config.json").parent
        return load_pretrained(path)[1]
    steps = getattr(config, f"{who}_steps")
    network = config.network(getattr(config, who))
    labels = methods.cross_entropy()
    state, _ = fit_domains(
        distill(network, None, labels, config.optimizer(steps)),
        # The teacher knows all domains alike, the student better what there is more of.
        sampling(config, "kd_equal" if who == "teacher" else "cpt", {}, {}),
        steps,
        1,
        seed,
        run.folder / who / f"seed{seed}",
        who,
    )
    return state.student


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the step of DDK, and the shapes of its batch."""
    student, teacher = config.networks()
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.length), jnp.int32)
    domain = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    program = distill(
        student,
        teacher,
        objective(config, config.gammas[0]),
        config.optimizer(config.interval * config.intervals),
    )
    batch = {"input_ids": tokens, "label": tokens, "domain": domain}
    return {f"{config.teacher}, {config.student}": (program, batch)}
