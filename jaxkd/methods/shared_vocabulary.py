"""Language models of one tokenizer whose logits have different widths."""

from dataclasses import replace

import jax
from jaxtyping import Array

from jaxkd.arguments import checked
from jaxkd.types import Batch, Method, Outputs


@checked()
def shared_vocabulary(method: Method, size: int) -> Method:
    """Return a method that sees only the first logits of both networks.

    The logits (a cached teacher's ``teacher_logits`` too) and, where it is tapped, the
    output projection ``head`` are cut off before any softmax, so that padding takes no
    part in it. Give it the distillation
    alone: labels reach beyond what the networks share.

    Args:
        method: what compares the two networks, such as ``kd(1.0)`` or ``linear_kd()``.
        size: of what they share, as `jaxkd.data.check_vocabularies` returns it.

    Raises:
        ValueError: from ``init`` and ``loss``, a network with fewer logits.
    """

    def first(who: str, array: Array) -> Array:
        if array.shape[-1] < size:
            raise ValueError(
                f"size is {size}, but the {who} has {array.shape[-1]} logits: give "
                "what both networks share, as data.check_vocabularies returns it"
            )
        return jax.lax.slice_in_dim(array, 0, size, axis=-1)

    def cut(who: str, outputs: Outputs) -> Outputs:
        logits = None if outputs.logits is None else first(who, outputs.logits)
        head = {k: first(who, v) for k, v in outputs.features.items() if k == "head"}
        features = {**outputs.features, **head}
        return replace(outputs, logits=logits, features=features)

    def shared(student: Outputs, teacher: Outputs, batch: Batch) -> tuple:
        """Return all three, cut."""
        name = "teacher_logits"
        if teacher.logits is None and name in batch:
            batch = {**batch, name: first("teacher", batch[name])}
        return cut("student", student), cut("teacher", teacher), batch

    def init(key, student, teacher, batch):
        return method.init(key, *shared(student, teacher, batch))

    def loss(variables, student, teacher, batch, key, step):
        seen = shared(student, teacher, batch)
        return method.loss(variables, *seen, key, step)

    return method._replace(init=init, loss=loss)
