"""The rows' students: one head or two, and how the gradients on them agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dho.config import Table
from jaxkd import networks
from jaxkd.evaluation.gradients import grad_cosine
from jaxkd.losses.dual_head import dho_terms
from jaxkd.network import Network
from jaxkd.networks.dual_head import CE_TAP, KD_TAP
from jaxkd.types import Batch, Outputs, Program, Variables

HEADS = (CE_TAP, KD_TAP)


@dataclass(frozen=True)
class Row:
    """What one row of a table trains.

    Attributes:
        lam: λ, the weight of cross-entropy.
        two_heads: or one, which both losses train.
        teacher: ``zero-shot`` or ``few-shot``.
        initial: whether both heads start as the prototypes.
        aligned: whether the teacher's head reads features of the teacher's length.
    """

    lam: float = 0.5
    two_heads: bool = False
    teacher: str = "zero-shot"
    initial: bool = False
    aligned: bool = False


ROWS = {
    "cross_entropy": Row(1.0),
    "kd": Row(0.0),
    "sho_0.2": Row(0.2),
    "sho_0.5": Row(0.5),
    "sho_0.8": Row(0.8),
    "dho": Row(two_heads=True),
    "dho_f": Row(two_heads=True, teacher="few-shot"),
    "dho_init": Row(two_heads=True, initial=True),
    "dho_aligned": Row(two_heads=True, initial=True, aligned=True),
}
"""The rows: labels or the teacher alone, one head (SHO), two heads (DHO)."""


def one_head(network: Network) -> Network:
    """Return a network whose one head both losses train: SHO is DHO of such a one."""

    def apply(variables, inputs, *, taps=(), **kwargs):
        own = tuple(tap for tap in taps if tap not in HEADS)
        outputs, changed = network.apply(variables, inputs, taps=own, **kwargs)
        both = {tap: outputs.logits for tap in taps if tap in HEADS}
        return Outputs(outputs.logits, {**outputs.features, **both}), changed

    taps = (*network.taps, *HEADS)
    return Network(network.init, apply, taps, network.reads, axes=network.axes)


def student_network(
    table: Table, row: Row, classes: int, prototypes: np.ndarray | None
) -> Network:
    """Return a row's student."""
    network = table.student.build(classes)
    if not row.two_heads:
        return one_head(network)
    return networks.dual_head(
        network,
        table.features,
        classes,
        normalize_to=table.scale if row.aligned else None,
        prototypes=jnp.asarray(prototypes) if row.initial else None,
    )


def cosines(student: Network, variables: Variables, batch: Batch) -> dict[str, Any]:
    """Return how both losses' gradients agree: in the features, and in the heads.

    Args:
        student: with the taps of two heads.
        variables: the student's.
        batch: with the teacher's logits.
    """

    def loss(params: Any, names: Sequence[str]) -> jax.Array:
        inputs, moved = student.read(batch), {**variables, "params": params}
        found = student.apply(moved, inputs, taps=HEADS, train=True)[0].features
        terms = dho_terms(
            found[CE_TAP],
            found[KD_TAP],
            batch["teacher_logits"],
            batch["label"],
            batch["labelled"],
        )
        return sum((terms[name].value for name in names), jnp.zeros(()))

    def layers(gradient: Any, of_head: bool) -> list[Any]:
        own = gradient.get("network", gradient)
        other = [gradient[n] for n in ("ce_head", "kd_head") if n in gradient]
        heads = {name: layer for name, layer in own.items() if name in ("head", "fc")}
        rest = {name: layer for name, layer in own.items() if name not in heads}
        return [*other, heads] if of_head else [rest]

    parts = {
        "gradient_cosine": lambda g: layers(g, False),
        "head_cosine": lambda g: layers(g, True),
    }
    labels, taught = ("ce",), ("kd_labelled", "kd_unlabelled")
    return {
        name: grad_cosine(
            variables["params"],
            lambda p: loss(p, labels),
            lambda p: loss(p, taught),
            part,
        )
        for name, part in parts.items()
        if jax.tree.leaves(part(variables["params"]))
    }


def watched(program: Program, student: Network, every: int) -> Program:
    """Return the program that measures `cosines` at the end of every epoch."""

    def step(state: Any, batch: Batch):
        after, metrics = program.step(state, batch)

        def measure() -> dict[str, Any]:
            return cosines(student, state.student, batch)

        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(measure))
        found = jax.lax.cond(after.step % every == 0, measure, lambda: nothing)
        return after, {**metrics, **found}

    return program._replace(step=step)
