"""No function computes with arrays whose axes or numbers are not those it names."""

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, Shaped

import jaxkd
from jaxkd.arguments import _options, checked

WALKED = "jaxkd.losses", "jaxkd.evaluation"
SIZES = {"batch": 4, "examples": 4, "classes": 5}
"""Of the axes; all others have 6."""


@checked()
def example(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    share: float | Float[Array, "*#batch"] = 0.5,
    pair: Integer[Array, "edges 2"] | None = None,
    mask: Shaped[Array, "..."] | None = None,
    key: PRNGKeyArray | None = None,
):
    if mask is not None:
        logits = logits + mask
    return jnp.sum(logits, -1)


Z, Y = jnp.ones((4, 5)), jnp.arange(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Z, Y[:, None]), r"labels has shape \(4, 1\), but must be \(batch\)"),
        ((Z, Y[:1]), "labels has shape .* with batch = 4"),
        ((Z, jnp.eye(5, dtype=int)[:4]), r"labels has shape \(4, 5\), but must be"),
        ((Z, Z[:, :1]), "labels has shape .* with batch = 4, classes = 5"),
        ((jnp.ones(()), Y), r"logits has shape \(\), but must be \(batch, classes\)"),
        ((Z.astype(complex), Y), "example: logits is complex64, .* real numbers"),
        ((Z, Y, 0.5, jnp.ones((3, 2))), "pair is float32, but must be integers"),
        ((Z, Y, 0.5, jnp.ones((3, 2), bool)), "pair is bool, but must be integers"),
        ((Z, Y, 0.5, jnp.ones((3, 3), int)), r"pair has shape \(3, 3\)"),
        ((Z, Y[:3], 0.5, None, jnp.ones((7, 7))), "labels has shape"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        example(*arguments)


def test_what_fits_passes(unchecked_shapes):
    for labels in (Y, Y.astype("u1"), np.asarray(Y), Z, jnp.ones((4, 5), "bfloat16")):
        assert example(Z, labels).shape == (4,)
    for share in (0.5, np.float32(0.5), jnp.ones(1), jnp.ones(4)):
        assert example(Z, Y, share).shape == (4,)
    batches = jnp.ones((2, 3, 5)), jnp.ones((2, 3), int)
    assert example(*batches, mask=jnp.ones((2, 3, 5))).shape == (2, 3)
    assert jax.vmap(example)(*batches).shape == (2, 3)
    assert jax.jit(example)(jnp.ones(5), jnp.ones((), int)).shape == ()
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert example(Z, Y, pair=jnp.ones((3, 2), int), key=key).shape == (4,)


def test_an_error_of_another_cause_stays(unchecked_shapes):
    with pytest.raises(ValueError, match="Incompatible shapes"):
        example(Z, Y, mask=jnp.ones(3))


def functions() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Yield every public function that takes arrays alone, and arrays that it takes."""
    rng = np.random.default_rng(0)
    for module in pkgutil.walk_packages(jaxkd.__path__, "jaxkd."):
        if not module.name.startswith(WALKED):
            continue
        for name, found in vars(importlib.import_module(module.name)).items():
            own = getattr(found, "__module__", None) == module.name
            if not own or name.startswith("_") or not hasattr(found, "rules"):
                continue
            if not inspect.isfunction(found):
                continue
            hints = typing.get_type_hints(inspect.unwrap(found))
            arguments = {}
            for argument, parameter in inspect.signature(found).parameters.items():
                if parameter.default is not inspect.Parameter.empty:
                    continue
                hint = _options(hints[argument])[0]
                if not hasattr(hint, "dim_str") or hint.dtypes == ("prng_key",):
                    break
                axes = (x.lstrip("*#") for x in hint.dim_str.split())
                shape = [SIZES.get(x, 6) for x in axes]
                kinds = hint.dtypes if isinstance(hint.dtypes, tuple) else ()
                kind = next((x for x in ("int32", "bool") if x in kinds), "float32")
                high = 1 if kind == "float32" else 3
                array = rng.uniform(0.1, high, shape).astype(kind)
                arguments[argument] = jnp.asarray(array)
            else:
                yield f"{module.name}.{name}", found, arguments


@pytest.mark.slow
def test_no_public_function_broadcasts_examples(unchecked_shapes):
    tried, silent = 0, []
    for where, function, arguments in functions():
        if len(arguments) < 2 or where.endswith("signal_step_coef"):
            continue
        try:
            function(**arguments)
        except ValueError:
            continue  # Of sizes that belong together otherwise, such as sub-classes.
        hints = typing.get_type_hints(inspect.unwrap(function))
        axes = [_options(hints[x])[0].dim_str.split()[:1] for x in arguments]
        for argument, first in zip(arguments, axes, strict=True):
            if axes.count(first) < 2 or first[0].startswith(("#", "*#")):
                continue
            array = arguments[argument]
            wider = "*" not in _options(hints[argument])[0].dim_str[1:]
            for wrong in (array[:1], array[0], *[array[:, None]] * wider):
                tried += 1
                try:
                    function(**{**arguments, argument: wrong})
                except ValueError as error:
                    named = rf"\b({'|'.join(arguments)})(_\w+)?\b"
                    if re.search(named, str(error)):
                        continue
                silent.append(f"{where}: {argument} of shape {wrong.shape}")
    print(f"{tried} tries")
    assert tried > 300
    assert not silent, "\n".join(silent)
