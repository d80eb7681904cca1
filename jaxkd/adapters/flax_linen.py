"""Models of Flax Linen as pure functions."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh, use_abstract_mesh
from jaxtyping import PRNGKeyArray, PyTree

from jaxkd.adapters.calls import Adapted, arguments_of, check_names, collect, only_call
from jaxkd.adapters.steps import NO_EDITS, Edits
from jaxkd.checks import unknown_name
from jaxkd.sharding.flax_axes import linen_axes, unboxed
from jaxkd.types import Inputs, Outputs, Variables


def adapt_linen(module: Any, example: Any, taps: Mapping[str, str] | None) -> Adapted:
    """Return what `Network.from_linen`'s network is made of.

    Args:
        module: the model.
        example: its inputs, or their shapes.
        taps: tap name -> path of the submodule whose output it is.

    Raises:
        ValueError: it is no such module or no inputs, a path in ``taps`` names no
            submodule, or the model's call needs an argument that is not known.
    """
    if not isinstance(module, linen.Module):
        raise ValueError(
            f"module is {module!r:.80}, but must be a built flax.linen.Module, such as "
            "Model(…); Network.from_nnx takes NNX's"
        )
    if not all(hasattr(x, "dtype") for x in jax.tree.leaves(example)):
        raise ValueError(
            f"example is {example!r:.80}: give the inputs of a call, arrays or "
            "jax.ShapeDtypeStruct"
        )
    paths = dict(taps or {})
    own = tuple(getattr(module, "taps", ()))
    valid, editable = (*own, *paths), tuple(paths)
    arguments_of(module.__call__, False, taps=())

    def start(key: PRNGKeyArray) -> dict[str, PyTree]:
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
        arguments = arguments_of(module.__call__, False, taps=())
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
        edits: Edits = NO_EDITS,
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Variables]:
        check_names(taps, edits, valid, editable)
        watched = {
            tap: paths[tap] for tap in dict.fromkeys((*taps, *edits)) if tap in paths
        }
        by_path = {paths[tap]: edit for tap, edit in edits.items()}

        def edited(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            edit = by_path.get(".".join(context.module.path))
            if context.method_name != "__call__" or not isinstance(output, jax.Array):
                return output
            return output if edit is None else edit(output)

        inner = tuple(tap for tap in taps if tap not in paths)
        with linen.intercept_methods(edited):
            result, changed = module.apply(
                {"params": variables["params"], **variables["stats"]},
                inputs,
                **arguments_of(module.__call__, train, taps=inner),
                rngs=None if key is None else {"dropout": key},
                mutable=[*variables["stats"], "intermediates"],
                capture_intermediates=lambda m, _: ".".join(m.path) in watched.values(),
            )
        calls: Any = flatten_dict(changed.get("intermediates", {}))
        captured = {
            tap: only_call(calls.get((*path.split("."), "__call__"), ()), tap, path)
            for tap, path in watched.items()
        }
        stats = {name: changed[name] for name in variables["stats"]}
        return collect(result, captured, taps), {**variables, "stats": stats}

    if paths:
        modules = _linen_paths(module, example, start)
        for path in paths.values():
            if path not in modules:
                raise ValueError(unknown_name("submodule", path, modules))
    boxed = jax.eval_shape(start, jax.random.key(0))
    axes = linen_axes(boxed.get("params", {}))
    return Adapted(init, apply, valid, module=module, axes=axes)


def _linen_paths(module: linen.Module, example: Inputs, start: Callable) -> list[str]:
    """Return the paths of the submodules that run, from a forward of shapes only."""
    seen: dict[str, None] = {}

    def note(submodule: linen.Module, _: str) -> bool:
        seen.setdefault(".".join(submodule.path))
        return False

    def forward(inputs: Inputs) -> Any:
        return module.apply(
            start(jax.random.key(0)),
            inputs,
            **arguments_of(module.__call__, False, taps=()),
            mutable=True,
            capture_intermediates=note,
        )

    jax.eval_shape(forward, example)
    return [path for path in seen if path]
