"""Models of Flax NNX, Flax Linen and plain functions as a `Network`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, use_abstract_mesh
from jaxtyping import PRNGKeyArray, PyTree

from jaxkd.checks import unknown_name
from jaxkd.network import Network
from jaxkd.sharding.flax_axes import linen_axes, nnx_axes, unboxed
from jaxkd.types import Inputs, Outputs, Variables


def split_module(module: nnx.Module) -> tuple[dict, dict]:
    """Return a module's parameters and its other state as plain nested dicts.

    The keys are strings, list positions too. Random-number state is in neither:
    `merge_module` makes it from a key.
    """
    _, params, _, stats = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return _to_dict(params), _to_dict(stats)


def merge_module(
    abstract: nnx.Module, params: dict, stats: dict, key: PRNGKeyArray | None = None
) -> Any:
    """Return the module with these values; the opposite of `split_module`.

    Args:
        abstract: the module's structure, made under ``nnx.eval_shape``.
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


def _accepted(function: Callable, **arguments: Any) -> dict[str, Any]:
    """Return the arguments that the function has parameters for, by name."""
    parameters = inspect.signature(function).parameters
    return {k: v for k, v in arguments.items() if k in parameters}


def _mode(train: bool) -> dict[str, bool]:
    return {"train": train, "training": train, "deterministic": not train}


def _check_taps(taps: tuple[str, ...], valid: tuple[str, ...]) -> None:
    for tap in taps:
        if tap not in valid:
            raise ValueError(unknown_name("tap", tap, valid))


def _outputs(result: Any, captured: Mapping[str, Any], taps: tuple[str, ...]):
    if not isinstance(result, Outputs):
        if not isinstance(result, jax.Array):
            raise ValueError(
                f"the model returned a {type(result).__name__}: it must return logits "
                "(one array) or jaxkd.Outputs; wrap it with Network.from_apply"
            )
        result = Outputs(result)
    features = {**result.features, **captured}
    return Outputs(result.logits, {tap: features[tap] for tap in taps})


def _captured(calls: Any, tap: str, path: str) -> Any:
    """Return the output of a submodule that ran exactly once, as an array."""
    if len(calls) != 1 or not isinstance(calls[0], jax.Array):
        what = f"ran {len(calls)} times"
        if len(calls) == 1:
            what = f"returned a {type(calls[0]).__name__}"
        raise ValueError(
            f"tap {tap!r}: submodule {path!r} {what} in the forward pass; tap one that "
            "runs once and returns one array"
        )
    return calls[0]


def nnx_network(
    build: Callable[[nnx.Rngs], nnx.Module], taps: Mapping[str, str] | None
) -> Network:
    """Make `Network.from_nnx`'s network."""

    def start(rngs: nnx.Rngs) -> nnx.Module:
        with nnx.use_eager_sharding(False):  # Meshes read `Network.axes` instead.
            return build(rngs)

    # Only the structure: no weights are made here, nor a second time in init.
    abstract = nnx.eval_shape(lambda: start(nnx.Rngs(0)))
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
    valid = (*getattr(abstract, "taps", ()), *paths)

    def init(key: PRNGKeyArray) -> Variables:
        params, stats = split_module(start(nnx.Rngs(key)))
        return {"params": params, "stats": stats}

    def apply(
        variables: Variables,
        inputs: Inputs,
        *,
        taps: tuple[str, ...] = (),
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        _check_taps(taps, valid)
        if train and stochastic and key is None:
            raise ValueError(
                "key is None, but the model draws random numbers in training "
                "(dropout): pass key=jax.random.key(...)"
            )
        model = merge_module(abstract, variables["params"], variables["stats"], key)
        model.train() if train else model.eval()
        arguments = _accepted(
            model.__call__, taps=taps, rngs=nnx.Rngs(default=key), **_mode(train)
        )
        wanted = {tap: paths[tap] for tap in taps if tap in paths}
        captured = {}
        if wanted:
            record = nnx.capture(
                model, nnx.Intermediate, method_outputs=nnx.Intermediate
            )
            result, calls = record(inputs, **arguments)
            outputs = dict(nnx.to_flat_state(calls))
            for tap, path in wanted.items():
                call = outputs.get((*modules[path], "__call__"))
                value = () if call is None else call.get_value()
                captured[tap] = _captured(value, tap, path)
        else:
            result = model(inputs, **arguments)
        outputs = _outputs(result, captured, taps)
        return outputs, {**variables, "stats": _kept(model, variables["stats"])}

    return Network(init, apply, valid, axes=nnx_axes(abstract))


def _kept(model: nnx.Module, stats: dict) -> dict:
    """Return the state that was there before, without what a capture has added."""
    flat = flatten_dict(split_module(model)[1])
    return unflatten_dict({path: flat[path] for path in flatten_dict(stats)})


def linen_network(
    module: Any, example: Inputs, taps: Mapping[str, str] | None
) -> Network:
    """Make `Network.from_linen`'s network."""
    paths = dict(taps or {})
    valid = (*getattr(module, "taps", ()), *paths)

    def start(key: PRNGKeyArray) -> dict[str, PyTree]:
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
        arguments = _accepted(module.__call__, **_mode(train=False))
        with use_abstract_mesh(AbstractMesh((), ())):  # `Network.axes` places weights.
            keys = {"params": key, "dropout": key}
            return dict(module.init(keys, inputs, **arguments))

    def init(key: PRNGKeyArray) -> Variables:
        stats = unboxed(start(key))
        return {"params": stats.pop("params", {}), "stats": stats}

    def apply(
        variables: Variables,
        inputs: Inputs,
        *,
        taps: tuple[str, ...] = (),
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        _check_taps(taps, valid)
        wanted = {tap: paths[tap] for tap in taps if tap in paths}
        arguments = _accepted(module.__call__, taps=taps, **_mode(train))
        result, changed = module.apply(
            {"params": variables["params"], **variables["stats"]},
            inputs,
            **arguments,
            rngs=None if key is None else {"dropout": key},
            mutable=[*variables["stats"], "intermediates"],
            capture_intermediates=lambda m, _: ".".join(m.path) in wanted.values(),
        )
        calls = flatten_dict(changed.get("intermediates", {}))
        captured = {
            tap: _captured(calls.get((*path.split("."), "__call__"), ()), tap, path)
            for tap, path in wanted.items()
        }
        stats = {name: changed[name] for name in variables["stats"]}
        return _outputs(result, captured, taps), {**variables, "stats": stats}

    if paths:
        modules = _linen_paths(module, example, start)
        for path in paths.values():
            if path not in modules:
                raise ValueError(unknown_name("submodule", path, modules))
    boxed = jax.eval_shape(start, jax.random.key(0))
    return Network(init, apply, valid, axes=linen_axes(boxed.get("params", {})))


def _linen_paths(module: linen.Module, example: Inputs, start: Callable) -> list[str]:
    """Return the paths of the submodules that run, from a forward of shapes only."""
    seen: dict[str, None] = {}

    def note(submodule: linen.Module, _: str) -> bool:
        seen.setdefault(".".join(submodule.path))
        return False

    def forward(inputs: Inputs) -> Any:
        arguments = _accepted(module.__call__, **_mode(train=False))
        return module.apply(
            start(jax.random.key(0)),
            inputs,
            **arguments,
            mutable=True,
            capture_intermediates=note,
        )

    jax.eval_shape(forward, example)
    return [path for path in seen if path]


def apply_network(
    init: Callable[[PRNGKeyArray], PyTree],
    apply: Callable[..., Any],
    valid: tuple[str, ...],
) -> Network:
    """Make `Network.from_apply`'s network."""

    def init_variables(key: PRNGKeyArray) -> Variables:
        return {"params": init(key), "stats": {}}

    def apply_variables(
        variables: Variables,
        inputs: Inputs,
        *,
        taps: tuple[str, ...] = (),
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        _check_taps(taps, valid)
        arguments = _accepted(apply, taps=taps, train=train, key=key)
        result = apply(variables["params"], inputs, **arguments)
        return _outputs(result, {}, taps), variables

    return Network(init_variables, apply_variables, valid)
