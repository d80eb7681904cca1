"""Talking-model distillation: the student asks, the teacher thinks on, and answers.

Zhao et al. 2023 (arXiv:2310.03188). The student sends its lower state as a message. The
teacher decodes it, runs its own upper layers on it (it interprets), and sends a message
back, which the student decodes and agrees with in its higher state. States may be
vectors, or have tokens that both networks share: codecs work on the last axis.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import segment_name
from jaxkd.arguments import checked, count
from jaxkd.losses.alignment import agreement_loss
from jaxkd.losses.features import hint_loss
from jaxkd.methods.base import from_module
from jaxkd.types import Method, Outputs

State = Float[Array, "batch *tokens width"]


class MessageCodec(nnx.Module):
    """Linear, ReLU, linear; or one linear layer.

    Args:
        features_in: of a state or message.
        features_out: of the other.
        hidden: width between; None for one layer.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        hidden: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.first = (
            None if hidden is None else nnx.Linear(features_in, hidden, rngs=rngs)
        )
        # States after a ReLU are not below 0: no activation at the end for all that.
        self.last = nnx.Linear(hidden or features_in, features_out, rngs=rngs)

    def __call__(self, x: State) -> Float[Array, "batch *tokens features"]:
        """Return the message of a state, or the state of a message."""
        return self.last(x if self.first is None else nnx.relu(self.first(x)))


class Codecs(nnx.Module):
    """What student and teacher put their states into messages by, and back.

    Args:
        widths: of the student's lower and higher states and of the teacher's.
        message: of a message.
        hidden: of each codec; None for one layer.
        rounds: of exchange; with several there is an encoder of the student's higher
            state too.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        message: int,
        hidden: int | None,
        rounds: int,
        *,
        rngs: nnx.Rngs,
    ):
        def codec(features_in: int, features_out: int) -> MessageCodec:
            return MessageCodec(features_in, features_out, hidden, rngs=rngs)

        low, high, teacher_low, teacher_high = widths
        self.ask = codec(low, message)
        self.ask_again = codec(high, message) if rounds > 1 else None
        self.heard = codec(message, teacher_low)
        self.teacher_ask = codec(teacher_low, message)
        self.answer = codec(teacher_high, message)
        self.received = codec(message, high)


class Exchange(NamedTuple):
    """One round.

    Attributes:
        message: the student's.
        decoded: the teacher's lower state made of it.
        interpreted: what the teacher's upper layers make of that.
        answer: the teacher's message.
        received: the student's higher state made of it.
    """

    message: Array
    decoded: Array
    interpreted: Array
    answer: Array
    received: Array


@checked(rounds=count)
def interact(
    low: State,
    upper: Callable[[Array], Array],
    codecs: Codecs,
    rounds: int = 1,
) -> list[Exchange]:
    """Return what is said in each round.

    Args:
        low: the student's lower state.
        upper: the teacher's upper layers, whose weights stand still and let gradients
            through.
        codecs: made for as many rounds.
        rounds: the second one starts from the state that the student received.

    Raises:
        ValueError: rounds below 1, or more than the codecs are made for.
    """
    if rounds > 1 and codecs.ask_again is None:
        raise ValueError(
            f"rounds is {rounds}, but the codecs are made for one: build them for more"
        )
    said: list[Exchange] = []
    for _ in range(rounds):
        again = codecs.ask_again
        message = again(said[-1].received) if said and again else codecs.ask(low)
        decoded = codecs.heard(message)
        interpreted = upper(decoded)
        answer = codecs.answer(interpreted)
        received = codecs.received(answer)
        said.append(Exchange(message, decoded, interpreted, answer, received))
    return said


@checked()
def interaction_loss(high: State, received: Sequence[State]) -> Float[Array, "batch"]:
    """Return the mean over rounds of how far the student's state is from the answer's.

    Zhao et al. 2023, arXiv:2310.03188. Both sides get a gradient.

    Args:
        high: the student's higher state.
        received: of each round, of the same shape.

    Returns:
        The loss of each example, a mean over its values.

    Raises:
        ValueError: no rounds, or shapes that differ.
    """
    if not received:
        raise ValueError("received is empty: interact() gives one state a round")
    return jnp.stack([agreement_loss(high, state) for state in received]).mean(0)


def message_consistency_loss(student: State, teacher: State) -> Float[Array, "batch"]:
    """Return how far two messages about one input are apart; both get a gradient.

    Args:
        student: its message.
        teacher: its message of the same shape.

    Raises:
        ValueError: shapes differ.
    """
    return agreement_loss(student, teacher)


@checked()
def state_consistency_loss(
    pairs: Sequence[tuple[Array, Array]],
) -> Float[Array, "batch"]:
    """Return the sum of how far decoded states are from what their receiver has itself.

    Args:
        pairs: (decoded, the receiver's own), (batch, ..., width) of a width each; the
            latter gets no gradient.

    Raises:
        ValueError: no pairs, or shapes that differ.
    """
    if not pairs:
        raise ValueError("pairs is empty: give at least one (decoded, own) state")
    return jnp.stack([hint_loss(decoded, own) for decoded, own in pairs]).sum(0)


@checked(message=count, rounds=count)
def talking(
    taps: tuple[str, str],
    teacher_taps: tuple[str, str],
    *,
    message: int = 32,
    hidden: int | None = 64,
    rounds: int = 1,
    interaction: float = 0.5,
    messages: float = 0.5,
    states: float = 0.5,
    detach_received: bool = False,
) -> Method:
    """Return w₁·L_interact + w₂·L_messages + w₃·L_states, to be added to the task's.

    Zhao et al. 2023, arXiv:2310.03188. The teacher's task and classes may be others
    than the student's: its head is not used. The codecs are trained with the student
    and dropped after. States are of examples, or of tokens that all count: a text's
    padding would be interpreted too.

    Args:
        taps: the student's lower and higher state (batch, ..., width).
        teacher_taps: the teacher's, which it can be cut at. Axes but the last are the
            student's.
        message: width of a message.
        hidden: of each codec; None for one linear layer.
        rounds: of exchange.
        interaction: w₁; at 0 nothing is interpreted.
        messages: w₂.
        states: w₃; without it and w₂ all messages may become one constant.
        detach_received: whether the answer is a fixed target of the student's state,
            and does not learn from it.

    Raises:
        ValueError: rounds or message below 1, or a weight below 0.
    """
    (low, high), (teacher_low, teacher_high) = taps, teacher_taps

    def build(student: Outputs, teacher: Outputs, rngs: nnx.Rngs) -> Codecs:
        own, others = student.features, teacher.features
        arrays = own[low], own[high], others[teacher_low], others[teacher_high]
        a, b, c, d = (x.shape[-1] for x in arrays)
        return Codecs((a, b, c, d), message, hidden, rounds, rngs=rngs)

    def loss(codecs: Codecs, student, teacher, batch, key):
        t_low, t_high = (
            jax.lax.stop_gradient(teacher.features[tap]) for tap in teacher_taps
        )
        s_low, s_high = (student.features[tap] for tap in taps)
        asked, told = codecs.ask(s_low), codecs.teacher_ask(t_low)
        total = messages * message_consistency_loss(asked, told)
        pairs = (
            (codecs.heard(asked), t_low),
            (codecs.heard(told), t_low),
            (codecs.received(codecs.answer(t_high)), s_high),
        )
        total += states * state_consistency_loss(pairs)
        if interaction:
            upper = jax.lax.stop_gradient(teacher.segments[segment_name(teacher_taps)])
            said = interact(s_low, upper, codecs, rounds)
            received = [exchange.received for exchange in said]
            if detach_received:
                received = jax.lax.stop_gradient(received)
            total += interaction * interaction_loss(s_high, received)
        return total

    return from_module(
        build,
        loss,
        name="talking",
        student_taps=taps,
        teacher_taps=teacher_taps,
        teacher_segments=(teacher_taps,) if interaction else (),
    )
