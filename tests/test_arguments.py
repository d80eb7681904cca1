"""Every public function refuses arguments of a wrong kind or out of range, by name."""

import importlib
import inspect
import math
import pkgutil
import re
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import jaxkd
from jaxkd.arguments import _options, checked, count, floating, own_check, positive

UNCHECKED = (
    "jaxkd.arguments",
    "jaxkd.checks",
    "jaxkd.cli",
    "jaxkd.adapters",
    "jaxkd.digests",
    "jaxkd.files",
    "jaxkd.interop.limits",
    "jaxkd.registry",
    "jaxkd.reporting",
    "jaxkd.shapes",
    "jaxkd.teachers.post",
    "jaxkd.training.saved",
    "jaxkd.untrusted",
)
"""What checks, or what users do not call themselves."""


def public() -> Iterator[tuple[str, Any]]:
    """Yield what the API reference has: every public function and class, by name."""
    for module in pkgutil.walk_packages(jaxkd.__path__, "jaxkd."):
        inside = module.name.count(".") > 2 and module.name.startswith("jaxkd.kernels.")
        if inside or module.name.startswith(UNCHECKED):
            continue
        for name, found in list(vars(importlib.import_module(module.name)).items()):
            own = getattr(found, "__module__", None) == module.name
            kind = inspect.isfunction(found) or inspect.isclass(found)
            if own and kind and not name.startswith("_") and not is_record(found):
                yield f"{module.name}.{name}", found


def is_record(found: Any) -> bool:
    """Return whether a class is no constructor: a state, a layer, a protocol."""
    return inspect.isclass(found) and (
        issubclass(found, tuple | nnx.Module | BaseException)
        or getattr(found, "_is_protocol", False)
        or hasattr(found, "_flax_dataclass")
    )


def is_data(hint: Any) -> bool:
    """Return whether an annotation is of arrays, whose shapes are checked elsewhere."""
    return (
        hasattr(hint, "dim_str")
        or hint in (Any, PyTree, jax.Array, np.ndarray, dict, Mapping[str, Any])
        or isinstance(hint, typing.TypeVar)
        or typing.get_origin(hint) is dict
        or is_record(hint)
    )


def wrong(hint: Any, doc: str) -> Iterator[Any]:
    """Yield values that an annotation and a parameter's documentation rule out."""
    options = _options(hint)
    origins = [typing.get_origin(x) for x in options]
    items = [y for x in options for y in typing.get_args(x)[:1]]
    is_list = any(inspect.isclass(x) and issubclass(x, Sequence) for x in origins)
    if int in options or float in options:
        yield from (math.nan, -1, math.inf)
        if re.search(r"in [\[(]0, 1[\])]", doc):
            yield 1.5
    if int in options and float not in options:
        yield 1.5
    if type(None) not in options:
        yield None
    if Literal in origins or not {str, Path} & set(options):
        yield "foo"
    if not is_list and {int, float, bool, str} & set(options):
        yield [object()]
    if is_list:
        yield object()
        if Any not in items and Hashable not in items:
            yield [object()]


def documentation(function: Any, name: str) -> str:
    """Return what a docstring says of a parameter."""
    text = inspect.getdoc(function) or ""
    found = re.search(rf"^    {name}: (.*?)(?=^    \w+:|^\S|\Z)", text, re.M | re.S)
    return found[1] if found else ""


def refused(function: Any, name: str, value: Any) -> bool:
    """Return whether an argument is refused by its name and value."""
    shown = [repr(value)[:40], repr(value[0])[:40] if isinstance(value, list) else ""]
    try:
        function(**{name: value})
    except (TypeError, ValueError) as error:
        text = str(error)
        named = re.search(rf"\b{name}\b", text)
        return bool(named) and any(x in text for x in shown if x)
    return False


def documented(made: Any, name: str, default: Any, value: Any) -> bool:
    """Return whether a number is one that the parameter's rule says may be."""
    if made.rules.get(name) is own_check:
        return True
    if not isinstance(value, int | float):
        return False
    if name in made.rules:
        return made.rules[name].holds(value)
    known = default if isinstance(default, int | float) else 1
    return (value == -1 and known < 0) or (value == math.inf == known)


def test_every_bad_argument_is_refused_by_name(unchecked_shapes):
    functions, parameters, tries, silent = 0, 0, 0, []
    for where, found in public():
        made = found.__init__ if inspect.isclass(found) else found
        function = inspect.unwrap(made)
        hints = typing.get_type_hints(function)
        signature = inspect.signature(function).parameters
        before = parameters
        for name, parameter in signature.items():
            hint = hints.get(name, Any)
            alone = parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            )
            if not alone or any(map(is_data, _options(hint))):
                continue
            values = list(wrong(hint, documentation(found, name)))
            parameters, tries = parameters + bool(values), tries + len(values)
            if values and not hasattr(made, "rules"):
                silent.append(f"{where} is not @checked")
                break
            silent += [
                f"{where}: {name}={value!r:.30}"
                for value in values
                if not documented(made, name, parameter.default, value)
                and not refused(found, name, value)
            ]
        functions += parameters > before
    print(f"{functions} functions, {parameters} parameters, {tries} tries")
    assert functions > 400
    assert not silent, f"{len(silent)} silent:\n" + "\n".join(silent)


@checked(number=count, temperature=positive, dtype=floating)
def example(
    number: int = 1,
    temperature: float = 1.0,
    names: Sequence[str] = (),
    kind: Literal["log", "linear"] = "log",
    weight: float | Callable[[int], float] = 1.0,
    scores: Mapping[str, float] | None = None,
    sizes: tuple[int, ...] = (1,),
    pair: tuple[int, int] = (1, 2),
    axis: int = -1,
    seed: int = 0,
    key: PRNGKeyArray | None = None,
    x: Float[Array, "a b"] | None = None,
    path: str | Path = "",
    dtype: Any = None,
):
    return temperature


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": 0}, "example: number must be at least 1, got 0"),
        ({"number": True}, "number must be an integer, got True"),
        ({"number": 2.0}, "number must be an integer, got 2.0"),
        ({"temperature": math.inf}, "temperature must be finite, got inf"),
        ({"temperature": jnp.float32(-1)}, "temperature must be above 0, got Array"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"names": "abc"}, "names must be a sequence, each a string, got 'abc'"),
        (
            {"names": ["a", 1]},
            r"names must be a sequence.*got \['a', 1\]",
        ),
        ({"kind": "lin"}, "unknown kind 'lin': did you mean 'linear'"),
        ({"kind": 1}, "kind must be one of 'log', 'linear', got 1"),
        ({"weight": -1}, "weight must be at least 0, got -1"),
        ({"weight": "x"}, "weight must be a number or a function, got 'x'"),
        ({"scores": {"a": math.nan}}, "scores must be a number.*, got nan in"),
        ({"sizes": (2, -1)}, r"sizes must be at least 0, got -1 in \(2, -1\)"),
        (
            {"pair": (1, 2, 3)},
            r"pair must be \(an integer, an integer\), got \(1, 2, 3",
        ),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"key": 0}, "key must be a key, from jax.random.key"),
        ({"x": "a"}, r"x must be an array \(a b\) or None, got 'a'"),
        ({"path": 3}, "path must be a string or a path, got 3"),
        ({"dtype": jnp.int32}, "dtype must be a floating-point dtype.*int32"),
    ],
)
def test_an_error_names_function_argument_and_value(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        example(**arguments)


def test_what_may_be_passes():
    assert example(3, np.float32(2), ["a"], "linear", lambda step: 0.5) == 2
    assert example(sizes=[1, 2], axis=-7, x=jnp.ones((2, 3)), key=jax.random.key(0))
    assert example(np.int64(3), x=np.ones((2, 1)), path=Path("a"), dtype=jnp.bfloat16)
    assert jax.jit(lambda t: example(temperature=t))(-1.0) == -1  # not known


def test_checking_takes_microseconds():
    import timeit

    seconds = timeit.timeit(lambda: example(3, 2.0, ("a",), "linear"), number=2000)
    assert seconds / 2000 < 1e-3
