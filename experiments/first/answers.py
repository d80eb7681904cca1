"""FIRST at the paper's size: Qwen1.5 1.8B learns Alpaca's answers from the 7B's cache.

Read below JAXKD_DATA, in the folder ``first``:

* ``student``, Qwen1.5 1.8B as Hugging Face has it;
* ``train``, ``validation`` and ``test``, the instructions, tokenised: folders that
  `jaxkd.data.tokenize_chats(...).save(folder)` writes, in which answers are learnt;
* ``train_cache`` and ``validation_cache``, the fine-tuned 7B teacher's five best
  tokens: ``jaxkd cache-teacher TEACHER train --to train_cache --k 5 --length 512``.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.text import train_on_text
from experiments.first.digits import BINS, SEARCH
from jaxkd import data, distill, methods, models, teachers
from jaxkd.evaluation.calibration import calibration_error, search_temperature
from jaxkd.interop import load_pretrained
from jaxkd.losses.first import Space
from jaxkd.network import Network
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Method, Program

QWEN_1_8B: dict[str, Any] = {
    "vocabulary": 151_936,
    "width": 2048,
    "layers": 24,
    "heads": 16,
    "hidden": 5504,
    "rope_theta": 1_000_000.0,
    "qkv_bias": True,
}
"""Arguments of `jaxkd.models.llama` for Qwen1.5 1.8B (arXiv:2309.16609)."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        length: tokens of a row, into which answers are packed.
        k: the teacher's tokens.
        space: in which its probabilities are re-calibrated, see `methods.first`.
        epochs: over the answers.
        batch_size: rows.
        learning_rate: of AdamW at its highest, decaying to 0 by a cosine.
        warmup: share of the steps that it rises for.
        steps: of the program that is compiled; runs count their own.
    """

    length: int = 512
    k: int = 5
    space: Space = "probability"
    epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 2e-6
    warmup: float = 0.03
    steps: int = 1200


def student() -> Network:
    """Return the student, which computes in bf16 and keeps no activations of blocks."""
    return models.llama(**QWEN_1_8B, remat=True).computing_in(jnp.bfloat16)


def objective(config: Config, name: str, temperature: float) -> Method:
    """Return a method of the table."""
    if name == "sft":
        return methods.cross_entropy()
    if name == "direct":
        return methods.first(k=config.k, reduction="sequence")
    spaces: dict[str, Any] = {"space": config.space, "student_space": config.space}
    return methods.first(temperature, k=config.k, **spaces, reduction="sequence")


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Return AdamW with clipped gradients, for that many steps."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(int(config.warmup * steps), 1), steps
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))


def packed(config: Config, split: str) -> Any:
    """Return a part of the answers, packed into rows."""
    folder = data.data_file(f"first/{split}/documents.json").parent
    return data.pack(data.load_documents(folder), config.length)


def cached(config: Config, split: str) -> Any:
    """Return a part of the answers, with what the teacher said of them."""
    rows = packed(config, split)
    folder = data.data_file(f"first/{split}_cache/teacher.json").parent
    return teachers.CachedTeacher(rows, folder)


def found_temperature(config: Config, source: Any) -> float:
    """Return the temperature that makes the cached teacher reliable."""
    best, correct = [], []
    for start in range(0, len(source), 64):
        batch = source.take(np.arange(start, min(start + 64, len(source))))
        learnt = batch["mask"]
        best.append(batch["teacher_log_probs"][learnt][:, : config.k])
        correct.append(batch["teacher_ids"][learnt][:, 0] == batch["label"][learnt])
    return search_temperature(
        jnp.asarray(np.concatenate(best), jnp.float32),
        jnp.asarray(np.concatenate(correct)),
        space=config.space,
        bins=BINS,
        **SEARCH[config.space],
    )[0]


def reliability(network: Network, source: Any, batch_size: int) -> Any:
    """Return ``variables ->`` accuracy and calibration error of the answers' tokens."""

    @jax.jit
    def predict(variables, batch):
        p = jax.nn.softmax(network.apply(variables, network.read(batch))[0].logits)
        return p.max(-1), p.argmax(-1) == batch["label"]

    def measure(variables) -> dict[str, float]:
        confidence, correct = [], []
        for start in range(0, len(source) - batch_size + 1, batch_size):
            batch = source.take(np.arange(start, start + batch_size))
            learnt = batch["mask"]
            for kept, found in zip(
                (confidence, correct), predict(variables, batch), strict=True
            ):
                kept.append(np.asarray(found)[learnt])
        right = jnp.asarray(np.concatenate(correct))
        error = calibration_error(jnp.asarray(np.concatenate(confidence)), right, BINS)
        return {
            "last_accuracy": float(right.mean()),
            "ece10": float(error),
            "trust": float(right.mean() - error),
        }

    return measure


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Fine-tune students on labels, on the teacher as it is, and re-calibrated.

    Raises:
        FileNotFoundError: a folder is not there; the message says which.
    """
    train, held_out = cached(config, "train"), cached(config, "validation")
    test = packed(config, "test")
    folder = data.data_file("first/student/config.json").parent
    network, variables = load_pretrained(folder, remat=True)
    network = network.with_variables(variables).computing_in(jnp.bfloat16)
    temperatures = {
        "sft": 1.0,
        "direct": 1.0,
        f"first_{config.space}": found_temperature(config, held_out),
    }
    steps = config.epochs * data.steps_per_epoch(train, config.batch_size)
    measure = reliability(network, test, config.batch_size)

    def one(folder: Path, name: str, temperature: float, seed: int) -> list[Record]:
        started = time.perf_counter()
        program = distill(
            network,
            None,
            objective(config, name, temperature),
            optimizer(config, steps),
        )
        _, history = train_on_text(
            run,
            program,
            train,
            batch_size=config.batch_size,
            steps=steps,
            seed=seed,
            folder=folder,
            name=f"{name} seed {seed}",
            mesh="fsdp",
            evaluate=lambda state: measure(state.student),
        )
        found = {"temperature": temperature, **history[-1]}
        seconds = time.perf_counter() - started
        return [
            Record(name, seed, metric, float(value), seconds)
            for metric, value in found.items()
            if metric != "step" and not metric.startswith("train_")
        ]

    return [
        record
        for name, temperature in temperatures.items()
        for seed in seeds
        for record in run.part(
            f"{name}/seed{seed}",
            lambda folder, name=name, c=temperature, seed=seed: one(
                folder, name, c, seed
            ),
        )
    ]


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the student's step from a cache, and the shapes of its batch."""
    shape = (config.batch_size, config.length)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = {
        **dict.fromkeys(("input_ids", "label", "segment_ids", "position_ids"), tokens),
        "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
        "teacher_ids": jax.ShapeDtypeStruct((*shape, config.k), jnp.uint32),
        "teacher_log_probs": jax.ShapeDtypeStruct((*shape, config.k), jnp.float16),
    }
    method = objective(config, f"first_{config.space}", 0.3)
    return {
        "Qwen1.5 1.8B from a cache": (
            distill(student(), None, method, optimizer(config, config.steps)),
            batch,
        )
    }
