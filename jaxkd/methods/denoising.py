"""How diffusion models are trained: to denoise images at random noise levels.

Ho et al. 2020 (arXiv:2006.11239), in continuous time. It needs no teacher; it makes
teachers for `jaxkd.papers.boot.boot`.
"""

import jax
import jax.numpy as jnp

from jaxkd.arguments import checked, fraction
from jaxkd.checks import unknown_name
from jaxkd.losses.diffusion import (
    PREDICTIONS,
    Prediction,
    Schedule,
    denoising_loss,
    diffuse,
    to_signal,
    vp_schedule,
)
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked(condition_dropout=fraction)
def denoising(
    prediction: Prediction = "x",
    *,
    schedule: Schedule = "cosine",
    classes: int = 0,
    condition_dropout: float = 0.1,
) -> Method:
    """Return the denoising objective, `losses.denoising_loss` at a random time.

    Each image of a batch is mixed with noise at a time drawn from [0, 1]; the network's
    inputs become ``image`` (noisy), ``time`` and, with classes, ``condition``.

    Args:
        prediction: what the network's output stands for: ``"x"``, ``"eps"`` or ``"v"``.
        schedule: of the noise.
        classes: of the labels that the model is conditional on; 0 for none.
        condition_dropout: share of examples whose class is replaced by "no class"
            (index ``classes``), which makes classifier-free guidance possible (Ho and
            Salimans 2022, arXiv:2207.12598).

    Raises:
        ValueError: an unknown prediction, or a share outside [0, 1).
    """
    if prediction not in PREDICTIONS:
        raise ValueError(unknown_name("prediction", prediction, PREDICTIONS))

    def prepare(key, batch):
        clean = batch["image"]
        times, noises, drops = jax.random.split(key, 3)
        time = jax.random.uniform(times, clean.shape[:1])
        noise = jax.random.normal(noises, clean.shape)
        # The label is no class of the network's logits, which are an image.
        prepared = {name: x for name, x in batch.items() if name != "label"}
        prepared |= {
            "image": diffuse(clean, noise, vp_schedule(time, schedule)),
            "time": time,
            "clean": clean,
        }
        if classes:
            dropped = jax.random.bernoulli(drops, condition_dropout, time.shape)
            prepared["condition"] = jnp.where(dropped, classes, batch["label"])
        return prepared

    def loss(student, teacher, batch):
        level = vp_schedule(batch["time"], schedule)
        signal = to_signal(student.logits, batch["image"], level, prediction)
        return denoising_loss(signal, batch["clean"], level)

    return from_loss(loss, name="denoising")._replace(prepare=prepare)
