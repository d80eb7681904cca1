"""A teacher that was run beforehand: its logits come with the batch."""

from jaxkd.arguments import checked
from jaxkd.types import Method, Outputs


@checked()
def cached(method: Method) -> Method:
    """Return a method that reads the teacher's logits from ``batch["teacher_logits"]``.

    For a teacher whose answers do not depend on the augmentation, or that cannot run
    here; the student is then trained without one, ``distill(student, None, …)``, on
    examples such as ``data.Joined(source, {"teacher_logits": logits})``.

    Args:
        method: any that reads of its teacher the logits alone.

    Raises:
        ValueError: the method reads features of the teacher, or its batches lack
            ``teacher_logits``.
    """
    if method.teacher_taps:
        raise ValueError(
            f"the method reads the teacher's features {method.teacher_taps}, which are "
            "not in a cache of logits: pass the teacher to distill() instead"
        )

    def teacher(batch):
        if "teacher_logits" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)}, but cached() needs teacher_logits: "
                "train on data.Joined(source, {'teacher_logits': logits})"
            )
        return Outputs(batch["teacher_logits"])

    def init(key, student, _, batch):
        return method.init(key, student, teacher(batch), batch)

    def loss(variables, student, _, batch, key, step):
        return method.loss(variables, student, teacher(batch), batch, key, step)

    return method._replace(init=init, loss=loss)
