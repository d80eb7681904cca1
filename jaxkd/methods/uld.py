"""Universal logit distillation, between networks with different tokenizers."""

from jaxkd.arguments import checked, positive
from jaxkd.losses.language import uld_loss
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked(student_temperature=positive, teacher_temperature=positive)
def uld(student_temperature: float = 1.0, teacher_temperature: float = 1.0) -> Method:
    """Return the distance of sorted probabilities, answer token by answer token.

    Boizard et al. 2024, arXiv:2402.12030; with weight 1.5 beside the cross-entropy. The
    teacher reads ``teacher_input_ids`` and ``teacher_attention_mask`` of the batch, the
    same text in its own tokens, and ``teacher_mask`` (batch, length) says where it
    predicts the answer, as ``mask`` does for the student.

    Args:
        student_temperature: above 0.
        teacher_temperature: above 0.

    Raises:
        ValueError: from ``loss``, a batch without the two masks, or of packed rows.
    """

    def loss(student, teacher, batch):
        if "segment_ids" in batch or "teacher_segment_ids" in batch:
            raise ValueError(
                "the batch has segment_ids, but uld() pairs the n-th tokens of two "
                "answers: give every document a row of its own, as data.pack(…, "
                "alone=True) does"
            )
        for name in ("mask", "teacher_mask"):
            if name not in batch:
                raise ValueError(
                    f"the batch has {sorted(batch)}, but uld() needs {name}: 1 where "
                    "that network predicts a token of the answer"
                )
        return uld_loss(
            student.logits,
            teacher.logits,
            batch["mask"],
            batch["teacher_mask"],
            student_temperature,
            teacher_temperature,
        )

    return from_loss(loss, name="uld")
