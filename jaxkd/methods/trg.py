"""TRG: graphs of tokens over a batch, matched locally, globally and in each image."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import abstract_module, merge_module, split_module
from jaxkd.arguments import checked, count, positive
from jaxkd.losses.basics import expand_weights, frozen, weighted_loss
from jaxkd.losses.contrastive import info_nce_loss
from jaxkd.losses.token_graphs import (
    dynamic_temperature,
    gather_tokens,
    matched_tokens,
    sample_token_indices,
    trg_contextual_loss,
    trg_local_loss,
)
from jaxkd.methods.base import example_weights, summed
from jaxkd.methods.masks import masked
from jaxkd.models.parts.linear import Linear
from jaxkd.types import Loss, Method, Outputs


class TokenProjections(nnx.Module):
    """Linear maps of both networks' tokens to one width, for the global loss."""

    def __init__(self, student: int, teacher: int, dim: int, *, rngs: nnx.Rngs):
        self.student = Linear(student, dim, rngs=rngs)
        self.teacher = Linear(teacher, dim, rngs=rngs)


@checked(
    steps=count,
    patch=count,
    samples=count,
    k=count,
    sigma=positive,
    dim=count,
    start=positive,
    end=positive,
)
def trg(
    tap: str,
    teacher_tap: str | None = None,
    *,
    steps: int,
    contextual: float = 1.0,
    local: float = 1.0,
    alignment: float = 0.05,
    patch: int = 1,
    samples: int = 4,
    k: int = 8,
    sigma: float = 0.5,
    shared_neighbors: bool = True,
    mask_non_neighbors: bool = False,
    normalize_context: bool = False,
    dim: int = 128,
    start: float = 0.5,
    end: float = 0.07,
) -> Method:
    """Return the token-level relationship graph's losses, to be added to others.

    Zhang, Liu, He 2023, arXiv:2306.12442: ``combine((1.0, cross_entropy()), (1.0,
    kd(4.0)), (1.0, trg("stage3", steps=steps)))``. Of every image some tokens are
    drawn, the same of both networks; over all of the batch's they are the nodes of
    `trg_local_loss` and of `info_nce_loss` (through two trained linear maps, with a
    temperature that falls), while `trg_contextual_loss` takes all tokens of an image.
    Both networks' tokens are brought to one number by `matched_tokens`.

    The nodes are those of the whole batch on any mesh, and of a part of it where
    gradients are accumulated. Time and memory grow with (batch·samples)²: keep it
    below 2048².

    Args:
        tap: the student's map (batch, height, width, channels), or a transformer's
            tokens (batch, tokens, width).
        teacher_tap: the teacher's; None for the same name.
        steps: of the run, over which the temperature falls.
        contextual: weight of the loss in each image.
        local: weight of the loss of neighbours.
        alignment: weight of the global loss, InfoNCE.
        patch: side of a token in places of the map.
        samples: tokens drawn of each image.
        k: neighbours of a node.
        sigma: width of the graph's kernel.
        shared_neighbors: as in `trg_local_loss`.
        mask_non_neighbors: likewise.
        normalize_context: as in `contextual_similarity`, for wide networks.
        dim: of the tokens that InfoNCE compares.
        start: its temperature at first.
        end: its temperature at last.

    Raises:
        ValueError: from ``loss``, features that are no tokens, or too few of them.
    """
    there = teacher_tap or tap

    def tokens(student: Outputs, teacher: Outputs) -> tuple[Array, Array]:
        taught = frozen(teacher.features[there])
        return matched_tokens(student.features[tap], taught, patch)

    def build(student, teacher, rngs):
        own, taught = tokens(student, teacher)
        return TokenProjections(own.shape[-1], taught.shape[-1], dim, rngs=rngs)

    def init(key, student, teacher, batch):
        return {
            "params": split_module(build(student, teacher, nnx.Rngs(key)))[0],
            "state": {},
        }

    def loss(variables, student, teacher, batch, key, step):
        abstract = abstract_module(lambda: build(student, teacher, nnx.Rngs(0)))
        project = merge_module(abstract, variables["params"], {})
        own, taught = tokens(student, teacher)
        images, places, _ = own.shape
        indices = sample_token_indices(key, images, places, samples)
        nodes, targets = gather_tokens(own, indices), gather_tokens(taught, indices)
        weights = of_nodes = example_weights(batch, student)
        if weights is not None:
            of_nodes = expand_weights(weights, (images, samples)).reshape(-1)
        near = trg_local_loss(
            nodes,
            targets,
            k,
            sigma,
            shared_neighbors=shared_neighbors,
            mask_non_neighbors=mask_non_neighbors,
            weights=of_nodes,
        )
        temperature = dynamic_temperature(jnp.minimum(step / steps, 1), start, end)
        aligned = info_nce_loss(
            project.student(nodes), project.teacher(targets), temperature, of_nodes
        )
        parts: dict[str, tuple[float, Loss]] = {
            "trg_contextual": (
                contextual,
                weighted_loss(
                    trg_contextual_loss(own, taught, normalize_context), weights
                ),
            ),
            "trg_local": (local, weighted_loss(near, of_nodes)),
            "trg_global": (alignment, weighted_loss(aligned, of_nodes)),
        }
        total = summed(*parts.values())
        found = {name: part for name, (_, part) in parts.items()}
        return total, ({}, {"trg": total, **found, "temperature": temperature})

    return masked(Method(init, loss, (tap,), (there,)))
