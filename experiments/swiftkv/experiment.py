"""SwiftKV: prompts that stop half way through a Llama, and how that is repaired.

Qiao et al. 2024 (arXiv:2410.03960) make keys and values of all later layers from the
features that enter the first of them, so that tokens of a prompt need not go on; the
model then teaches itself what that broke, training only queries, keys and values.

``small`` rewires a character model of 6 layers in several ways and trains each in
several; ``paper`` and ``paper_70b`` have the shapes and the recipe of Llama 3.1 8B and
70B; ``serve`` and ``serve_70b`` read and continue prompts with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.configs import OptimizerConfig, choose
from experiments.common.corpus import CorpusConfig, read
from experiments.common.language_models import SIZES, llama
from experiments.swiftkv.serving import serving_programs, stage_evaluator
from jaxkd import distill, methods
from jaxkd.compression.kv_cache import with_quantized_cache
from jaxkd.evaluation.language import token_evaluator
from jaxkd.network import Network
from jaxkd.networks.freezing import train_only
from jaxkd.papers import swiftkv as paper
from jaxkd.papers.swiftkv.conversion import TRAINED, swiftkv
from jaxkd.reporting.claims import contrast, observed
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.paper import paper_table
from jaxkd.reporting.quantities import Quantity, cell, derived
from jaxkd.reporting.run import Arm, Run, Task
from jaxkd.types import Batch, Program, deployed


@dataclass(frozen=True)
class Rewired:
    """How the model is rewired and trained.

    Attributes:
        kv_layers: layers that stay as they are.
        group: later layers to one pair of keys and values.
        trained: ``qkv``, ``all``, or ``nothing``.
        labels: whether it is trained on the text in place of its teacher.
        hidden: whether hidden states are compared beside the logits.
    """

    kv_layers: int
    group: int = 1
    trained: str = "qkv"
    labels: bool = False
    hidden: bool = True


SMALL = {
    "untrained_l3": Rewired(3, trained="nothing"),
    "kd_l3": Rewired(3),
    "logits_l3": Rewired(3, hidden=False),
    "full_kd_l3": Rewired(3, trained="all"),
    "labels_l3": Rewired(3, labels=True),
    "untrained_l3_g3": Rewired(3, 3, trained="nothing"),
    "kd_l3_g3": Rewired(3, 3),
    "untrained_l4": Rewired(4, trained="nothing"),
    "kd_l4": Rewired(4),
    "untrained_l5": Rewired(5, trained="nothing"),
    "kd_l5": Rewired(5),
}
ROWS = {
    **SMALL,
    "kd_l16": Rewired(16),
    "kd_l16_g2": Rewired(16, 2),
    "kd_l16_g4": Rewired(16, 4),
    "kd_l40": Rewired(40),
    "kd_l40_g2": Rewired(40, 2),
}


@dataclass(frozen=True)
class Config:
    """What is rewired, trained and served.

    Attributes:
        setting: the name of the table.
        corpus: the text; its batch size is also that of prompts.
        size: a name of the language models' ``SIZES``.
        weights: folder of the trained model below JAXKD_DATA; empty to train one.
        teacher_steps: of its training here.
        teacher_optimizer: likewise.
        arms: the rows, names of `ROWS`.
        steps: of every student.
        optimizer: of every student.
        temperature: of both networks' logits.
        compute: dtype of the passes and of what is not trained.
        serve: whether full scale is reading and continuing prompts, not training.
        room: tokens that served prompts can be continued by.
    """

    setting: str = "tiny_shakespeare"
    corpus: CorpusConfig = CorpusConfig()
    size: str = "chars-64x6"
    weights: str = ""
    teacher_steps: int = 1200
    teacher_optimizer: OptimizerConfig = OptimizerConfig("adamw", 3e-3, warmup=0.05)
    arms: tuple[str, ...] = tuple(SMALL)
    steps: int = 300
    optimizer: OptimizerConfig = OptimizerConfig("adamw", 1e-3, warmup=0.05)
    temperature: float = 2.0
    compute: str = "float32"
    serve: bool = False
    room: int = 256

    def teacher(self, vocabulary: int) -> Network:
        """Return the model as it was."""
        return llama(self.size, vocabulary, remat=not self.serve)

    def student(self, teacher: Network, row: Rewired) -> Network:
        """Return the model as it is trained, from the teacher's weights."""
        network = swiftkv(teacher, row.kv_layers, row.group)
        network = network.computing_in(self.compute)
        if row.trained == "all":
            return network
        return train_only(network, TRAINED, dtype=self.compute)

    def program(self, student: Network, teacher: Network, row: Rewired) -> Program:
        """Return the training of a row's student."""
        optimizer = self.optimizer.build(self.steps)
        if row.labels:
            return distill(student, None, methods.cross_entropy(), optimizer)
        hidden = f"block{SIZES[self.size]['layers'] - 2}" if row.hidden else None
        method = paper.swiftkv(hidden, temperature=self.temperature)
        return distill(student, teacher.astype(self.compute), method, optimizer)


_LLAMA3_8B = Config(
    setting="llama3.1-8b",
    corpus=CorpusConfig("llama3_tokens", 128_256, 8192, 0, batch_size=8),
    size="llama3.1-8b",
    weights="llama3.1-8b",
    arms=("kd_l16", "kd_l16_g2", "kd_l16_g4"),
    steps=10_400,
    optimizer=OptimizerConfig("adamw", 2e-4, warmup=0.05),
    compute="bfloat16",
)
_LLAMA3_70B = replace(
    _LLAMA3_8B,
    setting="llama3.1-70b",
    corpus=replace(_LLAMA3_8B.corpus, batch_size=32),
    size="llama3.1-70b",
    weights="llama3.1-70b",
    arms=("kd_l40", "kd_l40_g2"),
    steps=2_600,
)
PRESETS = {
    "small": Config(),
    "paper": _LLAMA3_8B,
    "paper_70b": _LLAMA3_70B,
    "serve": replace(_LLAMA3_8B, serve=True, arms=("kd_l16", "kd_l16_g2")),
    "serve_70b": replace(_LLAMA3_70B, serve=True),
}

PAPER = paper_table(
    "benchmark_average",
    ("llama3.1-8b",),
    {"teacher": "73.71", "kd_l16": "72.70", "kd_l16_g2": "71.82", "kd_l16_g4": "71.49"},
    where="seven benchmarks",
    checked=False,
)

SETTING = "tiny_shakespeare"


def every_arm(metric: str) -> Quantity:
    """Return a metric in every arm and seed that has it."""
    return derived(
        "every arm",
        lambda records: {
            (r.method, r.seed): r.value
            for r in records
            if (r.metric, r.setting) == (metric, SETTING)
        },
        setting=SETTING,
    )


UNTRAINED = cell("untrained_l3", fixed=True)
CLAIMS = [
    contrast("kd_l3", 0.4 * UNTRAINED, "teacher_kl", setting=SETTING),
    contrast("kd_l3", 0.5 * UNTRAINED, "nll_gap", setting=SETTING, lower=True),
    contrast("kd_l3", "labels_l3", "teacher_kl", setting=SETTING),
    contrast("kd_l4", "kd_l3", "teacher_kl", setting=SETTING),
    contrast("kd_l5", "kd_l4", "teacher_kl", setting=SETTING),
    contrast("kd_l3", "kd_l3_g3", "teacher_kl", setting=SETTING),
    contrast("kd_l3", "full_kd_l3", "teacher_kl", setting=SETTING),
    *(
        observed(every_arm(metric), "<=", bound, metric, setting=SETTING)
        for metric, bound in (
            ("frozen_change", 0.0),
            ("stage_error", 1e-5),
            ("chunk_error", 1e-5),
        )
    ),
]


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Return the rows: the model, trained or read, and what is made of it."""
    rows = choose("arm", config.arms, ROWS)
    corpus = config.corpus.load()
    network = config.teacher(corpus.vocabulary)
    if config.weights:
        teacher = read(network, config.weights)
    else:
        learning = config.teacher_optimizer, config.teacher_steps
        teacher = corpus.learn(run, network, *learning)
    yield teacher, corpus.task(config.setting, config.steps)
    network = teacher.deployed
    task = corpus.task(config.setting, config.steps, network)
    base = token_evaluator(network, corpus.test)(network.init(jax.random.key(0)))["nll"]
    prompts = jnp.asarray(corpus.test.take(np.arange(4))["input_ids"])
    for name, row in rows.items():
        student = config.student(network, row)
        errors = stage_evaluator(student, prompts)

        def measure(state, history, row=row, student=student, errors=errors):
            variables, found = deployed(state), {"nll_gap": history[-1]["nll"] - base}
            if row.trained == "qkv":
                before = student.init(jax.random.key(0))["stats"]
                found["frozen_change"] = largest_change(before, variables["stats"])
            return found | errors(variables)

        program = None
        if row.trained != "nothing":
            program = config.program(student, network, row)
        yield Arm(name, program, student, measure=measure), task


def largest_change(before: Any, after: Any) -> float:
    """Return the largest difference between two trees of arrays."""
    changes = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), before, after)
    return max(float(change) for change in jax.tree.leaves(changes))


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the training of every arm, or the reading and continuing of prompts."""
    teacher, batch = config.teacher(config.corpus.vocabulary), config.corpus.batch()
    rows = choose("arm", config.arms, ROWS)
    if config.serve:
        networks = {"llama": teacher} | {
            name.removeprefix("kd_"): swiftkv(teacher, row.kv_layers, row.group)
            for name, row in rows.items()
        }
        smallest = list(networks)[-1]
        networks[f"{smallest} fp8"] = with_quantized_cache(
            networks[smallest], jnp.float8_e4m3fn
        )
        return {
            f"{config.setting} {name}": found
            for name, found in serving_programs(
                networks, batch["input_ids"], config.room, config.compute
            ).items()
        }
    return {
        f"{config.setting} {name}": (
            config.program(config.student(teacher, row), teacher, row),
            batch,
        )
        for name, row in rows.items()
    }


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    mesh="v5e-8",
)
