"""DDK: more of the domains in which the student lags behind its teacher.

Liu et al. 2024 (arXiv:2407.16154) measure the perplexities of student and teacher in
every domain, and draw the text of the next interval by their ratios, smoothly updated.
They report a Qwen1.5 1.8B taught by a 14B at 55.41 on eleven benchmarks, against 52.87
without the domains' weights.

``small`` has four real domains of unequal sizes in bytes: Shakespeare, news, Python's
standard library and Wikipedia. ``paper`` has the shapes of Qwen1.5 14B and 1.8B, ten
domains, and 30 intervals of 1,000 steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.configs import OptimizerConfig, choose
from experiments.common.corpus import learner, read
from experiments.common.language_models import llama
from experiments.ddk.domains import DomainsConfig
from experiments.ddk.measures import (
    SYNTHETIC,
    gains,
    ratio_metrics,
    ratios,
    synthetic_records,
    weight_metrics,
)
from jaxkd import data, distill, methods
from jaxkd.evaluation.language import domain_evaluator
from jaxkd.methods.shared_vocabulary import shared_vocabulary
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, History, Run, Task
from jaxkd.training import fit_intervals
from jaxkd.types import Batch, Program

declare(
    worst_ratio=Metric("worst ratio", higher_is_better=False),
    mean_ratio=Metric("mean ratio", higher_is_better=False),
    worst_gain=Metric("worst ratio below KD's by", higher_is_better=True),
    hardest_share=Metric("first share of the hardest %"),
    weight_change=Metric("change of weights"),
    weight_slack=Metric("slack of weights"),
)


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        domains: the text.
        teacher: a name of the language models' ``SIZES``.
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
        methods: the rows; empty for all.
        batch_size: windows.
        optimizer: of all training.
        compute: dtype of the student's passes, and of the teacher.
    """

    domains: DomainsConfig = DomainsConfig()
    teacher: str = "chars-192"
    student: str = "chars-32"
    teacher_weights: str = ""
    student_weights: str = ""
    teacher_steps: int = 800
    student_steps: int = 150
    gammas: tuple[float, ...] = (0.2, 1.0)
    alpha: float = 0.5
    interval: int = 30
    intervals: int = 10
    methods: tuple[str, ...] = ()
    batch_size: int = 32
    optimizer: OptimizerConfig = OptimizerConfig(
        "adamw", 3e-3, 1e-4, warmup=20, final=0.1, clip=1.0
    )
    compute: str = "float32"

    def networks(self) -> tuple[Network, Network]:
        """Return student and teacher, before they have learnt."""
        vocabulary, remat = self.domains.vocabulary, bool(self.domains.corpus)
        student = llama(self.student, vocabulary, remat=remat)
        teacher = llama(self.teacher, vocabulary, remat=remat)
        return student.computing_in(self.compute), teacher

    def program(self, student: Network, teacher: Network, gamma: float) -> Program:
        """Return the training by DDK's loss, or on the text alone where γ is 0."""
        optimizer = self.optimizer.build(self.interval * self.intervals)
        if not gamma:
            return distill(student, None, methods.cross_entropy(), optimizer)
        loss = methods.ddk(gamma, from_heads=True)
        # Qwen1.5 14B has logits that the 1.8B lacks.
        loss = shared_vocabulary(loss, self.domains.vocabulary)
        return distill(student, teacher.astype(self.compute), loss, optimizer)


PRESETS = {
    "small": Config(),
    "paper": Config(
        domains=DomainsConfig(
            names=(
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
        ),
        teacher="qwen1.5-14b",
        student="qwen1.5-1.8b",
        teacher_weights="qwen1.5-14b",
        student_weights="qwen1.5-1.8b",
        gammas=(0.2,),
        interval=1000,
        intervals=30,
        batch_size=256,
        optimizer=OptimizerConfig(
            "adamw", 3e-5, 1e-4, warmup=1000, final=0.1, clip=1.0
        ),
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

METHODS = ("cpt", "kd", "kd_equal", "ddk_unsmoothed", "ddk")


def sampling(
    config: Config, name: str, start: Mapping[str, float], teacher: Mapping[str, float]
) -> Callable[[Sequence[Mapping[str, float]]], Any]:
    """Return a method's weights of the domains, as `fit_intervals` asks for them.

    Args:
        config: has α.
        name: of the method.
        start: perplexities of the student before training.
        teacher: likewise of the teacher.
    """
    if name in ("cpt", "kd"):
        return lambda history: None
    if name == "kd_equal":
        return lambda history: np.ones(len(teacher))
    return lambda history: methods.ddk_weights(
        start, teacher, history, alpha=config.alpha, smooth=name == "ddk"
    )


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the teacher, or read it, and students by every method."""
    names = choose("method", config.methods, dict.fromkeys(METHODS))
    domains = config.domains.load()
    mixture = partial(data.mixture_batches, domains.train, config.batch_size)

    def learnt(who: str, network: Network, weights: Any, seed: int) -> Network:
        """Return a network that was read, or is trained on domains by their weights."""
        if folder := getattr(config, f"{who}_weights"):
            return read(network, folder).deployed
        steps = getattr(config, f"{who}_steps")
        task = Task("", lambda seed: mixture(weights=weights, seed=seed), steps)
        arm = learner(who, network, config.optimizer, steps)
        return run.teacher(arm, task, seed).deployed

    # The teacher knows all domains alike, the student better what there is more of.
    student, teacher = config.networks()
    teacher = learnt("teacher", teacher, np.ones(len(domains.train)), seed=0)
    teacher = teacher.astype(config.compute)
    reference, final = (
        domain_evaluator(teacher, part)(teacher.init(jax.random.key(0)))
        for part in (domains.validation, domains.test)
    )
    validate = domain_evaluator(student, domains.validation)
    examine = domain_evaluator(student, domains.test)
    task = Task(
        "",
        lambda seed: partial(mixture, seed=seed),
        config.interval * config.intervals,
        lambda _: validate,
        config.interval,
        summary=lambda history: {},
    )

    def arms(seed: int) -> Iterator[tuple[Arm, Task]]:
        begun = learnt("student", student, None, seed)
        start = validate(begun.init(jax.random.key(0)))
        hardest = int(ratios(start, reference).argmax())

        def measure(name: str, weights: Any, state: Any, history: History):
            found = ratio_metrics(examine(state), final)
            if not name.startswith("ddk"):
                return found
            drawn = [weights(history[:i]) for i in range(1, len(history))]
            return found | weight_metrics(np.stack(drawn), hardest, config.alpha)

        for gamma in (0.0, *config.gammas):
            program = config.program(begun, teacher, gamma)
            for name in names:
                # Continued pre-training has no teacher.
                if (name == "cpt") != (gamma == 0):
                    continue
                weights = sampling(config, name, start, reference)
                measures = partial(measure, name, weights)
                loop = partial(fit_intervals, weights=weights)
                table = setting(gamma) if gamma else ""
                yield (
                    Arm(name, program, student, measure=measures),
                    replace(task, setting=table, loop=loop),
                )

    records = run.part("synthetic", lambda _: synthetic_records(config.alpha, seeds))
    tables = [setting(gamma) for gamma in config.gammas]
    records += [
        replace(record, setting=table)
        for seed in seeds
        for arm, task in arms(seed)
        for record in run.train(arm, task, [seed])
        for table in ([task.setting] if task.setting else tables)
    ]
    return records + gains(records)


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the step of DDK, and the shapes of its batch."""
    student, teacher = config.networks()
    program = config.program(student, teacher, config.gammas[0])
    shape = config.batch_size, config.domains.length
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    domain = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    batch = {"input_ids": tokens, "label": tokens, "domain": domain}
    return {f"{config.teacher}, {config.student}": (program, batch)}


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    full_scale=full_scale,
    topology="v5e:16x16",
    mesh="v5e-256",
)
