"""Language models of one tokenizer whose logits have different widths."""

import jax
from jaxtyping import Array

from jaxkd.arguments import checked
from jaxkd.types import Method, Outputs


@checked()
def shared_vocabulary(method: Method, size: int) -> Method:
    """Return a method that sees only the first logits of both networks.

    The logits and, where it is tapped, the output projection ``head`` are cut off
    before any softmax, so that padding takes no part in it. Give it the distillation
    alone: labels reach beyond what the networks share.

    Args:
        method: what compares the two networks, such as ``kd(1.0)`` or ``linear_kd()``.
        size: of what they share, as `jaxkd.data.check_vocabularies` returns it.

    Raises:
        ValueError: from ``init`` and ``loss``, a network with fewer logits.
    """

    def cut(who: str, outputs: Outputs) -> Outputs:
        def first(array: Array) -> Array:
            if array.shape[-1] < size:
                raise ValueError(
                    f"size is {size}, but the {who} has {array.shape[-1]} logits: give "
                    "what both networks share, as data.check_vocabularies returns it"
                )
            return jax.lax.slice_in_dim(array, 0, size, axis=-1)

        logits = None if outputs.logits is None else first(outputs.logits)
        head = {k: first(v) for k, v in outputs.features.items() if k == "head"}
        return Outputs(logits, {**outputs.features, **head})

    def init(key, student, teacher, batch):
        student, teacher = cut("student", student), cut("teacher", teacher)
        return method.init(key, student, teacher, batch)

    def loss(variables, student, teacher, batch, key, step):
        student, teacher = cut("student", student), cut("teacher", teacher)
        return method.loss(variables, student, teacher, batch, key, step)

    return method._replace(init=init, loss=loss)
