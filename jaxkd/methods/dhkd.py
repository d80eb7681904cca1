"""Dual-head distillation: the teacher's logits are learnt by a head of their own."""

from jaxkd.arguments import checked, count, fraction, positive
from jaxkd.losses.binary import binary_kl_norm_loss
from jaxkd.methods.base import example_weights, from_module
from jaxkd.methods.modules.heads import AuxiliaryHead
from jaxkd.types import Method


@checked(temperature=positive, dropout=fraction, hidden=count)
def dhkd(
    temperature: float = 2.0,
    hidden: int | None = 200,
    dropout: float = 0.1,
    clip_eps: float | None = None,
    *,
    tap: str = "pooled",
) -> Method:
    """Return the normalised binary divergence of an auxiliary head on the student.

    Yang et al. 2024, arXiv:2411.08937. Cross-entropy on the student's own head goes
    beside it, each with weight 1 (this one 0.1 on ImageNet); the auxiliary head is
    trained along and dropped. `jaxkd.programs.distill_aligned` keeps this loss's
    gradient from working against the cross-entropy's.

    Args:
        temperature: T > 0.
        hidden: width of the auxiliary head's hidden layer, for student and teacher of
            different families; None for a linear head.
        dropout: in the hidden layer.
        clip_eps: of the loss, where 1e-8 is the authors' code; see
            `jaxkd.losses.binary.binary_kl_norm_loss`.
        tap: the student's pooled features.
    """

    def build(student, teacher, rngs):
        features = student.features[tap].shape[-1]
        classes = teacher.logits.shape[-1]
        return AuxiliaryHead(features, classes, hidden, dropout, rngs=rngs)

    def loss(module, student, teacher, batch, key):
        mask = example_weights(batch, student)
        logits = module(student.features[tap], mask)
        return binary_kl_norm_loss(logits, teacher.logits, temperature, clip_eps)

    return from_module(build, loss, name="dhkd", student_taps=(tap,))
