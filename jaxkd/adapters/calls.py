"""How a user's model is called: the switches it has, and what it returns."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from jaxkd.adapters.steps import Edits
from jaxkd.checks import unknown_name
from jaxkd.types import Axes, Inputs, Outputs, Variables


class Adapted(NamedTuple):
    """What a model becomes: of a `Network` the fields of the same names."""

    init: Callable[[PRNGKeyArray], Variables]
    apply: Callable[..., tuple[Outputs, Variables]]
    taps: tuple[str, ...]
    cuts: tuple[str, ...] = ()
    module: Any = None
    axes: Axes = MappingProxyType({})


def arguments_of(
    function: Callable, train: bool, positional: int = 1, **arguments: Any
) -> dict[str, Any]:
    """Return what to pass to a model beside its inputs: what it has parameters for.

    Args:
        function: every common name of its switch between training and evaluation is
            known.
        train: whether it is to train.
        positional: its first parameters, which are passed by position.
        **arguments: others, passed by name where there is such a parameter.

    Raises:
        ValueError: a parameter without a default that is not known.
    """
    known = {
        **dict.fromkeys(("train", "training", "is_training"), train),
        **dict.fromkeys(("deterministic", "use_running_average"), not train),
        **arguments,
    }
    others = list(inspect.signature(function).parameters.values())[positional:]
    for parameter in others:
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and parameter.name not in known:
            raise ValueError(
                f"the model needs the argument {parameter.name!r}, but is given its "
                "inputs (a dict, if it reads several keys of the batch) and those of "
                f"{', '.join(sorted(known))} that it takes: give it a default, or wrap "
                "the model"
            )
    return {p.name: known[p.name] for p in others if p.name in known}


def check_names(
    taps: Sequence[str],
    edits: Edits,
    valid: Sequence[str],
    editable: Sequence[str],
) -> None:
    """Refuse names that a network does not have.

    Args:
        taps: asked for.
        edits: likewise.
        valid: the names that can be tapped.
        editable: those of them that can be edited.

    Raises:
        ValueError: it names the closest one.
    """
    for name in (*taps, *edits):
        if name not in valid:
            raise ValueError(unknown_name("tap", name, valid))
    for name in edits:
        if name not in editable:
            raise ValueError(
                f"{name!r} can be tapped but not edited: have the model take `steps` "
                "(jaxkd.Steps) or, from plain functions, `edits`; or tap a submodule "
                f"by its path. Can be edited: {', '.join(editable) or 'none'}"
            )


def activation(inputs: Inputs) -> tuple[Any, Inputs]:
    """Return the activation that a segment starts from, and the inputs beside it.

    These are a dict, or None where the activation was given alone.
    """
    if not isinstance(inputs, Mapping):
        return inputs, None
    return inputs["activation"], {k: v for k, v in inputs.items() if k != "activation"}


def collect(result: Any, captured: Mapping[str, Any], taps: Sequence[str]) -> Outputs:
    """Return a model's result with the features asked for.

    Args:
        result: logits or `Outputs`.
        captured: features that were caught on the way.
        taps: asked for.

    Raises:
        ValueError: another result, or a tap that it lacks.
    """
    if not isinstance(result, Outputs):
        if not isinstance(result, jax.Array):
            raise ValueError(
                f"the model returned a {type(result).__name__}: it must return logits "
                "(one array) or jaxkd.Outputs; wrap it with Network.from_apply"
            )
        result = Outputs(result)
    features = {**result.features, **captured}
    for tap in taps:
        if tap not in features:
            raise ValueError(f"tap {tap!r}: the model's Outputs do not have it")
    return Outputs(result.logits, {tap: features[tap] for tap in taps})


def only_call(calls: Sequence[Any], tap: str, path: str) -> Any:
    """Return the output of a submodule that ran exactly once, as an array.

    Raises:
        ValueError: it ran never or several times, or returned something else.
    """
    if len(calls) != 1 or not isinstance(calls[0], jax.Array):
        what = f"ran {len(calls)} times"
        if len(calls) == 1:
            what = f"returned a {type(calls[0]).__name__}"
        raise ValueError(
            f"tap {tap!r}: submodule {path!r} {what} in the forward pass; tap one that "
            "runs once and returns one array"
        )
    return calls[0]
