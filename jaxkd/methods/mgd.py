"""Masked generative distillation."""

from typing import Literal

from flax import nnx

from jaxkd.arguments import checked, probability
from jaxkd.losses.features import mgd_loss, mgd_mask
from jaxkd.methods.base import example_weights, from_module
from jaxkd.methods.modules.projectors import Connector, MGDGenerator
from jaxkd.types import Method


@checked(ratio=probability)
def mgd(
    tap: str,
    teacher_tap: str | None = None,
    *,
    ratio: float = 0.15,
    kind: Literal["channel", "spatial"] = "channel",
) -> Method:
    """Return masked generative distillation: rebuild the teacher from a masked map.

    Yang et al. 2022, arXiv:2205.01529. Classification masks channels (ratio 0.15,
    weight 7e-5), detection and segmentation positions (0.65 and 0.75, weight 2e-5).

    Args:
        tap: the student's map (batch, height, width, channels).
        teacher_tap: the teacher's, of the same size; None for the same name.
        ratio: the share that is masked.
        kind: what is masked.
    """
    teacher_tap = teacher_tap or tap

    def build(student, teacher, rngs):
        channels = (
            student.features[tap].shape[-1],
            teacher.features[teacher_tap].shape[-1],
        )
        parts: dict[str, nnx.Module] = {
            "generate": MGDGenerator(channels[1], rngs=rngs)
        }
        if channels[0] != channels[1]:
            parts["align"] = Connector(*channels, rngs=rngs)
        return nnx.Dict(parts)

    def loss(module, student, teacher, batch, key):
        x = student.features[tap]
        if "align" in module:
            x = module["align"](x, mask=example_weights(batch, student))
        masked = x * mgd_mask(key, x.shape, ratio, kind)
        return mgd_loss(module["generate"](masked), teacher.features[teacher_tap])

    return from_module(
        build, loss, name="mgd", student_taps=(tap,), teacher_taps=(teacher_tap,)
    )
