"""Models of Flax NNX as pure functions of plain nested dicts."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, use_abstract_mesh
from jaxtyping import PRNGKeyArray

from jaxkd.adapters.calls import (
    Adapted,
    activation,
    arguments_of,
    check_names,
    collect,
    only_call,
)
from jaxkd.adapters.steps import NO_EDITS, WHOLE, Edits, Segment, Steps
from jaxkd.checks import unknown_name
from jaxkd.sharding.flax_axes import nnx_axes
from jaxkd.types import Inputs, Outputs, Variables


def split_module(module: nnx.Module) -> tuple[dict, dict]:
    """Return a module's parameters and its other state as plain nested dicts.

    The keys are strings, list positions too. Random-number state is in neither:
    `merge_module` makes it from a key.
    """
    _, params, _, stats = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return _to_dict(params), _to_dict(stats)


def abstract_module(build: Callable[[], nnx.Module]) -> Any:
    """Return the structure of the module that is built; no weights are made.

    Flax would place them on the mesh by the axes that layers declare. Those are logical
    ones, which the mesh does not have: `jaxkd.sharding.state_sharding` places weights.

    Args:
        build: makes the module.
    """
    with use_abstract_mesh(AbstractMesh((), ())):
        return nnx.eval_shape(build)


def merge_module(
    abstract: nnx.Module, params: dict, stats: dict, key: PRNGKeyArray | None = None
) -> Any:
    """Return the module with these values; the opposite of `split_module`.

    Args:
        abstract: the module's structure, as `abstract_module` returns it.
        params: as `split_module` returns them.
        stats: likewise.
        key: where the random streams start; needed only where they are used.
    """
    graph, p, r, s = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    random = _random_state(r, jax.random.key(0) if key is None else key)
    # A copy, or the module's updates would reach the caller's arrays under grad.
    return nnx.merge(graph, _fill(p, params), random, _fill(s, stats), copy=True)


def _to_dict(state: Any) -> dict:
    flat = nnx.to_flat_state(state)
    return unflatten_dict({tuple(map(str, p)): v.get_value() for p, v in flat})


def _fill(state: Any, values: dict) -> Any:
    flat = flatten_dict(values)
    return nnx.from_flat_state(
        [(p, v.replace(flat[tuple(map(str, p))])) for p, v in nnx.to_flat_state(state)]
    )


def _random_state(state: Any, key: PRNGKeyArray) -> Any:
    def value(i: int, variable: Any) -> Any:
        if isinstance(variable, nnx.RngKey):
            return variable.replace(jax.random.fold_in(key, i))
        return variable.replace(jnp.zeros((), jnp.uint32))

    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state([(p, value(i, v)) for i, (p, v) in enumerate(flat)])


def _of_rngs(build: Callable) -> Callable[[nnx.Rngs], Any]:
    """Return ``rngs -> module`` of a function, or of a module's class.

    Raises:
        ValueError: it is Linen's, or needs other arguments.
    """
    if isinstance(build, linen.Module) or (
        inspect.isclass(build) and issubclass(build, linen.Module)
    ):
        raise ValueError("build is a Linen module: use Network.from_linen")
    name = getattr(build, "__name__", repr(build))
    # A class of NNX has its metaclass's signature.
    start = functools.partial(build.__init__, None) if inspect.isclass(build) else build
    found = inspect.signature(start).parameters
    needed = [
        x.name
        for x in found.values()
        if x.default is x.empty and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)
    ]
    by_name = "rngs" in found and found["rngs"].kind is inspect.Parameter.KEYWORD_ONLY
    if not found or needed != (["rngs"] if by_name else needed[:1]):
        raise ValueError(
            f"build, {name}, takes {', '.join(found) or 'nothing'}, but is called with "
            f"an nnx.Rngs alone: give lambda rngs: {name}(…, rngs=rngs)"
        )
    make: Any = build
    return (lambda rngs: make(rngs=rngs)) if by_name else make


def adapt_nnx(
    build: Callable[[nnx.Rngs], nnx.Module] | nnx.Module,
    taps: Mapping[str, str] | None,
) -> Adapted:
    """Return what `Network.from_nnx`'s network is made of.

    Args:
        build: makes the model, or the model itself.
        taps: tap name -> path of the submodule whose output it is.

    Raises:
        ValueError: what is built is no module, or needs more than random numbers; a
            path in ``taps`` names no submodule, or the model's call needs an argument
            that is not known.
    """
    # What is done to a built module later does not reach the network.
    built = nnx.clone(build) if isinstance(build, nnx.Module) else None

    def start(rngs: nnx.Rngs) -> Any:
        if built is not None:
            return nnx.clone(built)
        with nnx.use_eager_sharding(False):  # Meshes read `Network.axes` instead.
            return constructor(rngs)

    constructor: Callable = build if built is not None else _of_rngs(build)
    # Only the structure: no weights are made here, nor a second time in init.
    abstract = abstract_module(lambda: start(nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise ValueError(
            f"build returned {abstract!r:.80}, but must return an nnx.Module"
        )
    paths = dict(taps or {})
    _, _, randomness, _ = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    stochastic = bool(nnx.to_flat_state(randomness))
    modules = {
        ".".join(map(str, path)): tuple(path)
        for path, _ in nnx.iter_modules(abstract)
        if path
    }
    for path in paths.values():
        if path not in modules:
            raise ValueError(unknown_name("submodule", path, modules))
    own = tuple(getattr(abstract, "taps", ()))
    stepped = "steps" in _arguments(abstract, (), None, None, False)
    valid, editable = (*own, *paths), (*(own if stepped else ()), *paths)

    def init(key: PRNGKeyArray) -> Variables:
        params, stats = split_module(start(nnx.Rngs(key)))
        return {"params": params, "stats": stats}

    def apply(
        variables: Variables,
        inputs: Inputs,
        *,
        taps: tuple[str, ...] = (),
        edits: Edits = NO_EDITS,
        segment: Segment = WHOLE,
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        check_names(taps, edits, valid, editable)
        if train and stochastic and key is None:
            raise ValueError(
                "key is None, but the model draws random numbers in training "
                "(dropout): pass key=jax.random.key(...)"
            )
        model = merge_module(abstract, variables["params"], variables["stats"], key)
        model.train() if train else model.eval()
        given, inputs = (None, inputs) if segment[0] is None else activation(inputs)
        inner = tuple(tap for tap in taps if tap not in paths)
        steps = Steps(
            inner,
            {tap: edit for tap, edit in edits.items() if tap not in paths},
            segment,
            given,
        )
        watched = {
            tap: paths[tap] for tap in dict.fromkeys((*taps, *edits)) if tap in paths
        }
        for tap, path in watched.items():
            _watch(model, modules[path], edits.get(tap))
        record = nnx.capture(model, nnx.Intermediate)
        result, calls = record(inputs, **_arguments(model, inner, steps, key, train))
        outputs = dict(nnx.to_flat_state(calls))
        captured = {}
        for tap, path in watched.items():
            call = outputs.get((*modules[path], OUTPUT))
            kept = () if call is None else call.get_value()
            captured[tap] = only_call(kept, tap, path)
        stats = _kept(model, variables["stats"])
        return collect(result, captured, taps), {**variables, "stats": stats}

    cuts = tuple(getattr(abstract, "cuts", ())) if stepped else ()
    return Adapted(init, apply, valid, cuts, abstract, nnx_axes(abstract))


OUTPUT = "watched_output"
EDIT = "watched_edit"


def _arguments(
    model: Any, taps: tuple[str, ...], steps: Any, key: Any, train: bool
) -> dict[str, Any]:
    rngs = nnx.Rngs(default=key)
    return arguments_of(model.__call__, train, taps=taps, steps=steps, rngs=rngs)


def _watch(model: nnx.Module, path: tuple[Any, ...], edit: Callable | None) -> None:
    """Have a submodule keep its output, after editing it.

    Only this one object changes, by becoming one of a subclass: calls look up
    ``__call__`` on the class, and the user's class is left as it is.
    """
    module: Any = dict(nnx.iter_modules(model))[path]
    module.__class__ = _watching(type(module))
    # A plain function, whatever was given: NNX looks into callable objects.
    setattr(module, EDIT, None if edit is None else lambda output: edit(output))


@functools.cache
def _watching(kind: type) -> type:
    class Watching(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output, edit = super().__call__(*args, **kwargs), getattr(self, EDIT)
            if edit is not None and isinstance(output, jax.Array):
                output = edit(output)
            self.sow(nnx.Intermediate, OUTPUT, output)
            return output

    return Watching


def _kept(model: nnx.Module, stats: dict) -> dict:
    """Return the state that was there before, without what a capture has added."""
    flat = flatten_dict(split_module(model)[1])
    return unflatten_dict({path: flat[path] for path in flatten_dict(stats)})
