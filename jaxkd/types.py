"""The four contracts: Outputs, Network, Method and Program; everything is one of them.

They are data and pure functions, so any of them can be written by hand, jitted,
differentiated, vmapped over seeds and sharded over a mesh without knowing the others.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
from jaxtyping import Array, PRNGKeyArray, PyTree

Inputs = Any
"""An image array (NHWC float), or a dict with Hugging Face's names, or a graph, or a
diffusion model's dict of ``image``, ``time`` and ``condition``."""

Batch = Mapping[str, Any]
"""A dict of ``image`` or the text names, ``label``, ``mask``, ``weight``, ``index``."""

Variables = dict[str, PyTree]
"""A network's ``{"params": trained, "stats": the rest}`` (BatchNorm averages, …)."""

MethodVariables = dict[str, PyTree]
"""A method's ``{"params": trained with the student, "state": carried over steps}``."""

Metrics = dict[str, Array]


@flax.struct.dataclass
class Outputs:
    """What any model returns for a batch.

    Attributes:
        logits: (batch, ..., classes) array; None where there is no teacher.
        features: the activations asked for by name (the taps), no others.
    """

    logits: Any
    features: dict[str, Any] = flax.struct.field(default_factory=dict)


class Method(NamedTuple):
    """A distillation objective.

    Attributes:
        init: ``(key, student, teacher, batch) -> {"params", "state"}`` from the two
            networks' `Outputs` for a batch (their shapes fix the projectors').
        loss: ``(variables, student, teacher, batch, key, step)
            -> (scalar, (new state, metrics))``.
        student_taps: features the loss reads from the student.
        teacher_taps: features the loss reads from the teacher.
        prepare: ``(key, batch) -> batch`` before the forward passes (mixup, masking).
    """

    init: Callable[..., MethodVariables]
    loss: Callable[..., tuple[Array, tuple[PyTree, Metrics]]]
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    prepare: Callable[[PRNGKeyArray, Batch], Batch] | None = None


class Program(NamedTuple):
    """Anything that can be trained: two pure, jittable functions over a pytree.

    Attributes:
        init: ``(key, batch) -> state``.
        step: ``(state, batch) -> (state, metrics)``; the metrics hold ``loss``.
    """

    init: Callable[[PRNGKeyArray, Batch], Any]
    step: Callable[[Any, Batch], tuple[Any, Metrics]]


@flax.struct.dataclass
class TrainState:
    """The state of `jaxkd.distill`'s programs.

    Attributes:
        step: steps done, an int32 scalar.
        key: the key all later randomness comes from.
        student: the student's variables.
        teacher: the teacher's variables, frozen; None without a teacher.
        method: the method's variables.
        opt_state: the optimizer's state over the student's and method's params.
    """

    step: Any
    key: Any
    student: Any
    teacher: Any
    method: Any
    opt_state: Any
