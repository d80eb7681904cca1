"""What arguments may be: a small vocabulary, and a decorator that checks all of them.

The annotation says of what kind an argument is, and `checked` refuses another. Of
numbers it refuses what is not finite or below 0, unless a `Rule` says otherwise or the
parameter's own default is negative or infinite. In a list, numbers must not be NaN, nor
integers negative. Arrays must have the axes that their annotations name, of one size
each; what a function itself says of shapes goes before, since it says what to do.

    @checked(temperature=positive, axis=integer)
    def loss(logits, temperature: float = 1.0, axis: int = -1): ...

    loss(logits, temperature=math.inf)
    # ValueError: loss: temperature must be finite, got inf

What is being traced passes: its value is not known.
"""

import difflib
import functools
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree, TypeCheckError

from jaxkd.shapes import check_axes

LOOKED_AT = 1000
"""Items of a list or dict whose kind is looked at: its functions read them all."""


class WrongKind(TypeError, ValueError):
    """An argument of a wrong kind; a ValueError too, as all bad arguments give."""


class Rule(NamedTuple):
    """What numbers an argument may be.

    Attributes:
        what: it must be, for the error.
        holds: whether a value is.
    """

    what: str
    holds: Callable[[Any], bool]


number = Rule("a number, or infinite", lambda x: not math.isnan(x))
finite = Rule("finite", math.isfinite)
non_negative = Rule("at least 0", lambda x: x >= 0)
positive = Rule("above 0", lambda x: x > 0)
probability = Rule("in [0, 1]", lambda x: 0 <= x <= 1)
fraction = Rule("in [0, 1)", lambda x: 0 <= x < 1)
positive_share = Rule("in (0, 1]", lambda x: 0 < x <= 1)
integer = Rule("an integer", math.isfinite)
natural = Rule("at least 0", lambda x: x >= 0)
count = Rule("at least 1", lambda x: x >= 1)
own_check = Rule("what the function itself says", lambda x: True)


def _is_floating(dtype: Any) -> bool:
    try:
        return bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))
    except TypeError:
        return False


floating = Rule("a floating-point dtype, such as jnp.bfloat16", _is_floating)


def unknown_name(kind: str, given: str, valid: Iterable[str]) -> str:
    """Return the message for a name that is not among the valid ones.

    Args:
        kind: what is named, such as ``"model"``.
        given: the name that was given.
        valid: the names that exist.
    """
    valid, given = list(valid), given[:100]
    message = f"unknown {kind} {given!r}"
    within = sorted((name for name in valid if given and given in name), key=len)
    close = difflib.get_close_matches(given, valid, n=5, cutoff=0.5)
    # Letters that changed places are likelier than others.
    close.sort(
        key=lambda name: (
            -difflib.SequenceMatcher(None, name, given).ratio(),
            sorted(name) != sorted(given),
        )
    )
    match = within or close
    message += f": did you mean {match[0]!r}?" if match else "."
    return f"{message} Valid: {', '.join(valid) or 'none'}"


def expression(name: str, pattern: str) -> re.Pattern[str]:
    """Return a regular expression that someone has given.

    Args:
        name: of the argument, for the message.
        pattern: the expression.

    Raises:
        ValueError: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{name} {pattern!r:.80} is no regular expression: {error}"
        ) from None


def checked[F: Callable](**rules: Rule) -> Callable[[F], F]:
    """Return a decorator that refuses bad arguments of a function, or of a class.

    Args:
        **rules: by parameter, where the kind's own rule is too strict or too wide.
    """

    def decorate(function: F) -> F:
        if inspect.isclass(function):
            made: Any = function
            made.__init__ = checked(**rules)(made.__init__)
            return typing.cast(F, made)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            names, checks, axes = _checks(call)
            given = [
                checks[name](value) if name in checks else value
                for name, value in zip(names, args, strict=False)
            ]
            for name, value in kwargs.items():
                if name in checks:
                    kwargs[name] = checks[name](value)
            arrays = dict(zip(names, given, strict=False)) | kwargs if axes else {}
            try:
                result = function(*given, *args[len(given) :], **kwargs)
            except Exception as error:
                if not _says_what_to_do(error, arrays):
                    check_axes(axes, arrays, error)
                raise
            check_axes(axes, arrays)
            return result

        marked: Any = call
        marked.rules = rules
        return typing.cast(F, marked)

    return decorate


def _says_what_to_do(error: Exception, given: Mapping[str, Any]) -> bool:
    """Return whether an error is this library's, and names an argument that was given.

    A sum within raises others, or a function that calls the argument something else.
    """
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    module = "" if where is None else where.tb_frame.f_globals.get("__name__", "")
    ours = isinstance(error, ValueError) and module.startswith("jaxkd.")
    names = "|".join(x for x, value in given.items() if value is not None)
    named = ours and re.search(rf"\b({names})(_\w+)?\b", str(error))
    return bool(named) or isinstance(error, TypeCheckError)


@functools.cache
def _checks(
    call: Any,
) -> tuple[list[str], dict[str, Callable[[Any], Any]], dict[str, tuple[Any, ...]]]:
    """Return a function's parameters by position, the check of each, and the arrays."""
    function = inspect.unwrap(call)
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # A name that is there for the type checker alone.
        hints = function.__annotations__
    names, checks, axes = [], {}, {}
    where = function.__qualname__.removesuffix(".__init__")
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is not parameter.KEYWORD_ONLY:
            names.append(name)
        hint, rule = hints.get(name, Any), call.rules.get(name)
        if rule is own_check:
            continue
        if hint is not Any or rule is not None:
            checks[name] = _check(f"{where}: {name}", hint, rule, parameter.default)
        if arrays := tuple(x for x in _options(hint) if hasattr(x, "dim_str")):
            axes[f"{where}: {name}"] = arrays
    return names, checks, axes


def _check(
    name: str, hint: Any, rule: Rule | None, default: Any
) -> Callable[[Any], Any]:
    """Return what refuses a value of another kind, or out of range, and returns others.

    An integer of NumPy or JAX becomes one of Python, where no array is meant.
    """
    options = _options(hint)
    whole = int in options and float not in options
    whole = whole and not any(hasattr(x, "dim_str") for x in options)
    own = rule or _own(options, default)
    plain = {x for x in (int, float, bool, str) if x in options}
    plain |= {int} & {int for x in plain if x is float}
    listed = any(
        x in (int, float)
        for option in options
        for part in get_args(option)
        for x in _options(part)
    )

    def check(value: Any) -> Any:
        if value is default or isinstance(value, Tracer):
            return value
        given: Any = value
        if type(value) not in plain and not any(_is(value, x) for x in options):
            _refuse_kind(name, options, value)
        if rule is floating and value is not None and not floating.holds(value):
            raise ValueError(f"{name} must be {floating.what}, got {_shown(value)}")
        if int in plain and _is_number(value):
            _refuse_number(name, own, value, _shown(value))
        if listed and isinstance(value, dict | list | tuple):
            for one in value.values() if isinstance(value, dict) else value:
                of = rule or (number if isinstance(one, float) else natural)
                if _is_number(one):
                    _refuse_number(name, of, one, f"{one!r} in {_shown(value)}")
        return int(given) if whole and _is(given, int) else given

    return check


def _refuse_number(name: str, rule: Rule, value: Any, shown: str) -> None:
    # Comparing a JAX array within a trace would give a tracer.
    value = value.item() if isinstance(value, jax.Array) else value
    if math.isinf(value) and rule is not number:
        raise ValueError(f"{name} must be finite, got {shown}")
    if not rule.holds(value):
        raise ValueError(f"{name} must be {rule.what}, got {shown}")


def _refuse_kind(name: str, options: tuple[Any, ...], value: Any) -> None:
    literals = [x for x in options if get_origin(x) is Literal]
    valid = [str(x) for literal in literals for x in get_args(literal)]
    if valid and isinstance(value, str):
        where, _, parameter = name.rpartition(": ")
        raise ValueError(f"{where}: {unknown_name(parameter, value, valid)}")
    raise WrongKind(f"{name} must be {_kind(options)}, got {_shown(value)}")


def _own(options: tuple[Any, ...], default: Any) -> Rule:
    """Return the rule of numbers that have none by name."""
    known = default if _is_number(default) else 1
    if float in options:
        return number if math.isinf(known) else finite if known < 0 else non_negative
    return integer if known < 0 else natural


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | np.bool_ | Tracer):
        return False
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.number)
    return isinstance(value, numbers.Real)


def _is_array(value: Any) -> bool:
    """Return whether something is numbers in an array, or becomes that.

    What is missing passes: a loss itself says which network's it needs.
    """
    if value is None:
        return True
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if hasattr(value, "dtype"):
        return kind not in ("O", "S", "U")
    return isinstance(value, numbers.Number | list | tuple)


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one annotation."""
    if isinstance(hint, typing.TypeAliasType):
        hint = hint.__value__
    union = get_origin(hint) in (Union, types.UnionType)
    return tuple(x for a in get_args(hint) for x in _options(a)) if union else (hint,)


def _matches(value: Any, hint: Any) -> bool:
    """Return whether a value is of the kind that an annotation says."""
    return isinstance(value, Tracer) or any(_is(value, x) for x in _options(hint))


def _is(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (None, types.NoneType):
        return value is None
    if origin is Literal:
        return any(value == x for x in inner) if isinstance(value, str | int) else False
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is int:
        whole = jnp.issubdtype(getattr(value, "dtype", np.float32), jnp.integer)
        return _is_number(value) and (isinstance(value, numbers.Integral) or whole)
    if hint is float:
        return _is_number(value)
    if hint is Path:
        return isinstance(value, Path | str)
    if hasattr(hint, "dim_str"):
        # A plain number is an array without axes, but never a random key.
        axes = [x for i, x in enumerate(hint.dims) if i != hint.index_variadic]
        plain = isinstance(value, numbers.Number) and not hasattr(value, "dtype")
        return _is_array(value) and not (plain and (axes or "prng_key" in hint.dtypes))
    if hint in (jax.Array, np.ndarray):
        return _is_array(value)
    if origin is not None and inspect.isclass(origin):
        return _is_of(value, origin, inner)
    if getattr(hint, "_is_protocol", False):
        # Not hasattr: it would compute properties.
        parts = hint.__protocol_attrs__
        return all(inspect.getattr_static(value, x, _is) is not _is for x in parts)
    if hint in (Any, PyTree) or not inspect.isclass(hint):
        return True
    return isinstance(value, hint)


def _is_of(value: Any, origin: type, inner: tuple[Any, ...]) -> bool:
    """Return whether a value is a list, a mapping, a function, … of its parts."""
    if issubclass(origin, Mapping):
        values = value.values() if isinstance(value, dict) else ()
        return isinstance(value, Mapping) and all(
            _matches(x, y) for x in islice(values, LOOKED_AT) for y in inner[1:]
        )
    if origin is Callable:
        return callable(value)
    if isinstance(value, str) and issubclass(origin, Container | Iterable):
        return False
    if not issubclass(origin, Iterable):
        return isinstance(value, origin)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        return False
    # An iterator is not to be used up, nor a lazy sequence read.
    if not isinstance(value, list | tuple):
        return not issubclass(origin, Sequence) or hasattr(value, "__len__")
    if origin is tuple and inner[-1:] != (...,):
        pairs = zip(value, inner, strict=False)
        return len(value) == len(inner) and all(_matches(x, y) for x, y in pairs)
    return all(_matches(x, y) for x in islice(value, LOOKED_AT) for y in inner[:1])


def _kind(options: Iterable[Any]) -> str:
    """Return what an annotation stands for, in words."""
    return " or ".join(dict.fromkeys(map(_word, options)))


def _word(hint: Any) -> str:
    words = {
        bool: "True or False",
        int: "an integer",
        float: "a number",
        str: "a string",
        Path: "a path",
        types.NoneType: "None",
        jax.Array: "an array",
        np.ndarray: "an array",
        Callable: "a function",
    }
    origin, inner = get_origin(hint), get_args(hint)
    if hint in words:
        return words[hint]
    if "prng_key" in getattr(hint, "dtypes", ()):
        return "a key, from jax.random.key"
    if hasattr(hint, "dim_str"):
        return f"an array ({hint.dim_str or 'scalar'})"
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is Callable:
        return "a function"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "a dict"
    if origin is tuple and inner[-1:] != (...,):
        return f"({', '.join(_kind(_options(x)) for x in inner)})"
    if origin is not None and inner:
        return f"a sequence, each {_kind(_options(inner[0]))}"
    return f"a {getattr(hint, '__name__', hint)}"


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
