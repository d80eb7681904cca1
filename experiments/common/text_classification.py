"""Experiments in which a BERT teaches a smaller one to classify sentences."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer

from experiments.common.training import (
    Task,
    teacher_records,
    train_on_labels,
    train_students,
)
from jaxkd import data
from jaxkd.evaluation.classification import predictor
from jaxkd.interop import load_pretrained
from jaxkd.models import bert
from jaxkd.network import Network
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Program

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 64, "layers": 2, "heads": 2, "hidden": 256},
    "mini": {"width": 128, "layers": 4, "heads": 4, "hidden": 512},
    "base-6": {"width": 768, "layers": 6, "heads": 12, "hidden": 3072},
    "base": {"width": 768, "layers": 12, "heads": 12, "hidden": 3072},
}
"""Arguments of `jaxkd.models.bert` but the vocabulary and the positions."""


@dataclass(frozen=True)
class TextConfig:
    """What is trained.

    Attributes:
        setting: the name of the table.
        teacher: a name of `SIZES`.
        student: likewise.
        weights: folders below JAXKD_DATA of the pretrained teacher and student, as
            transformers writes them with a tokenizer; none to begin from nothing.
        vocabulary: of word pieces; found in the training text where nothing is
            pretrained.
        lengths: of rows of tokens.
        train_examples: of the students; the teacher sees all.
        epochs: of a student.
        teacher_epochs: of the teacher.
        batch_size: sentences.
        learning_rate: of AdamW at first, falling to 0 in a line.
    """

    setting: str = "sst2"
    teacher: str = "mini"
    student: str = "tiny"
    weights: tuple[str, str] | None = None
    vocabulary: int = 4000
    lengths: tuple[int, ...] = (32,)
    train_examples: int = 5000
    epochs: int = 3
    teacher_epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 1e-3

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Return AdamW without decay, for that many steps."""
        rate = optax.linear_schedule(self.learning_rate, 0.0, steps)
        return optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.0)
        )

    def network(self, size: str) -> Network:
        """Return a network that begins from nothing."""
        positions = max(*self.lengths, 64)
        return bert(self.vocabulary, positions, **SIZES[size])


Methods = Callable[
    [Network, Network, optax.GradientTransformation], Mapping[str, Program]
]
"""``(student, teacher, optimizer) ->`` programs by their method's name."""


def word_pieces(texts: Iterable[str], vocabulary: int) -> data.FileTokenizer:
    """Return BERT's kind of tokenizer for texts, found in them.

    Args:
        texts: to find it in.
        vocabulary: word pieces at most.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return data.FileTokenizer(tokenizer, bos=2, eos=3, pad=0)


def sentences() -> Iterable[str]:
    """Return SST-2's training sentences."""
    records = data.open_records(data.data_file("text/sst2_train.tsv.xz"))
    return data.texts(records, "sentence")


def run_text(
    config: TextConfig, methods: Methods, seeds: Sequence[int], run: Run
) -> list[Record]:
    """Train or read the teacher, then all methods' students of every seed.

    Args:
        config: of the preset.
        methods: to compare.
        seeds: of the students.
        run: keeps checkpoints and records.
    """
    if config.weights:
        folders = [
            data.data_file(f"{name}/config.json").parent for name in config.weights
        ]
        (teacher, first), (student, start) = map(load_pretrained, folders)
        teacher, student = teacher.with_variables(first), student.with_variables(start)
        tokenizer = data.load_tokenizer(folders[0])
    else:
        tokenizer = word_pieces(sentences(), config.vocabulary)
        teacher, student = map(config.network, (config.teacher, config.student))
    dataset = data.sst2(tokenizer, config.lengths)
    task = Task(
        setting=config.setting,
        train=dataset.train,
        test=dataset.test,
        epochs=config.teacher_epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
    )
    started = time.perf_counter()
    variables = train_on_labels(run, task, teacher, "teacher")
    seconds = time.perf_counter() - started
    logits = predictor(teacher, task.test)(variables)
    records = teacher_records(task, logits, seconds)
    order = np.random.default_rng(0).permutation(len(dataset.train))
    some = data.Subset(dataset.train, order[: config.train_examples])
    mine = replace(task, train=some, epochs=config.epochs)
    taught = teacher.with_variables(variables)
    for name, program in methods(student, taught, mine.optimizer(mine.steps)).items():
        records += train_students(
            run, mine, name, program, student, seeds, teacher_logits=logits
        )
    return records


def text_programs(
    config: TextConfig, methods: Methods, method: str
) -> dict[str, tuple[Program, Batch]]:
    """Return one method's program, and the shapes of its longest batch."""
    student, teacher = map(config.network, (config.student, config.teacher))
    program = methods(student, teacher, config.optimizer(1000))[method]
    tokens = jax.ShapeDtypeStruct((config.batch_size, max(config.lengths)), jnp.int32)
    batch = {
        "input_ids": tokens,
        "attention_mask": tokens,
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }
    return {f"{config.teacher}-{config.student}": (program, batch)}
