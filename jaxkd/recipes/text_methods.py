"""Methods for language models by name: the objective, and the program that trains it.

Names are those of `jaxkd.methods`, of the divergences of `jaxkd.kernels.linear_distill`
and the shorthands below. Options are the arguments of whatever the name stands for; an
argument of `jaxkd.programs.on_policy` or `off_policy` among them makes it that program.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax

from jaxkd import methods
from jaxkd.arguments import checked, unknown_name
from jaxkd.kernels.linear_distill import divergences
from jaxkd.network import Network
from jaxkd.programs import distill, off_policy, on_policy
from jaxkd.registry import constructors
from jaxkd.types import Method, Program

Option = int | float | bool | str
Options = Mapping[str, Option]

SHORTHANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("cross_entropy", {}),
    "kd": ("forward_kl", {}),
    "gkd": ("jensen_shannon", {"student_share": 0.5}),
    "minillm": ("minillm", {"student_share": 1.0, "teacher_mixture": 0.2}),
    "seqkd": ("cross_entropy", {"student_share": 0.0, "teacher_share": 1.0}),
    "distillm": ("skew_kl", {"increment": 0.1}),
    "topk": ("topk_kd", {}),
    "aligned": ("aligned_kd", {}),
}
"""Names of the field for a method and the options that make it the paper's."""

TWO_TOKENIZERS = ("uld", "aligned_kd")
"""Methods for networks whose tokenizers differ."""

SUPERVISED = ("cross_entropy",)
"""Methods that read no teacher, unless it writes the texts."""


def _direct(function: Any) -> bool:
    return [*inspect.signature(function).parameters] == ["log_p", "log_q"]


DIVERGENCES: dict[str, Callable[..., Any]] = {
    **{
        name: function
        for name, function in vars(divergences).items()
        if inspect.isfunction(function) and _direct(function)
    },
    **constructors(vars(divergences), divergences.Divergence),
}
"""Divergences by name; of those that have a parameter, what makes them."""


@checked()
@dataclass(frozen=True)
class Way:
    """What a method's name and options stand for.

    Attributes:
        name: in `jaxkd.methods`, or of a divergence.
        options: of the method.
        program: ``distill``, ``on_policy`` or ``off_policy``.
        sampling: arguments of the program.
    """

    name: str
    options: dict[str, Any]
    program: str
    sampling: dict[str, Any]

    @property
    def supervised(self) -> bool:
        """Whether the objective reads no teacher."""
        return self.name in SUPERVISED

    @property
    def teacher(self) -> bool:
        """Whether there must be a teacher."""
        return not self.supervised or bool(self.sampling.get("teacher_share"))

    @property
    def two_tokenizers(self) -> bool:
        """Whether each network reads in tokens of its own."""
        return self.name in TWO_TOKENIZERS


KNOWN = ("total_steps", "common")
"""Arguments of methods that the recipe itself knows."""

PROGRAMS = {"on_policy": on_policy, "off_policy": off_policy}
GIVEN = ("student", "teacher", "method", "optimizer", "steps", "max_new_tokens")
GIVEN += ("sampling", "eos", "pad", "accumulate", "validate_every", "ask")
"""Arguments of programs that a recipe says otherwise."""


def _of_logits(name: str) -> bool:
    """Return whether flags and the recipe can say all that a method must be told.

    Those of features need the layers' names, and others data or another method.
    """
    found = inspect.signature(inspect.unwrap(methods.METHODS[name])).parameters
    needed = [
        x
        for x in found.values()
        if x.default is x.empty and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)
    ]
    return all(x.annotation in (int, float) or x.name in KNOWN for x in needed)


@checked()
def resolve(method: str, options: Options) -> Way:
    """Return what a method's name and options stand for.

    Raises:
        ValueError: an unknown name or option.
    """
    usable = filter(_of_logits, methods.METHODS)
    names = dict.fromkeys([*SHORTHANDS, *DIVERGENCES, *usable])
    if method in methods.METHODS and method not in names:
        raise ValueError(
            f"method {method!r} needs layers, data or another method, which no flag "
            f"can say: train by jaxkd.distill, or take one of {', '.join(names)}"
        )
    if method not in names:
        raise ValueError(unknown_name("method", method, names))
    name, own = SHORTHANDS.get(method, (method, {}))
    found = {**own, **options}
    program, sampling = "distill", {}
    for candidate, maker in PROGRAMS.items():
        taken = [x for x in found if x in _arguments(maker) and x not in GIVEN]
        if taken:
            program, sampling = candidate, {x: found.pop(x) for x in taken}
            break
    valid = {*_method_arguments(name)}
    for option in found:
        if option not in valid:
            of_programs = {x for maker in PROGRAMS.values() for x in _arguments(maker)}
            known = sorted(valid | (of_programs - {*GIVEN}))
            raise ValueError(unknown_name(f"option of {method}", option, known))
    return Way(name, found, program, sampling)


def _arguments(function: Any) -> list[str]:
    return [*inspect.signature(inspect.unwrap(function)).parameters]


def _method_arguments(name: str) -> list[str]:
    if name not in DIVERGENCES:
        return _arguments(methods.METHODS[name])
    own = [] if _direct(DIVERGENCES[name]) else _arguments(DIVERGENCES[name])
    return [*own, "temperature", "label_weight"]


@checked()
def objective(way: Way, **known: Any) -> Method:
    """Return a way's method.

    Args:
        way: from `resolve`.
        **known: what the recipe knows, of which a method takes what it has arguments
            for, such as ``total_steps``; ``heads``, whether logits are all products of
            features with a head.

    Raises:
        ValueError: an option that the method does not take.
    """
    options = dict(way.options)
    if way.name in DIVERGENCES:
        divergence = DIVERGENCES[way.name]
        if not _direct(divergence):
            own = {x: options.pop(x) for x in _arguments(divergence) if x in options}
            divergence = divergence(**own)
        if known.get("heads", True):
            return methods.linear_kd(divergence, **options)
        weight = options.pop("label_weight", 0.0)
        labels = [(weight, methods.cross_entropy())] if weight else []
        return methods.combine(
            (1.0, methods.divergence_kd(divergence, **options)), *labels
        )
    taken = {x: known[x] for x in _method_arguments(way.name) if x in known}
    try:
        return methods.METHODS[way.name](**{**taken, **options})
    except TypeError as error:
        raise ValueError(f"method {way.name}: {error}; give it by --options") from None


@checked()
def train_by(
    way: Way,
    student: Network,
    teacher: Network | None,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    accumulate: int,
    batch_size: int,
    ask: Any,
    **written: Any,
) -> Program:
    """Return the program of a way.

    Args:
        way: from `resolve`.
        student: to train.
        teacher: frozen; None where its answers come with the batch.
        method: from `objective`.
        optimizer: of the training.
        steps: likewise.
        accumulate: parts of a batch.
        batch_size: of the training.
        ask: what a teacher elsewhere is asked about the student's answers, or None.
        **written: ``max_new_tokens``, ``sampling``, ``eos`` and ``pad`` of programs
            that write text.
    """
    if way.program == "distill":
        return distill(student, teacher, method, optimizer, accumulate=accumulate)
    common = {**written, **way.sampling, "accumulate": accumulate}
    if way.program == "on_policy":
        return on_policy(student, teacher, method, optimizer, ask=ask, **common)
    assert teacher is not None, "the recipe has asked for one"
    common.setdefault("capacity", max(1, 1000 // batch_size) * batch_size)
    return off_policy(
        student,
        teacher,
        method,
        optimizer,
        steps=steps,
        validate_every=max(1, steps // 10),
        **common,
    )
