"""What experiments on language models share: a text's windows, and training on them."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common.configs import OptimizerConfig
from jaxkd import data, distill
from jaxkd.evaluation.language import fidelity_evaluator, token_evaluator
from jaxkd.interop import load_pretrained
from jaxkd.methods import cross_entropy
from jaxkd.network import Network
from jaxkd.reporting.run import Arm, Run, Task
from jaxkd.types import Batch


@dataclass(frozen=True)
class CorpusConfig:
    """A text in windows.

    Attributes:
        text: ``tiny_shakespeare``, or a folder of token files below JAXKD_DATA.
        vocabulary: of the token files.
        length: tokens of a window.
        test_windows: to evaluate on, the first of the test text; 0 for all.
        batch_size: windows.
    """

    text: str = "tiny_shakespeare"
    vocabulary: int = 0
    length: int = 64
    test_windows: int = 512
    batch_size: int = 16

    def load(self) -> "Corpus":
        """Return the windows to train and to evaluate on.

        Raises:
            FileNotFoundError: they are not there; it says what to put where.
        """
        if self.text == "tiny_shakespeare":
            found = data.tiny_shakespeare(self.length)
        else:
            found = data.token_files(self.text, self.length, self.vocabulary)
        test = found.test
        if self.test_windows:
            tokens = test.tokens[: self.test_windows * self.length + 1]
            test = replace(test, tokens=tokens)
        return Corpus(found.train, test, self.batch_size)

    def batch(self) -> Batch:
        """Return the shapes of a batch, for compiling ahead of time."""
        tokens = jax.ShapeDtypeStruct((self.batch_size, self.length), jnp.int32)
        return {"input_ids": tokens, "label": tokens}


@dataclass(frozen=True)
class Corpus:
    """Windows of a text to train and to evaluate on.

    Attributes:
        train: to train on.
        test: to evaluate on.
        batch_size: of training.
    """

    train: data.Examples
    test: data.Examples
    batch_size: int

    @property
    def vocabulary(self) -> int:
        """The number of tokens that there are."""
        return self.train.classes

    def batches(self, steps: int, seed: int):
        """Return training batches for that many steps."""
        epochs = -(-steps // data.steps_per_epoch(self.train, self.batch_size))
        return data.batches(self.train, self.batch_size, epochs=epochs, seed=seed)

    def task(self, setting: str, steps: int, teacher: Network | None = None) -> Task:
        """Return the task: the likelihood of the text, and how a teacher is followed.

        Args:
            setting: the table's name.
            steps: of training.
            teacher: with its variables, for KL both ways and agreement.
        """
        frozen: Any = None if teacher is None else teacher.init(jax.random.key(0))

        def evaluate(network: Network):
            likelihood = token_evaluator(network, self.test)
            if teacher is None or frozen is None:
                return likelihood
            fidelity = fidelity_evaluator(network, teacher, frozen, self.test)
            return lambda variables: {**likelihood(variables), **fidelity(variables)}

        return Task(
            setting,
            lambda seed: self.batches(steps, seed),
            steps,
            evaluate,
            evaluate_every=max(steps // 5, 1),
            checkpoint_every=max(steps // 3, 1),
        )

    def learn(
        self,
        run: Run,
        network: Network,
        optimizer: OptimizerConfig,
        steps: int,
        name: str = "teacher",
        seed: int = 0,
    ) -> Arm:
        """Return a network after training on the text alone.

        Args:
            run: keeps it, in a folder of that name.
            network: to train.
            optimizer: of the training.
            steps: likewise.
            name: of the row.
            seed: of the weights and the order of the windows.
        """
        arm = learner(name, network, optimizer, steps)
        return run.teacher(arm, self.task("", steps), seed)


def learner(name: str, network: Network, optimizer: OptimizerConfig, steps: int) -> Arm:
    """Return the row of a network that learns from the text alone."""
    program = distill(network, None, cross_entropy(), optimizer.build(steps))
    return Arm(name, program, network)


def read(network: Network, folder: str) -> Arm:
    """Return a trained teacher of a folder below JAXKD_DATA.

    Raises:
        FileNotFoundError: it is not there; the message says what to put where.
    """
    path = data.data_file(f"{folder}/config.json").parent
    return Arm("teacher", None, network.with_variables(load_pretrained(path)[1]))
