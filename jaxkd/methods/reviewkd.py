"""Knowledge review."""

from collections.abc import Sequence

from jaxtyping import Array

from jaxkd.arguments import checked, count
from jaxkd.losses.features import hcl_loss
from jaxkd.methods.base import example_weights, from_module, pair_taps
from jaxkd.methods.modules.projectors import ReviewFusion
from jaxkd.types import Method, Outputs


@checked(mid=count)
def reviewkd(
    taps: Sequence[str],
    teacher_taps: Sequence[str] | None = None,
    *,
    pooled: str = "pooled",
    teacher_pooled: str | None = None,
    mid: int | None = None,
) -> Method:
    """Return knowledge review: fused student stages against each teacher stage.

    Chen et al. 2021, arXiv:2104.09044. The recipe weighs cross-entropy 1 and this 0.6
    to 8 by pair (5 for resnet32x4 to 8x4), warmed up over 20 epochs (`epoch_warmup`).

    Args:
        taps: the student's maps (batch, height, width, channels), shallow to deep.
        teacher_taps: the teacher's, one for each, before the ReLU in the paper; None
            for the same names.
        pooled: the student's pooled features (batch, dim), the deepest level.
        teacher_pooled: the teacher's; None for the same name.
        mid: channels inside the fusion; None takes the student's deepest, 512 at most.
    """
    pairs = [
        *pair_taps(taps, teacher_taps),
        (pooled, teacher_pooled or pooled),
    ]

    def target_maps(teacher: Outputs) -> list[Array]:
        maps = [teacher.features[t] for _, t in pairs]
        return [x[:, None, None] if x.ndim == 2 else x for x in maps]

    def build(student, teacher, rngs):
        return ReviewFusion(
            [student.features[s].shape[-1] for s, _ in pairs],
            [teacher.features[t].shape[-1] for _, t in pairs],
            mid=mid,
            rngs=rngs,
        )

    def loss(module, student, teacher, batch, key):
        targets = target_maps(teacher)
        fused = module(
            [student.features[s] for s, _ in pairs],
            [target.shape[1:3] for target in targets],
            mask=example_weights(batch, student),
        )
        return sum(hcl_loss(f, t) for f, t in zip(fused, targets, strict=True))

    return from_module(
        build,
        loss,
        name="reviewkd",
        student_taps=tuple(s for s, _ in pairs),
        teacher_taps=tuple(t for _, t in pairs),
    )
