"""Models that are two plain functions."""

import inspect
from collections.abc import Callable
from typing import Any

from jaxtyping import PRNGKeyArray, PyTree

from jaxkd.adapters.calls import Adapted, arguments_of, check_names, collect
from jaxkd.adapters.steps import NO_EDITS, Edits
from jaxkd.types import Inputs, Outputs, Variables


def adapt_functions(
    init: Callable[[PRNGKeyArray], PyTree],
    apply: Callable[..., Any],
    valid: tuple[str, ...],
) -> Adapted:
    """Return what `Network.from_apply`'s network is made of.

    Args:
        init: ``key -> params``.
        apply: ``(params, inputs) -> logits`` or `Outputs`.
        valid: the names of the features that ``apply`` can return.

    Raises:
        ValueError: ``apply`` needs an argument that is not known.
    """
    arguments_of(apply, False, 2, taps=(), edits=NO_EDITS, key=None)
    editable = valid if "edits" in inspect.signature(apply).parameters else ()

    def init_variables(key: PRNGKeyArray) -> Variables:
        return {"params": init(key), "stats": {}}

    def apply_variables(
        variables: Variables,
        inputs: Inputs,
        *,
        taps: tuple[str, ...] = (),
        edits: Edits = NO_EDITS,
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        check_names(taps, edits, valid, editable)
        arguments = arguments_of(apply, train, 2, taps=taps, edits=edits, key=key)
        result = apply(variables["params"], inputs, **arguments)
        return collect(result, {}, taps), variables

    return Adapted(init_variables, apply_variables, valid)
