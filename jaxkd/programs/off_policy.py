"""Distillation on the student's own text, kept and read again: DistiLLM's sampler."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, finite, natural
from jaxkd.checks import disjoint
from jaxkd.generation import Sampling
from jaxkd.losses.basics import weighted_mean
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.network import Network
from jaxkd.programs.distill import distill
from jaxkd.programs.on_policy import (
    PREFIXES,
    PROMPT,
    answer_on_answer,
    answered,
    check_prompts,
    given,
    shared_width,
    writer,
)
from jaxkd.programs.update import Keys
from jaxkd.types import Batch, Method, Metrics, Program, TrainState

ROWS = (
    *(role + name for role in PREFIXES for name in PROMPT),
    *("response_ids", "response_mask"),
)


@flax.struct.dataclass
class Replay:
    """The last rows that were added, the oldest replaced first.

    Attributes:
        rows: arrays (capacity, ...) by name.
        added: rows so far, an int32 scalar.
    """

    rows: Any
    added: Any

    @classmethod
    def empty(cls, rows: Batch, capacity: int) -> "Replay":
        """Return a buffer for rows like these, without any.

        Raises:
            ValueError: a capacity that is no multiple of their number.
        """
        count = len(next(iter(rows.values())))
        if capacity < count or capacity % count:
            raise ValueError(
                f"capacity is {capacity}, but whole batches of {count} rows are kept: "
                "give a multiple of that"
            )
        zeros = {
            name: jnp.zeros((capacity, *array.shape[1:]), array.dtype)
            for name, array in rows.items()
        }
        return cls(zeros, jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        """Return how many rows there are at most."""
        return len(next(iter(self.rows.values())))

    def add(self, rows: Batch) -> "Replay":
        """Return the buffer with a batch of rows more."""
        count = len(next(iter(rows.values())))
        at = self.added % self.capacity
        kept = {
            name: jax.lax.dynamic_update_slice_in_dim(array, rows[name], at, axis=0)
            for name, array in self.rows.items()
        }
        return Replay(kept, self.added + count)

    def sample(self, key: PRNGKeyArray, count: int) -> Batch:
        """Return rows drawn uniformly from those there are, with replacement."""
        there = jnp.minimum(self.added, self.capacity)
        chosen = jax.random.randint(key, (count,), 0, there)
        return {name: array[chosen] for name, array in self.rows.items()}


@flax.struct.dataclass
class OffPolicyState:
    """The state of `off_policy`'s programs.

    Attributes:
        distillation: the `TrainState`.
        replay: what the student has written.
        threshold: φ, the share of the steps that read the student's text.
        validation_loss: that the next validation is compared with.
    """

    distillation: TrainState
    replay: Replay
    threshold: Any
    validation_loss: Any

    @property
    def student(self) -> Any:
        """Return the student's variables."""
        return self.distillation.student

    deployed = student


@checked(eos=natural, tolerance=finite, accumulate=count)
def off_policy(
    student: Network,
    teacher: Network,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    validate_every: int,
    max_new_tokens: int,
    capacity: int,
    tolerance: float = 0.1,
    increment: float = 0.1,
    sampling: Sampling = Sampling(),
    eos: int | tuple[int, ...] | None = None,
    pad: int = 0,
    accumulate: int = 1,
) -> Program:
    """Return `distill`'s program on the batch's answers and, when they fail, its own.

    The adaptive off-policy sampling of DistiLLM (Ko et al. 2024, arXiv:2402.03898,
    Algorithm 1). A share φ of the steps reads text that the student wrote, the others
    the batch's. φ begins at 0 and grows by ``increment`` whenever a validation's loss
    is ``tolerance`` or more above that of the last growth (or of the start): by then
    the student needs to see its own mistakes. Of the share φ, a part that falls from
    all to none over the run writes anew, and so do all until the buffer is full; the
    others read what was written before, which costs no sampling.

    Batches are those of `on_policy`, with the responses, and in ``validation`` another
    such batch, whose cross-entropy on the responses is the validation's loss.

    Args:
        student: with the tap ``cache``.
        teacher: frozen.
        method: such as ``linear_kd(skew_kl(0.1))``.
        optimizer: any optax transformation.
        steps: of the whole run.
        validate_every: steps.
        max_new_tokens: of an answer.
        capacity: answers kept, a multiple of the batch's size; the paper's 1,000.
        tolerance: ε, in nats a token.
        increment: of φ.
        sampling: how tokens are drawn.
        eos: token, or tokens, that end an answer.
        pad: token after the end.
        accumulate: as in `jaxkd.distill`.

    Raises:
        ValueError: no steps; from ``init``, a batch without prompts, responses or
            ``validation``, or a capacity that does not fit the batch.
    """
    if steps < 1 or validate_every < 1:
        raise ValueError(
            f"steps and validate_every must be at least 1, got {steps} and "
            f"{validate_every}"
        )
    program = distill(
        student, teacher, answer_on_answer(method), optimizer, accumulate=accumulate
    )
    write = writer(student, "student", max_new_tokens, sampling, eos, pad)

    def validate(variables: Any, batch: Batch) -> Float[Array, ""]:
        rows = answered(batch, *given(batch))
        logits = student.apply(variables, student.read(rows, "student"))[0].logits
        losses = cross_entropy_loss(logits, rows["label"])
        return weighted_mean(losses, rows["mask"].astype(jnp.float32))

    def rows_of(batch: Batch) -> Batch:
        return {name: jnp.int32(batch[name]) for name in ROWS if name in batch}

    def choose(
        state: OffPolicyState, batch: Batch, keys: Keys
    ) -> tuple[Batch, Replay, Int[Array, ""]]:
        """Return the step's rows, the buffer after them, and where they are from."""
        draw, step = jax.random.uniform(keys.choice), state.distillation.step
        own = draw < state.threshold
        anew = draw < state.threshold * (1 - step / steps)
        full = state.replay.added >= state.replay.capacity
        rows = rows_of(batch)

        def written() -> tuple[Batch, Replay]:
            nets = state.distillation.student, state.distillation.teacher
            shared = shared_width((student, nets[0]), (teacher, nets[1]), batch)
            ids, mask, _ = write(state.student, batch, keys.sampling, shared)
            fresh = {**rows, "response_ids": ids, "response_mask": mask}
            return fresh, state.replay.add(fresh)

        def read() -> tuple[Batch, Replay]:
            count = len(rows["input_ids"])
            return state.replay.sample(keys.replay, count), state.replay

        index = jnp.where(own, jnp.where(anew | ~full, 0, 1), 2)
        return *jax.lax.switch(
            index, (written, read, lambda: (rows, state.replay))
        ), index

    def init(key: PRNGKeyArray, batch: Batch) -> OffPolicyState:
        if "validation" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)}, but off_policy() needs validation, "
                "another such batch, to see when the student goes wrong"
            )
        for part in (batch, batch["validation"]):
            check_prompts(part, max_new_tokens, responses=True)
        rows = rows_of(batch)
        state = program.init(key, answered(rows, *given(rows)))
        loss = validate(state.student, batch["validation"])
        return OffPolicyState(state, Replay.empty(rows, capacity), jnp.zeros(()), loss)

    def step(state: OffPolicyState, batch: Batch) -> tuple[OffPolicyState, Metrics]:
        before = state.distillation
        keys = Keys(before.key).at(before.step)
        rows, replay, origin = choose(state, batch, keys)
        after, metrics = program.step(before, answered(rows, *given(rows)))
        last = state.validation_loss
        loss = jax.lax.cond(
            after.step % validate_every == 0,
            lambda: validate(after.student, batch["validation"]),
            lambda: jnp.full_like(last, -jnp.inf),
        )
        worse = loss >= last + tolerance
        threshold = jnp.where(
            worse, jnp.minimum(state.threshold + increment, 1.0), state.threshold
        )
        state = OffPolicyState(after, replay, threshold, jnp.where(worse, loss, last))
        own = {"written": (origin == 0), "replayed": (origin == 1)}
        own = {name: value.astype(jnp.float32) for name, value in own.items()}
        return state, disjoint(metrics, own, {"threshold": threshold})

    def check(state: OffPolicyState, batch: Batch) -> None:
        for part in (batch, batch["validation"]):
            program.check(state.distillation, part)

    return Program(
        init,
        step,
        lambda state: program.frozen(state.distillation),
        program.axes,
        check,
    )
