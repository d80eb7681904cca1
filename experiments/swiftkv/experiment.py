"""SwiftKV: prompts that stop half way through a Llama, and how that is repaired.

Qiao et al. 2024 (arXiv:2410.03960) make keys and values of all later layers from the
features that enter the first of them, so that tokens of a prompt need not go on; the
model then teaches itself what that broke, training only queries, keys and values.

``small`` rewires a character model of 6 layers in several ways and trains each in
several; ``paper`` and ``paper_70b`` have the shapes and the recipe of Llama 3.1 8B and
70B; ``serve`` and ``serve_70b`` read and continue prompts with them.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.language_models import SIZES
from experiments.common.text import language_records, load_text, train_on_text
from experiments.swiftkv.claims import CLAIMS as CLAIMS
from experiments.swiftkv.serving import serving_programs, stage_errors
from jaxkd import data, distill, methods, models
from jaxkd.compression.kv_cache import with_quantized_cache
from jaxkd.evaluation.language import fidelity_evaluator, token_evaluator
from jaxkd.interop import load_pretrained
from jaxkd.network import Network
from jaxkd.networks.freezing import train_only
from jaxkd.papers import swiftkv as paper
from jaxkd.papers.swiftkv.conversion import TRAINED, swiftkv
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Program

SLICE = "v5e:2x4"
MESH = "v5e-8"


@dataclass(frozen=True)
class Arm:
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


_SMALL_ARMS = {
    "untrained_l3": Arm(3, trained="nothing"),
    "kd_l3": Arm(3),
    "logits_l3": Arm(3, hidden=False),
    "full_kd_l3": Arm(3, trained="all"),
    "labels_l3": Arm(3, labels=True),
    "untrained_l3_g3": Arm(3, 3, trained="nothing"),
    "kd_l3_g3": Arm(3, 3),
    "untrained_l4": Arm(4, trained="nothing"),
    "kd_l4": Arm(4),
    "untrained_l5": Arm(5, trained="nothing"),
    "kd_l5": Arm(5),
}
ARMS = {
    **_SMALL_ARMS,
    "kd_l16": Arm(16),
    "kd_l16_g2": Arm(16, 2),
    "kd_l16_g4": Arm(16, 4),
    "kd_l40": Arm(40),
    "kd_l40_g2": Arm(40, 2),
}
SHAPES: dict[str, dict[str, Any]] = {
    **SIZES,
    "chars-64x6": {
        "width": 64,
        "layers": 6,
        "heads": 4,
        "kv_heads": 2,
        "hidden": 160,
    },
}
"""Arguments of `jaxkd.models.llama` but the vocabulary."""


@dataclass(frozen=True)
class Config:
    """What is rewired, trained and served.

    Attributes:
        setting: the name of the table.
        text: ``tiny_shakespeare``, or a folder of token files below JAXKD_DATA.
        vocabulary: of the token files.
        length: tokens of a window.
        test_windows: to evaluate on; 0 for all.
        size: a name of `SHAPES`.
        weights: folder of the trained model below JAXKD_DATA; empty to train one.
        teacher_steps: of its training here.
        teacher_rate: of AdamW at its highest.
        arms: the rows, names of `ARMS`.
        steps: of every student.
        batch_size: windows, or prompts.
        learning_rate: of AdamW at its highest, which decays to 0 by a cosine.
        warmup: share of the steps that it rises for.
        weight_decay: of AdamW.
        temperature: of both networks' logits.
        compute: dtype of the passes and of what is not trained.
        serve: whether full scale is reading and continuing prompts, not training.
        room: tokens that served prompts can be continued by.
    """

    setting: str
    text: str
    vocabulary: int
    length: int
    test_windows: int
    size: str
    weights: str
    arms: tuple[str, ...]
    steps: int
    batch_size: int
    learning_rate: float
    teacher_steps: int = 0
    teacher_rate: float = 0.0
    warmup: float = 0.05
    weight_decay: float = 0.0
    temperature: float = 2.0
    compute: str = "float32"
    serve: bool = False
    room: int = 256

    def optimizer(self, rate: float, steps: int) -> optax.GradientTransformation:
        """Return AdamW with that highest rate, for that many steps."""
        warmup = max(int(self.warmup * steps), 1)
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps)
        return optax.adamw(schedule, weight_decay=self.weight_decay)

    def teacher(self, vocabulary: int) -> Network:
        """Return the model as it was."""
        return models.llama(vocabulary, **SHAPES[self.size], remat=not self.serve)

    def student(self, teacher: Network, arm: Arm) -> Network:
        """Return the model as it is trained, from the teacher's weights."""
        network = swiftkv(teacher, arm.kv_layers, arm.group)
        network = network.computing_in(self.compute)
        if arm.trained == "all":
            return network
        return train_only(network, TRAINED, dtype=self.compute)

    def program(self, student: Network, teacher: Network, arm: Arm) -> Program:
        """Return the training of an arm's student."""
        optimizer = self.optimizer(self.learning_rate, self.steps)
        if arm.labels:
            return distill(student, None, methods.cross_entropy(), optimizer)
        hidden = f"block{SHAPES[self.size]['layers'] - 2}" if arm.hidden else None
        method = paper.swiftkv(hidden, temperature=self.temperature)
        return distill(student, teacher.astype(self.compute), method, optimizer)


_LLAMA3_8B = Config(
    setting="llama3.1-8b",
    text="llama3_tokens",
    vocabulary=128_256,
    length=8192,
    test_windows=0,
    size="llama3.1-8b",
    weights="llama3.1-8b",
    arms=("kd_l16", "kd_l16_g2", "kd_l16_g4"),
    steps=10_400,
    batch_size=8,
    learning_rate=2e-4,
    compute="bfloat16",
)
_LLAMA3_70B = replace(
    _LLAMA3_8B,
    setting="llama3.1-70b",
    size="llama3.1-70b",
    weights="llama3.1-70b",
    arms=("kd_l40", "kd_l40_g2"),
    steps=2_600,
    batch_size=32,
)

PRESETS = {
    "small": Config(
        setting="tiny_shakespeare",
        text="tiny_shakespeare",
        vocabulary=0,
        length=64,
        test_windows=512,
        size="chars-64x6",
        weights="",
        arms=tuple(_SMALL_ARMS),
        steps=300,
        batch_size=16,
        learning_rate=1e-3,
        teacher_steps=1200,
        teacher_rate=3e-3,
    ),
    "paper": _LLAMA3_8B,
    "paper_70b": _LLAMA3_70B,
    "serve": replace(_LLAMA3_8B, serve=True, arms=("kd_l16", "kd_l16_g2")),
    "serve_70b": replace(_LLAMA3_70B, serve=True),
}

PAPER = {
    "llama3.1-8b/teacher": {"benchmark_average": 0.7371},
    "llama3.1-8b/kd_l16": {"benchmark_average": 0.7270},
    "llama3.1-8b/kd_l16_g2": {"benchmark_average": 0.7182},
    "llama3.1-8b/kd_l16_g4": {"benchmark_average": 0.7149},
}


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the model, or read it, rewire it, and train the arms."""
    train, test = load_text(
        config.text, config.length, config.vocabulary, config.test_windows
    )
    teacher = config.teacher(train.classes)
    fit = functools.partial(
        train_on_text, run, train=train, batch_size=config.batch_size, mesh=MESH
    )
    started = time.perf_counter()
    if config.weights:
        folder = data.data_file(f"{config.weights}/config.json").parent
        variables = load_pretrained(folder)[1]
    else:
        steps = config.teacher_steps
        optimizer = config.optimizer(config.teacher_rate, steps)
        program = distill(teacher, None, methods.cross_entropy(), optimizer)
        state, _ = fit(
            program, steps=steps, seed=0, folder=run.folder / "teacher", name="teacher"
        )
        variables = state.student
    seconds = time.perf_counter() - started
    teacher = teacher.with_variables(variables)
    scores = run.part(
        "teacher scores",
        lambda _: language_records(
            *(config.setting, "teacher", 0),
            [token_evaluator(teacher, test)(variables)],
            seconds,
        ),
    )
    (base,) = (record.value for record in scores if record.metric == "nll")
    records = list(scores)

    def trainer(name: str) -> Callable[..., list[Record]]:
        """Return ``(folder, seed) -> records`` of an arm, compiled once."""
        arm = ARMS[name]
        student = config.student(teacher, arm)
        program = config.program(student, teacher, arm)
        evaluate = token_evaluator(student, test)
        fidelity = fidelity_evaluator(student, teacher, variables, test)

        def measure(weights: Any) -> dict[str, Any]:
            found = {**evaluate(weights), **fidelity(weights)}
            return {**found, "nll_gap": found["nll"] - base}

        def train(folder: Path, seed: int) -> list[Record]:
            started, start = time.perf_counter(), student.init(jax.random.key(0))
            history, trained = [], start
            if arm.trained == "nothing":
                history = [measure(start)]
            else:
                state, history = fit(
                    program,
                    steps=config.steps,
                    seed=seed,
                    folder=folder,
                    name=f"{name} seed {seed}",
                    evaluate=lambda state: measure(state.student),
                )
                trained = state.student
            if arm.trained == "qkv":
                before, after = start["stats"], trained["stats"]
                history[-1]["frozen_change"] = _largest_change(before, after)
            if seed == seeds[0]:
                ids = jnp.asarray(test.take(np.arange(4))["input_ids"])
                history[-1] |= stage_errors(student, trained, ids)
            seconds = time.perf_counter() - started
            return language_records(config.setting, name, seed, history, seconds)

        return train

    for name in config.arms:
        train_arm = trainer(name)
        for seed in seeds if ARMS[name].trained != "nothing" else seeds[:1]:
            part = functools.partial(train_arm, seed=seed)
            records += run.part(f"{name}/seed{seed}", part)
    return records


def _largest_change(before: Any, after: Any) -> float:
    changes = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), before, after)
    return max(float(change) for change in jax.tree.leaves(changes))


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the training of every arm, or the reading and continuing of prompts."""
    teacher = config.teacher(config.vocabulary)
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.length), jnp.int32)
    arms = {name: ARMS[name] for name in config.arms}
    if config.serve:
        networks = {"llama": teacher} | {
            name.removeprefix("kd_"): swiftkv(teacher, arm.kv_layers, arm.group)
            for name, arm in arms.items()
        }
        smallest = list(networks)[-1]
        networks[f"{smallest} fp8"] = with_quantized_cache(
            networks[smallest], jnp.float8_e4m3fn
        )
        return {
            f"{config.setting} {name}": found
            for name, found in serving_programs(
                networks, tokens, config.room, config.compute
            ).items()
        }
    return {
        f"{config.setting} {name}": (
            config.program(config.student(teacher, arm), teacher, arm),
            {"input_ids": tokens, "label": tokens},
        )
        for name, arm in arms.items()
    }
