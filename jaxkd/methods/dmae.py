"""DMAE: masked autoencoding beside a larger autoencoder's features of the same patches.

Bai et al. 2022 (arXiv:2208.12256).
"""

from collections.abc import Sequence
from typing import Literal

from flax import nnx

from jaxkd.adapters import unchanged
from jaxkd.arguments import checked, count
from jaxkd.losses.alignment import feature_align_loss
from jaxkd.methods.base import combine, from_module, masked_loss, pair_taps, summed
from jaxkd.methods.mae import mae, open_share
from jaxkd.models.parts.linear import Linear
from jaxkd.types import Method


@checked()
def feature_align(
    taps: Sequence[str],
    teacher_taps: Sequence[str] | None = None,
    *,
    distance: Literal["l1", "l2"] = "l1",
    project: bool = True,
) -> Method:
    """Return the sum over layers of `losses.feature_align_loss`.

    Args:
        taps: the student's features (batch, tokens, width).
        teacher_taps: the teacher's, of the same tokens; None for the same names.
        distance: of the features, absolute or squared.
        project: whether a trained linear map, one a layer, brings the student's
            features to the teacher's width, and the two are compared as unit vectors;
            else they are compared as they are.

    Raises:
        ValueError: unequal numbers of taps; from ``loss``, other widths without
            ``project``.
    """
    pairs = pair_taps(taps, teacher_taps)

    def build(student, teacher, rngs):
        widths = (
            (student.features[s].shape[-1], teacher.features[t].shape[-1])
            for s, t in pairs
        )
        return nnx.List(Linear(a, b, rngs=rngs) for a, b in widths if project)

    def loss(module, student, teacher, batch, key):
        terms = []
        projectors = module if project else [unchanged] * len(pairs)
        for projector, (s, t) in zip(projectors, pairs, strict=True):
            found = feature_align_loss(
                projector(student.features[s]),
                teacher.features[t],
                distance,
                normalize=project,
            )
            terms.append((1.0, masked_loss(found, batch)))
        return summed(*terms)

    return from_module(
        build,
        loss,
        name="feature_align",
        student_taps=tuple(s for s, _ in pairs),
        teacher_taps=tuple(t for _, t in pairs),
    )


@checked(mask_ratio=open_share, patch_size=count)
def dmae(
    taps: Sequence[str],
    teacher_taps: Sequence[str] | None = None,
    *,
    alpha: float = 1.0,
    mask_ratio: float = 0.75,
    patch_size: int = 16,
    normalize_pixels: bool = False,
    distance: Literal["l1", "l2"] = "l1",
    project: bool = True,
) -> Method:
    """Return L_MAE + α·Σ L_align, of `mae` and `feature_align`.

    The student is a `jaxkd.papers.dmae.masked_autoencoder`. The teacher is pre-trained
    in the same way and needs neither its decoder nor the blocks after the aligned one:
    ``visible(teacher.segment(None, "block17"))`` runs on the student's visible patches
    alone. ViT-L teaches ViT-B by ``dmae(["block8"], ["block17"])``.

    Args:
        taps: of `feature_align`.
        teacher_taps: likewise.
        alpha: α, the alignment's weight.
        mask_ratio: of `mae`.
        patch_size: likewise.
        normalize_pixels: likewise.
        distance: of `feature_align`.
        project: likewise.

    Raises:
        ValueError: as these.
    """
    painted = mae(mask_ratio, patch_size=patch_size, normalize_pixels=normalize_pixels)
    aligned = feature_align(taps, teacher_taps, distance=distance, project=project)
    return combine((1.0, painted), (alpha, aligned))
