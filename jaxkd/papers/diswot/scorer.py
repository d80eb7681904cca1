"""DisWOT's scores of a space's untrained students; compiled once for all of them."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxkd.arguments import checked
from jaxkd.papers.diswot.scores import (
    MODES,
    Statistics,
    gaussian_reinit,
    relation_similarity,
    semantic_similarity,
)
from jaxkd.search import ChoiceSpace, Supernet, jit_once
from jaxkd.types import Batch

Initial = Literal["gaussian", "default"]

TEACHER = 2**20 + 1
"""A position that no student has, for the draw of the teacher."""


@checked()
class Scorer:
    """A space's students against one untrained teacher.

    Each student has weights of its own, drawn by its position in the space, so that its
    score does not depend on when a search comes to it.

    Args:
        space: of the students.
        students: their supernet.
        teacher: the teacher's; for ``fc_grad`` of as many channels as the students'.
        architecture: the teacher's in its supernet.
    """

    def __init__(
        self,
        space: ChoiceSpace,
        students: Supernet,
        teacher: Supernet,
        architecture: tuple[int, ...],
    ):
        self.space = space
        self._draws = {
            (who, initial): jit_once(draw)
            for who, net in (("student", students), ("teacher", teacher))
            for initial, draw in (("gaussian", _gaussian(net)), ("default", net.init))
        }

        @jax.jit
        def teach(params: dict, image: Array) -> Statistics:
            return _statistics(teacher, params, image, jnp.array(architecture))

        @jax.jit
        def terms(
            params: dict, architecture: Array, taught: Statistics, batch: Batch
        ) -> dict[str, Array]:
            own = _statistics(students, params, batch["image"], architecture)
            found = {
                mode: -semantic_similarity(own, taught, batch["label"], mode)
                for mode in MODES
            }
            relation = -relation_similarity(own.features, taught.features)
            return {**found, "relation": relation}

        self._teach, self._terms = teach, terms

    def against(
        self, key: PRNGKeyArray, batch: Batch, initial: Initial = "gaussian"
    ) -> Callable[[tuple[int, ...]], dict[str, float]]:
        """Return ``architecture ->`` its terms against one teacher, higher is better.

        They are −M_s by the modes of `semantic_similarity`, and −M_r as ``relation``.

        Args:
            key: of all weights.
            batch: images and labels.
            initial: how weights are drawn: by `gaussian_reinit`, or as for training.
        """

        def draw(who: str, position: int) -> dict:
            return self._draws[who, initial](jax.random.fold_in(key, position))

        taught = self._teach(draw("teacher", TEACHER), batch["image"])

        def score(architecture: tuple[int, ...]) -> dict[str, float]:
            params = draw("student", self.space.position(architecture))
            found = self._terms(params, jnp.array(architecture), taught, batch)
            return {name: float(value) for name, value in found.items()}

        return score


def _gaussian(net: Supernet) -> Callable[[PRNGKeyArray], dict]:
    return lambda key: gaussian_reinit(jax.eval_shape(net.init, key), key)


def _statistics(
    net: Supernet, params: dict, image: Array, architecture: Array
) -> Statistics:
    outputs = net.apply(params, image, architecture, taps=("stage3",))
    return Statistics(
        outputs.features["stage3"], outputs.logits, params["fc"]["kernel"]
    )
