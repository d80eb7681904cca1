"""DisWOT's distillation of the student that its search has found."""

from jaxkd.arguments import checked
from jaxkd.losses.channels import cam_relation_loss
from jaxkd.losses.relations import sp_loss
from jaxkd.methods.base import example_weights, from_loss
from jaxkd.types import Method


@checked()
def diswot(
    tap: str,
    teacher_tap: str | None = None,
    *,
    maps: str = "cam",
    semantic: float = 1.0,
    relation: float = 1.0,
) -> Method:
    """Return the search's two metrics as losses: classes' and examples' relations.

    Dong, Li, Wei 2023, arXiv:2303.15678. The paper's loss L_DisWOT† is cross-entropy +
    KD + both, without further factors: combine this with `cross_entropy` and `kd`. Both
    networks must tap their class activation maps: see
    ``jaxkd.networks.with_class_maps``.

    Args:
        tap: the student's last convolutional map.
        teacher_tap: the teacher's; None for the same name. Their shape may differ.
        maps: both networks' tap of class activation maps.
        semantic: weight of the classes' correlations.
        relation: weight of the examples' similarities.
    """
    teacher_tap = teacher_tap or tap

    def loss(student, teacher, batch):
        weights = example_weights(batch, student)
        classes = cam_relation_loss(
            student.features[maps], teacher.features[maps], weights
        )
        examples = sp_loss(
            student.features[tap], teacher.features[teacher_tap], weights
        )
        return semantic * classes + relation * examples

    return from_loss(
        loss,
        name="diswot",
        student_taps=(tap, maps),
        teacher_taps=(teacher_tap, maps),
    )
