"""FIRST at the paper's size: Qwen1.5 1.8B learns Alpaca's answers from the 7B's cache.

Read below JAXKD_DATA, in the folder ``first``:

* ``student``, Qwen1.5 1.8B as Hugging Face has it;
* ``train``, ``validation`` and ``test``, the instructions, tokenised: folders that
  `jaxkd.data.tokenize_chats(...).save(folder)` writes, in which answers are learnt;
* ``train_cache`` and ``validation_cache``, the fine-tuned 7B teacher's five best
  tokens: ``jaxkd cache-teacher TEACHER train --to train_cache --k 5 --length 512``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.configs import OptimizerConfig
from experiments.common.corpus import Corpus, read
from experiments.common.language_models import llama
from experiments.first import digits
from experiments.first.digits import BINS, SEARCH
from jaxkd import data, distill, methods, teachers
from jaxkd.evaluation.calibration import search_temperature
from jaxkd.losses.first import Space
from jaxkd.network import Network
from jaxkd.reporting.run import Arm, Run, Task
from jaxkd.types import Batch, Method, Program, Variables


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        student: a name of the language models' ``SIZES``.
        length: tokens of a row, into which answers are packed.
        k: the teacher's tokens.
        space: in which its probabilities are re-calibrated, see `methods.first`.
        epochs: over the answers.
        batch_size: rows.
        optimizer: of the students.
        steps: of the program that is compiled; runs count their own.
    """

    student: str = "qwen1.5-1.8b"
    length: int = 512
    k: int = 5
    space: Space = "probability"
    epochs: int = 3
    batch_size: int = 128
    optimizer: OptimizerConfig = OptimizerConfig(
        "adamw", 2e-6, 1e-4, warmup=0.03, clip=1.0
    )
    steps: int = 1200

    def network(self) -> Network:
        """Return the student; it computes in bf16 and keeps no blocks' activations."""
        return llama(self.student, 0, remat=True).computing_in(jnp.bfloat16)

    def program(
        self, student: Network, name: str, temperature: float, steps: int
    ) -> Program:
        """Return the training of a row."""
        optimizer = self.optimizer.build(steps)
        return distill(student, None, self.method(name, temperature), optimizer)

    def method(self, name: str, temperature: float) -> Method:
        """Return the method of a row."""
        if name == "sft":
            return methods.cross_entropy()
        if name == "direct":
            return methods.first(k=self.k, reduction="sequence")
        spaces: dict[str, Any] = {"space": self.space, "student_space": self.space}
        return methods.first(temperature, k=self.k, **spaces, reduction="sequence")


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


def reliability(
    network: Network, source: Any, batch_size: int
) -> Callable[[Variables], dict[str, float]]:
    """Return ``variables ->`` accuracy and calibration error of the answers' tokens."""

    @jax.jit
    def predict(variables: Variables, batch: Batch):
        p = jax.nn.softmax(network.apply(variables, network.read(batch))[0].logits)
        return p.max(-1), p.argmax(-1) == batch["label"]

    def measure(variables: Variables) -> dict[str, float]:
        parts = []
        for start in range(0, len(source) - batch_size + 1, batch_size):
            batch = source.take(np.arange(start, start + batch_size))
            learnt = batch["mask"]
            parts.append([np.asarray(x)[learnt] for x in predict(variables, batch)])
        return digits.reliability(*map(np.concatenate, zip(*parts, strict=True)))

    return measure


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Return students on labels, on the teacher as it is, and re-calibrated.

    Raises:
        FileNotFoundError: a folder is not there; the message says which.
    """
    train, held_out = cached(config, "train"), cached(config, "validation")
    test = packed(config, "test")
    student = read(config.network(), "first/student").deployed
    steps = config.epochs * data.steps_per_epoch(train, config.batch_size)
    task = replace(
        Corpus(train, test, config.batch_size).task("", steps),
        evaluate=lambda network: reliability(network, test, config.batch_size),
    )
    temperatures = {
        "sft": 1.0,
        "direct": 1.0,
        f"first_{config.space}": found_temperature(config, held_out),
    }
    for name, temperature in temperatures.items():
        found = {"temperature": temperature}
        program = config.program(student, name, temperature, steps)
        yield Arm(name, program, student, measure=lambda *_, found=found: found), task


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
    program = config.program(
        config.network(), f"first_{config.space}", 0.3, config.steps
    )
    return {"Qwen1.5 1.8B from a cache": (program, batch)}
