"""Experiments in which a BERT teaches a smaller one to classify sentences."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer

from experiments.common.classification import Classification, Programs
from experiments.common.configs import OptimizerConfig, choose
from jaxkd import data
from jaxkd.interop import load_pretrained
from jaxkd.models import bert
from jaxkd.network import Network
from jaxkd.reporting.run import Arm, Run, Task
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
        optimizer: of both.
        methods: the rows; empty for all.
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
    optimizer: OptimizerConfig = OptimizerConfig("adamw", schedule="linear", clip=1.0)
    methods: tuple[str, ...] = ()

    def network(self, size: str) -> Network:
        """Return a network that begins from nothing."""
        positions = max(*self.lengths, 64)
        return bert(self.vocabulary, positions, **SIZES[size])


BERT_BASE = TextConfig(
    teacher="base",
    student="base-6",
    weights=("bert-base-uncased", "bert-6-uncased"),
    vocabulary=30_522,
    lengths=(128,),
    train_examples=67_349,
    teacher_epochs=3,
    batch_size=32,
    optimizer=OptimizerConfig("adamw", 4e-5, schedule="linear", clip=1.0),
)
"""BERT-base and a pretrained student of 6 blocks are fine-tuned for 3 epochs."""


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


def text_arms(
    programs: Programs,
) -> Callable[[Any, Run, int], Iterator[tuple[Arm, Task]]]:
    """Return the arms of an experiment: the teacher, trained or read, and students.

    Args:
        programs: of the rows.
    """

    def arms(config: TextConfig, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
        if config.weights:
            folders = [
                data.data_file(f"{name}/config.json").parent for name in config.weights
            ]
            network, student = (
                found.with_variables(variables)
                for found, variables in map(load_pretrained, folders)
            )
            tokenizer = data.load_tokenizer(folders[0])
        else:
            tokenizer = word_pieces(sentences(), config.vocabulary)
            network, student = map(config.network, (config.teacher, config.student))
        untaught = programs(config, student, network, optax.identity())
        names = choose("method", config.methods, untaught)
        dataset = data.sst2(tokenizer, config.lengths)
        learnt = Classification(
            dataset.train,
            dataset.test,
            config.teacher_epochs,
            config.batch_size,
            config.optimizer,
        )
        teacher = learnt.teacher(run, network, config.setting, seed)
        yield teacher, learnt.task(config.setting)
        order = np.random.default_rng(0).permutation(len(dataset.train))
        some = data.Subset(dataset.train, order[: config.train_examples])
        mine = replace(learnt, train=some, epochs=config.epochs)
        optimizer = config.optimizer.build(mine.steps)
        rows = programs(config, student, teacher.deployed, optimizer)
        task = mine.task(config.setting, mine.logits(teacher.deployed))
        for name in names:
            yield Arm(name, rows[name], student), task

    return arms


def text_programs(
    programs: Programs, method: str
) -> Callable[[TextConfig], dict[str, tuple[Program, Batch]]]:
    """Return ``config ->`` one row's program, and the shapes of its longest batch."""

    def full_scale(config: TextConfig) -> dict[str, tuple[Program, Batch]]:
        student, teacher = map(config.network, (config.student, config.teacher))
        rows = programs(config, student, teacher, config.optimizer.build(1000))
        shape = config.batch_size, max(config.lengths)
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
        label = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
        batch = {"input_ids": tokens, "attention_mask": tokens, "label": label}
        return {f"{config.teacher}-{config.student}": (rows[method], batch)}

    return full_scale
