"""Distillation on text that the networks write themselves, within the train step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, natural, probability
from jaxkd.checks import disjoint
from jaxkd.generation import Sampling, generate
from jaxkd.network import Network
from jaxkd.networks.mixed import mixed
from jaxkd.programs.distill import check_training, distill
from jaxkd.programs.update import Keys
from jaxkd.types import (
    Ask,
    Batch,
    Method,
    Metrics,
    Outputs,
    Program,
    TrainState,
)

PROMPT = ("input_ids", "attention_mask")
PREFIXES = ("", "student_", "teacher_")
"""Before the names of prompts that are all networks', or one's own."""

Response = tuple[
    Int[Array, "batch new"], Int[Array, "batch new"], Float[Array, "batch new"] | None
]
Writer = Callable[[Any, Batch, PRNGKeyArray, int], Response]


@checked(
    student_share=probability, teacher_share=probability, eos=natural, accumulate=count
)
def on_policy(
    student: Network,
    teacher: Network | None,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    max_new_tokens: int,
    ask: Ask | None = None,
    student_share: float = 0.5,
    teacher_share: float = 0.0,
    teacher_mixture: float = 0.0,
    sampling: Sampling = Sampling(),
    eos: int | tuple[int, ...] | None = None,
    pad: int = 0,
    accumulate: int = 1,
) -> Program:
    """Return `distill`'s program on answers that are sampled anew at every step.

    Generalised knowledge distillation (GKD, Agarwal et al. 2023, arXiv:2306.13649,
    Algorithm 1): a step takes the student's answers with probability
    ``student_share``, so that it learns from its own mistakes, the teacher's with
    ``teacher_share`` (sequence-level distillation, Kim and Rush 2016,
    arXiv:1606.07947), and otherwise the batch's. No gradient goes through sampling.

    Batches have prompts, ``input_ids`` and ``attention_mask`` (batch, prompt), padded
    before them (`jaxkd.data.Prompts`), and, unless every step samples,
    ``response_ids`` and ``response_mask`` (batch, ``max_new_tokens``), padded after.
    The method sees prompt and answer as one row, its ``label``, a ``mask`` of the
    answer's tokens and, if every step samples, ``sampled_log_prob``: of each, in the
    distribution it was drawn from (after temperature, top-k and top-p).

    A network's own prompts, such as ``teacher_input_ids`` and
    ``teacher_attention_mask`` with more in them than the student is told, are followed
    by the same answer, and the teacher's logits, hidden states and other features
    (batch, length, ...) are laid where the student's are, answer on answer. Both
    networks therefore need one tokenizer; of logits that are padded to different
    widths the first are shared, no token is drawn beyond them, and the method is
    ``shared_vocabulary(...)``.

    A teacher that is elsewhere, or has another tokenizer, is asked by ``ask``, on the
    host and in every step: `jaxkd.teachers.scored_candidates` of a server, with None as
    the teacher, or `jaxkd.teachers.retokenized`. It never writes.

    Args:
        student: with the tap ``cache``.
        teacher: likewise if it samples; None where ``ask`` says what it thinks.
        method: such as ``linear_kd(jensen_shannon(0.5))``, or `minillm`.
        optimizer: any optax transformation.
        max_new_tokens: of an answer.
        ask: ``(the student's variables, rows) -> rows`` with the teacher's view of
            prompts and answers; what the prompts have with ``teacher_`` before the name
            is among them as it is.
        student_share: λ, of the steps.
        teacher_share: of the steps; at most 1 − λ.
        teacher_mixture: of the teacher's probabilities in the student's sampling, in
            [0, 1): MiniLLM's teacher-mixed sampling (arXiv:2306.08543, Eq. 4).
        sampling: how tokens are drawn.
        eos: token, or tokens, that end an answer.
        pad: token after the end.
        accumulate: as in `jaxkd.distill`; the answers are sampled for the whole batch.

    Raises:
        ValueError: shares outside [0, 1]; from ``init``, a batch without prompts, or
            without the responses that are needed, or with text in another tokenizer's
            tokens; prompts of the networks' own with ``teacher_mixture``.
    """
    if min(student_share, teacher_share) < 0 or student_share + teacher_share > 1:
        raise ValueError(
            "student_share and teacher_share must be at least 0 and at most 1 in all, "
            f"got {student_share} and {teacher_share}"
        )
    writes = teacher_share > 0 or teacher_mixture > 0
    if (teacher is None and ask is None) or (writes and ask is not None):
        raise ValueError(
            f"teacher is {'given' if teacher else None}, ask {'given' if ask else None}"
            f", teacher_share {teacher_share} and teacher_mixture {teacher_mixture}: "
            "give a teacher or ask, and with ask no share to the teacher, which does "
            "not write then"
        )
    compared = answer_on_answer(method) if ask is None else method
    program = distill(student, teacher, compared, optimizer, accumulate=accumulate)
    policy = student
    if teacher is not None and teacher_mixture:
        policy = mixed(student, teacher, teacher_mixture)
    student_writes, teacher_writes = (
        writer(network, role, max_new_tokens, sampling, eos, pad)
        for network, role in ((policy, "student"), (teacher or student, "teacher"))
    )
    always = student_share + teacher_share > 1 - 1e-9

    def rows(batch: Batch, *response: Any) -> dict[str, Any]:
        """Return prompts and answers; those of a teacher that is asked are its own."""
        if ask is None:
            return {**answered(batch, *response)}
        own = {n: x for n, x in batch.items() if n.startswith("teacher_")}
        rest = {n: x for n, x in batch.items() if n not in own}
        return {**answered(rest, *response), **own}

    def response(state: TrainState, batch: Batch) -> Response:
        keys = Keys(state.key).at(state.step)
        pair = {"first": state.student, "second": state.teacher}

        def written(write: Writer, variables: Any) -> Response:
            own = student, state.student
            read = own if teacher is None or ask else (teacher, state.teacher)
            return write(
                variables, batch, keys.sampling, shared_width(own, read, batch)
            )

        ways: list[tuple[float, Callable[[], Response]]] = [
            (
                student_share,
                lambda: written(
                    student_writes, pair if teacher_mixture else state.student
                ),
            ),
            (teacher_share, lambda: written(teacher_writes, state.teacher)),
            (1 - student_share - teacher_share, lambda: given(batch)),
        ]
        ways = [way for way in ways if way[0] > 1e-9]
        if len(ways) == 1:
            return ways[0][1]()
        shares = jnp.array([share for share, _ in ways])
        index = jax.random.categorical(keys.choice, jnp.log(shares))
        # Of the batch's own answers no log-probability is known.
        known = 3 if always else 2
        found = jax.lax.switch(index, [lambda w=w: w()[:known] for _, w in ways])
        return found if always else (*found, None)

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        shape = check_prompts(batch, max_new_tokens, responses=not always)
        own = [role + name for role in PREFIXES[1:] for name in PROMPT]
        own = [name for name in own if name in batch]
        if teacher_mixture and own:
            raise ValueError(
                f"teacher_mixture is {teacher_mixture}, but the batch has {own}: both "
                "networks write a mixture's answers together, after one prompt. Leave "
                "these out, or set teacher_mixture to 0"
            )
        some = jnp.full(shape, pad, jnp.int32), jnp.ones(shape, jnp.int32)
        ids, mask, _ = given(batch) if "response_ids" in batch else (*some, None)
        log_probs = jnp.zeros(shape) if always else None
        found = rows(batch, ids, mask, log_probs)
        if ask is not None:  # Nobody is asked before the first step.

            def told(ask: Ask = ask) -> Batch:
                after = ask(student.init(key), found)
                return {n: x for n, x in after.items() if x is not found.get(n)}

            found |= jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(told)
            )
        return program.init(key, found)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        ids, mask, log_probs = response(state, batch)
        found = rows(batch, ids, mask, log_probs)
        if ask is not None:
            found = ask(state.student, found)
        state, metrics = program.step(state, found)
        return state, disjoint(metrics, {"response_tokens": mask.sum(1).mean()})

    def check(state: TrainState, batch: Batch) -> None:
        reads = ask is None or "teacher_input_ids" in batch
        check_training(state.classes, batch, student, teacher if reads else None)

    return program._replace(init=init, step=step, check=check)


@checked(eos=natural, pad=natural)
def writer(
    network: Network,
    role: str,
    max_new_tokens: int,
    sampling: Sampling,
    eos: int | tuple[int, ...] | None,
    pad: int,
) -> Writer:
    """Return ``(variables, batch, key, vocabulary) ->`` sampled answers.

    They have no gradient, answer the prompts of that role, and have the tokens below
    ``vocabulary``.
    """

    def write(
        variables: Any, batch: Batch, key: PRNGKeyArray, vocabulary: int
    ) -> Response:
        before = f"{role}_" if f"{role}_input_ids" in batch else ""
        found = generate(
            network,
            variables,
            {name: batch[before + name] for name in PROMPT},
            max_new_tokens=max_new_tokens,
            key=key,
            sampling=sampling,
            eos=eos,
            pad=pad,
            vocabulary=vocabulary,
        )
        mask = found.mask.astype(jnp.int32)
        return jax.lax.stop_gradient((found.tokens, mask, found.sampled_log_probs))

    return write


@checked()
def shared_width(
    student: tuple[Network, Any], teacher: tuple[Network, Any], batch: Batch
) -> int:
    """Return how many logits both networks have: each reads what the other writes.

    Args:
        student: and its variables.
        teacher: likewise.
        batch: with prompts.
    """

    def width(network: Network, variables: Any, role: str) -> int:
        inputs = network.read(batch, role)
        outputs, _ = jax.eval_shape(network.apply, variables, inputs)
        return outputs.logits.shape[-1]

    return min(width(*student, "student"), width(*teacher, "teacher"))


def given(batch: Batch) -> Response:
    """Return the batch's own answers, of which nobody knows what drew them."""
    return jnp.int32(batch["response_ids"]), jnp.int32(batch["response_mask"]), None


@checked()
def check_prompts(
    batch: Batch, max_new_tokens: int, *, responses: bool
) -> tuple[int, int]:
    """Return the answers' shape, (batch, ``max_new_tokens``).

    Args:
        batch: with prompts.
        max_new_tokens: of an answer.
        responses: whether some steps read the batch's own.

    Raises:
        ValueError: something is missing, the responses have another shape, or there is
            text in another tokenizer's tokens.
    """
    needed = [*PROMPT, *(["response_ids", "response_mask"] if responses else [])]
    for before in PREFIXES:
        if any(before + name in batch for name in PROMPT):
            needed += [before + name for name in PROMPT if before]
    missing = [name for name in needed if name not in batch]
    if missing:
        raise ValueError(
            f"the batch has {sorted(batch)}, but prompts and answers need "
            f"{', '.join(missing)}: add them, or sample at every step"
        )
    foreign = ("teacher_mask", "teacher_label", "teacher_response_ids")
    if found := [name for name in foreign if name in batch]:
        raise ValueError(
            f"the batch has {', '.join(found)}, as of a teacher with another "
            "tokenizer, but it would read the answers that are written here in the "
            "student's tokens. Leave that out if the tokenizers are one "
            "(data.check_vocabularies says so); if not, train by distill() with uld() "
            "on texts that are tokenised for both networks"
        )
    shape = (len(batch["input_ids"]), max_new_tokens)
    if "response_ids" in batch and batch["response_ids"].shape != shape:
        raise ValueError(
            f"batch['response_ids'] has shape {batch['response_ids'].shape}, but "
            f"answers of max_new_tokens {max_new_tokens} have {shape}: pad or cut "
            "them to it"
        )
    return shape


def answered(
    batch: Batch,
    response_ids: Int[Array, "batch new"],
    response_mask: Int[Array, "batch new"],
    sampled_log_prob: Float[Array, "batch new"] | None = None,
) -> Batch:
    """Return the batch as methods read it: prompts and answers in one row.

    A network's own prompts (``teacher_input_ids``) make rows of its own, which end with
    the same answers. ``label``, ``mask`` and ``sampled_log_prob`` are the student's.

    Args:
        batch: with ``input_ids`` and ``attention_mask``, padded before the prompt.
        response_ids: that follow.
        response_mask: 0 after an answer's end.
        sampled_log_prob: of each token; None where it is not known.
    """
    found = {
        name: value for name, value in batch.items() if not name.startswith("response_")
    }
    for role in PREFIXES:
        if f"{role}input_ids" not in batch:
            continue
        ids, real = (
            jnp.concatenate([jnp.int32(batch[role + name]), answer], axis=1)
            for name, answer in zip(PROMPT, (response_ids, response_mask), strict=True)
        )
        found |= {
            f"{role}input_ids": ids[:, :-1],
            f"{role}attention_mask": real[:, :-1],
            f"{role}position_ids": jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)[:, :-1],
        }
        if role != "teacher_":
            found["label"] = ids[:, 1:]
    before = ((0, 0), (found["label"].shape[1] - response_ids.shape[1], 0))
    found["mask"] = jnp.pad(response_mask, before)
    if sampled_log_prob is not None:
        found["sampled_log_prob"] = jnp.pad(sampled_log_prob, before)
    return found


def answer_on_answer(method: Method) -> Method:
    """Return a method for `answered` rows that sees the teacher's where the student's.

    Both networks' rows end with the answer. Of a teacher whose prompts have another
    length, what lies before the student's row is cut off, and what its row lacks there
    is 0; none of it is the answer's, which alone is in ``mask``.

    Args:
        method: that compares the networks token by token.
    """

    def moved(teacher: Outputs, batch: Batch) -> Outputs:
        rows = batch.get("teacher_input_ids", batch["input_ids"])
        more = rows.shape[1] - batch["label"].shape[1]

        def move(array: Array) -> Array:
            if not more or array.ndim < 3 or array.shape[1] != rows.shape[1]:
                return array
            rest = [(0, 0)] * (array.ndim - 2)
            array = jnp.pad(array, ((0, 0), (max(-more, 0), 0), *rest))
            return array[:, max(more, 0) :]

        return jax.tree.map(move, teacher)

    def init(key, student, teacher, batch):
        return method.init(key, student, moved(teacher, batch), batch)

    def loss(variables, student, teacher, batch, key, step):
        teacher = moved(teacher, batch)
        return method.loss(variables, student, teacher, batch, key, step)

    return method._replace(init=init, loss=loss)
