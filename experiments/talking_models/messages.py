"""What two networks say of test images: how alike, how varied, and how well heard."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from experiments.talking_models.config import Talk
from jaxkd.adapters import abstract_module, merge_module
from jaxkd.evaluation.similarity import linear_cka
from jaxkd.network import Network
from jaxkd.papers.talking_models import Codecs, interact, interaction_loss
from jaxkd.reporting.run import Values
from jaxkd.types import Batch, TrainState


@dataclass(frozen=True)
class Talked:
    """Two networks and their codecs.

    Attributes:
        talk: how they exchange messages.
        rounds: of exchange.
        student: the network that is trained, by labels and messages.
        teacher: the other.
    """

    talk: Talk
    rounds: int
    student: Network
    teacher: Network

    def said(self, state: TrainState, batch: Batch) -> tuple[Array, Array, Array]:
        """Return both networks' first messages, and the exchange's loss.

        Args:
            state: of the program, whose method is labels and messages.
            batch: of test images.
        """
        own, others = (
            network.apply(variables, network.read(batch), taps=taps)[0].features
            for network, variables, taps in (
                (self.student, state.student, self.talk.taps),
                (self.teacher, state.teacher, self.talk.teacher_taps),
            )
        )
        low, high = (own[tap] for tap in self.talk.taps)
        teacher_low, teacher_high = (others[tap] for tap in self.talk.teacher_taps)
        a, b, c, d = (x.shape[-1] for x in (low, high, teacher_low, teacher_high))
        message, hidden = self.talk.message, self.talk.hidden
        abstract = abstract_module(
            lambda: Codecs((a, b, c, d), message, hidden, self.rounds, rngs=nnx.Rngs(0))
        )
        codecs = merge_module(abstract, state.method["params"]["1"], {})
        part = self.teacher.segment(*self.talk.teacher_taps)

        def upper(x: Array) -> Array:
            return part.apply(state.teacher, x)[0].logits

        rounds = interact(low, upper, codecs, self.rounds)
        loss = interaction_loss(high, [exchange.received for exchange in rounds])
        return codecs.ask(low), codecs.teacher_ask(teacher_low), loss.mean()

    def measure(self, state: Any, batch: Batch) -> Values:
        """Return how alike both networks' messages are, and how well the answer fits.

        The spread is the deviation of the student's messages over inputs, relative to
        their root mean square: 0 where they are one constant.
        """

        @jax.jit
        def numbers(state: TrainState, image: Array) -> tuple[Array, Array, Array]:
            asked, told, loss = self.said(state, {"image": image})
            spread = jnp.sqrt(asked.var(0).mean() / (asked**2).mean())
            return linear_cka(asked, told), loss, spread

        names = ("message_cka", "interaction", "message_spread")
        found = numbers(state, batch["image"])
        return {name: float(x) for name, x in zip(names, found, strict=True)}
