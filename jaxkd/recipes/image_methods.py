"""Sums of methods for classifiers by name, such as ``0.9*kd+0.1*cross_entropy``.

Names are those of `jaxkd.methods`. Taps that nothing says are of the last stages that
both networks have.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from jaxkd import methods
from jaxkd.arguments import checked, unknown_name
from jaxkd.methods import combine
from jaxkd.recipes.image_models import Model
from jaxkd.recipes.text_methods import Option
from jaxkd.types import Method

WEIGHTS = {
    **{"fitnets": 100.0, "at": 1000.0, "sp": 3000.0, "nst": 50.0, "cwd": 50.0},
    **{"pkt": 3e4, "cc": 0.02, "mgd": 7e-5, "reviewkd": 5.0},
}
"""Weights that the benchmarks on CIFAR-100 give methods beside cross-entropy; 1 for the
others."""

VECTORS = ("rkd", "pkt", "cc")
"""Methods that compare one vector an example: ``pooled``."""

BEFORE_RELU = ("ab",)
"""Methods that compare maps before their ReLU."""

MIDDLE = ("fitnets",)
"""Methods that compare a middle stage: the others of one stage take the last."""

STAGES = 3
"""Stages that methods of several compare."""

FOUND = ("tap", "taps", "teacher_tap", "teacher_taps", "total_steps")
"""Arguments that need not be given."""


@checked()
@dataclass(frozen=True)
class Term:
    """One method of a sum.

    Attributes:
        weight: of its loss.
        name: in `jaxkd.methods`.
        options: of its constructor.
    """

    weight: float
    name: str
    options: Mapping[str, Any]


@checked()
def usable() -> list[str]:
    """Return the methods whose arguments all have defaults, or are found."""
    return [
        name
        for name, maker in methods.METHODS.items()
        if all(x.default is not x.empty or x.name in FOUND for x in _parameters(maker))
    ]


@checked()
def resolve(method: str, options: Mapping[str, Option]) -> list[Term]:
    """Return the terms of a sum.

    Where no term has a weight, each has that of `WEIGHTS`, and cross-entropy joins.

    Args:
        method: names joined by ``+``, each with ``WEIGHT*`` before it or not.
        options: arguments of the methods: ``temperature`` is for each that takes it,
            ``kd.temperature`` for one.

    Raises:
        ValueError: an unknown name or option, or a weight that is none.
    """
    weights: dict[str, float | None] = {}
    for part in method.replace(" ", "").split("+"):
        weight, _, name = part.rpartition("*")
        if name not in usable():
            raise ValueError(unknown_name("method", name, usable()))
        if name in weights:
            raise ValueError(f"method {method!r} names {name} twice")
        if weight and not re.fullmatch(r"\d+\.?\d*(e-?\d+)?|\.\d+", weight):
            raise ValueError(
                f"method {method!r} has the weight {weight!r}: write it as in "
                "0.9*kd+0.1*cross_entropy"
            )
        weights[name] = float(weight) if weight else None
    if not any(weights.values()) and "cross_entropy" not in weights:
        weights["cross_entropy"] = None
    taken = {name: {} for name in weights}
    for option, value in options.items():
        owner, _, argument = option.rpartition(".")
        of = [
            name
            for name in weights
            if owner in ("", name) and argument in _names(methods.METHODS[name])
        ]
        if not of:
            valid = sorted(
                {x for name in weights for x in _names(methods.METHODS[name])}
            )
            raise ValueError(unknown_name(f"option of {method}", option, valid))
        for name in of:
            taken[name][argument] = _as_sequence(name, argument, value)
    return [
        Term(WEIGHTS.get(name, 1.0) if weight is None else weight, name, taken[name])
        for name, weight in weights.items()
    ]


@checked()
def needs_teacher(terms: list[Term]) -> bool:
    """Return whether any of them learns from another network."""
    return any(term.name != "cross_entropy" for term in terms)


@checked()
def objective(
    terms: list[Term], student: Model, teacher: Model | None, steps: int
) -> Method:
    """Return a sum's method.

    Args:
        terms: from `resolve`.
        student: whose taps it reads.
        teacher: likewise; None for cross-entropy alone.
        steps: of the training, for methods that change over it.

    Raises:
        ValueError: a network without stages, or options that a method does not take.
    """
    made = []
    for term in terms:
        maker = methods.METHODS[term.name]
        options = dict(term.options)
        for argument in _names(maker):
            if argument in FOUND and argument not in options:
                options[argument] = _found(argument, term.name, student, teacher, steps)
        try:
            made.append((term.weight, maker(**options)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"method {term.name}: {error}") from None
    return combine(*made)


def _found(
    argument: str, name: str, student: Model, teacher: Model | None, steps: int
) -> Any:
    if argument == "total_steps":
        return steps
    if teacher is None:
        raise ValueError(f"method {name} reads a teacher's features: give --teacher")
    if name in VECTORS:
        return "pooled"
    mine, theirs = _stages(student), _stages(teacher)
    stages = theirs if argument.startswith("teacher") else mine
    end = ".pre" if name in BEFORE_RELU else ""
    shared = min(len(mine), len(theirs), STAGES)
    chosen = tuple(stage + end for stage in stages[-shared:])
    if argument.endswith("s"):
        return chosen
    return chosen[(shared - 1) // 2 if name in MIDDLE else -1]


def _stages(model: Model) -> list[str]:
    """Return a network's stages, or its blocks where it has no stages, in order."""
    for kind in ("stage", "block"):
        numbers = sorted(
            int(tap.removeprefix(kind))
            for tap in model.network.taps
            if re.fullmatch(rf"{kind}\d+", tap)
        )
        if numbers:
            return [f"{kind}{number}" for number in numbers]
    raise ValueError(
        f"{model.name} has neither stages nor blocks, but {model.network.taps}: name "
        "what to compare by --options tap NAME teacher_tap NAME"
    )


@checked()
def check_shapes(
    trace: Callable[[], Any], method: Method, student: Model, teacher: Model
) -> None:
    """Refuse features that a method cannot compare.

    Args:
        trace: runs a step on shapes alone.
        method: of the training.
        student: whose features they are.
        teacher: likewise.

    Raises:
        ValueError: it names the features and their shapes.
    """
    try:
        trace()
    except (ValueError, TypeError) as error:
        shapes = [
            f"{who}'s {tap} {model.outputs((tap,)).features[tap].shape[1:]}"
            for who, model, taps in (
                ("student", student, method.student_taps),
                ("teacher", teacher, method.teacher_taps),
            )
            for tap in taps
            if tap in model.network.taps
        ]
        raise ValueError(
            f"the method cannot compare {', '.join(shapes)}: {error}. Name others by "
            "--options tap NAME teacher_tap NAME, or take a method that learns a "
            "projector, such as fitnets"
        ) from None


def _parameters(maker: Any) -> list[inspect.Parameter]:
    return [*inspect.signature(inspect.unwrap(maker)).parameters.values()]


def _names(maker: Any) -> list[str]:
    return [parameter.name for parameter in _parameters(maker)]


def _as_sequence(name: str, argument: str, value: Option) -> Any:
    """Return names joined by commas as several, where an argument takes several."""
    (hint,) = (
        x.annotation for x in _parameters(methods.METHODS[name]) if x.name == argument
    )
    several = hint is not str and str in get_args(hint) and "Sequence" in str(hint)
    several = several or argument.endswith("taps")
    return tuple(value.split(",")) if several and isinstance(value, str) else value
