"""Masked autoencoding: paint the patches of an image that are hidden.

He et al. 2021 (arXiv:2111.06377). It needs no labels and no teacher; it makes teachers
for `jaxkd.methods.dmae`.
"""

import jax

from jaxkd.arguments import Rule, checked, count
from jaxkd.losses.basics import weighted_loss
from jaxkd.losses.masked_images import (
    normalize_patches,
    patch_errors,
    patchify,
    random_masking,
)
from jaxkd.methods.base import batch_weights, from_loss
from jaxkd.types import Method

open_share = Rule("in (0, 1)", lambda x: 0 < x < 1)


@checked(mask_ratio=open_share, patch_size=count)
def mae(
    mask_ratio: float = 0.75, *, patch_size: int = 16, normalize_pixels: bool = False
) -> Method:
    """Return the error of hidden patches' pixels, `losses.mae_reconstruction_loss`.

    Every step hides other patches. It tells the networks by the keys ``ids_keep`` and
    ``ids_restore`` of the batch, so that student and teacher see the same ones
    (`jaxkd.papers.dmae.masked_autoencoder`, `visible`); the label is left out.

    Args:
        mask_ratio: share in (0, 1) of patches that are hidden.
        patch_size: pixels of a patch's side, the networks'.
        normalize_pixels: whether a patch's true pixels have mean 0 and variance 1.

    Raises:
        ValueError: from ``prepare``, patches that do not tile the image, or that are
            all hidden.
    """

    def prepare(key, batch):
        patches = patchify(batch["image"], patch_size)
        noise = jax.random.uniform(key, patches.shape[:2])
        masking = random_masking(noise, mask_ratio)
        if normalize_pixels:
            patches = normalize_patches(patches)
        # The label is no class of the network's logits, which are pixels.
        others = {name: x for name, x in batch.items() if name != "label"}
        return {**others, **masking._asdict(), "patches": patches}

    def loss(student, teacher, batch):
        errors = patch_errors(student.features["pixels"], batch["patches"])
        weights = batch_weights(batch, errors.shape)
        hidden = batch["hidden"]
        return weighted_loss(errors, hidden if weights is None else hidden * weights)

    made = from_loss(loss, name="mae", student_taps=("pixels",))
    return made._replace(prepare=prepare)
